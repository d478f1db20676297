"""A machine as a test wants it, and short ways to look at findings."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.doctor.machine import Machine, Ran, Room
from qwen_wsgi.net import Address

T = TypeVar("T")

#: 2026-11-21 12:00:00 UTC.
NOON_S = 1_795_262_400.0


class FakeMachine(Machine):
    """Nothing is there until a test puts it there; an exception in place of a value is raised."""

    def __init__(self, root: Path) -> None:
        super().__init__({}, root=root)
        self.at_s = NOON_S
        self.up_s = 3600.0
        self.users = {os.geteuid(): "server"}
        self.groups: dict[str, tuple[str, ...]] = {}
        self.denied: set[tuple[Path, int]] = set()
        self.left: Room | OSError = Room(10**10, 10**6)
        self.kind = "ext4"
        self.files = (1024, 524_288)
        self.programs: dict[str, Ran | Exception] = {}
        self.ran: list[list[str]] = []
        self.installed: dict[str, str] = {}
        self.addresses: tuple[str, ...] | OSError = ("192.0.2.1",)
        self.refuses: OSError | None = None
        self.connected: list[tuple[str, int]] = []
        self.certificate: float | Exception = NOON_S + 90 * 86_400
        self.health: tuple[int, bytes] | Exception = ConnectionRefusedError(111, "refused")

    def now(self) -> float:
        return self.at_s

    def boottime(self) -> float:
        return self.up_s

    def user(self, uid: int) -> str:
        return self.users.get(uid, f"user{uid}")

    def in_group(self, user: str, group: str) -> bool | None:
        return user in self.groups[group] if group in self.groups else None

    def may(self, path: Path, how: int) -> bool:
        return not any(path == denied and how & bits for denied, bits in self.denied)

    def room(self, path: Path) -> Room:
        return _value(self.left)

    def filesystem(self, path: Path) -> str:
        return self.kind

    def open_files(self) -> tuple[int, int]:
        return self.files

    def program(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.programs else None

    def run(self, command: list[str], *, timeout_s: float) -> Ran:
        self.ran.append(command)
        return _value(self.programs[command[0].rsplit("/", 1)[-1]])

    def installed_version(self, name: str) -> str | None:
        return self.installed.get(name)

    def resolve(self, host: str, port: int) -> tuple[str, ...]:
        return _value(self.addresses)

    def connect(self, host: str, port: int, *, timeout_s: float) -> None:
        self.connected.append((host, port))
        if self.refuses is not None:
            raise self.refuses

    def certificate_end(self, host: str, port: int, *, timeout_s: float) -> float:
        return _value(self.certificate)

    def get(self, address: Address, path: str, *, timeout_s: float) -> tuple[int, bytes]:
        return _value(self.health)


def _value(value: T | Exception) -> T:
    if isinstance(value, Exception):
        raise value
    return value


def levels(findings: Iterable[Finding]) -> dict[str, str]:
    """The worst level of each subject."""
    order = list(Level)
    found: dict[str, str] = {}
    for each in findings:
        before = found.get(each.subject)
        if before is None or order.index(each.level) > order.index(Level(before)):
            found[each.subject] = each.level.value
    return found


def one(findings: Iterable[Finding]) -> Finding:
    """The only one."""
    (found,) = findings
    return found


def of(findings: Iterable[Finding], level: Level) -> list[Finding]:
    """Those of a level."""
    return [each for each in findings if each.level is level]


def faults(findings: Iterable[Finding]) -> list[Finding]:
    """What is wrong; every such finding says what to do."""
    found = [each for each in findings if each.level in (Level.WARN, Level.FAIL)]
    for each in found:
        assert each.remedy, each
    return found
