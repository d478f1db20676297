"""Device login and rotating refresh tokens, and the failures around them."""

from __future__ import annotations

import base64
import hashlib
import http.client
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import CLIENT_ID, Answer, ask, call, form, post, refresh, request_body

DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
VERIFIER = "verifier-" + "x" * 40


def challenge(verifier: str = VERIFIER) -> str:
    digest = hashlib.sha256(verifier.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def start(sandbox: Sandbox, **changes: str) -> Answer:
    fields = {
        "client_id": CLIENT_ID,
        "scope": "openid profile email model.completion",
        "code_challenge": challenge(),
        "code_challenge_method": "S256",
    }
    return form(sandbox, "device/code", **{**fields, **changes})


def poll(sandbox: Sandbox, device_code: str, verifier: str = VERIFIER) -> Answer:
    fields = {"grant_type": DEVICE_GRANT, "client_id": CLIENT_ID, "device_code": device_code}
    return form(sandbox, "token", code_verifier=verifier, **fields)


def counters(sandbox: Sandbox) -> Any:
    return sandbox.state()["oauth"]


def use(sandbox: Sandbox, access_token: str) -> Answer:
    authorization = f"Bearer {access_token}"
    return post(sandbox, "chat/completions", request_body(), authorization=authorization)


def issue(sandbox: Sandbox) -> dict[str, Any]:
    return sandbox.issue(CLIENT_ID)


# --- device login --------------------------------------------------------------------------------


def test_a_device_login_from_start_to_first_use(sandbox: Sandbox) -> None:
    device = start(sandbox).json()
    first = poll(sandbox, device["device_code"])
    sandbox.control(approve=device["user_code"])
    tokens = poll(sandbox, device["device_code"]).json()

    assert "interval" not in device
    assert device["expires_in"] == 900
    assert device["user_code"] in device["verification_uri_complete"]
    assert (first.status, first.json()["error"]) == (400, "authorization_pending")
    assert tokens["token_type"] == "Bearer"
    assert tokens["expires_in"] == 21600
    assert tokens["resource_url"] == sandbox.origin
    assert use(sandbox, tokens["access_token"]).status == 200
    assert poll(sandbox, device["device_code"]).status == 401
    assert counters(sandbox)["logins"] == 1
    assert counters(sandbox)["device_polls"] == 3


def test_a_wrong_verifier_is_refused_and_the_code_stays_good(sandbox: Sandbox) -> None:
    device = start(sandbox).json()
    sandbox.control(approve="*")

    wrong = poll(sandbox, device["device_code"], "wrong")
    assert (wrong.status, wrong.json()["error"]) == (400, "invalid_grant")
    assert poll(sandbox, device["device_code"]).status == 200
    assert counters(sandbox)["pkce_failures"] == 1


@pytest.mark.parametrize(
    "changes", [{"code_challenge": ""}, {"code_challenge_method": "plain"}, {"client_id": ""}]
)
def test_a_login_without_pkce_is_refused(sandbox: Sandbox, changes: dict[str, str]) -> None:
    assert start(sandbox, **changes).json()["error"] == "invalid_request"


@pytest.mark.parametrize(
    ("action", "status", "error"),
    [("deny", 400, "access_denied"), ("expire", 401, "expired_token")],
)
def test_logins_that_end_badly(sandbox: Sandbox, action: str, status: int, error: str) -> None:
    device = start(sandbox).json()
    assert sandbox.control({action: "*"}) == {action: 1}

    answer = poll(sandbox, device["device_code"])
    assert (answer.status, answer.json()["error"]) == (status, error)


def test_device_codes_expire_by_the_clock() -> None:
    now_s = 1000.0
    with Sandbox(clock=lambda: now_s) as sandbox:
        sandbox.control(device_ttl_s=60)
        device = start(sandbox).json()
        assert device["expires_in"] == 60
        now_s += 60
        assert poll(sandbox, device["device_code"]).json()["error"] == "expired_token"


def test_pending_forms_and_approval_by_number_of_polls(sandbox: Sandbox) -> None:
    sandbox.control(approve_after_polls=2, slow_down_polls=1, pending_as_200=True)
    code = start(sandbox).json()["device_code"]

    slow, pending, done = (poll(sandbox, code) for _ in range(3))
    assert (slow.status, slow.json()["error"]) == (429, "slow_down")
    assert (pending.status, pending.json()) == (200, {"status": "pending"})
    assert "access_token" in done.json()


def test_a_person_approves_on_the_page(sandbox: Sandbox) -> None:
    device = start(sandbox).json()
    parts = urlsplit(device["verification_uri_complete"])
    page = f"{parts.path}?{parts.query}"

    assert device["user_code"] in call(sandbox, "GET", page).body.decode()
    assert b"Approved" in call(sandbox, "POST", page).body
    assert poll(sandbox, device["device_code"]).status == 200
    assert call(sandbox, "GET", page).status == 404
    assert call(sandbox, "POST", "/authorize?user_code=*").status == 404


def test_nonsense_at_the_token_endpoint(sandbox: Sandbox) -> None:
    assert form(sandbox, "token", grant_type="password").json()["error"] == "unsupported_grant_type"
    assert poll(sandbox, "unknown").json()["error"] == "invalid_grant"
    as_json = {"content-type": "application/json"}
    answer = call(sandbox, "POST", "/api/v1/oauth2/token", b'{"grant_type":"x"}', as_json)
    assert answer.status == 400
    assert call(sandbox, "GET", "/api/v1/oauth2/token").status == 404


# --- rotation ------------------------------------------------------------------------------------


def test_a_refresh_rotates_and_a_reuse_is_refused_and_counted(sandbox: Sandbox) -> None:
    old = issue(sandbox)
    new = refresh(sandbox, old["refresh_token"]).json()
    again = refresh(sandbox, old["refresh_token"])

    assert new["refresh_token"] != old["refresh_token"]
    assert new["access_token"][-6:] == new["refresh_token"][-6:]
    assert again.status == 400
    assert again.json() == {
        "error": "invalid_request",
        "error_description": "Invalid refresh token or client_id",
    }
    assert refresh(sandbox, new["refresh_token"]).status == 200
    assert counters(sandbox)["refreshes"] == 2
    assert counters(sandbox)["refresh_reuses"] == 1
    assert counters(sandbox)["live_refresh_tokens"] == 1


def test_unknown_tokens_and_foreign_clients_are_no_reuse(sandbox: Sandbox) -> None:
    token = issue(sandbox)["refresh_token"]

    assert refresh(sandbox, "sandbox-rt-unknown").status == 400
    assert refresh(sandbox, token, client_id="other").status == 400
    assert counters(sandbox)["refresh_unknown"] == 2
    assert counters(sandbox)["refresh_reuses"] == 0
    assert refresh(sandbox, token).status == 200


def test_of_twenty_racing_refreshes_exactly_one_wins(sandbox: Sandbox) -> None:
    token = issue(sandbox)["refresh_token"]
    barrier = threading.Barrier(20)
    statuses: list[int] = []

    def race() -> None:
        barrier.wait()
        statuses.append(refresh(sandbox, token).status)

    in_parallel(20, race)
    assert sorted(statuses) == [200] + [400] * 19
    assert counters(sandbox)["refreshes"] == 1
    assert counters(sandbox)["refresh_reuses"] == 19


def in_parallel(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)


def test_a_reuse_can_revoke_the_whole_family(sandbox: Sandbox) -> None:
    sandbox.control(reuse_revokes_family=True)
    old = issue(sandbox)
    new = refresh(sandbox, old["refresh_token"]).json()

    assert refresh(sandbox, old["refresh_token"]).status == 400
    assert refresh(sandbox, new["refresh_token"]).status == 400
    assert use(sandbox, new["access_token"]).status == 401


def test_rotation_can_be_switched_off(sandbox: Sandbox) -> None:
    sandbox.control(rotate=False)
    token = issue(sandbox)["refresh_token"]

    assert refresh(sandbox, token).json()["refresh_token"] == token
    assert refresh(sandbox, token).status == 200


# --- access tokens -------------------------------------------------------------------------------


def test_access_tokens_expire_by_the_clock() -> None:
    now_s = 1000.0
    with Sandbox(clock=lambda: now_s) as sandbox:
        sandbox.control(access_ttl_s=10)
        token = issue(sandbox)["access_token"]
        assert use(sandbox, token).status == 200
        now_s += 10
        refused = use(sandbox, token)
        assert refused.status == 401
        assert refused.json()["error"] == {
            "code": "invalid_api_key",
            "message": "invalid access token or token expired",
            "type": "invalid_request_error",
            "param": None,
        }


def test_revocation(sandbox: Sandbox) -> None:
    tokens = issue(sandbox)
    sandbox.control(revoke_access_tokens=True)
    assert use(sandbox, tokens["access_token"]).status == 401
    fresh = refresh(sandbox, tokens["refresh_token"]).json()
    assert use(sandbox, fresh["access_token"]).status == 200
    sandbox.control(revoke_all=True)
    assert use(sandbox, fresh["access_token"]).status == 401
    assert refresh(sandbox, fresh["refresh_token"]).status == 400


def test_a_closed_tier_lets_people_log_in_and_then_refuses_every_call(sandbox: Sandbox) -> None:
    sandbox.control(closed_tier=True)
    tokens = issue(sandbox)

    assert use(sandbox, tokens["access_token"]).status == 401
    assert refresh(sandbox, tokens["refresh_token"]).status == 200
    assert ask(sandbox).status == 200


def test_a_made_up_token_of_the_sandbox_is_refused(sandbox: Sandbox) -> None:
    assert use(sandbox, "sandbox-at-made-up").message == "invalid access token or token expired"


# --- shapes of token answers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "key", "value"),
    [
        ("expires-in=missing", "expires_in", None),
        ("expires-in=string", "expires_in", "21600"),
        ("expires-in=zero", "expires_in", 0),
        ("expires-in=null", "expires_in", None),
        ("expires-in=-5", "expires_in", -5),
        ("expires-in=soon", "expires_in", "soon"),
        ("no-refresh-token", "refresh_token", None),
        ("no-resource-url", "resource_url", None),
        ("no-access-token", "access_token", None),
        ("resource-url=portal.qwen.ai", "resource_url", "portal.qwen.ai"),
    ],
)
def test_bent_token_answers(sandbox: Sandbox, spec: str, key: str, value: object) -> None:
    body = refresh(sandbox, issue(sandbox)["refresh_token"], spec).json()

    assert body.get(key) == value


