"""The console in Chromium, behind nginx with the shipped site, with two workers."""

from __future__ import annotations

import http.client
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

import openai
import pytest

from qwen_wsgi import settings as settings_module
from qwen_wsgi.cli.keys import console_link
from qwen_wsgi.console.pages import PAGES
from qwen_wsgi.sandbox import Sandbox
from tests.kit import servers
from tests.kit.browser import Tab, browsing, chromium
from tests.kit.log_files import note_log_file
from tests.kit.proxy import UPSTREAM_KEY, Proxy, start
from tests.kit.secrets import secret

pytestmark = [
    pytest.mark.server,
    pytest.mark.once,
    pytest.mark.skipif(not chromium(), reason="Chromium is not installed (apt: chromium)"),
    pytest.mark.skipif(not servers.nginx(), reason="nginx is not installed (apt: nginx-light)"),
]

ADMIN: Final = secret("admin-in-browser")
#: A page with all that it loads.
MOST_BYTES: Final = 100_000
#: Where pictures of the pages are kept, if that is wanted.
PICTURES: Final = os.environ.get("QWEN_PROXY_TEST_PICTURES", "")


class Console(NamedTuple):
    """A server behind nginx."""

    proxy: Proxy
    origin: str

    def link(self) -> str:
        """A one-time link, as the command makes it."""
        out = io.StringIO()
        settings = settings_module.load(
            {"HOME": str(self.proxy.home), "PORT": str(self.proxy.port), "PATH": "/usr/bin"}
        )
        console_link.run(settings, url=self.origin, json_output=False, out=out, err=io.StringIO())
        return out.getvalue().split("\n")[2].strip()


