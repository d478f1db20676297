"""The filter of system calls: what the kernel would make of it."""

from __future__ import annotations

import struct

import pytest

from qwen_wsgi.tool_runner.system_calls import DENIED, program

ALLOWED, REFUSED, KILLED = 0x7FFF0000, 0x00050001, 0x80000000
X86_64, AARCH64, I386 = 0xC000003E, 0xC00000B7, 0x40000003


def verdict(code: bytes, architecture: int, number: int) -> int:
    """Run a program of the kernel's filter (linux/filter.h) for one call."""
    steps = list(struct.iter_unpack("=HBBI", code))
    place, value = 0, 0
    while True:
        kind, if_true, if_false, k = steps[place]
        place += 1
        if kind == 0x20:  # load
            value = {0: number, 4: architecture}[k]
        elif kind == 0x06:  # return
            return int(k)
        else:
            holds = value == k if kind == 0x15 else value >= k
            place += if_true if holds else if_false


@pytest.mark.parametrize(
    ("machine", "architecture", "column"), [("x86_64", X86_64, 0), ("aarch64", AARCH64, 1)]
)
def test_the_calls_that_are_named_are_refused_and_no_others(
    machine: str, architecture: int, column: int
) -> None:
    code = program(machine)
    refused = {number for number in range(600) if verdict(code, architecture, number) == REFUSED}

    assert refused == {numbers[column] for numbers in DENIED.values()}
    assert {verdict(code, architecture, number) for number in range(600)} == {ALLOWED, REFUSED}


def test_no_other_way_leads_to_the_same_calls() -> None:
    code = program("x86_64")

    assert verdict(code, I386, 0) == KILLED
    assert verdict(code, X86_64, 0x40000000 + 250) == REFUSED


def test_a_machine_whose_numbers_are_not_known_has_no_filter() -> None:
    assert program("riscv64") == b""
