"""A browser of the tests of pages: it keeps cookies, and says which page sends a form."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from werkzeug.test import TestResponse

from qwen_wsgi.access.budget import limits_of
from tests.api.apps import App, running
from tests.fakes.clock import FakeClock
from tests.kit.secrets import secret

ADMIN: Final = secret("admin-of-console")
ORDINARY: Final = secret("ordinary-of-console")
ORIGIN: Final = "http://localhost"
#: Of a machine of the LAN, as nginx tells it.
FROM_LAN: Final = {"X-Forwarded-For": "192.168.1.20"}
BY_TLS: Final = {"X-Forwarded-Proto": "https"}


class Browser:
    """What a person does in a browser.

    Args:
        headers: sent with each request.
    """

    def __init__(self, app: App, headers: Mapping[str, str] | None = None) -> None:
        self.app = app
        self.headers = dict(headers or {})

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.app.client.get(path, headers={**self.headers, **headers})

    def send(
        self, path: str, headers: Mapping[str, str] | None = None, **form: Any
    ) -> TestResponse:
        """Send a form as it is."""
        sent = {
            "Origin": ORIGIN,
            "Sec-Fetch-Site": "same-origin",
            **self.headers,
            **(headers or {}),
        }
        return self.app.client.post(path, data=form, headers=sent)

    def change(self, path: str, page: str = "/console/sessions", **form: Any) -> TestResponse:
        """Send a form with the token of a page."""
        return self.send(path, csrf=token_in(self.get(page)), **form)

    def sign_in(self, key: str = ADMIN) -> TestResponse:
        return self.send("/console/sign-in", key=key)

    def open_link(self) -> TestResponse:
        """Use a link that the operator has made."""
        return self.send("/console/link", code=self.app.services.console_sessions.add_link())


@contextmanager
def console(
    clock: FakeClock | None = None, *, state_dir: Path | None = None, **environ: Any
) -> Iterator[Browser]:
    """A browser, and the application with a key of an admin and one of a client."""
    defaults = {
        "QWEN_PROXY_API_KEYS": ORDINARY,
        "QWEN_PROXY_ADMIN_KEYS": ADMIN,
        "QWEN_UPSTREAM_BASE_URL": "http://127.0.0.1:9/v1",
    }
    with running(clock, limits_of=limits_of, state_dir=state_dir, **{**defaults, **environ}) as app:
        yield Browser(app)


def token_in(page: TestResponse) -> str:
    """The token against forged changes."""
    found = re.search(r'<meta name="csrf" content="([0-9a-f]+)">', page.text)
    assert found, page.text
    return found[1]


def words_of(page: TestResponse) -> str:
    """What a page says, without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.text)).split())
