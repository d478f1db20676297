"""What people read in a terminal: how to reach the server, what it found, and no secret."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from qwen_wsgi import __version__
from qwen_wsgi import text as report
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus, StaticKey, TokenState
from qwen_wsgi.hosts import Family
from tests.fakes.upstream import account_of, settings_of
from tests.kit.secrets import core, secret

CLIENT_KEY = secret("report-client")
API_KEY = secret("report-account")
BASE_URL = "https://dashscope.aliyuncs.com/compatible-mode/v1"


def keyed(name: str = "dashscope", key: str | None = API_KEY) -> Account:
    """An account with the product's own key credential, so that its own words are tested."""
    account = account_of(name, base_url=BASE_URL)
    fault = "" if key is not None else "DASHSCOPE_API_KEY is not set"
    credential = StaticKey(key, BASE_URL, fault, "Set it." if fault else "")
    return Account(**{**vars(account), "credential": credential, "origin": "environment X"})


class Expired:
    def status(self) -> CredentialStatus:
        return CredentialStatus(TokenState.EXPIRED, "…abcd", "expired 2 days ago", "Run `qwen`.", 1)


def expired() -> Account:
    account = account_of("oauth", base_url="https://portal.qwen.ai/v1", family=Family.PORTAL)
    return Account(**{**vars(account), "kind": "oauth", "credential": Expired()})


def sandbox() -> Account:
    account = account_of("sandbox", family=Family.SANDBOX)
    return Account(**{**vars(account), "kind": "sandbox", "base_url": None})


def models(*ids: str) -> list[dict[str, Any]]:
    return [{"id": id} for id in ids]


def banner(*accounts: Account, listed: list[dict[str, Any]] | None = None, **environ: Any) -> str:
    problems = ("~/.qwen/settings.json is broken.",)
    listed = models("m1") if listed is None else listed
    endpoints = ["POST /v1/responses", "DELETE /v1/responses/{id}", "GET /v1/responses/{id}"]
    return report.banner(settings_of(**environ), accounts, listed, problems, endpoints)


def test_an_account_with_a_plan_shows_its_windows() -> None:
    window = {
        **{"window": "7d", "kind": "first", "unit": "credits", "used": None, "limit": 100.0},
        **{"share": None, "calls": 3, "tokens": 1200, "spent": False, "ends_at": 1_795_176_000},
        **{"free_at": None, "forecast_at": None, "told_by_vendor": False},
    }
    account = keyed()
    row = report.status_row(account, account.credential.status(), None, {"windows": [window]})
    going = {**window, "unit": "calls", "used": 3, "share": 0.03, "forecast_at": 1_795_180_000}

    assert (
        "    plan        7d: unknown of 100 credits: 3 calls, 1,200 tokens, ends 2026-11-2"
        in report.accounts_text([row], ())
    )
    assert report.window_text(going).startswith("7d: 3 of 100 calls (3%), ends 2026-11-2")
    assert report.window_text(going).endswith("if it goes on so")


def test_the_banner_has_all_that_a_newcomer_needs() -> None:
    text = banner(keyed(), expired(), listed=models("text-embedding-v4", "qwen3.7-plus"))

    assert f"qwen-proxy {__version__} is ready" in text
    assert "http://127.0.0.1:8080/v1" in text
    assert "this machine only" in text
    assert "dashscope: fresh, API key is set" in text
    assert "from environment X, endpoint " + BASE_URL in text
    assert "oauth: expired, expired 2 days ago" in text
    assert "to do: Run `qwen`." in text
    assert "note      ~/.qwen/settings.json is broken." in text
    assert "text-embedding-v4, qwen3.7-plus" in text
    assert "SANDBOX" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "endpoints POST /v1/responses" in lines
    assert "GET, DELETE /v1/responses/{id}" in lines
    (line,) = [line for line in text.splitlines() if "curl" in line]
    command = shlex.split(line)
    assert command[:3] == ["curl", "-N", "http://127.0.0.1:8080/v1/chat/completions"]
    assert json.loads(command[command.index("-d") + 1])["model"] == "qwen3.7-plus"


@pytest.mark.parametrize(
    ("asked", "words"),
    [("auto", "No Qwen account was found"), ("1", "QWEN_PROXY_SANDBOX=1")],
)
def test_the_banner_says_plainly_that_a_sandbox_answers(asked: str, words: str) -> None:
    text = banner(sandbox(), QWEN_PROXY_SANDBOX=asked)

    assert "SANDBOX" in text
    assert words in text
    assert "fake" in text


def test_the_banner_says_so_when_there_is_no_account_at_all() -> None:
    text = banner(listed=[])

    assert "none: every call gets a 503" in text
    assert "models    none" in text


def test_many_models_are_counted_and_the_first_are_named() -> None:
    text = banner(keyed(), listed=models(*(f"model-{n}" for n in range(20))))

    assert "model-7, … (20 in total)" in text
    assert "model-8" not in text


