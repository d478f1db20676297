"""The soak's upstream: the sandbox in a process of its own, with short keep-alives.

Prints its port, and serves until its standard input ends. Connections that nobody uses are closed
after a second or two, so that the proxy often finds a kept one closed, as it would at a gateway.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import Final

from qwen_wsgi.sandbox import Sandbox
from tests.kit import processes

#: How long the sandbox keeps an idle connection.
KEEP_ALIVE_S: Final = 1.5

#: Hundreds of threads: what they need is a tenth of this.
_STACK_BYTES: Final = 256 * 1024


def main() -> int:
    processes.raise_open_files_limit(16_384)
    threading.stack_size(_STACK_BYTES)
    # Ctrl-C is for the process that prints the table; its end is the end of our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Sandbox(keep_alive_s=KEEP_ALIVE_S) as sandbox:
        print(sandbox.origin.rpartition(":")[2], flush=True)
        sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
