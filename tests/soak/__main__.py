"""`python -m tests.soak`."""

from __future__ import annotations

import sys

from tests.soak.run import main

sys.exit(main())
