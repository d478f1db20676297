"""Processes of a test that use the same files; none of them outlives the test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kit.processes import REPOSITORY

Started = subprocess.Popen[str]


class Users:
    """Starts them.

    Args:
        module: what they run; it is given a word, the directory, and what else is wanted.
    """

    def __init__(self, module: str, directory: Path) -> None:
        self.directory = directory
        self._module = module
        self._processes: list[Started] = []

    def start(self, what: str, *args: object) -> Started:
        process = subprocess.Popen(
            [sys.executable, "-m", self._module, what, str(self.directory), *map(str, args)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()

    @classmethod
    @contextmanager
    def of(cls, module: str, directory: Path) -> Iterator[Users]:
        """Those of one test, which ends them."""
        users = cls(module, directory)
        try:
            yield users
        finally:
            users._end()
