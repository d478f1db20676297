"""`python -m qwen_wsgi.sandbox`: serve until SIGTERM, SIGINT or, as an option, the end of stdin."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence

from qwen_wsgi.sandbox.server import Sandbox

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sandbox as a program; return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        sandbox = Sandbox(host=options.host, port=options.port, chunk_interval_s=options.interval)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    # Blocked before any thread starts, so that only the sigwait below receives them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        sandbox.start()
    except OSError as error:
        print(f"cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"sandbox listening on {sandbox.origin}", flush=True)
    if options.exit_on_stdin_eof:
        threading.Thread(target=_signal_at_eof, name="stdin", daemon=True).start()
    signal.sigwait(_SIGNALS)
    sandbox.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qwen_wsgi.sandbox", description=__doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="loopback address (default %(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port; 0, the default, lets the system choose"
    )
    parser.add_argument(
        "--interval", type=float, default=0.0, metavar="SECONDS", help="pause between events"
    )
    parser.add_argument(
        "--exit-on-stdin-eof", action="store_true", help="end when the parent process ends"
    )
    return parser


def _signal_at_eof() -> None:
    """Read stdin to its end, then stop the main thread."""
    # The descriptor, not sys.stdin: a buffered reader must not be locked by a thread when the
    # process ends.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
