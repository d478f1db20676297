"""The console's pages of calls, usage, chats and logins in Chromium, behind nginx."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from qwen_wsgi.accounting.books import journal_in
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.console.snippets import DIALECTS
from qwen_wsgi.console.usage.question import CHOICES
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.state.database.calls import line_of
from tests.kit import servers
from tests.kit.browser import Tab, browsing, chromium
from tests.kit.call_rows import call
from tests.kit.log_files import note_log_file
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, start
from tests.kit.raw_client import Exchange, chat, events
from tests.kit.secrets import secret

pytestmark = [
    pytest.mark.server,
    pytest.mark.once,
    pytest.mark.skipif(not chromium(), reason="Chromium is not installed (apt: chromium)"),
    pytest.mark.skipif(not servers.nginx(), reason="nginx is not installed (apt: nginx-light)"),
]

ADMIN: Final = secret("admin-on-pages")
ENDLESS: Final = "[[sandbox: chunks=999, interval=0.05]]"
#: What the promises say. Seconds.
SHOWN_S: Final = 2.0
CANCELLED_S: Final = 1.0
#: Beyond them: the browser is driven over a socket on a busy machine.
GRACE_S: Final = 1.0
PICTURES: Final = os.environ.get("QWEN_PROXY_TEST_PICTURES", "")
#: A picture of one pixel.
PIXEL: Final = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154"
    "08d763f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


class Console(NamedTuple):
    """A server behind nginx."""

    proxy: Proxy
    origin: str
    port: int

    def send(self, id: str, text: str = "Say hello", **more: Any) -> Exchange:
        """A client's call, by way of nginx."""
        return Exchange(self.port, chat(text, **more), key=CLIENT_KEY, headers={"X-Request-Id": id})


