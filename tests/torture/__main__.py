"""`python -m tests.torture`."""

from __future__ import annotations

import sys

from tests.torture.run import main

sys.exit(main())