@pytest.fixture(scope="module")
def console(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    proxy = start(
        tmp_path_factory.mktemp("console"),
        {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_ADMIN_KEYS": ADMIN,
            "QWEN_PROXY_WORKERS": "2",
        },
    )
    try:
        with (
            tempfile.TemporaryDirectory(prefix="qp") as directory,
            servers.start_nginx(Path(directory), proxy.port) as server,
        ):
            yield Console(proxy, f"http://127.0.0.1:{server.address}")
            note_log_file(server.log)
            note_log_file(Path(directory) / "qwen-proxy.access.log")
    finally:
        proxy.stop()


@pytest.fixture(scope="module")
def new_tab() -> Iterator[Callable[[], Tab]]:
    with browsing() as made:
        yield made


@pytest.fixture
def tab(new_tab: Callable[[], Tab], console: Console) -> Iterator[Tab]:
    """A tab, which at its end has loaded nothing from elsewhere, and nothing that is forbidden."""
    made = new_tab()
    yield made
    assert made.misdeeds(console.origin) == []


@pytest.fixture
def admin(tab: Tab, console: Console) -> Tab:
    """A tab that is signed in."""
    tab.open(console.origin + "/console")
    tab.fill("#key", ADMIN)
    tab.follow("form button")
    assert tab.path() == "/console"
    return tab


def test_a_link_signs_in_once_and_leaves_no_secret(
    tab: Tab, console: Console, new_tab: Callable[[], Tab]
) -> None:
    link = console.link()
    tab.open(link)
    assert tab.path() == "/console/link"
    assert tab.run("history.length") <= 2
    tab.follow("#link-form button")
    assert tab.path() == "/console"
    assert "signed in as console" in tab.text()
    assert tab.run("document.cookie") == ""

    second = new_tab()
    second.open(link)
    second.follow("#link-form button")
    assert "was used already" in second.text()
    seen = link.rpartition("#")[2]
    assert not any(seen in each for each in tab.requests)
    assert seen not in console.proxy.log.read_text()


def test_without_scripts_a_link_is_pasted(tab: Tab, console: Console) -> None:
    link = console.link()
    tab.scripts(False)
    tab.open(link)
    tab.scripts(True)  # of the test alone: the page has loaded without
    tab.fill("#code", link)
    tab.follow("#link-form button")
    assert tab.path() == "/console"


def test_behind_tls_the_cookie_is_of_this_host_alone(console: Console) -> None:
    """What a proxy in front says of TLS, as nginx does; a stranger's word is nothing."""
    with closing(http.client.HTTPConnection("127.0.0.1", console.proxy.port)) as client:
        headers = {
            "Host": "qwen.lan",
            "Origin": "https://qwen.lan",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-For": "192.168.1.9",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        client.request("POST", "/console/sign-in", f"key={ADMIN}", headers)
        answer = client.getresponse()
        answer.read()
        cookie = str(answer.headers["Set-Cookie"])
        assert answer.status == 303
        assert cookie.startswith("__Host-qwen-proxy-console=")
        assert "Secure" in cookie
        headers |= {"X-Forwarded-Proto": "http"}
        client.request("POST", "/console/sign-in", f"key={ADMIN}", headers)
        answer = client.getresponse()
        assert answer.status == 403
        assert b"X-Forwarded-Proto" in answer.read()


def test_signing_out_ends_it(admin: Tab, console: Console) -> None:
    admin.follow(".who button")
    admin.open(console.origin + "/console")
    assert "Key of an admin" in admin.text()


def test_a_key_is_added_used_and_revoked(admin: Tab, console: Console) -> None:
    admin.open(console.origin + "/console/keys")
    admin.fill("#f-name", "phone")
    admin.click("details summary")
    admin.fill("#f-rpm", "5")
    admin.follow("main form button")
    key = str(admin.run("document.querySelector('pre.secret').textContent"))
    for theme, width in (("light", 1280), ("dark", 360)):
        look(admin, "/console/key-made", theme, width)
    admin.click("pre.secret")  # nothing happens: only its button copies
    assert admin.run("document.querySelector('.copy:has(.secret) button').textContent") == "Copy"
    with openai.OpenAI(base_url=console.origin + "/v1", api_key=key, max_retries=0) as client:
        say = [{"role": "user", "content": "Hello"}]
        answer = client.chat.completions.create(model="qwen3.7-plus", messages=say)  # type: ignore[arg-type]  # of its many forms
        assert answer.choices[0].message.content

        admin.open(console.origin + "/console/keys")
        assert "1 of 5" in admin.text()
        assert key not in str(admin.run("document.documentElement.outerHTML"))
        look(admin, "/console/keys-with-one", "dark", 1280)
        admin.follow("tbody a")
        for theme, width in (("light", 360), ("dark", 1280)):
            look(admin, "/console/key", theme, width)
        admin.click("form[action$=revoke] summary")
        admin.follow("form[action$=revoke] button")
        assert "was revoked" in admin.text()

        def refused() -> bool:
            try:
                client.models.list()
            except openai.AuthenticationError:
                return True
            return False

        servers.wait_until(refused, "the key is refused by both workers", within_s=5)


def test_texts_are_copied(admin: Tab, console: Console) -> None:
    admin.open(console.origin + "/console/clients#curl")
    admin.run("document.querySelector('#curl').open = true")
    admin.run("navigator.clipboard.writeText = async text => { window.kept = text; }")
    admin.click("#curl .copy button")
    admin.wait_for("document.querySelector('#curl .copy button').textContent === 'Copied'")
    assert admin.run("kept") == admin.run("document.querySelector('#curl pre').textContent")
    look(admin, "/console/clients-open", "light", 360)
    # As in a page without TLS, of another machine.
    admin.run("navigator.clipboard.writeText = async () => { throw new Error('refused'); }")
    admin.run("document.addEventListener('copy', () => { window.kept = String(getSelection()); })")
    admin.click("#curl .copy:last-of-type button")
    admin.wait_for("kept.startsWith('curl ')")


def test_doctor_answers(admin: Tab, console: Console) -> None:
    admin.open(console.origin + "/console/doctor")
    admin.follow("main form button")
    assert "All that was checked" in admin.text()
    for theme, width in (("light", 1280), ("dark", 360)):
        look(admin, "/console/doctor-done", theme, width)


def look(tab: Tab, name: str, theme: str, width: int) -> None:
    """Check a page that is open."""
    tab.theme(theme)
    tab.size(width)
    assert tab.overflow() <= 0
    keep(tab, name, theme, width)
    assert tab.flaws() == []


@pytest.mark.parametrize("path", [page.path for page in PAGES])
def test_a_page_fits_is_light_and_can_be_used(admin: Tab, console: Console, path: str) -> None:
    for theme in ("light", "dark"):
        admin.theme(theme)
        for width in (360, 1280):
            admin.size(width)
            admin.open(console.origin + path)
            assert admin.overflow() <= 0, f"{theme} {width}"
            keep(admin, path, theme, width)
            if (theme, width) in (("light", 1280), ("dark", 360)):
                assert admin.flaws() == [], f"{theme} {width}"


@pytest.mark.parametrize("path", [page.path for page in PAGES])
def test_a_page_is_small(admin: Tab, console: Console, path: str) -> None:
    admin.send("Network.clearBrowserCache")
    admin.received = 0
    admin.open(console.origin + path)
    admin.wait_for("document.readyState === 'complete'")

    assert 1_000 < admin.received < MOST_BYTES


def test_the_pages_to_sign_in_can_be_used(tab: Tab, console: Console) -> None:
    for theme in ("light", "dark"):
        tab.theme(theme)
        for path in ("/console/sign-in", "/console/link", "/console/nothing"):
            tab.size(360)
            tab.open(console.origin + path)
            assert tab.overflow() <= 0
            keep(tab, path, theme, 360)
            assert tab.flaws() == []


def keep(tab: Tab, path: str, theme: str, width: int) -> None:
    """Keep a picture of the page for whoever wants to look at it."""
    if PICTURES:
        name = path.strip("/").replace("/", "-")
        tab.picture(Path(PICTURES) / f"{name}-{theme}-{width}.png")
