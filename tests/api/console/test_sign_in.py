"""Who gets into the console, for how long, and who does not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwen_wsgi.access.client_key import KeysUnavailable
from qwen_wsgi.state.database.console_sessions import ConsoleSessions
from qwen_wsgi.state.database.sqlite import DatabaseUnavailable
from tests.api.console.browsing import (
    ADMIN,
    BY_TLS,
    FROM_LAN,
    ORDINARY,
    ORIGIN,
    Browser,
    console,
    token_in,
    words_of,
)
from tests.fakes.clock import FakeClock
from tests.kit.secrets import secret


@pytest.fixture
def browser() -> Iterator[Browser]:
    with console() as made:
        yield made


def test_an_admin_signs_in_and_out(browser: Browser) -> None:
    asked = browser.get("/console")
    assert asked.status_code == 401
    assert "Key of an admin" in words_of(asked)

    let_in = browser.sign_in()
    assert (let_in.status_code, let_in.headers["location"]) == (303, "/console")
    page = browser.get("/console")
    assert page.status_code == 200
    assert "signed in as env-admin-1" in words_of(page)
    assert ADMIN not in page.text

    left = browser.change("/console/sign-out")
    assert left.headers["location"] == "/console/sign-in"
    assert browser.get("/console").status_code == 401


def test_one_gets_to_the_page_that_one_wanted(browser: Browser) -> None:
    assert 'name="wanted" value="/console/sessions"' in browser.get("/console/sessions").text

    for wanted, path in (
        ("/console/sessions", "/console/sessions"),
        ("/console/keys/key_0", "/console/keys/key_0"),
        ("/console/keys//evil.example", "/console"),
        ("/console/keys/..%2f", "/console"),
        ("/console/sign-in", "/console"),
        ("//evil.example/", "/console"),
        ("https://evil.example/console", "/console"),
    ):
        let_in = browser.send("/console/sign-in", key=ADMIN, wanted=wanted)
        assert let_in.headers["location"] == path


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (ORDINARY, "needs a key of an admin"),
        ("sk-wrong", "Incorrect API key"),
        ("", "enter the key of an admin"),
        ("schlüssel", "enter the key of an admin"),
        ("H4sIAAAAAAAA", "Incorrect API key"),
    ],
    ids=["ordinary", "wrong", "none", "no ASCII", "web token"],
)
def test_other_keys_do_not_let_in(browser: Browser, key: str, says: str) -> None:
    refused = browser.sign_in(key)

    assert refused.status_code in (401, 403)
    assert says in words_of(refused)
    assert "set-cookie" not in refused.headers
    assert browser.get("/console").status_code == 401


def test_the_cookie_is_for_the_browser_alone(browser: Browser) -> None:
    plain = browser.sign_in().headers["set-cookie"]
    assert plain.startswith("qwen-proxy-console=")
    assert "HttpOnly" in plain
    assert "SameSite=Strict" in plain
    assert "Secure" not in plain
    assert "Domain" not in plain
    assert "Max-Age=43200" in plain


def test_behind_tls_the_cookie_is_of_this_host_alone() -> None:
    # What gunicorn makes of X-Forwarded-Proto is its own; the test's client is told the scheme.
    with console() as browser:
        made = browser.app.client.post(
            "/console/sign-in",
            base_url="https://qwen.lan",
            data={"key": ADMIN},
            headers={"Origin": "https://qwen.lan", **BY_TLS},
        )
    assert made.headers["set-cookie"].startswith("__Host-qwen-proxy-console=")
    assert "Secure" in made.headers["set-cookie"]
    assert "Path=/" in made.headers["set-cookie"]


def test_a_link_works_once(browser: Browser) -> None:
    link = browser.app.services.console_sessions.add_link()
    for _ in range(3):  # a preview of a messenger, and the person
        assert browser.get("/console/link").status_code == 200
    let_in = browser.send("/console/link", code=link)
    assert (let_in.status_code, let_in.headers["location"]) == (303, "/console")
    assert "signed in as console" in words_of(browser.get("/console"))

    again = browser.send("/console/link", code=link)
    assert again.status_code == 403
    assert "was used already" in words_of(again)


def test_a_link_may_be_pasted_whole(browser: Browser) -> None:
    link = browser.app.services.console_sessions.add_link()

    assert browser.send("/console/link", code=f"{ORIGIN}/console/link#{link}").status_code == 303


def test_a_link_expires(browser: Browser) -> None:
    link = browser.app.services.console_sessions.add_link()
    browser.app.clock.advance(301)

    refused = browser.send("/console/link", code=link)
    assert "has expired" in words_of(refused)
    assert "not a link of this server" in words_of(browser.send("/console/link", code="no"))


def test_a_session_ends_after_two_idle_hours_and_after_twelve() -> None:
    clock = FakeClock()
    with console(clock) as browser:
        browser.sign_in()
        clock.advance(7100)
        assert browser.get("/console").status_code == 200
        clock.advance(7100)
        assert browser.get("/console").status_code == 200
        clock.advance(7260)
        assert browser.get("/console").status_code == 401

        browser.sign_in()
        for _ in range(11):
            clock.advance(3600)
            assert browser.get("/console").status_code == 200
        clock.advance(3600)
        assert browser.get("/console").status_code == 401


def test_a_session_ends_with_its_key() -> None:
    with console() as browser:
        keys, clock = browser.app.services.client_keys, browser.app.clock
        made = keys.add({"name": "anna", "admin": True})
        browser.app.services.key_ring.look_again()
        browser.sign_in(made.secret)
        assert "signed in as anna" in words_of(browser.get("/console"))

        keys.revoke("anna")  # by the command: this worker is not told
        clock.advance(1)
        assert browser.get("/console").status_code == 401


def test_a_session_ends_with_the_secret_that_began_it() -> None:
    with console() as browser:
        keys, clock = browser.app.services.client_keys, browser.app.clock
        made = keys.add({"name": "anna", "admin": True})
        browser.app.services.key_ring.look_again()
        browser.sign_in(made.secret)
        keys.rotate("anna", grace_s=60)
        clock.advance(30)
        assert browser.get("/console").status_code == 200
        clock.advance(31)
        assert browser.get("/console").status_code == 401


def test_a_session_ends_when_its_key_is_no_admins_any_more() -> None:
    with console() as browser:
        made = browser.app.services.client_keys.add({"name": "anna", "admin": True})
        browser.app.services.key_ring.look_again()
        browser.sign_in(made.secret)
        browser.app.services.client_keys.edit("anna", {"admin": False})
        browser.app.clock.advance(1)

        assert browser.get("/console").status_code == 401


def test_the_tenth_wrong_try_is_the_last_for_a_minute() -> None:
    clock = FakeClock()
    with console(clock) as browser:
        for _ in range(5):
            assert browser.sign_in("sk-wrong").status_code == 401
            assert browser.send("/console/link", code="wrong").status_code == 403
        refused = browser.sign_in()
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "60"
        assert "Wait a minute" in words_of(refused)
        # Another address is another count.
        elsewhere = Browser(browser.app, FROM_LAN)
        assert elsewhere.sign_in("sk-wrong").status_code == 401
        clock.advance(61)
        assert browser.sign_in().status_code == 303


def test_a_database_that_is_away_is_told(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("the disk is full", passing=True)

    browser.sign_in()
    monkeypatch.setattr(ConsoleSessions, "find", fail)
    refused = browser.get("/console")
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "the disk is full" in words_of(refused)


def test_keys_that_cannot_be_read_are_no_wrong_try(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeysUnavailable("").told()

    with monkeypatch.context() as patched:
        patched.setattr(browser.app.services.guard, "require_admin", fail)
        for _ in range(12):
            assert browser.sign_in().status_code == 503
    assert browser.sign_in().status_code == 303


def test_an_ipv6_network_is_one_address() -> None:
    with console() as browser:
        for number in range(10):
            far = Browser(browser.app, {"X-Forwarded-For": f"2001:db8::{number:x}"})
            assert far.sign_in("sk-wrong").status_code == 401
        assert (
            Browser(browser.app, {"X-Forwarded-For": "2001:db8::ff"}).sign_in().status_code == 429
        )


def test_without_an_admin_the_console_is_for_its_own_machine() -> None:
    with console(QWEN_PROXY_ADMIN_KEYS="") as browser:
        far = Browser(browser.app, FROM_LAN)
        for refused in (far.get("/console"), far.get("/console/link"), far.open_link()):
            assert refused.status_code == 403
            assert "keys add NAME --admin" in words_of(refused)

        assert browser.open_link().status_code == 303
        assert browser.get("/console").status_code == 200
        # The session does not let in from elsewhere, either.
        assert far.get("/console").status_code == 403


def test_with_an_admin_a_link_works_from_elsewhere() -> None:
    with console() as browser:
        far = Browser(browser.app, FROM_LAN)
        assert "no TLS" in words_of(far.get("/console/sign-in"))
        assert far.open_link().status_code == 303
        assert far.get("/console").status_code == 200


def test_a_proxy_whose_word_is_not_trusted_is_not_this_machine() -> None:
    with console(QWEN_PROXY_ADMIN_KEYS="", QWEN_PROXY_TRUSTED_PROXIES="unix") as browser:
        assert Browser(browser.app, FROM_LAN).get("/console").status_code == 403


def test_a_list_shows_sessions_and_ends_them(browser: Browser) -> None:
    browser.open_link()
    browser.sign_in()  # another one, in the same browser
    page = browser.get("/console/sessions")
    assert {"console", "env-admin-1"} <= set(words_of(page).split())
    own, other = browser.app.services.console_sessions.all()
    if own.person.client != "env-admin-1":
        own, other = other, own

    browser.change("/console/sessions/end", id=other.id)
    assert [each.id for each in browser.app.services.console_sessions.all()] == [own.id]
    ended = browser.change("/console/sessions/end", id=own.id)
    assert ended.headers["location"] == "/console/sign-in"
    assert browser.get("/console").status_code == 401


def test_what_browsers_say_of_themselves_is_text(browser: Browser) -> None:
    browser.headers["User-Agent"] = "<script>alert(1)</script>" + "x" * 500
    browser.sign_in()

    page = browser.get("/console/sessions")
    assert "<script>alert" not in page.text
    assert "&lt;script&gt;alert(1)" in page.text
    assert "x" * 200 not in page.text


def test_a_change_needs_the_token_of_its_session(browser: Browser) -> None:
    browser.sign_in()
    old = token_in(browser.get("/console"))
    assert browser.send("/console/sign-out").status_code == 403
    for token in ("", "f" * 40):
        refused = browser.send("/console/sign-out", csrf=token)
        assert refused.status_code == 403
        assert "nothing was changed" in words_of(refused)
    browser.sign_in()
    assert browser.send("/console/sign-out", csrf=old).status_code == 403
    assert browser.get("/console").status_code == 200
    header = {"X-CSRF-Token": token_in(browser.get("/console"))}
    assert browser.send("/console/sign-out", header).status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8081"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Dest": "iframe"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
)
def test_pages_of_other_sites_change_nothing(browser: Browser, headers: dict[str, str]) -> None:
    browser.sign_in()
    token = token_in(browser.get("/console"))

    refused = browser.send("/console/sign-out", headers, csrf=token)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    assert browser.get("/console").status_code == 200


def test_other_sites_may_link_here_and_no_more(browser: Browser) -> None:
    cross = {"Sec-Fetch-Site": "cross-site"}
    link = browser.get("/console/link", **cross, **{"Sec-Fetch-Mode": "navigate"})
    assert link.status_code == 200
    assert browser.get("/console/link", **cross, **{"Sec-Fetch-Mode": "no-cors"}).status_code == 403
    assert browser.get("/console", **{"Sec-Fetch-Dest": "iframe"}).status_code == 403
    preflight = browser.app.client.options("/console", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 401),
        ("[::1]:8080", 401),
        ("192.168.1.5", 401),
        ("box", 401),
        ("box.local", 401),
        ("qwen.example.com", 401),
        ("rebound.example", 403),
        ("", 403),
        ("evil.example@localhost", 403),
    ],
)
def test_only_names_that_are_surely_ours_are_served(host: str, status: int) -> None:
    with console(QWEN_PROXY_ALLOWED_HOSTS="qwen.example.com") as browser:
        assert browser.get("/console", Host=host).status_code == status


def test_a_page_has_no_code_and_is_kept_by_nobody(browser: Browser) -> None:
    browser.sign_in()
    page = browser.get("/console")

    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert " style=" not in page.text
    assert "<style" not in page.text
    assert " on" + "click" not in page.text


def test_assets_are_kept_by_browsers(browser: Browser) -> None:
    page = browser.get("/console")
    paths = [part.split('"')[0] for part in page.text.split('="/console/assets/')[1:]]
    assert len(paths) == 3
    for path in paths:
        kept = browser.get("/console/assets/" + path)
        assert kept.status_code == 200
        assert "immutable" in kept.headers["cache-control"]
        assert browser.get("/console/assets/" + path.split("?")[0]).headers["cache-control"] == (
            "no-cache"
        )
    assert browser.get("/console/assets/base.html").status_code == 404
    assert browser.get("/console/assets/..%2ffiles.py").status_code == 401


def test_a_form_that_is_none_is_refused_in_words(browser: Browser) -> None:
    for data, kind, status in (
        (b"{}", "application/json", 400),
        (b"key=%ff", "application/x-www-form-urlencoded", 400),
        (b"key=" + b"x" * 70_000, "application/x-www-form-urlencoded", 413),
    ):
        refused = browser.app.client.post(
            "/console/sign-in", data=data, content_type=kind, headers={"Origin": ORIGIN}
        )
        assert refused.status_code == status
        assert refused.content_type.startswith("text/html")


def test_signing_in_is_told_to_the_log_without_the_key(browser: Browser) -> None:
    wrong = secret("wrong-of-console")
    browser.sign_in(wrong)
    browser.sign_in()

    assert "a sign-in was refused (invalid_api_key)" in browser.app.log
    assert "env-admin-1 has signed in" in browser.app.log
    # No page is a call of a client.
    assert {call["level"] for call in browser.app.calls} == {"DEBUG"}
