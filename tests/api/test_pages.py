"""The pages for people: what they show to whom, and that nothing gets into them or out of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.api.openapi import document
from qwen_wsgi.clients.known import CLIENTS
from qwen_wsgi.sandbox import Sandbox
from tests.api.apps import UPSTREAM_KEY, App, running
from tests.kit.secrets import secret

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
KEY = secret("of-the-page")
ELSEWHERE = {"REMOTE_ADDR": "192.168.1.9"}


@pytest.fixture
def guarded(sandbox: Sandbox) -> Iterator[App]:
    """With a client key, so that others than this machine are served."""
    with running(
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        QWEN_PROXY_API_KEYS=KEY,
    ) as app:
        yield app


def page(app: App, path: str = "/", **options: Any) -> TestResponse:
    return app.get(path, **{"headers": {"Accept": BROWSER}, **options})


class Reader(HTMLParser):
    """The elements of a page, with their attributes; elements must be closed in their order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER, "text/html; charset=utf-8"),
        ("text/html", "text/html; charset=utf-8"),
        ("text/html;q=0.5, application/json;q=0.4", "text/html; charset=utf-8"),
        ("text/html;q=0.4, application/json;q=0.5", "application/json"),
        ("text/html;q=0, */*", "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        ("", "application/json"),
        ("nonsense", "application/json"),
    ],
)
def test_programs_get_json_and_browsers_a_page(app: App, accept: str, kind: str) -> None:
    response = app.get("/", headers={"Accept": accept} if accept else {})

    assert (response.status_code, response.content_type) == (200, kind)
    assert "Accept" in response.headers["vary"]


def test_this_machine_sees_everything(app: App) -> None:
    response = page(app)
    text = response.get_data(as_text=True)

    assert len(response.data) < 50_000
    assert UPSTREAM_KEY not in text
    assert "modelstudio" in text or "dashscope" in text
    assert "qwen3.7-plus" in text
    assert "<form" not in text
    for client in CLIENTS.values():
        assert f"<summary>{client.title}</summary>" in text
    for link in ("/console", "/docs", "/openapi.json"):
        assert f'href="{link}"' in text


def test_a_pause_is_counted_down(app: App, sandbox: Sandbox) -> None:
    app.chat(
        {
            "model": "qwen3.7-plus",
            "messages": [{"role": "user", "content": "[[sandbox: status=429, retry-after=90]]"}],
        }
    )
    text = page(app).get_data(as_text=True)

    (account,) = app.get("/health").get_json()["accounts"]
    assert account["models"][0]["left_alone_s"] > 80
    assert re.search(r'<time data-left="\d+">in \d+ (s|min)</time>', text)


def test_a_stranger_sees_recipes_and_a_form(guarded: App) -> None:
    response = page(guarded, environ_base=ELSEWHERE)
    text = response.get_data(as_text=True)

    assert response.status_code == 200
    assert "<summary>OpenAI Codex</summary>" in text
    assert "dashscope" not in text.lower().replace("dashscope_", "")
    assert "<h2>Models" not in text
    assert '<form method="post" action="/">' in text
    assert KEY not in text


def test_a_key_that_is_typed_shows_the_rest_and_stays_nowhere(guarded: App) -> None:
    response = guarded.client.post("/", data={"key": KEY}, environ_base=ELSEWHERE)
    text = response.get_data(as_text=True)

    assert response.status_code == 200
    assert "<h2>Accounts</h2>" in text and "<h2>Models" in text
    assert KEY not in text + str(response.headers) + guarded.log
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("key", ["sk-wrong", "ключ", "<script>", "a\r\nb: c"])
def test_a_wrong_key_is_told_in_the_page(guarded: App, key: str) -> None:
    response = guarded.client.post("/", data={"key": key}, environ_base=ELSEWHERE)
    text = response.get_data(as_text=True)

    assert response.status_code == 401
    assert 'role="alert"' in text
    assert "<h2>Models" not in text
    assert "<script>" not in text.replace('<script src="/pages/page.js" defer></script>', "")


def test_a_form_that_is_too_large_is_refused(guarded: App) -> None:
    response = guarded.client.post("/", data={"key": "x" * 5000}, environ_base=ELSEWHERE)

    assert response.status_code == 413
    assert "4096 bytes" in response.text and "QWEN_PROXY" not in response.text


def test_a_form_with_many_fields_is_refused(guarded: App) -> None:
    fields = {f"field{number}": "x" for number in range(11)}
    response = guarded.client.post("/", data=fields, environ_base=ELSEWHERE)

    assert response.status_code == 400


def test_a_web_token_that_is_not_taken_is_told_in_the_page(guarded: App) -> None:
    response = guarded.client.post(
        "/", data={"key": KEY}, headers={"X-Qwen-Token": "H4sI"}, environ_base=ELSEWHERE
    )

    assert (response.status_code, response.mimetype) == (403, "text/html")
    assert 'role="alert"' in response.text


@pytest.mark.parametrize(
    ("host", "scheme", "shown"),
    [
        ("box.lan:8080", "http", "http://box.lan:8080"),
        ("qwen.lan", "https", "https://qwen.lan"),
        ("[fd00::5]:8080", "http", "http://[fd00::5]:8080"),
        ('x"><script>alert(1)</script>', "http", "http://127.0.0.1:8080"),
        ("user@evil.example", "http", "http://127.0.0.1:8080"),
        ("$(reboot)", "http", "http://127.0.0.1:8080"),
    ],
)
def test_recipes_have_the_address_of_the_browser(
    guarded: App, host: str, scheme: str, shown: str
) -> None:
    text = page(
        guarded,
        environ_overrides={"HTTP_HOST": host, "wsgi.url_scheme": scheme, **ELSEWHERE},
    ).get_data(as_text=True)

    assert f"The address of this server is <code>{shown}</code>" in text
    assert f"{shown}/v1" in text
    assert "alert(1)" not in text and "reboot" not in text


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_loads_nothing_from_elsewhere_and_has_no_inline_code(app: App, path: str) -> None:
    response = page(app, path)
    policy = response.headers["content-security-policy"]

    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    for name, attributes in Reader(response.get_data(as_text=True)).elements:
        assert name != "style"
        assert not {each for each in attributes if each.startswith("on")} | (
            {"style"} & attributes.keys()
        )
        for each in ("src", "href", "action"):
            assert (attributes.get(each) or "/").startswith(("/", "#"))
        if name == "script":
            assert attributes["src"] == "/pages/page.js"


def test_what_pages_are_made_of_is_there(app: App) -> None:
    text = page(app).get_data(as_text=True)
    for place in re.findall(r'"(/pages/[^"]+)"', text):
        response = app.get(place)
        assert response.status_code == 200
        assert response.data
    assert app.get("/pages/none.css").status_code == 404
    assert app.get("/pages/..%2fstart.py").status_code == 404


def test_the_description_can_be_read(app: App) -> None:
    text = page(app, "/docs").get_data(as_text=True)

    for each in document.OPERATIONS:
        assert f"<code>{each.method} {each.path}</code>" in text
    assert "previous_response_not_found" in text
    named = {attributes.get("id") for _, attributes in Reader(text).elements}
    links = {attributes.get("href") or "" for _, attributes in Reader(text).elements}
    assert {link[1:] for link in links if link.startswith("#")} <= named


def test_without_keys_pages_of_other_sites_get_nothing(app: App) -> None:
    for path in ("/", "/docs", "/openapi.json", "/pages/page.js"):
        rebound = page(app, path, headers={"Accept": BROWSER, "Host": "evil.example"})
        assert rebound.status_code == 403
