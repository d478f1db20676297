"""A home directory to put qwen-code's files into."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qwen_wsgi import settings
from qwen_wsgi.credentials.sources.discovery import Discovery
from tests.fakes.clock import FakeClock

NOWHERE = "http://127.0.0.1:9"


class Home:
    """A machine: a home directory, system settings, and an environment."""

    def __init__(self, root: Path, clock: FakeClock) -> None:
        self.root = root
        self.path = root / "home"
        self.qwen = self.path / ".qwen"
        self.qwen.mkdir(parents=True)
        self.clock = clock
        self.environ = {
            "HOME": str(self.path),
            "QWEN_CODE_SYSTEM_SETTINGS_PATH": str(root / "etc/settings.json"),
            # Nobody listens there: a test that wants renewals brings a sandbox.
            "QWEN_OAUTH_BASE_URL": NOWHERE,
        }

    def write(self, name: str, content: Any) -> Path:
        """Write a file as programs do that care: a new one, then a rename.

        Args:
            name: relative to the home directory.
            content: text, or an object for JSON.
        """
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        new = path.with_name(path.name + ".new")
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
        return path

    def settings(self, **content: Any) -> Path:
        return self.write(".qwen/settings.json", content)

    def openai(self, *entries: dict[str, Any], **more: Any) -> Path:
        """A settings.json with these entries under modelProviders.openai."""
        return self.settings(modelProviders={"openai": list(entries)}, **more)

    def login(self, **changes: Any) -> dict[str, Any]:
        """An oauth_creds.json that is valid for three hours, but for the changes."""
        content = self.login_document(**changes)
        self.write(".qwen/oauth_creds.json", content)
        return content

    def login_document(self, **changes: Any) -> dict[str, Any]:
        content = {
            "access_token": "access-0123456789-abcd",
            "token_type": "Bearer",
            "refresh_token": "refresh-0123456789-efgh",
            "resource_url": "portal.qwen.ai",
            "expiry_date": int((self.clock.now() + 3 * 3600) * 1000),
        }
        content.update(changes)
        return {name: value for name, value in content.items() if value is not None}

    def discovery(self, **environ: str) -> Discovery:
        return Discovery(settings.load({**self.environ, **environ}), self.clock)
