"""The page of client keys: made, changed, rotated, revoked, without a script."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.access.client_key import KeysUnavailable
from qwen_wsgi.access.guard import Client
from tests.api.console.browsing import ORDINARY, Browser, console, words_of
from tests.fakes.clock import FakeClock

KEYS = "/console/keys"


@pytest.fixture
def browser() -> Iterator[Browser]:
    with console() as made:
        made.sign_in()
        yield made


def add(browser: Browser, **form: str) -> TestResponse:
    return browser.change(KEYS, KEYS, **form)


def secret_in(page: TestResponse) -> str:
    found = re.findall(r"sk-qp-[0-9a-f]{48}", page.text)
    assert found, page.text
    assert len(set(found)) == 1
    return str(found[0])


def status_of_call(browser: Browser, key: str) -> int:
    """What a client with the key gets."""
    headers = {"Authorization": f"Bearer {key}"}
    return browser.app.client.get("/v1/usage", headers=headers).status_code


def test_a_key_from_its_making_to_its_end(browser: Browser) -> None:
    made = add(browser, name="anna", rpm="60", models="qwen3*, m", expires="30d", metrics="on")
    assert made.status_code == 200
    assert made.headers["cache-control"] == "no-store"
    secret = secret_in(made)
    assert "shown this once" in words_of(made)
    # Ready for every client, with the key in it.
    assert made.text.count(f"QWEN_PROXY_KEY={secret}") >= 10
    # 404: it keeps no ledger.
    assert status_of_call(browser, secret) == 404

    listed = browser.get(KEYS)
    assert secret not in listed.text
    assert "0 of 60" in words_of(listed)
    assert "models: qwen3*, m" in words_of(listed)
    key = browser.app.services.client_keys.find("anna")
    assert key is not None
    assert key.metrics
    assert not key.admin

    path = f"{KEYS}/{key.id}"
    assert 'value="qwen3*, m"' in browser.get(path).text
    changed = browser.change(path, path, name="ann", rpm="", models="", tpm="1000")
    assert changed.headers["location"] == "/console/keys?done=changed"
    now = browser.app.services.client_keys.find("ann")
    assert now is not None
    assert (now.rpm, now.tpm, now.models, now.metrics) == (None, 1000, (), False)
    assert now.expires_at == key.expires_at

    rotated = browser.change(path + "/rotate", path, grace="1h")
    assert "goes on working for 60 min" in words_of(rotated)
    other = secret_in(rotated)
    assert other != secret
    assert status_of_call(browser, secret) == status_of_call(browser, other) == 404

    revoked = browser.change(path + "/revoke", path)
    assert "was revoked" in words_of(browser.get(revoked.headers["location"]))
    assert status_of_call(browser, other) == 401
    assert "Save" not in browser.get(path).text
    assert "env-admin-1 has revoked the client key ann" in browser.app.log


@pytest.mark.parametrize(
    ("form", "field", "says"),
    [
        ({"name": "a b"}, "name", "1 to 64 letters"),
        ({"name": ""}, "name", "1 to 64 letters"),
        ({"name": "anna", "rpm": "many"}, "rpm", "a whole number above 0"),
        ({"name": "anna", "rpm": "0"}, "rpm", "a whole number above 0"),
        ({"name": "anna", "cidr": "home"}, "cidr", "networks or addresses"),
        ({"name": "anna", "expires": "soon"}, "expires", "a duration"),
        ({"name": "anna", "cache": "x"}, "cache", "a duration"),
    ],
)
def test_a_wrong_value_is_told_at_its_field(
    browser: Browser, form: dict[str, str], field: str, says: str
) -> None:
    refused = browser.change(KEYS, KEYS, **{**form, "note": "<b>mine</b>"})

    assert refused.status_code == 400
    assert says in words_of(refused)
    assert re.search(rf'name="{field}"[^>]*aria-invalid="true"', refused.text)
    assert 'value="&lt;b&gt;mine&lt;/b&gt;"' in refused.text  # nothing has to be typed again
    assert browser.app.services.client_keys.all() == ()


def test_a_name_is_taken_once(browser: Browser) -> None:
    add(browser, name="anna")
    again = add(browser, name="anna")

    assert again.status_code == 409
    assert "sk-qp-" not in again.text
    assert len(browser.app.services.client_keys.all()) == 1


def test_use_is_shown_against_limits(browser: Browser) -> None:
    made = browser.app.services.client_keys.add({"name": "anna", "rpm": 4, "tpm": 1000})
    client = Client(made.key.id, "anna", made.key)
    counter = browser.app.services.budgets.counters.of(client.payer)
    assert made.key.limits is not None
    counter.reserve(made.key.limits, tokens=100, requests=1)

    page = words_of(browser.get(KEYS))
    assert "1 of 4" in page
    assert "100 of 1,000" in page


def test_many_keys_have_several_pages(browser: Browser) -> None:
    for number in range(51):
        browser.app.services.client_keys.add({"name": f"key-{number:02}", "note": "n" * 300})

    first = browser.get(KEYS)
    assert len(first.data) < 90_000
    assert "51 keys" in words_of(first)
    assert "key-49" in first.text
    assert "key-50" not in first.text
    for page in ("2", "99"):
        assert "key-50" in browser.get(f"{KEYS}?page={page}").text
    assert browser.get(f"{KEYS}?page=x").status_code == 200


def test_what_is_no_key_is_told(browser: Browser) -> None:
    for path in (f"{KEYS}/key_none", "/console/nothing/at/all"):
        missing = browser.get(path)
        assert missing.status_code == 404
        assert missing.content_type.startswith("text/html")
    assert browser.change(f"{KEYS}/key_none/revoke").status_code == 404


def test_keys_that_cannot_be_read_are_told_with_the_reason(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise KeysUnavailable("its disk is full", passing=True)

    monkeypatch.setattr(browser.app.services.client_keys, "read", fail)
    refused = browser.get(KEYS)
    assert refused.status_code == 503
    assert "its disk is full" in words_of(refused)
    assert refused.headers["retry-after"] == "1"


def test_nobody_changes_keys_without_signing_in() -> None:
    with console(FakeClock()) as browser:
        for path in (KEYS, f"{KEYS}/x", f"{KEYS}/x/rotate", f"{KEYS}/x/revoke"):
            assert browser.send(path, name="anna").status_code == 401
        assert browser.get(KEYS).status_code == 401
        headers = {"Authorization": f"Bearer {ORDINARY}"}
        assert browser.get(KEYS, **headers).status_code == 401


def test_the_clients_page_has_every_recipe_with_this_address(browser: Browser) -> None:
    page = browser.get("/console/clients")

    assert page.status_code == 200
    assert len(page.data) < 85_000
    assert page.text.count('<details class="card recipe"') == 14
    assert "http://localhost/v1" in page.text
    assert "YOUR_CLIENT_KEY" in page.text

    named = browser.get("/console/clients?url=https://qwen.lan/v1/&model=qwen3-max")
    assert "https://qwen.lan/v1" in named.text
    assert "model qwen3-max" in words_of(named)
    wrong = browser.get("/console/clients?url=javascript:alert(1)&model=<b>")
    assert "is not an address" in words_of(wrong)
    assert "is not the name of a model" in words_of(wrong)
    assert "<b>" not in wrong.text.replace("<b>env-admin-1</b>", "")


def test_the_operators_own_address_is_in_recipes() -> None:
    with console(QWEN_PROXY_PUBLIC_URL="https://models.example.com") as browser:
        browser.sign_in()
        assert "https://models.example.com/v1" in browser.get("/console/clients").text
