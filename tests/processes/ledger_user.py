"""Processes that write calls down or read them; run by test_ledger_processes.

python -m tests.processes.ledger_user write DIRECTORY NAME
python -m tests.processes.ledger_user fold DIRECTORY
python -m tests.processes.ledger_user full DIRECTORY
"""

from __future__ import annotations

import itertools
import resource
import signal
import sys
from pathlib import Path

from qwen_wsgi.accounting.books import Books, journal_in
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.state.call_journal import JournalWriter
from qwen_wsgi.state.database.calls import line_of
from tests.kit.call_rows import call


def write(directory: Path, name: str) -> None:
    """Write calls without end; print the id of each once it is written."""
    # Small files, so that many are left and removed.
    writer = JournalWriter(directory / "ledger", max_bytes=20_000)
    for number in itertools.count():
        id = f"{name}-{number}"
        writer.append(line_of(call(request_id=id)))
        print(id, flush=True)


def fold(directory: Path) -> None:
    """Bring calls into the table without end."""
    books = Books(directory, SystemClock(), days=100_000)
    print("begun", flush=True)
    while True:
        books.maintain()


def full(directory: Path) -> None:
    """Write to a file that may not grow beyond some bytes, then to one that may."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    writer = journal_in(directory, SystemClock())
    for number in range(30):
        writer.append(line_of(call(request_id=f"full-{number}")))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    writer.flush()
    writer.append(line_of(call(request_id="full-30")))
    writer.close()


if __name__ == "__main__":
    {"write": write, "fold": fold, "full": full}[sys.argv[1]](
        Path(sys.argv[2]),
        *sys.argv[3:],  # type: ignore[operator]  # of its own signature
    )