def test_without_a_new_refresh_token_the_old_one_stays_good(sandbox: Sandbox) -> None:
    token = issue(sandbox)["refresh_token"]

    assert refresh(sandbox, token, "no-refresh-token").status == 200
    assert refresh(sandbox, token).status == 200


def test_forms_of_the_resource_url(sandbox: Sandbox) -> None:
    origin = sandbox.origin
    for wanted, found in (
        ("origin", origin),
        ("host", origin.removeprefix("http://")),
        ("v1", origin + "/v1"),
        ("slash", origin + "/v1/"),
        ("portal.qwen.ai", "portal.qwen.ai"),
        ("", None),
        (None, None),
    ):
        sandbox.control(resource_url=wanted)
        assert issue(sandbox).get("resource_url") == found


# --- failures of the token endpoint --------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "status", "start"),
    [
        ("status=400", 400, b'{"error":"invalid_request"'),
        ("status=401", 401, b'{"error":"invalid_client"'),
        ("status=429, retry-after=7", 429, b'{"error":"rate_limit_exceeded"'),
        ("status=500", 500, b'{"error":"server_error"'),
        ("token-error=invalid_grant", 400, b'{"error":"invalid_grant"'),
        ("html-502", 502, b"<html>"),
        ("html-200", 200, b"<!doctypehtml>"),
        ("empty-200", 200, b""),
        ("not-json", 200, b"[sandbox]"),
        ("throttle", 429, b'{"error":{"message"'),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_failures_before_and_after_the_rotation(
    sandbox: Sandbox, spec: str, status: int, start: bytes, when: str
) -> None:
    token = issue(sandbox)["refresh_token"]
    failed = refresh(sandbox, token, spec + (", after-rotation" if when == "after" else ""))

    assert failed.status == status
    assert failed.body.startswith(start)
    assert failed.headers.get("retry-after") == ("7" if "retry-after" in spec else None)
    assert refresh(sandbox, token).status == (400 if when == "after" else 200)


@pytest.mark.parametrize(
    ("spec", "spent"),
    [("drop", False), ("cut-after-rotation", True), ("drop, after-rotation", True)],
)
def test_connections_cut_before_and_after_the_rotation(
    sandbox: Sandbox, spec: str, spent: bool
) -> None:
    token = issue(sandbox)["refresh_token"]
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        refresh(sandbox, token, spec)

    assert refresh(sandbox, token).status == (400 if spent else 200)


@pytest.mark.parametrize(("spec", "spent"), [("slow-before=30", False), ("slow-after=30", True)])
def test_a_client_that_gives_up_waiting(sandbox: Sandbox, spec: str, spent: bool) -> None:
    token = issue(sandbox)["refresh_token"]
    host, port = sandbox.origin.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=0.1)
    body = f"grant_type=refresh_token&client_id={CLIENT_ID}&refresh_token={token}"
    headers = {"content-type": "application/x-www-form-urlencoded", "x-sandbox": spec}
    connection.request("POST", "/api/v1/oauth2/token", body, headers)
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()

    assert sandbox.settle()[-1].outcome == "client_gone"
    assert refresh(sandbox, token).status == (400 if spent else 200)


def test_slow_answers_end(sandbox: Sandbox) -> None:
    token = issue(sandbox)["refresh_token"]

    assert refresh(sandbox, token, "slow-before=0.01, slow-after=0.01").status == 200


def test_failures_of_the_device_endpoint(sandbox: Sandbox) -> None:
    sandbox.control(next={"route": "device", "spec": "html-502"})

    assert start(sandbox).status == 502
    assert start(sandbox).status == 200
