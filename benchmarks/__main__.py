"""`python -m benchmarks` is `python -m benchmarks.gateway`."""

from __future__ import annotations

import sys

from benchmarks.gateway import main

sys.exit(main())
