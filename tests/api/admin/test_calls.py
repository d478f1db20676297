"""`/admin/v1/calls` in one process: who may, what it answers, and calls that end meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from qwen_wsgi.api import lifecycle
from qwen_wsgi.errors import CallCancelled
from qwen_wsgi.in_flight import CallsInFlight, Cancelled
from tests.api.apps import HELLO, App, error_of, running
from tests.kit.secrets import secret

ADMIN = secret("admin-of-calls-in-process")
ORDINARY = secret("ordinary-of-calls-in-process")
CALLS = "/admin/v1/calls"


@pytest.fixture
def app() -> Iterator[App]:
    with running(
        QWEN_PROXY_API_KEYS=ORDINARY,
        QWEN_PROXY_ADMIN_KEYS=ADMIN,
        QWEN_UPSTREAM_BASE_URL="http://127.0.0.1:9/v1",
    ) as made:
        yield made


def ask(app: App, method: str = "GET", path: str = "", key: str = ADMIN) -> Any:
    return app.client.open(
        CALLS + path, method=method, headers={"Authorization": f"Bearer {key}"} if key else {}
    )


def test_only_admins_may(app: App) -> None:
    for method, path in (("GET", ""), ("DELETE", "/x")):
        assert ask(app, method, path, "").status_code == 401
        assert error_of(ask(app, method, path, ORDINARY))["code"] == "admin_key_required"


def test_an_idle_server(app: App) -> None:
    answer = ask(app)
    assert answer.get_json() == {
        "object": "list",
        "data": [],
        "has_more": False,
        "workers": 1,
        "silent_workers": 0,
    }
    assert answer.headers["cache-control"] == "no-store"
    assert error_of(ask(app, path="?limit=0"))["param"] == "limit"
    refused = ask(app, "DELETE", "/a/b")
    assert refused.status_code == 404
    error = error_of(refused)
    assert (error["code"], error["param"]) == ("call_not_found", "id")
    assert "'a/b'" in error["message"]
    # A console asks each second: the cancellation alone is in the ledger.
    assert app.services.ledger.calls == 1


def test_workers_that_do_not_answer(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Cancelled(0, 1)
    monkeypatch.setattr(CallsInFlight, "cancel", lambda self, id, by: found)
    refused = ask(app, "DELETE", "/x")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert error_of(refused)["code"] == "workers_silent"
    found = Cancelled(2, 1)
    assert ask(app, "DELETE", "/x").get_json() == {"object": "call", "id": "x", "cancelled": 2}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_call_that_is_cancelled_before_its_answer(
    app: App, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    seen: list[Any] = []

    def read_body(call: lifecycle.LiveCall) -> Any:
        seen.extend(app.services.in_flight.all().rows)
        raise CallCancelled("anna")

    monkeypatch.setattr(lifecycle.LiveCall, "read_body", read_body)
    answer = app.client.post(
        path, data=json.dumps(HELLO), headers={"x-api-key": ORDINARY, "X-Request-Id": "mine"}
    )
    assert answer.status_code == 403
    assert answer.headers["x-should-retry"] == "false"
    error = answer.get_json()["error"]
    assert error["type"] == "permission_error"
    assert "cancelled by 'anna'" in error["message"]
    assert [(row["id"], row["endpoint"], row["state"]) for row in seen] == [
        ("mine", path, "waiting")
    ]
    assert app.services.in_flight.all().rows == []
    (line,) = app.calls
    assert (line["outcome"], line["error"]) == ("cancelled", "call_cancelled")
