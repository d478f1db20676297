"""Rows of the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen_wsgi.state.database.calls import CallRow, row_of
from tests.fakes.clock import NOON_S

#: Seconds.
DAY = 86_400.0

PLAIN = CallRow(
    at=NOON_S,
    client_id="one",
    client="One",
    account="dashscope",
    model="qwen3.8-max",
    endpoint="/v1/chat/completions",
    status=200,
    outcome="complete",
    error="",
    attempts=1,
    input_tokens=100,
    cached_tokens=40,
    cache_written_tokens=None,
    output_tokens=10,
    reasoning_tokens=4,
    units=None,
    unknown_usage=0,
    queue_ms=0.0,
    connect_ms=0.5,
    first_byte_ms=12.5,
    longest_gap_ms=3.0,
    total_ms=40.0,
    stream=1,
    request_id="req_1",
    money_micro=200,
    saved_micro=50,
    currency="USD",
)


def call(**other: Any) -> CallRow:
    """The usual call, but for these members."""
    return PLAIN._replace(**other)


def rows(directory: Path) -> list[CallRow]:
    """What is in the journals of a state directory."""
    found = []
    for file in sorted((directory / "ledger").glob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            row = row_of(line)
            assert row is not None
            found.append(row)
    return found
