"""Plans of accounts: what of them is shown, who answers when one is spent, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.cli.stored import plans as command
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.upstream.failures.causes import PLAN_SPENT
from tests.api.apps import UPSTREAM_KEY, App, error_of, running
from tests.fakes.clock import NOON_S, FakeClock
from tests.fakes.upstream import settings_of
from tests.kit.prometheus_text import parse
from tests.kit.secrets import secret

MODEL = "qwen3.7-plus"
PAY_KEY = secret("pay-as-you-go-of-plans")
PLAN, PAY = "dashscope", "modelstudio"
WEEK_S = 7 * 86_400


@contextmanager
def in_front_of(
    sandbox: Sandbox,
    state_dir: Path | None,
    *,
    fallback: str = PAY,
    plans: str = "3/5h",
    **more: Any,
) -> Iterator[App]:
    """Two accounts at the sandbox; the first one has a plan."""
    with running(
        state_dir=state_dir,
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=UPSTREAM_KEY,
        MODELSTUDIO_BASE_URL=sandbox.base_url,
        MODELSTUDIO_API_KEY=PAY_KEY,
        QWEN_PROXY_PLANS=f"{PLAN}={plans}",
        QWEN_PROXY_PLAN_FALLBACK=fallback,
        QWEN_PROXY_RETRY_BUDGET=30,
        **more,
    ) as app:
        app.services.plans.look()
        yield app


def chat(app: App, text: str = "hello", *, account: str = "", **members: Any) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **members}
    return app.chat(body, headers={"x-qwen-account": account} if account else {})


def answered_by(app: App, text: str = "hello", **members: Any) -> str:
    answer = chat(app, text, **members)
    assert answer.status_code == 200, answer.data
    assert answer.data
    answer.close()
    return str(answer.headers["x-qwen-proxy-account"])


def window(app: App) -> Any:
    rows = json.loads(app.get("/health").data)["accounts"]
    (found,) = [row["plan"]["windows"][0] for row in rows if row["name"] == PLAN]
    return found


def spent_by_vendor(sandbox: Sandbox, spec: str = "plan-quota=hour, reset-in=3600") -> None:
    sandbox.control(next=[{"spec": spec, "key_ends": UPSTREAM_KEY, "count": None}])


def test_the_fallback_answers_when_the_window_is_spent_and_the_plan_when_it_is_over(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    with in_front_of(sandbox, tmp_path) as app:
        assert [answered_by(app) for _ in range(5)] == [PLAN] * 3 + [PAY] * 2
        app.services.plans.look()
        assert (window(app)["used"], window(app)["spent"]) == (3, True)
        assert answered_by(app, stream=True) == PAY
        app.clock.advance(5 * 3600 + 60)
        app.services.plans.look()
        assert (window(app)["used"], window(app)["spent"]) == (0, False)
        assert answered_by(app) == PLAN


def test_another_worker_knows_what_was_used(sandbox: Sandbox, tmp_path: Path) -> None:
    with in_front_of(sandbox, tmp_path) as one, in_front_of(sandbox, tmp_path) as two:
        assert [answered_by(one), answered_by(two), answered_by(two)] == [PLAN] * 3
        for app in (one, two):
            app.services.plans.look()
        assert [answered_by(one), answered_by(two)] == [PAY] * 2
        assert window(one)["used"] == window(two)["used"] == 3


def test_what_the_vendor_says_corrects_the_count_and_survives_a_restart(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    spent_by_vendor(sandbox)
    clock = FakeClock()
    with in_front_of(sandbox, tmp_path, plans="9/5h") as app:
        assert answered_by(app) == PAY, "the refused call itself goes on"
        assert app.calls[-1]["attempts"] == 2
        assert answered_by(app) == PAY
        app.services.plans.look()
        assert window(app)["told_by_vendor"]
        assert window(app)["free_at"] == pytest.approx(clock.now() + 3600, abs=3600 * 24 * 400)
        until = window(app)["free_at"]
    for shared in tmp_path.glob("cooldown-*"):
        shared.unlink()  # as after a boot
    with in_front_of(sandbox, tmp_path, plans="9/5h") as app:
        assert (window(app)["spent"], window(app)["free_at"]) == (True, until)
        assert answered_by(app) == PAY
        assert app.calls[-1]["attempts"] == 1


def test_a_refusal_without_a_time_has_the_fallback_answer(sandbox: Sandbox, tmp_path: Path) -> None:
    spent_by_vendor(sandbox, "plan-quota=hour")
    with in_front_of(sandbox, tmp_path, plans="9/5h") as app:
        assert answered_by(app) == PAY
        assert not window(app)["told_by_vendor"]
        sandbox.control(clear_rules=True)
        assert answered_by(app) == PAY


def test_without_a_fallback_the_refusal_names_plan_window_and_end(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    with in_front_of(sandbox, tmp_path) as app:
        for _ in range(3):
            assert answered_by(app, account=PLAN) == PLAN
        app.services.plans.look()
        answer = chat(app, account=PLAN)

        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (429, "insufficient_quota")
        assert (
            "the plan of account 'dashscope' is used up: its window of 5h (3 calls)"
            in (error["message"])
        )
        assert float(answer.headers["retry-after"]) == pytest.approx(5 * 3600, abs=61)
        assert answer.headers["x-should-retry"] == "false"
        messages = app.client.post(
            "/v1/messages",
            json={"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]},
            headers={"x-qwen-account": PLAN},
        )
        assert messages.status_code == 429
        assert json.loads(messages.data)["error"]["type"] == "rate_limit_error"
        assert float(messages.headers["retry-after"]) == pytest.approx(5 * 3600, abs=61)


def test_a_vendor_s_end_is_the_retry_after_also_beyond_a_day(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    spent_by_vendor(sandbox, "plan-quota=week, reset-in=259200")
    with in_front_of(sandbox, tmp_path, fallback="", plans="9/week") as app:
        first, second = chat(app, account=PLAN), chat(app, account=PLAN)

    assert first.status_code == second.status_code == 429
    for each in (first, second):
        assert float(each.headers["retry-after"]) > 86_400
    assert "as its vendor says" in error_of(second)["message"]


def test_a_key_s_accounts_hold_for_fallbacks(sandbox: Sandbox, tmp_path: Path) -> None:
    with in_front_of(sandbox, tmp_path, plans="1/5h") as app:
        made = app.services.client_keys.add({"name": "anna", "accounts": [PLAN]})
        app.services.key_ring.look_again()
        headers = {"Authorization": f"Bearer {made.secret}"}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
        assert app.chat(body, headers=headers).status_code == 200
        app.services.plans.look()
        assert app.chat(body, headers=headers).status_code == 429


def test_what_is_shown(sandbox: Sandbox, tmp_path: Path) -> None:
    with in_front_of(sandbox, tmp_path) as app:
        for _ in range(3):
            answered_by(app)
        app.services.plans.look()
        status = json.loads(app.get("/status").data)["accounts"]
        plans = {row["name"]: row["plan"] for row in status}
        assert plans[PAY] is None
        assert plans[PLAN]["windows"][0] == window(app)
        (row,) = [row for row in status if row["name"] == PLAN]
        assert (row["state"], row["cause"]) == ("paused", PLAN_SPENT)
        assert json.loads(app.get("/health").data)["status"] == "ok"
        found = parse(app.get("/metrics").text)
        labels = {"account": PLAN, "window": "5h", "unit": "calls"}
        assert found.value("qwen_proxy_plan_used", **labels) == 3
        assert found.value("qwen_proxy_plan_limit", **labels) == 3
        assert found.value("qwen_proxy_plan_spent", **labels) == 1
        assert 0 < found.value("qwen_proxy_plan_left_seconds", **labels) <= 5 * 3600


def test_a_stranger_sees_nothing_of_it(sandbox: Sandbox, tmp_path: Path) -> None:
    with in_front_of(sandbox, tmp_path, QWEN_PROXY_API_KEYS=secret("client")) as app:
        answer = app.get("/health", environ_overrides={"REMOTE_ADDR": "192.168.1.7"})
        assert json.loads(answer.data) == {"status": "ok", "ready": True}


def test_names_that_are_no_accounts_are_told(sandbox: Sandbox) -> None:
    with in_front_of(sandbox, None, fallback="nobody,modelstudio", plans="1/5h;other=2/5h") as app:
        notes = [str(note) for note in app.services.discovery.notes()]

    assert notes == [
        "QWEN_PROXY_PLANS names what is no account: other. The accounts are: dashscope, "
        "modelstudio.",
        "QWEN_PROXY_PLAN_FALLBACK names what is no account: nobody. The accounts are: dashscope, "
        "modelstudio.",
    ]


class TestCommand:
    def said(self, sandbox: Sandbox, state_dir: Path, *, json_output: bool, **more: Any) -> str:
        settings = settings_of(
            HOME=str(state_dir),
            PORT=1,
            QWEN_PROXY_STATE_DIR=str(state_dir),
            **{
                "DASHSCOPE_BASE_URL": sandbox.base_url,
                "DASHSCOPE_API_KEY": UPSTREAM_KEY,
                "QWEN_PROXY_PLANS": f"{PLAN}=3/5h",
                **more,
            },
        )
        out = io.StringIO()
        err = io.StringIO()
        status = command.run(settings, json_output=json_output, out=out, err=err, clock=FakeClock())
        assert status == (1 if err.getvalue() else 0)
        return out.getvalue() + err.getvalue()

    def test_by_the_ledger_while_no_server_runs(self, sandbox: Sandbox, tmp_path: Path) -> None:
        with in_front_of(sandbox, tmp_path) as app:
            for _ in range(2):
                answered_by(app)
        found = json.loads(self.said(sandbox, tmp_path, json_output=True))
        (account,) = found["accounts"]
        assert found["asked"]["why_not"]
        assert (account["account"], account["limits"], account["counted"]) == (PLAN, "stated", True)
        assert account["windows"][0]["used"] == 2
        table = self.said(
            sandbox, tmp_path, json_output=False, QWEN_PROXY_PLAN_FALLBACK="upstream:llama"
        )
        head, row, *rest = table.splitlines()
        assert head.split() == [
            *("account", "plan", "window", "used", "limit", "share", "ends", "forecast"),
        ]
        assert row.split()[:7] == [PLAN, "dashscope", "5h", "2", "3", "calls", "67%"]
        assert "other programs with the same key" in rest[-2]
        assert rest[-1] == "While a window is spent: upstream:llama."

    def test_what_is_not_known_is_said(self, sandbox: Sandbox, tmp_path: Path) -> None:
        said = self.said(
            sandbox,
            tmp_path,
            json_output=False,
            QWEN_PROXY_PLANS=f"{PLAN}=10credits/5h@first,?/7d",
            QWEN_PROXY_LEDGER_DAYS=0,
        )
        assert "How many credits were used is unknown" in said
        assert "none is kept" in said
        assert "unknown" in said

    def test_a_plan_that_is_assumed(self, tmp_path: Path) -> None:
        settings = settings_of(
            HOME=str(tmp_path),
            PORT=1,
            QWEN_PROXY_STATE_DIR=str(tmp_path),
            BAILIAN_CODING_PLAN_API_KEY=secret("coding"),
        )
        out = io.StringIO()
        command.run(settings, json_output=False, out=out, err=out, clock=FakeClock())
        assert "coding-plan  coding-plan  5h" in out.getvalue()
        assert "The limits of coding-plan are assumed" in out.getvalue()

    def test_a_ledger_that_cannot_be_read_is_told(self, sandbox: Sandbox, tmp_path: Path) -> None:
        with in_front_of(sandbox, tmp_path) as app:
            answered_by(app)
        for name in ("database", "ledger"):
            shutil.rmtree(tmp_path / name)
            (tmp_path / name).write_text("no directory")
        said = self.said(sandbox, tmp_path, json_output=False)
        assert said.startswith("qwen-proxy: ")
        assert "cannot be used" in said

    def test_what_is_shown_of_a_window_that_is_spent(self) -> None:
        window = {
            **{"window": "5h", "kind": "rolling", "unit": "calls", "used": 7, "limit": 7.0},
            **{"share": 1.0, "calls": 7, "tokens": 9, "spent": True, "ends_at": None},
            **{"free_at": NOON_S + 60, "forecast_at": None, "told_by_vendor": True},
        }
        going = {**window, "spent": False, "ends_at": NOON_S + 9, "forecast_at": NOON_S + 86_400}
        row = {"account": "a", "plan": "token-plan", "limits": "stated", "counted": True}

        said = command.shown([{**row, "windows": [window, going]}], [], now=NOON_S)

        assert re.search(r"100%  SPENT until \d\d:01 \(its vendor says\)", said)
        assert re.search(r"from \d\d:00 on  spent at 2026-11-2\d \d\d:00", said)

    def test_nobody_has_a_plan(self, sandbox: Sandbox, tmp_path: Path) -> None:
        said = self.said(sandbox, tmp_path, json_output=False, QWEN_PROXY_PLANS="")
        assert said.startswith("No account belongs to a plan.")