@pytest.mark.parametrize("render", ["banner", "accounts", "curl"])
def test_no_secret_is_shown(render: str) -> None:
    settings: dict[str, Any] = {
        "QWEN_PROXY_API_KEYS": CLIENT_KEY,
        "QWEN_UPSTREAM_API_KEY": API_KEY,
    }
    text = {
        "banner": lambda: banner(keyed(), **settings),
        "accounts": lambda: report.accounts_text([report.account_row(keyed())], ()),
        "curl": lambda: report.curl(settings_of(**settings), "m"),
    }[render]()

    assert core(CLIENT_KEY) not in text
    assert core(API_KEY) not in text
    assert "key…" not in text or render == "accounts"


def test_with_client_keys_the_example_has_a_place_for_one() -> None:
    text = banner(keyed(), QWEN_PROXY_API_KEYS=f"{CLIENT_KEY},other")

    assert "all that have one of the 2 client keys" in text
    assert "-H 'Authorization: Bearer YOUR_CLIENT_KEY'" in text


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, "http://127.0.0.1:8080/v1"),
        ({"HOST": "0.0.0.0", "PORT": "80"}, "http://127.0.0.1:80/v1"),
        ({"HOST": "::"}, "http://127.0.0.1:8080/v1"),
        ({"HOST": "::1"}, "http://[::1]:8080/v1"),
        ({"HOST": "192.168.1.5"}, "http://192.168.1.5:8080/v1"),
        ({"QWEN_PROXY_BIND": ":9000"}, "http://127.0.0.1:9000/v1"),
        ({"QWEN_PROXY_BIND": "unix:/run/x.sock"}, "http://localhost/v1"),
    ],
    ids=str,
)
def test_the_address_for_clients(environ: dict[str, str], url: str) -> None:
    assert report.base_url(settings_of(**environ)) == url


def command_of(model: str, **environ: Any) -> list[str]:
    return shlex.split(report.curl(settings_of(**environ), model))


def test_the_example_is_one_command_that_streams() -> None:
    command = command_of("m")

    assert command[:2] == ["curl", "-N"]
    body = json.loads(command[command.index("-d") + 1])
    assert (body["model"], body["stream"]) == ("m", True)
    assert body["messages"][0]["role"] == "user"


def test_without_client_keys_the_example_has_no_place_for_one() -> None:
    assert "Authorization" not in report.curl(settings_of(), "m")


def test_the_example_reaches_a_unix_socket() -> None:
    command = command_of("m", QWEN_PROXY_BIND="unix:/run/qwen-proxy/http.sock")

    assert command[command.index("--unix-socket") + 1] == "/run/qwen-proxy/http.sock"
    assert "http://localhost/v1/chat/completions" in command


def test_a_model_with_a_quote_in_its_name_is_quoted_for_the_shell() -> None:
    """Names come from upstreams, and the line is there to be pasted."""
    command = command_of("x'; touch /tmp/pwned; '")

    assert json.loads(command[-1])["model"] == "x'; touch /tmp/pwned; '"


def test_a_models_name_cannot_control_the_terminal() -> None:
    assert "\x1b" not in banner(keyed(), listed=models("evil\x1b]0;title\x07\x1b[2J"))


@pytest.mark.parametrize(
    ("ids", "chosen"),
    [
        (["a", "b"], "a"),
        (["text-embedding-v4", "b"], "b"),
        (["text-embedding-v4"], "qwen3.7-plus"),
        ([], "qwen3.7-plus"),
    ],
    ids=str,
)
def test_the_example_asks_a_model_that_can_chat(ids: list[str], chosen: str) -> None:
    assert report.chat_model(models(*ids)) == chosen


def test_a_row_tells_an_account() -> None:
    assert report.account_row(keyed()) == {
        "name": "dashscope",
        "kind": "key",
        "origin": "environment X",
        "endpoint": BASE_URL,
        "state": "fresh",
        "detail": "API key is set",
        "credential": "…0000",
        "remedy": "",
    }


def test_the_accounts_are_told_with_what_to_do() -> None:
    rows = map(report.account_row, (keyed(), keyed("second", None), sandbox()))
    text = report.accounts_text(rows, ["one note"])

    assert "dashscope  NOT TRIED YET  API key is set" in text
    assert "second  MISSING  DASHSCOPE_API_KEY is not set" in text
    assert "to do       Set it." in text
    assert "endpoint    –" in text
    assert text.endswith("note: one note")


def test_without_accounts_the_ways_to_get_one_are_told() -> None:
    text = report.accounts_text([], ())

    assert "DASHSCOPE_API_KEY" in text
    assert "QWEN_UPSTREAM_BASE_URL" in text


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (None, "this machine only (`qwen-proxy keys add NAME` lets others in)"),
        (0, "nobody: every client key was revoked or has expired"),
        (1, "all that have the client key"),
        (3, "all that have one of the 3 client keys"),
    ],
)
def test_the_banner_knows_keys_of_the_database(keys: int | None, told: str) -> None:
    text = report.banner(settings_of(), [keyed()], [], (), keys=keys)

    assert told in text
    assert ("YOUR_CLIENT_KEY" in text) is (keys is not None)
    facts = report.ready(settings_of(), [keyed()], [], (), keys=keys)
    assert facts["client_keys"] == (keys or 0)
