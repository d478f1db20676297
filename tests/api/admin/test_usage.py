"""GET /v1/usage and GET /admin/v1/usage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.accounting.usage import COLUMNS
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.state.database import tables
from tests.api.apps import App, error_of, running
from tests.fakes.clock import FakeClock
from tests.kit.secrets import secret

ONE, TWO, ADMIN = secret("client-one"), secret("client") + "-two2", secret("admin")
DAY = 86_400


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as made:
        yield made


@pytest.fixture
def environ(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": "sk-of-the-account",
        "QWEN_PROXY_API_KEYS": f"{ONE},{TWO}",
        "QWEN_PROXY_ADMIN_KEYS": ADMIN,
    }


@pytest.fixture
def app(environ: dict[str, Any], tmp_path: Path) -> Iterator[App]:
    with running(state_dir=tmp_path, **environ) as made:
        yield made


def by_key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def ask(app: App, path: str, key: str) -> Any:
    answer = app.get(path, headers=by_key(key))
    assert answer.status_code == 200, answer.data
    return json.loads(answer.data)


def chat(app: App, key: str, model: str = "qwen3.8-max", spec: str = "cached=10") -> int:
    messages = [{"role": "user", "content": f"hello [[sandbox: prompt-tokens=100, {spec}]]"}]
    return app.chat({"model": model, "messages": messages}, headers=by_key(key)).status_code


def test_a_client_sees_its_own_numbers(app: App) -> None:
    assert chat(app, ONE) == 200
    assert chat(app, ONE, "qwen3.7-plus") == 200
    assert chat(app, TWO) == 200
    assert app.get("/v1/nothing", headers=by_key(ONE)).status_code == 404

    found = ask(app, "/v1/usage", ONE)

    assert list(found) == ["object", "client", "today", "month", "limits"]
    assert (found["object"], found["limits"]) == ("usage", None)
    assert found["client"] == "env-1"
    for span in (found["today"], found["month"]):
        assert span["by"] == "model"
        rows = {row["key"]: row for row in span["rows"]}
        assert rows["qwen3.8-max"]["calls"] == rows["qwen3.7-plus"]["calls"] == 1
        assert rows["qwen3.8-max"]["cached_tokens"] == 10
        assert rows["qwen3.8-max"]["money"] > 0
        assert rows["qwen3.7-plus"]["money"] is None
    # Asking is no call, and another's numbers are another's.
    assert ask(app, "/v1/usage", ONE)["today"]["rows"] == found["today"]["rows"]
    assert [row["calls"] for row in ask(app, "/v1/usage", TWO)["today"]["rows"]] == [1]


def test_today_and_this_month_are_those_of_the_clock(
    environ: dict[str, Any], tmp_path: Path
) -> None:
    clock = FakeClock()
    with running(clock, state_dir=tmp_path, **environ) as app:
        for _ in range(2):
            chat(app, ONE)
            clock.advance(DAY)
        found = ask(app, "/v1/usage", ONE)
        assert found["today"]["rows"] == []
        assert [row["calls"] for row in found["month"]["rows"]] == [2]
        clock.advance(30 * DAY)
        assert ask(app, "/v1/usage", ONE)["month"]["rows"] == []


def test_an_admin_sees_all(app: App) -> None:
    for key in (ONE, ONE, TWO):
        chat(app, key)
    assert chat(app, TWO, spec="error=limit_requests") == 429
    assert app.chat({"messages": 5}, headers=by_key(ONE)).status_code == 400

    found = ask(app, "/admin/v1/usage", ADMIN)

    assert (found["by"], found["until"] - found["since"]) == ("client", 30 * DAY + 1)
    assert [tuple(row) for row in found["rows"]] == [COLUMNS, COLUMNS]
    assert sorted((r["calls"], r["refused"], r["failed"]) for r in found["rows"]) == [
        (2, 0, 1),
        (2, 1, 0),
    ]
    assert sum(row["input_tokens"] for row in found["rows"]) == 300
    for by, keys in (("model", 2), ("account", 2), ("endpoint", 1), ("day", 1), ("hour", 1)):
        rows = ask(app, f"/admin/v1/usage?by={by}&since=1d&until=now", ADMIN)["rows"]
        assert len({row["key"] for row in rows}) == keys, (by, rows)
    assert ask(app, "/admin/v1/usage?until=2020-01-02&since=2020-01-01", ADMIN)["rows"] == []


@pytest.mark.parametrize(
    ("query", "param", "words"),
    [
        ("by=colour", "by", "client, model, account, endpoint, day, hour"),
        ("since=soon", "since", "since must be a time such as 7d"),
        ("until=soon", "until", "until must be a time such as 7d"),
        ("since=1d&until=2d", "since", "since must be before until"),
    ],
)
def test_questions_that_are_none(app: App, query: str, param: str, words: str) -> None:
    answer = app.get(f"/admin/v1/usage?{query}", headers=by_key(ADMIN))

    assert answer.status_code == 400
    error = error_of(answer)
    assert error["param"] == param
    assert words in error["message"]


def test_nobody_else_sees_all(app: App) -> None:
    refused = app.get("/admin/v1/usage", headers=by_key(ONE))
    assert (refused.status_code, error_of(refused)["code"]) == (403, "admin_key_required")
    assert app.get("/admin/v1/usage").status_code == 401
    assert app.get("/v1/usage").status_code == 401
    assert app.get("/v1/usage", headers=by_key(ADMIN)).status_code == 200


def test_without_keys_nobody_is_an_admin(tmp_path: Path) -> None:
    with running(state_dir=tmp_path) as app:
        assert app.get("/v1/usage").status_code == 200
        assert app.get("/admin/v1/usage").status_code == 403


@pytest.mark.parametrize("days", ["0", "400"])
def test_where_no_record_is_kept(environ: dict[str, Any], tmp_path: Path, days: str) -> None:
    directory = tmp_path if days == "0" else None
    with running(state_dir=directory, QWEN_PROXY_LEDGER_DAYS=days, **environ) as app:
        assert chat(app, ONE) == 200
        answer = app.get("/v1/usage", headers=by_key(ONE))
        assert (answer.status_code, error_of(answer)["code"]) == (404, "no_ledger")

    assert not (tmp_path / "ledger").exists()
    assert [call["outcome"] for call in app.calls] == ["complete", "refused"]


def test_a_record_that_cannot_be_read(app: App, tmp_path: Path) -> None:
    chat(app, ONE)
    directory = tmp_path / tables.DIRECTORY
    directory.rename(tmp_path / "aside")
    directory.write_text("no directory")

    answer = app.get("/v1/usage", headers=by_key(ONE))

    assert (answer.status_code, error_of(answer)["code"]) == (503, "ledger_unavailable")
    assert "usage cannot be told" in app.log
    directory.unlink()
    (tmp_path / "aside").rename(directory)
    assert ask(app, "/v1/usage", ONE)["today"]["rows"]


def test_prices_of_the_operator(environ: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "prices.json"
    price = {"models": ["qwen3.7-*"], "currency": "EUR", "input": 1, "output": 0}
    own.write_text(json.dumps({"prices": [price]}))
    with running(state_dir=tmp_path, QWEN_PROXY_PRICES=str(own), **environ) as app:
        chat(app, ONE, "qwen3.7-plus")
        (row,) = ask(app, "/v1/usage", ONE)["today"]["rows"]
        assert (row["money"], row["currency"]) == (0.0001, "EUR")
        assert app.services.price_problem == ""

    own.write_text("{")
    with running(QWEN_PROXY_PRICES=str(own), **environ) as app:
        assert str(own) in app.services.price_problem
        assert "built-in" in app.services.price_problem


def test_the_maintenance_brings_calls_into_the_table(app: App, tmp_path: Path) -> None:
    chat(app, ONE)
    app.services.maintenance._bring_calls()
    for file in (tmp_path / "ledger").glob("*.jsonl"):
        file.unlink()

    assert len(ask(app, "/v1/usage", ONE)["today"]["rows"]) == 1
