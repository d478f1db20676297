"""Files of logins, as qwen-code writes them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


def write_login(path: Path, tokens: dict[str, Any], *, left_s: float) -> None:
    """What qwen-code would have written, and a key of somebody else's."""
    document = {
        "access_token": tokens["access_token"],
        "token_type": "Bearer",
        "refresh_token": tokens["refresh_token"],
        "resource_url": tokens["resource_url"],
        "expiry_date": int((time.time() + left_s) * 1000),
        "unknown": {"kept": True},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".made")
    aside.write_text(json.dumps(document, indent=2))
    aside.chmod(0o600)
    aside.rename(path)
