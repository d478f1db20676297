"""What does not go together in the settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import net
from qwen_wsgi.access.client_key import ClientKey, KeptKey
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.doctor import configuration, plan_terms
from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.settings import Settings
from qwen_wsgi.state import key_copy
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.cooldown import Cooldowns
from tests.fakes.machine import faults, levels, one
from tests.kit.installed_machine import Load
from tests.kit.secrets import core, secret

KEY = secret("doctor-settings")
CLIENT_KEY = secret("doctor-client")


def found_with(settings: Settings) -> list[Finding]:
    discovery = Discovery(settings, SystemClock())
    pool = AccountPool(settings, discovery, Cooldowns(None), start_sandbox=lambda: "")
    return list(configuration.check(settings, discovery, pool.accounts()))


def test_the_defaults_are_fine(load: Load) -> None:
    found = found_with(load(DASHSCOPE_API_KEY=KEY))

    assert faults(found) == []
    assert levels(found) == {"environment": "ok", "account sources": "ok", "address": "ok"}


def test_a_lan_with_client_keys_is_fine(load: Load) -> None:
    found = found_with(load(HOST="0.0.0.0", QWEN_PROXY_API_KEYS=CLIENT_KEY))

    assert faults(found) == []
    assert "open to the LAN, with 1 client key(s)" in str(found)


@pytest.mark.parametrize(
    ("environ", "subject", "level", "words"),
    [
        ({"HOST": "0.0.0.0"}, "address", "warn", "only this machine is served"),
        ({"QWEN_PROXY_BIND": "nonsense"}, "address", "fail", "neither unix:PATH nor HOST:PORT"),
        ({"QWEN_PROXY_WORKER": "3"}, "QWEN_PROXY_WORKER", "warn", "no such setting"),
        ({"QWEN_PROXY_API_KEYS": "abc"}, "QWEN_PROXY_API_KEYS", "warn", "can be guessed"),
        ({"OPENAI_API_KEY": CLIENT_KEY}, "OPENAI_API_KEY", "note", "is used as a client key"),
        ({"QWEN_PROXY_CORS_ORIGINS": "*"}, "QWEN_PROXY_CORS_ORIGINS", "warn", "every web page"),
        ({"QWEN_PROXY_ACCOUNT_ORDER": "nope"}, "QWEN_PROXY_ACCOUNT_ORDER", "warn", "no account"),
        ({"QWEN_PROXY_SAME_ACCOUNT": "a+b"}, "QWEN_PROXY_SAME_ACCOUNT", "warn", "a, b"),
        ({"QWEN_PROXY_SANDBOX": "1"}, "QWEN_PROXY_SANDBOX", "note", "good for trials"),
        ({"QWEN_PROXY_SANDBOX": "auto"}, "QWEN_PROXY_SANDBOX", "note", "good for trials"),
        (
            {"QWEN_PROXY_ACCOUNT_IN_FLIGHT": "3", "QWEN_PROXY_WORKERS": "8"},
            "QWEN_PROXY_ACCOUNT_IN_FLIGHT",
            "note",
            "8 calls may run",
        ),
        (
            {"QWEN_PROXY_CLIENT_KEEPALIVE": "60"},
            "QWEN_PROXY_CLIENT_KEEPALIVE",
            "warn",
            "being closed (502)",
        ),
        (
            {"QWEN_PROXY_RETRY_BUDGET": "0"},
            "QWEN_PROXY_RETRY_BUDGET",
            "note",
            "not sent to another",
        ),
        ({"QWEN_PROXY_RETRY_BUDGET": "900"}, "QWEN_PROXY_RETRY_BUDGET", "warn", "give up sooner"),
        ({"QWEN_PROXY_STRICT": "1"}, "QWEN_PROXY_STRICT", "note", "get a 400"),
        ({"QWEN_HOME": "/no/such"}, "account sources", "warn", "is not a directory"),
        ({"QWEN_UPSTREAM_API_KEY": KEY}, "account sources", "warn", "is ignored"),
        ({"QWEN_CLI_AUTH": "no json"}, "account sources", "fail", "the server does not start"),
    ],
    ids=str,
)
def test_what_does_not_go_together(
    load: Load, environ: dict[str, Any], subject: str, level: str, words: str
) -> None:
    found = found_with(load(**environ))

    faults(found)
    assert levels(found)[subject] == level
    assert any(words in each.what for each in found if each.subject == subject)


def test_a_fault_that_stops_the_start_is_told_once(load: Load, qwen_home: Path) -> None:
    (qwen_home / "settings.json").write_text('{"env": {"KEY": "' + KEY + '"')

    found = faults(found_with(load()))

    assert one(found).level is Level.FAIL
    assert "settings.json" in one(found).what
    assert core(KEY) not in str(found)


def test_a_copy_of_a_login_is_told(load: Load, qwen_home: Path) -> None:
    login = {
        "access_token": KEY,
        "refresh_token": KEY,
        "token_type": "Bearer",
        "expiry_date": 4_000_000_000_000,
    }
    for name in ("oauth_creds.json", "oauth_creds_copy.json"):
        (qwen_home / name).write_text(json.dumps({**login, "resource_url": "portal.qwen.ai"}))

    found = faults(found_with(load()))

    assert one(found).subject == "logins"
    assert "the same login" in one(found).what


def test_real_accounts_beside_the_sandbox_are_unused(load: Load) -> None:
    found = found_with(load(QWEN_PROXY_SANDBOX="1", DASHSCOPE_API_KEY=KEY))

    about = one([each for each in found if each.subject == "QWEN_PROXY_SANDBOX"])
    assert (about.level.value, "unused" in about.what) == ("note", True)


def test_a_client_key_that_is_an_account_s_key_is_told(load: Load) -> None:
    found = found_with(load(OPENAI_API_KEY=KEY, DASHSCOPE_API_KEY=KEY))

    (fault,) = faults(found)
    assert fault.subject == "OPENAI_API_KEY"
    assert "also an account's key" in fault.what
    assert core(KEY) not in str(found)


class TestImpostors:
    """Without client keys, whoever passes for this machine is let in."""

    @pytest.mark.parametrize(
        ("bind", "trusted", "level"),
        [
            ("127.0.0.1:80", "", None),
            ("unix:/run/x", "", None),
            ("unix:/run/x", "127.0.0.0/8", "fail"),
            ("0.0.0.0:80", "192.168.0.0/16,127.0.0.0/8", "fail"),
            ("127.0.0.1:80", "192.168.0.0/16,127.0.0.0/8", None),
            ("127.0.0.1:80", "unix", "warn"),
        ],
    )
    def test_who_is_let_in(self, load: Load, bind: str, trusted: str, level: str | None) -> None:
        settings = load(QWEN_PROXY_BIND=bind, QWEN_PROXY_TRUSTED_PROXIES=trusted)

        found = list(configuration.impostors(settings, net.parse(bind)))

        assert [each.level.value for each in faults(found)] == ([level] if level else [])

    def test_with_client_keys_there_is_nothing_to_forge(self, load: Load) -> None:
        found = found_with(
            load(
                QWEN_PROXY_BIND="unix:/run/x",
                QWEN_PROXY_TRUSTED_PROXIES="0.0.0.0/0",
                QWEN_PROXY_API_KEYS=CLIENT_KEY,
            )
        )

        assert faults(found) == []


class TestKeysOfTheDatabase:
    """They are read from their copy, so that doctor opens no database."""

    @staticmethod
    def settings_with(load: Load, *keys: ClientKey, **environ: str) -> Settings:
        settings = load(HOST="0.0.0.0", DASHSCOPE_API_KEY=KEY, **environ)
        key_copy.write(Path(settings.state_dir), [KeptKey(key, ()) for key in keys])
        return settings

    def test_they_are_counted_with_those_of_the_environment(self, load: Load) -> None:
        keys = (
            ClientKey("key_a", "a", 0),
            ClientKey("key_b", "b", 0, revoked_at=1),
            ClientKey("key_c", "c", 0, expires_at=1),
        )
        settings = self.settings_with(load, *keys, QWEN_PROXY_API_KEYS=CLIENT_KEY)

        assert "open to the LAN, with 2 client key(s)" in str(found_with(settings))
        assert plan_terms.shared_by(settings, ()) == ("there are 2 client keys",)

    def test_without_a_valid_one_nobody_is_served(self, load: Load) -> None:
        settings = self.settings_with(load, ClientKey("key_b", "b", 0, revoked_at=1))

        found = found_with(settings)
        assert levels(found)["client keys"] == "warn"
        assert "nobody is served" in str(found)
        assert configuration.valid_keys(load(DASHSCOPE_API_KEY=KEY)) == 0

    def test_an_admins_key_that_can_be_guessed_is_told_by_its_setting(self, load: Load) -> None:
        found = found_with(load(QWEN_PROXY_ADMIN_KEYS="abc"))

        assert levels(found)["QWEN_PROXY_ADMIN_KEYS"] == "warn"


def test_prompts_that_lie_in_redis_as_plain_text(load: Load) -> None:
    url = {"DASHSCOPE_API_KEY": KEY, "QWEN_PROXY_REDIS_URL": "redis://192.168.1.5"}
    found = one(each for each in found_with(load(**url)) if each.subject == "stored responses")

    assert found.level is Level.WARN
    assert "QWEN_PROXY_STATE_KEY" in found.remedy
    key = secret("state-key-of-doctor") + "0123456789abcdef"
    assert faults(found_with(load(**url, QWEN_PROXY_STATE_KEY=key))) == []
    assert faults(found_with(load(**url, QWEN_PROXY_RESPONSES_TTL="0"))) == []