@pytest.fixture(scope="module")
def console(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    upstream.reset()
    proxy = start(
        tmp_path_factory.mktemp("pages"),
        {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_OAUTH_BASE_URL": upstream.origin,
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
            "QWEN_PROXY_ADMIN_KEYS": ADMIN,
            "QWEN_PROXY_WORKERS": "2",
        },
    )
    try:
        with (
            tempfile.TemporaryDirectory(prefix="qp") as directory,
            servers.start_nginx(Path(directory), proxy.port) as server,
        ):
            yield Console(proxy, f"http://127.0.0.1:{server.address}", int(str(server.address)))
            note_log_file(server.log)
    finally:
        proxy.stop()


@pytest.fixture(scope="module")
def new_tab() -> Iterator[Callable[[], Tab]]:
    with browsing() as made:
        yield made


@pytest.fixture
def admin(new_tab: Callable[[], Tab], console: Console) -> Iterator[Tab]:
    """A tab that is signed in; it may not load anything from elsewhere, or that is forbidden."""
    tab = new_tab()
    tab.open(console.origin + "/console")
    tab.fill("#key", ADMIN)
    tab.follow("form button")
    yield tab
    tab.open("about:blank")
    assert tab.misdeeds(console.origin) == []


def keep(tab: Tab, name: str) -> None:
    """Keep pictures of the page, in both widths and themes, for whoever wants to look at it."""
    for theme in ("light", "dark"):
        tab.theme(theme)
        time.sleep(0.3)  # the theme comes with the next frames
        for width in (360, 1280):
            tab.size(width)
            assert tab.overflow() <= 0, (name, theme, width)
            if PICTURES:
                time.sleep(0.1)
                tab.picture(Path(PICTURES) / f"{name}-{theme}-{width}.png")
        assert tab.flaws() == [], (name, theme)


# --- live ----------------------------------------------------------------------------------------


def test_a_call_appears_and_is_cancelled(admin: Tab, console: Console, sandbox: Sandbox) -> None:
    admin.open(console.origin + "/console/live")
    admin.wait_for("document.getElementById('live-state').textContent === 'live'")
    with ExitStack() as open_ones:
        exchange = open_ones.enter_context(console.send("watched", ENDLESS, stream=True))
        exchange.read_until(b"data:")
        admin.wait_for("!!document.querySelector('#live tr')", within_s=SHOWN_S + GRACE_S)
        assert "env-1" in admin.text()
        admin.wait_for("/≈ \\d/.test(document.getElementById('live').innerText)")
        keep(admin, "live-one")

        began = time.monotonic()
        admin.click("#live button")
        exchange.read_to_end()
        assert time.monotonic() - began < CANCELLED_S + GRACE_S
        error = events(b"".join(exchange.chunks()))[-1]["error"]
        assert "env-admin-1" in error["message"]
        assert sandbox.wait_until(
            lambda: all(each.outcome != "open" for each in sandbox.requests), CANCELLED_S
        )
    admin.wait_for(
        "document.getElementById('ended').innerText.includes('call_cancelled')",
        within_s=SHOWN_S + GRACE_S,
    )
    assert "The call has ended" in admin.text()
    admin.follow("#ended a")
    assert "An admin ended the call" in admin.text()
    assert "wait for the first byte" in admin.text()
    keep(admin, "call")


def test_ended_calls_of_both_workers_appear_without_a_reload(admin: Tab, console: Console) -> None:
    admin.open(console.origin + "/console/live")
    admin.wait_for("document.getElementById('live-state').textContent === 'live'")
    before = admin.run("document.querySelectorAll('#ended tr').length")
    loaded = len(admin.requests)
    for number in range(8):
        with console.send(f"many-{number}") as exchange:
            assert exchange.head()[0] == 200
            exchange.body()
    rows = "document.querySelectorAll('#ended tr').length"
    admin.wait_for(f"{rows} === {before + 8}", within_s=SHOWN_S + GRACE_S)
    time.sleep(1.2)
    assert admin.run(rows) == before + 8
    assert len(admin.requests) == loaded
    admin.open(console.origin + "/console/live")
    assert admin.run(rows) == before + 8


def test_without_scripts_calls_are_read_and_cancelled(admin: Tab, console: Console) -> None:
    with console.send("plain", ENDLESS, stream=True) as exchange:
        exchange.read_until(b"data:")
        admin.scripts(False)
        admin.open(console.origin + "/console/live")
        admin.scripts(True)  # of the test alone: the page has loaded without
        assert "env-1" in admin.run("document.getElementById('live').innerText")
        admin.follow("#live button")
        exchange.read_to_end()
        assert "call_cancelled" in b"".join(exchange.chunks()).decode()


def test_a_page_ends_with_its_session(admin: Tab, console: Console) -> None:
    admin.open(console.origin + "/console/live")
    admin.wait_for("document.getElementById('live-state').textContent === 'live'")
    admin.run(
        "fetch('/console/sign-out', {method: 'POST', headers:"
        " {'x-csrf-token': document.querySelector('meta[name=csrf]').content}})"
    )
    admin.wait_for(
        "document.getElementById('live-state').textContent.includes('session has ended')",
        within_s=5 + GRACE_S,
    )


# --- usage ---------------------------------------------------------------------------------------


def fetched(tab: Tab, path: str) -> str:
    return str(tab.run(f"fetch({json.dumps(path)}).then(answer => answer.text())"))


def test_charts_equal_the_calls(admin: Tab, console: Console) -> None:
    with console.send("counted") as exchange:
        exchange.body()
    with console.send("failed", "[[sandbox: status=400]]") as exchange:
        exchange.body()
    for by in CHOICES:
        compare(admin, console, by)


def compare(admin: Tab, console: Console, by: str) -> None:
    ledger = json.loads(
        admin.run(
            f"fetch('/admin/v1/usage?by={by}&since=2d', {{headers: {{authorization:"
            f" 'Bearer {ADMIN}'}}}}).then(answer => answer.text())"
        )
    )["rows"]

    admin.open(f"{console.origin}/console/usage?by={by}")
    read = csv.DictReader(io.StringIO(fetched(admin, f"/console/usage/calls.csv?by={by}")))
    told = {row[by]: int(row["calls"]) for row in read if int(row["calls"])}

    known: dict[str, int] = {}
    for row in ledger:
        known[row["key"]] = known.get(row["key"], 0) + row["calls"]
    assert told == {key: count for key, count in known.items() if count}
    drawn = admin.run(
        "[...document.querySelectorAll('section:first-of-type path[class^=s]')]"
        ".filter(path => path.closest('.chart')).map(path => path.getAttribute('d'))"
    )
    assert drawn
    shown = admin.run("document.querySelector('section .chart').getAttribute('aria-label')")
    assert shown.startswith(f"Calls by {by}")
    if by == "client":
        keep(admin, f"usage-{by}")


def test_a_usage_page_is_small_with_many_days(admin: Tab, console: Console) -> None:
    admin.send("Network.clearBrowserCache")
    for question in ("by=day&last=60d", "by=hour&last=48h"):
        admin.received = 0
        admin.open(f"{console.origin}/console/usage?{question}")
        admin.wait_for("document.readyState === 'complete'")
        assert 1_000 < admin.received < 100_000


# --- try -----------------------------------------------------------------------------------------


def ready(tab: Tab, console: Console, dialect: str) -> None:
    tab.open(console.origin + "/console/try")
    tab.fill("#dialect", dialect)
    tab.fill("#model", "qwen3.7-plus")


def ask(tab: Tab, text: str) -> None:
    answers = "document.querySelectorAll('.turn.model').length"
    before = tab.run(answers)
    tab.fill("#text", text)
    tab.run("document.getElementById('try').requestSubmit()")
    tab.wait_for(f"{answers} > {before} && !document.getElementById('send').disabled")


def last_answer(tab: Tab) -> str:
    return str(tab.run("[...document.querySelectorAll('.turn.model')].at(-1).textContent"))


def test_a_chat_streams_in_every_dialect(admin: Tab, console: Console) -> None:
    for dialect in DIALECTS:
        chat_streams(admin, console, dialect)


def chat_streams(admin: Tab, console: Console, dialect: str) -> None:
    ready(admin, console, dialect)
    admin.fill("#text", "[[sandbox: chunks=30, interval=0.05]] Tell me something")
    admin.run("document.getElementById('try').requestSubmit()")
    growing = admin.wait_for(
        "(() => { const text = document.querySelector('.turn.model')?.textContent;"
        " return text && text.length > 5 && document.getElementById('send').disabled && text })()"
    )
    admin.wait_for("!document.getElementById('send').disabled")
    whole = last_answer(admin)
    assert len(whole) > len(growing)
    assert admin.run("document.querySelectorAll('.turn.bad').length") == 0
    facts = admin.wait_for("document.getElementById('facts-body').innerText")
    assert "wait for the first byte" in facts
    assert "tokens in / out" in facts
    curl = admin.wait_for("document.getElementById('curl').textContent")
    assert f"{console.origin}/v1/" in curl


def test_a_chat_is_in_the_ledger_under_its_person(admin: Tab, console: Console) -> None:
    ready(admin, console, "chat")
    ask(admin, "Hello")
    assert last_answer(admin)
    admin.open(console.origin + "/console/live")
    first = admin.run("document.querySelector('#ended tr').innerText")
    assert "env-admin-1" in first
    assert "qwen3.7-plus" in first


@pytest.mark.parametrize(
    ("dialect", "stream"),
    [("chat", True), ("responses", True), ("messages", True), ("responses", False)],
)
def test_thinking_is_folded_and_a_tool_is_called(
    admin: Tab, console: Console, dialect: str, stream: bool
) -> None:
    ready(admin, console, dialect)
    admin.click("#think")
    admin.click("#tool")
    if not stream:
        admin.click("#stream")
    ask(admin, "[[sandbox: tools=1]] What is the weather in Berlin?")
    assert "get_weather(" in last_answer(admin), admin.text()
    admin.run("document.querySelector('.talk form.turn').requestSubmit()")
    admin.wait_for(
        "document.querySelectorAll('.turn.model').length === 2"
        " && !document.getElementById('send').disabled"
    )
    assert admin.run("document.querySelectorAll('.turn.bad').length") == 0, admin.text()
    if dialect == "chat" and stream:
        keep(admin, "try-tool")
    assert "Thinking" in admin.run("document.getElementById('talk').textContent")
    assert not admin.run("document.querySelector('details.thinking').open")


def test_a_picture_is_sent(admin: Tab, console: Console, tmp_path: Path, sandbox: Sandbox) -> None:
    picture = tmp_path / "pixel.png"
    picture.write_bytes(PIXEL)
    for dialect in ("chat", "responses", "messages"):
        ready(admin, console, dialect)
        admin.fill("#model", "qwen3-vl-plus")
        found = admin.send("Runtime.evaluate", expression="document.getElementById('picture')")
        admin.send(
            "DOM.setFileInputFiles",
            files=[str(picture)],
            objectId=found["result"]["objectId"],
        )
        ask(admin, "What is it?")
        assert admin.run("document.querySelectorAll('.turn.bad').length") == 0, admin.text()
        body = (sandbox.requests[-1].body or b"").decode()
        assert "data:image/png;base64,iVBOR" in body


def test_a_failure_is_told_in_words(admin: Tab, console: Console) -> None:
    for dialect in ("chat", "messages"):
        ready(admin, console, dialect)
        ask(admin, "[[sandbox: status=400]] Fail")
        assert admin.run("document.querySelectorAll('.turn.bad').length") == 1
        assert len(last_answer(admin)) > 20


def test_snippets_do_the_same(
    admin: Tab, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_PROXY_KEY", CLIENT_KEY)
    for dialect in DIALECTS:
        ready(admin, console, dialect)
        ask(admin, "Snippets of $HOME and 'quotes'")
        curl = admin.wait_for("document.getElementById('curl').textContent")
        done = subprocess.run(
            ["sh", "-c", curl + " --silent --show-error --fail-with-body"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "data:" in done.stdout
        # Here, and not as a process: the libraries take seconds to be loaded.
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(admin.run("document.getElementById('python').textContent"), {})
        assert out.getvalue().startswith("{")


# --- the login ------------------------------------------------------------------------------------


def begin_login(tab: Tab, console: Console, name: str) -> None:
    tab.open(console.origin + "/console/login-to-qwen")
    tab.fill("#account", name)
    tab.follow("form.card button")


def test_a_login_is_confirmed_on_a_phone(admin: Tab, console: Console, sandbox: Sandbox) -> None:
    begin_login(admin, console, "phone")
    assert "free tier closed" in admin.text()
    admin.wait_for("!!document.querySelector('.code')")
    keep(admin, "login")
    ground = admin.run("getComputedStyle(document.querySelector('.qr path')).fill")
    assert ground == "rgb(255, 255, 255)"
    code = admin.run("document.querySelector('.code').textContent")
    assert admin.run("/^1[45]:\\d\\d$/.test(document.getElementById('left').textContent)")
    sandbox.control(approve=code)

    admin.wait_for("document.getElementById('login-title')?.dataset.state === 'done'")

    assert "Logged in" in admin.text()
    saved = console.proxy.home / ".qwen/oauth_creds_phone.json"
    tokens = json.loads(saved.read_text())
    assert tokens["access_token"] not in console.proxy.log.read_text()


def test_a_login_that_is_denied_or_stopped_says_so(
    admin: Tab, console: Console, sandbox: Sandbox
) -> None:
    begin_login(admin, console, "denied")
    code = admin.wait_for("document.querySelector('.code')?.textContent")
    sandbox.control(deny=code)
    admin.wait_for("document.getElementById('login-title')?.dataset.state === 'denied'")
    assert "denied on the other device" in admin.text()

    begin_login(admin, console, "stopped")
    admin.wait_for("!!document.querySelector('.code')")
    admin.follow("form button.danger")
    # By the worker that runs the login, which may be another one.
    admin.wait_for("document.body.innerText.includes('The login was stopped on this page')")


def test_a_name_that_cannot_be_used_is_told(admin: Tab, console: Console) -> None:
    admin.open(console.origin + "/console/login-to-qwen")
    admin.run("document.getElementById('account').removeAttribute('pattern')")
    admin.fill("#account", "../x")
    admin.follow("form.card button")
    assert "cannot be used" in admin.text()


# --- many calls: at the end, because they fill the list ------------------------------------------


def test_a_page_of_two_hundred_hostile_calls_is_small(admin: Tab, console: Console) -> None:
    journal = journal_in(console.proxy.home / ".local/state/qwen-proxy", SystemClock())
    signs = "&<>漢\U0001f600\"'"
    for number in range(200):
        name = (signs[number % len(signs)] + signs) * 30
        row = call(
            at=time.time() - 600 + number / 7, client=name, model=name, account=name, error=name,
            outcome="upstream_error", queue_ms=3e7, connect_ms=2e7, first_byte_ms=1e8,
            total_ms=6e8, input_tokens=10**12, output_tokens=9_999_999, request_id="r" * 128,
        )  # fmt: skip
        journal.append(line_of(row))
    journal.close()
    admin.send("Network.clearBrowserCache")
    admin.received = 0
    admin.open(console.origin + "/console/live")
    admin.wait_for("document.readyState === 'complete'")
    assert admin.run("document.querySelectorAll('#ended tr').length") == 200
    assert admin.run("document.querySelectorAll('#ended script, #ended img').length") == 0
    assert 70_000 < admin.received < 100_000
    keep(admin, "live-many")
    admin.follow("#ended a")
    assert "The upstream failed" in admin.text()
    keep(admin, "call-hostile")
