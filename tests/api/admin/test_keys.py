"""`/admin/v1`: the client keys and the accounts, for admins alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import TestResponse

from qwen_wsgi.access.client_key import KeysUnavailable
from tests.api.apps import App, error_of, running
from tests.kit.secrets import core, secret

ADMIN = secret("admin-of-api")
ORDINARY = secret("ordinary-of-api")
KEYS = "/admin/v1/keys"


@pytest.fixture
def app() -> Iterator[App]:
    with running(
        QWEN_PROXY_API_KEYS=ORDINARY,
        QWEN_PROXY_ADMIN_KEYS=ADMIN,
        QWEN_UPSTREAM_BASE_URL="http://127.0.0.1:9/v1",
    ) as made:
        yield made


def ask(
    app: App, method: str, path: str = "", body: Any = None, *, key: str = ADMIN
) -> TestResponse:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return app.client.open(KEYS + path, method=method, json=body, headers=headers)


def value_of(response: TestResponse, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, response.data
    body: dict[str, Any] = response.get_json()
    return body


def test_a_key_from_its_making_to_its_end(app: App) -> None:
    answer = ask(app, "POST", body={"name": "anna", "rpm": 5, "expires": "30d"})
    assert answer.headers["cache-control"] == "no-store"
    made = value_of(answer, 201)
    key = made.pop("key")
    assert key.startswith("sk-qp-")
    assert (made["name"], made["rpm"]) == ("anna", 5)
    assert made["expires_at"] == made["created_at"] + 30 * 86_400

    assert value_of(ask(app, "GET", "/anna")) == made
    assert value_of(ask(app, "GET", "/" + made["id"])) == made
    assert value_of(ask(app, "GET")) == {"object": "list", "data": [made]}

    changed = value_of(ask(app, "PATCH", "/anna", {"name": "ann", "rpm": None, "models": ["q*"]}))
    assert changed == {**made, "name": "ann", "rpm": None, "models": ["q*"]}

    rotated = value_of(ask(app, "POST", f"/{made['id']}/rotate", {"grace": "1h"}))
    assert rotated.pop("key") not in (key, "")
    assert rotated == changed

    revoked = value_of(ask(app, "DELETE", "/ann"))
    assert revoked == {**changed, "revoked_at": int(app.clock.now())}
    assert value_of(ask(app, "GET"))["data"] == [revoked]
    assert [call["client"] for call in app.calls] == ["env-admin-1"] * len(app.calls)
    assert core(key) not in app.log


def test_a_change_is_in_force_with_the_next_call(app: App) -> None:
    key = value_of(ask(app, "POST", body={"name": "anna", "admin": True}), 201)["key"]
    assert ask(app, "GET", key=key).status_code == 200

    value_of(ask(app, "PATCH", "/anna", {"admin": False}))
    assert error_of(ask(app, "GET", key=key))["code"] == "admin_key_required"

    new = value_of(ask(app, "POST", "/anna/rotate"))["key"]
    assert error_of(ask(app, "GET", key=key))["code"] == "expired_api_key"
    assert ask(app, "GET", key=new).status_code == 403

    value_of(ask(app, "DELETE", "/anna"))
    answer = ask(app, "GET", key=new)
    assert (answer.status_code, error_of(answer)["code"]) == (401, "revoked_api_key")
    assert app.calls[-1]["client"] == "anna"  # who it is, is known


@pytest.mark.parametrize("key", ["", "wrong", ORDINARY])
def test_nobody_else_gets_at_keys_and_accounts(app: App, key: str) -> None:
    status = 403 if key == ORDINARY else 401
    value_of(ask(app, "POST", body={"name": "anna"}), 201)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answers = [
        ask(app, "GET", key=key),
        ask(app, "POST", body={"name": "ben"}, key=key),
        ask(app, "GET", "/anna", key=key),
        ask(app, "PATCH", "/anna", {"rpm": 1}, key=key),
        ask(app, "DELETE", "/anna", key=key),
        ask(app, "POST", "/anna/rotate", key=key),
        app.get("/admin/v1/accounts", headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [status] * 7
    assert {error_of(answer)["type"] for answer in answers} == {
        "permission_error" if status == 403 else "invalid_request_error"
    }
    (only,) = value_of(ask(app, "GET"))["data"]
    assert (only["rpm"], only["revoked_at"]) == (None, None)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "param"),
    [
        ("POST", "", {}, 400, "invalid_value", "name"),
        ("POST", "", None, 400, "invalid_value", "name"),
        ("POST", "", {"name": "anna"}, 409, "name_taken", "name"),
        ("POST", "", {"name": "ben", "rpm": 0}, 400, "invalid_value", "rpm"),
        ("POST", "", {"name": "ben", "id": "key_1"}, 400, "invalid_value", "id"),
        ("POST", "", {"name": "ben", "what": 1}, 400, "invalid_value", None),
        ("PATCH", "/anna", {"cidr": ["x"]}, 400, "invalid_value", "cidr"),
        ("PATCH", "/ben", {"rpm": 1}, 404, "key_not_found", "key"),
        ("PATCH", "/old", {"rpm": 1}, 400, "invalid_value", None),
        ("GET", "/ben", None, 404, "key_not_found", "key"),
        ("DELETE", "/ben", None, 404, "key_not_found", "key"),
        ("POST", "/ben/rotate", None, 404, "key_not_found", "key"),
        ("POST", "/anna/rotate", {"grace": "soon"}, 400, "invalid_value", "grace"),
        ("POST", "/anna/rotate", {"graze": "1h"}, 400, "invalid_value", None),
        ("PUT", "/anna", {}, 405, "method_not_allowed", None),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_in_openais_form(
    app: App, method: str, path: str, body: Any, status: int, code: str, param: str | None
) -> None:
    value_of(ask(app, "POST", body={"name": "anna"}), 201)
    value_of(ask(app, "POST", body={"name": "old"}), 201)
    value_of(ask(app, "DELETE", "/old"))

    answer = ask(app, method, path, body)

    assert answer.status_code == status
    error = error_of(answer)
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[]", 400), (b'{"note": "%b"}' % (b"x" * 70_000), 413)]
)
def test_a_body_is_json_and_small(app: App, body: bytes, status: int) -> None:
    answer = app.client.post(KEYS, data=body, headers={"Authorization": f"Bearer {ADMIN}"})

    assert answer.status_code == status
    assert error_of(answer)
    assert app.services.admission.in_flight == 0


def test_an_admin_is_told_why_the_keys_are_unavailable(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable() -> None:
        raise KeysUnavailable("state.sqlite3 cannot be used: the disk is full", passing=True)

    monkeypatch.setattr(app.services.client_keys, "read", unavailable)
    answer = ask(app, "POST", body={"name": "anna"})

    assert answer.status_code == 503
    assert "the disk is full" in error_of(answer)["message"]
    assert answer.headers["retry-after"]


def test_accounts_are_what_status_shows(app: App) -> None:
    answer = app.get("/admin/v1/accounts", headers={"x-api-key": ADMIN})

    body = json.loads(answer.data)
    assert body["object"] == "list"
    (row,) = body["data"]
    assert (row["name"], row["endpoint"]) == ("upstream", "http://127.0.0.1:9/v1")
    assert {"state", "usable", "cause", "last_call", "remedy"} <= row.keys()
