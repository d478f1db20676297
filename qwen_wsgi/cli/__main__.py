"""`python -m qwen_wsgi.cli`: the command, also where no script is installed."""

from __future__ import annotations

import sys

from qwen_wsgi.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
