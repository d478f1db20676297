"""GET /metrics: who may read it, and what calls leave in it."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest

from qwen_wsgi.access import guard
from qwen_wsgi.accounting import exposition
from qwen_wsgi.accounting.metric_families import ENDPOINTS, FAMILIES
from qwen_wsgi.accounting.metrics import endpoint_of
from qwen_wsgi.api.flask_app import is_console
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.upstream.failures.causes import CAUSES
from tests.api.apps import UPSTREAM_KEY, App, error_of, in_front_of, running
from tests.fakes.raw_server import whole
from tests.kit.prometheus_text import Exposition, parse
from tests.kit.secrets import core, secret

KEY, OTHER_KEY = secret("metrics-client"), secret("metrics-other")
MODEL = "qwen3-coder-plus"
FAR = {"REMOTE_ADDR": "192.168.1.7"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def hello(model: str = MODEL, **members: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **members}


def scrape(app: App) -> Exposition:
    answer = app.get("/metrics")
    assert (answer.status_code, answer.content_type) == (200, exposition.TEXT)
    assert answer.headers["x-request-id"]
    return parse(answer.text)


class TestWhoMayRead:
    def test_this_machine_without_a_key_also_when_there_are_keys(self) -> None:
        for keys in ("", KEY):
            with running(QWEN_PROXY_API_KEYS=keys) as app:
                assert scrape(app).types
                through_nginx = app.get(
                    "/metrics",
                    headers={"X-Forwarded-For": "127.0.0.1"},
                    environ_overrides={"REMOTE_ADDR": ""},
                )
                assert through_nginx.status_code == 200

    @pytest.mark.parametrize("key", ["", KEY, "wrong"])
    @pytest.mark.parametrize(
        ("headers", "peer"),
        [
            ({}, "192.168.1.7"),
            ({"X-Forwarded-For": "192.168.1.7"}, ""),
            ({"X-Forwarded-For": "192.168.1.7"}, "127.0.0.1"),
            ({"X-Forwarded-For": "127.0.0.1, 192.168.1.7"}, ""),
            ({"X-Forwarded-For": "127.0.0.1"}, "192.168.1.7"),
        ],
        ids=["direct", "nginx", "local-proxy", "forged", "forged-direct"],
    )
    def test_others_only_with_a_key_that_allows_it(
        self, headers: dict[str, str], peer: str, key: str
    ) -> None:
        with running(QWEN_PROXY_API_KEYS=KEY) as app:
            answer = app.get(
                "/metrics",
                headers={**headers, **(bearer(key) if key else {})},
                environ_overrides={"REMOTE_ADDR": peer},
            )

        told = {"": "missing_api_key", KEY: "metrics_not_allowed", "wrong": "invalid_api_key"}
        assert answer.status_code == (403 if key == KEY else 401)
        assert error_of(answer)["code"] == told[key]

    def test_a_key_that_allows_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guard, "_reads_metrics", lambda client: True)
        with running(QWEN_PROXY_API_KEYS=KEY) as app:
            answer = app.get("/metrics", headers=bearer(KEY), environ_overrides=FAR)
            line = app.calls[-1]

        assert answer.status_code == 200
        assert line["client"] == "env-1"

    def test_without_any_key_nobody_from_elsewhere(self) -> None:
        with running() as app:
            answer = app.get("/metrics", environ_overrides=FAR)

        assert answer.status_code == 401

    def test_a_proxy_whose_word_does_not_count_opens_nothing(self) -> None:
        """An nginx on this machine that is not among the trusted ones would make the whole LAN
        look like this machine."""
        with running(QWEN_PROXY_TRUSTED_PROXIES="10.0.0.0/8", QWEN_PROXY_API_KEYS=KEY) as app:
            passed_on = app.get("/metrics", headers={"X-Forwarded-For": "192.168.1.7"})
            direct = app.get("/metrics")

        assert (passed_on.status_code, direct.status_code) == (401, 200)

    @pytest.mark.parametrize("keys", ["", KEY], ids=["open", "keys"])
    @pytest.mark.parametrize(
        "headers",
        [
            {"Host": "evil.example"},
            {"Origin": "https://evil.example"},
            {"Origin": "http://127.0.0.1:3000"},
            {"Sec-Fetch-Site": "cross-site"},
        ],
        ids=lambda headers: next(iter(headers)) if isinstance(headers, dict) else None,
    )
    def test_no_web_page(self, keys: str, headers: dict[str, str]) -> None:
        with running(QWEN_PROXY_API_KEYS=keys) as app:
            assert app.get("/metrics", headers=headers).status_code == 403


class TestFormats:
    def test_openmetrics_by_accept(self, app: App) -> None:
        app.chat(hello())
        plain = scrape(app)
        accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"
        answer = app.get("/metrics", headers={"Accept": accept})
        found = parse(answer.text, openmetrics=True)

        assert answer.content_type == exposition.OPENMETRICS
        assert found.samples.keys() == plain.samples.keys()

    def test_all_metrics_are_there_and_only_those(self, app: App) -> None:
        assert list(scrape(app).types) == [family.name for family in FAMILIES]

    def test_scrapes_and_health_checks_are_not_counted(self, app: App) -> None:
        for path in ("/metrics", "/health", "/", "/health/ready", "/metrics"):
            app.get(path)

        assert scrape(app).total("qwen_proxy_calls_total") == 0


class TestWhatIsCounted:
    def test_known_series_are_there_at_zero(self, app: App) -> None:
        found = scrape(app)

        for name in (
            *("calls_total", "tokens_total", "errors_total", "client_aborts_total"),
            *("keepalives_total", "calls_without_usage_total", "call_duration_seconds_count"),
            *("first_byte_seconds_count", "longest_gap_seconds_count", "queue_seconds_count"),
            "loop_lag_seconds_count",
        ):
            values = [v for (each, _), v in found.samples.items() if each == f"qwen_proxy_{name}"]
            assert values and not any(values), name
        assert found.value("qwen_proxy_attempts_total", account="dashscope") == 0
        causes = {dict(labels)["cause"] for name, labels in found.samples if "errors" in name}
        assert causes >= CAUSES.keys()

    def test_a_call(self, app: App) -> None:
        before = scrape(app)
        assert app.chat(hello()).status_code == 200
        found = scrape(app)

        labels = {"endpoint": "chat_completions", "outcome": "complete", "status": "2xx"}
        assert found.value("qwen_proxy_calls_total", **labels) == 1
        who = {"client": "local", "account": "dashscope", "model": MODEL}
        assert found.value("qwen_proxy_client_calls_total", **who, outcome="complete") == 1
        assert found.value("qwen_proxy_attempts_total", account="dashscope") == 1
        (line,) = [line for line in app.calls if line["path"] == "/v1/chat/completions"]
        assert line["prompt_tokens"] > 0
        for kind, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            assert found.value("qwen_proxy_tokens_total", kind=kind) == line[name]
            assert found.value("qwen_proxy_client_tokens_total", **who, kind=kind) == line[name]
        for name in ("call_duration", "first_byte"):
            assert found.value(f"qwen_proxy_{name}_seconds_count", endpoint=labels["endpoint"]) == 1
        assert found.value("qwen_proxy_longest_gap_seconds_count") == 1
        assert found.value("qwen_proxy_queue_seconds_count") == 1
        for key, value in before.samples.items():
            assert found.types.get(key[0]) == "gauge" or found.samples[key] >= value

    def test_streams_of_every_dialect(self, app: App) -> None:
        app.chat(hello(stream=True)).close()
        messages = {"max_tokens": 10, **hello()}
        app.client.post("/v1/messages", json=messages)
        app.client.post("/v1/responses", json={"model": MODEL, "input": "hello"})
        app.client.post("/v1/completions", json={"model": MODEL, "prompt": "hello"})
        app.client.post("/v1/embeddings", json={"model": "text-embedding-v4", "input": "hello"})
        found = scrape(app)

        done = {
            dict(labels)["endpoint"]
            for (name, labels), value in found.samples.items()
            if name == "qwen_proxy_calls_total" and value
        }
        assert done >= {"chat_completions", "messages", "responses", "completions", "embeddings"}

    def test_a_refused_call(self, app: App) -> None:
        app.chat(b"{")
        found = scrape(app)

        assert found.value("qwen_proxy_errors_total", cause="invalid_request") == 1
        refused = {"endpoint": "chat_completions", "outcome": "refused", "status": "4xx"}
        assert found.value("qwen_proxy_calls_total", **refused) == 1
        assert found.total("qwen_proxy_attempts_total") == 0

    def test_a_throttled_account_cools_down(self) -> None:
        throttled = whole(
            b'{"error":{"message":"Slow down.","code":"limit_requests"}}',
            "429 Too Many Requests",
            retry_after="120",
        )
        models = whole(b'{"object":"list","data":[{"id":"m"}]}')
        with in_front_of(models, throttled) as (app, _):
            assert app.chat().status_code == 429
            found = scrape(app)

        assert found.value("qwen_proxy_errors_total", cause="rate_limited") == 1
        failed = {"account": "upstream", "cause": "rate_limited"}
        assert found.value("qwen_proxy_attempt_failures_total", **failed) == 1
        assert 100 < found.value("qwen_proxy_cooldown_seconds", account="upstream") <= 120
        assert found.value("qwen_proxy_paused_models", account="upstream") == 1
        assert found.value("qwen_proxy_account_usable", account="upstream") == 0
        states = {
            dict(labels)["state"]: value
            for (name, labels), value in found.samples.items()
            if name == "qwen_proxy_account_state"
        }
        assert [state for state, value in states.items() if value] == ["paused"]

    def test_a_login_tells_how_long_it_is_good_for(self) -> None:
        expires_ms = 1_795_176_000_000 + 3_600_000
        login = {
            "access_token": "access-" + core(KEY),
            "refresh_token": "refresh-" + core(KEY),
            "token_type": "Bearer",
            "resource_url": "portal.qwen.ai",
            "expiry_date": expires_ms,
        }
        with running(QWEN_CLI_AUTH=json.dumps(login)) as app:
            found = scrape(app)

        (account,) = {
            value
            for name, labels in found.samples
            if name == "qwen_proxy_credential_left_seconds"
            for _, value in labels
        }
        assert found.value("qwen_proxy_credential_left_seconds", account=account) == 3600
        refreshes = {
            dict(labels)["outcome"]
            for name, labels in found.samples
            if name == "qwen_proxy_login_refreshes_total"
        }
        assert refreshes >= {"ok", "rejected", "ambiguous"}


class TestBounds:
    def test_random_models_and_keys_leave_it_bounded(self, sandbox: Sandbox) -> None:
        with running(
            DASHSCOPE_BASE_URL=sandbox.base_url,
            DASHSCOPE_API_KEY=UPSTREAM_KEY,
            QWEN_PROXY_API_KEYS=f"{KEY},{OTHER_KEY}",
        ) as app:
            for key in (KEY, OTHER_KEY):
                app.chat(hello(), headers=bearer(key))
            app.chat(hello("no-such-model"), headers=bearer(KEY))
            app.chat(hello(), headers=bearer("sk-nobody"))
            app.get("/nothing", headers=bearer(KEY))
            before = scrape(app)
            for number in range(500):
                app.chat(hello(f"made-up-{number}"), headers=bearer(KEY))
                app.chat(hello(), headers=bearer(f"sk-made-up-{number}"))
                app.get(f"/made-up-{number}/v1", headers=bearer(KEY))
            found = scrape(app)
            text = app.get("/metrics").text

        assert found.samples.keys() == before.samples.keys()
        assert (
            found.total("qwen_proxy_calls_total") == before.total("qwen_proxy_calls_total") + 1500
        )
        assert "made-up" not in text
        assert found.values_of("client") == {"env-1", "env-2", "none"}
        assert found.values_of("model") == {MODEL, "other", "none"}
        assert len(text) < 200_000

    def test_no_secret_no_end_of_one_and_no_host(self, sandbox: Sandbox) -> None:
        with running(
            DASHSCOPE_BASE_URL=sandbox.base_url,
            DASHSCOPE_API_KEY=UPSTREAM_KEY,
            QWEN_PROXY_API_KEYS=KEY,
        ) as app:
            app.chat(hello(), headers=bearer(KEY))
            text = app.get("/metrics").text

        for known in (KEY, UPSTREAM_KEY):
            assert core(known) not in text
            assert known[-4:] not in text
        assert "127.0.0.1" not in text and "…" not in text


def test_every_route_has_an_endpoint() -> None:
    """But for those that are not counted."""
    with running() as app:
        rules = list(app.client.application.url_map.iter_rules())
    open_to_all = {"/", "/health", "/health/live", "/health/ready", "/status", "/metrics"}
    open_to_all |= {"/openapi.json", "/qwen.json", "/docs", "/pages/<name>"}
    for rule in rules:
        for method in rule.methods or ():
            endpoint = endpoint_of(method, rule.rule)
            assert endpoint in ENDPOINTS
            uncounted = rule.rule in open_to_all or is_console(rule.rule)
            assert (endpoint == "other") is uncounted, rule.rule


@pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (apt: prometheus)"
)
def test_prometheus_finds_nothing_to_complain_of(app: App) -> None:
    app.chat(hello())
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=app.get("/metrics").text,
        capture_output=True,
        text=True,
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
