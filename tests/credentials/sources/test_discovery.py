"""Which accounts a machine has, in which order, and why others are missing."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.credentials.account import Account, ProviderModel
from qwen_wsgi.credentials.credential import TokenState
from qwen_wsgi.credentials.files.journal import fingerprint
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.credentials.sources.providers import PROVIDERS
from qwen_wsgi.errors import CannotStartYet, SettingsError
from qwen_wsgi.hosts import Family, family_of
from tests.fakes.clock import FakeClock
from tests.kit.privileges import as_ordinary_user
from tests.kit.qwen_home import Home

BEIJING = "https://dashscope.aliyuncs.com/compatible-mode/v1"
SINGAPORE = "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"
NEW_HOST = "https://maas.qwencloudapi.com/compatible-mode/v1"
HOST = "https://models.example.test/v1"
KEY = "sk-0123456789-0123456789"
OTHER_KEY = "sk-9876543210-9876543210"


def by_name(discovery: Discovery) -> dict[str, Account]:
    return {account.name: account for account in discovery.accounts()}


def only(discovery: Discovery) -> Account:
    (account,) = discovery.accounts()
    return account


def entry(id: str = "m", **more: Any) -> dict[str, Any]:
    return {"id": id, "baseUrl": HOST, "envKey": "MY_KEY", **more}


def model_ids(account: Account) -> list[str]:
    return [model.id for model in account.models]


def test_a_bare_machine_has_nothing(home: Home) -> None:
    discovery = home.discovery()

    discovery.check()
    assert discovery.accounts() == ()
    assert discovery.problems() == ()


def test_the_order_of_preference(home: Home) -> None:
    home.login()
    home.openai(
        entry(),
        env={"MY_KEY": KEY},
        security={"auth": {"apiKey": KEY, "baseUrl": "https://a.test"}},
    )

    discovery = home.discovery(
        QWEN_UPSTREAM_BASE_URL="http://10.0.0.5:8000/v1/",
        QWEN_CLI_AUTH=json.dumps(home.login_document(refresh_token="refresh-of-somebody-else")),
        DEEPSEEK_API_KEY=KEY,
        BAILIAN_CODING_PLAN_API_KEY=KEY,
        DASHSCOPE_API_KEY=KEY,
        BAILIAN_TOKEN_PLAN_API_KEY=KEY,
    )

    discovery.check()
    assert [account.name for account in discovery.accounts()] == [
        "upstream",
        "dashscope",
        "coding-plan",
        "token-plan",
        "deepseek",
        "settings-models-example-test",
        "settings-a-test",
        "oauth",
        "oauth-env",
    ]
    assert discovery.problems() == ()


class TestEnvironment:
    def test_an_explicit_upstream_may_have_no_key(self, home: Home) -> None:
        account = only(home.discovery(QWEN_UPSTREAM_BASE_URL="http://10.0.0.5:8000/v1/"))

        assert (account.kind, account.explicit) == ("key", True)
        assert account.base_url == "http://10.0.0.5:8000/v1"
        assert account.origin == "environment QWEN_UPSTREAM_BASE_URL"
        assert account.credential.current().value == ""

    def test_an_explicit_upstream_with_key(self, home: Home) -> None:
        account = only(home.discovery(QWEN_UPSTREAM_BASE_URL=HOST, QWEN_UPSTREAM_API_KEY=KEY))

        assert account.credential.current().value == KEY

    def test_a_key_without_its_url_is_mentioned(self, home: Home) -> None:
        discovery = home.discovery(QWEN_UPSTREAM_API_KEY=KEY)

        assert discovery.accounts() == ()
        assert "QWEN_UPSTREAM_BASE_URL" in discovery.problems()[0]

    @pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
    def test_every_known_key_has_its_base_url(self, home: Home, provider: Any) -> None:
        account = only(home.discovery(**{provider.key_env: f" {KEY}\n"}))

        assert account.name == provider.name
        assert account.origin == f"environment {provider.key_env}"
        assert not account.explicit
        token = account.credential.current()
        assert (token.value, token.base_url) == (KEY, provider.base_urls[0])
        assert account.base_url == token.base_url

    @pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
    def test_a_key_by_its_name_has_its_family_behind_a_gateway_too(
        self, home: Home, provider: Any
    ) -> None:
        own = family_of(provider.base_urls[0])
        if provider.name == "idealab":  # a gateway itself: its name says nothing of another one
            own = Family.OTHER
        gateway = {provider.base_url_env: "https://gateway.example/v1"}

        account = only(home.discovery(**{provider.key_env: KEY}, **gateway))

        assert account.family is own

    @pytest.mark.parametrize(
        ("name", "url"),
        [
            ("QWENCLOUD_API_KEY", "https://maas.qwencloudapi.com/compatible-mode/v1"),
            ("QIANWEN_API_KEY", "https://maas.qianwenaiapi.com/compatible-mode/v1"),
            ("QWEN_AI_PLATFORM_API_KEY", "https://maas.qianwenaiapi.com/compatible-mode/v1"),
            ("QWEN_API_KEY", "https://maas.qianwenaiapi.com/compatible-mode/v1"),
            ("MODELSTUDIO_API_KEY", SINGAPORE),
            (
                "QWENCLOUD_TOKEN_PLAN_API_KEY",
                "https://token-plan.maas.qwencloudapi.com/compatible-mode/v1",
            ),
            (
                "QIANWEN_TOKEN_PLAN_API_KEY",
                "https://token-plan.maas.qianwenaiapi.com/compatible-mode/v1",
            ),
            ("QWENCLOUD_CODING_PLAN_API_KEY", "https://coding-intl.dashscope.aliyuncs.com/v1"),
        ],
    )
    def test_the_names_of_other_programs(self, home: Home, name: str, url: str) -> None:
        account = only(home.discovery(**{name: KEY}))

        assert account.base_url == url
        assert account.family.value == (
            "token-plan" if "TOKEN" in name else "coding-plan" if "CODING" in name else "dashscope"
        )

    def test_a_base_url_of_the_native_protocol(self, home: Home) -> None:
        """The `dashscope` package reads DASHSCOPE_BASE_URL as well, and means its own protocol."""
        discovery = home.discovery(
            DASHSCOPE_API_KEY=KEY, DASHSCOPE_BASE_URL="https://dashscope-intl.aliyuncs.com/api/v1"
        )

        assert only(discovery).base_url == SINGAPORE

    def test_the_operator_says_what_a_host_is(self, home: Home) -> None:
        home.openai(entry(), env={"MY_KEY": KEY})

        accounts = by_name(
            home.discovery(
                QWEN_UPSTREAM_BASE_URL="https://gateway.example/v1",
                DASHSCOPE_API_KEY=KEY,
                QWEN_PROXY_HOST_FAMILIES="gateway.example=token-plan,*.example.test=dashscope,"
                "dashscope.aliyuncs.com=other",
            )
        )

        assert {name: account.family.value for name, account in accounts.items()} == {
            "upstream": "token-plan",
            "dashscope": "other",
            "settings-models-example-test": "dashscope",
        }

    def test_another_region_by_its_variable(self, home: Home) -> None:
        discovery = home.discovery(
            BAILIAN_CODING_PLAN_API_KEY=KEY,
            BAILIAN_CODING_PLAN_BASE_URL="https://coding-intl.dashscope.aliyuncs.com/v1/",
        )

        assert only(discovery).base_url == "https://coding-intl.dashscope.aliyuncs.com/v1"

    def test_an_empty_key_is_unset(self, home: Home) -> None:
        assert home.discovery(DASHSCOPE_API_KEY="", XAI_API_KEY="  ").accounts() == ()

    def test_the_servers_client_key_is_no_account(self, home: Home) -> None:
        assert home.discovery(OPENAI_API_KEY=KEY).accounts() == ()

    def test_a_key_that_would_break_a_header_is_missing(self, home: Home) -> None:
        discovery = home.discovery(DASHSCOPE_API_KEY="sk-0123456789\nX-Evil: 1")

        assert only(discovery).credential.status().state is TokenState.MISSING
        assert "DASHSCOPE_API_KEY has white space" in discovery.problems()[0]
        assert "Evil" not in str(discovery.problems())


class TestFilesOfTheDashScopePackage:
    def test_the_key_file(self, home: Home) -> None:
        home.write(".dashscope/api_key", f"{KEY}\n")

        account = only(home.discovery())

        assert (account.name, account.base_url) == ("dashscope", BEIJING)
        assert account.origin == "~/.dashscope/api_key"
        assert account.family is Family.DASHSCOPE
        assert account.credential.current().value == KEY

    @pytest.mark.parametrize(
        ("config", "url"),
        [
            ('region = "ap-southeast-1"', SINGAPORE),
            ('region = "us-east-1"', "https://dashscope-us.aliyuncs.com/compatible-mode/v1"),
            (
                'workspace = "llm-1"\nregion = "eu-central-1"\ntimeout = 3.5',
                "https://llm-1.eu-central-1.maas.aliyuncs.com/compatible-mode/v1",
            ),
            ('workspace = "evil.example/"', BEIJING),
            ('base_url = "https://maas.qwencloudapi.com/api/v1"', NEW_HOST),
        ],
    )
    def test_the_configuration_of_2_x(self, home: Home, config: str, url: str) -> None:
        home.write(".dashscope/config.toml", f'api_key = "{KEY}"\n{config}\n')
        home.write(".dashscope/api_key", OTHER_KEY)

        account = only(home.discovery())

        assert (account.credential.current().value, account.base_url) == (KEY, url)

    def test_the_files_may_be_elsewhere(self, home: Home) -> None:
        home.write("elsewhere/key", KEY)

        account = only(
            home.discovery(
                DASHSCOPE_API_KEY_FILE_PATH="~/elsewhere/key", DASHSCOPE_REGION="ap-southeast-1"
            )
        )

        assert (account.origin, account.base_url) == ("~/elsewhere/key", SINGAPORE)

    def test_a_key_in_the_environment_replaces_them(self, home: Home) -> None:
        home.write(".dashscope/api_key", OTHER_KEY)

        assert only(home.discovery(DASHSCOPE_API_KEY=KEY)).credential.current().value == KEY

    def test_a_change_is_seen(self, home: Home) -> None:
        discovery = home.discovery()
        assert discovery.accounts() == ()

        home.write(".dashscope/api_key", KEY)
        assert only(discovery).credential.current().value == KEY
        home.write(".dashscope/api_key", OTHER_KEY)
        assert only(discovery).credential.current().value == OTHER_KEY

    def test_a_broken_file_is_told_and_stops_nothing(self, home: Home) -> None:
        home.write(".dashscope/config.toml", "api_key = ")
        home.write(".dashscope/api_key", KEY)

        discovery = home.discovery()

        discovery.check()
        assert only(discovery).credential.current().value == KEY
        assert discovery.problems()[0].startswith("~/.dashscope/config.toml is not TOML")


class TestSettingsFile:
    def test_entries_group_by_endpoint_and_key(self, home: Home) -> None:
        home.openai(
            entry("a"),
            entry("b", baseUrl=HOST + "/"),
            entry("c", envKey="OTHER_KEY"),
            entry("d", baseUrl="https://Models.Example.Test/v1"),
            entry("e", baseUrl="https://models.example.test:444/v1"),
            env={"MY_KEY": KEY, "OTHER_KEY": OTHER_KEY},
        )

        accounts = by_name(home.discovery())

        assert {name: model_ids(account) for name, account in accounts.items()} == {
            "settings-models-example-test": ["a", "b", "d"],
            "settings-models-example-test-2": ["c"],
            "settings-models-example-test-444": ["e"],
        }
        assert accounts["settings-models-example-test-2"].credential.current().value == OTHER_KEY

    def test_what_is_known_of_a_model(self, home: Home) -> None:
        home.openai(
            entry(
                "a",
                name="[Plan] A",
                description="Good.",
                generationConfig={
                    "contextWindowSize": 1_000_000,
                    "modalities": {"video": True, "image": True, "pdf": False},
                },
                wireApi="responses",
                fastOnly=True,
            ),
            entry("b", generationConfig={"contextWindowSize": "many", "modalities": ["image"]}),
            entry("c", imageOnly=True),
            entry("d", voiceOnly=True),
            entry("e", realtimeOnly=True),
            entry("f", visionOnly=True, generationConfig=None, name=5),
        )

        assert only(home.discovery()).models == (
            ProviderModel(
                "a", "[Plan] A", "Good.", 1_000_000, ("image", "video"), wire_api="responses"
            ),
            ProviderModel("b"),
            ProviderModel("c", chat=False),
            ProviderModel("d", chat=False),
            ProviderModel("e", chat=False),
            ProviderModel("f"),
        )

    def test_comments_and_a_byte_order_mark(self, home: Home) -> None:
        home.write(
            ".qwen/settings.json",
            '\ufeff{ // models\n "modelProviders": {"openai": [ /* one */ '
            '{"id": "m", "baseUrl": "https://models.example.test/v1", "envKey": "MY_KEY"}]},'
            f'"env": {{"MY_KEY": "{KEY}"}}}}',
        )

        assert only(home.discovery()).credential.current().value == KEY

    @pytest.mark.parametrize(
        ("places", "expected"),
        [
            ({"environ", "qwen", "home", "settings"}, "the environment"),
            ({"qwen", "home", "settings"}, "~/.qwen/.env"),
            ({"home", "settings"}, "~/.env"),
            ({"settings"}, "the env of ~/.qwen/settings.json"),
        ],
    )
    def test_where_a_key_is_looked_for(self, home: Home, places: set[str], expected: str) -> None:
        def value(place: str) -> str:
            return f"sk-0123456789-of-{place}" if place in places else ""

        home.openai(entry(), env={"MY_KEY": value("settings")})
        home.write(".qwen/.env", f"MY_KEY={value('qwen')}\n")
        home.write(".env", f"export MY_KEY='{value('home')}'\n")

        account = only(home.discovery(MY_KEY=value("environ")))

        assert account.origin == f"~/.qwen/settings.json (envKey MY_KEY from {expected})"
        best = next(p for p in ("environ", "qwen", "home", "settings") if p in places)
        assert account.credential.current().value == value(best)

    def test_a_key_that_is_nowhere_leaves_an_account_that_says_so(self, home: Home) -> None:
        home.openai(entry("a"))

        discovery = home.discovery(MY_KEY="")

        account = only(discovery)
        assert account.base_url == HOST
        assert model_ids(account) == ["a"]
        status = account.credential.status()
        assert (status.state, status.shown) == (TokenState.MISSING, "–")
        assert status.detail == "the API key MY_KEY is not set"
        for place in ("environment", "~/.qwen/.env", "~/.qwen/settings.json"):
            assert place in status.remedy
        assert "MY_KEY" in discovery.problems()[0]

    def test_openai_api_key_comes_from_the_files_only(self, home: Home) -> None:
        home.openai(entry(envKey="OPENAI_API_KEY"))

        status = only(home.discovery(OPENAI_API_KEY=OTHER_KEY)).credential.status()
        assert status.state is TokenState.MISSING
        assert "client key" in status.remedy

        home.write(".qwen/.env", f"OPENAI_API_KEY={KEY}\n")
        account = only(home.discovery(OPENAI_API_KEY=OTHER_KEY))
        assert account.credential.current().value == KEY

    def test_openai_api_key_is_not_expanded_from_the_environment_either(self, home: Home) -> None:
        home.openai(entry(), env={"MY_KEY": "${OPENAI_API_KEY}"})

        status = only(home.discovery(OPENAI_API_KEY=OTHER_KEY)).credential.status()

        assert status.state is TokenState.MISSING
        assert "OPENAI_API_KEY" in status.detail

    def test_the_servers_own_secrets_cannot_be_pulled_in(self, home: Home) -> None:
        home.openai(
            entry("a", envKey="QWEN_PROXY_API_KEYS"),
            entry("a2", envKey="QWEN_PROXY_ADMIN_KEYS"),
            entry("a3", envKey="QWEN_PROXY_STATE_KEY"),
            entry("b"),
            entry("c", baseUrl="https://models.example.test/$QWEN_CLI_AUTH"),
            env={"MY_KEY": "$QWEN_PROXY_API_KEYS"},
        )

        discovery = home.discovery(
            QWEN_PROXY_API_KEYS=OTHER_KEY,
            QWEN_PROXY_ADMIN_KEYS=OTHER_KEY,
            QWEN_PROXY_STATE_KEY=OTHER_KEY * 2,
            QWEN_CLI_AUTH=OTHER_KEY,
        )

        keys = discovery.accounts()
        assert len(keys) == 5
        assert all(one.credential.status().state is TokenState.MISSING for one in keys)
        assert OTHER_KEY not in repr(keys)

    @pytest.mark.parametrize("text", ["https://$REGION.test/v1", "https://${REGION}.test/v1"])
    def test_variables_are_expanded(self, home: Home, text: str) -> None:
        home.openai(
            entry(baseUrl=text, envKey="MY_${WHICH}"), env={"MY_KEY": "$SECRET", "MY_": KEY}
        )
        home.write(".env", f"REGION=one\nSECRET={KEY}\n")

        account = only(home.discovery(REGION="two", WHICH="KEY"))

        assert account.base_url == "https://two.test/v1"
        assert account.credential.current().value == KEY

    def test_an_unset_variable_is_named(self, home: Home) -> None:
        home.openai(entry(), entry("b", baseUrl="https://$REGION/v1 x"), env={"MY_KEY": "$SECRET"})

        discovery = home.discovery()

        assert only(discovery).credential.status().detail == "the API key SECRET is not set"
        assert any("model b is skipped" in problem for problem in discovery.problems())

    def test_a_key_pasted_into_env_key_is_not_shown(self, home: Home) -> None:
        home.openai(entry(envKey=KEY), entry("b", envKey="abcdef0123456789abcdef0123456789"))

        discovery = home.discovery()

        accounts = discovery.accounts()
        assert len(accounts) == 2
        shown = repr(accounts) + str(discovery.problems())
        assert "0123456789" not in shown.replace(HOST, "")
        assert "may be the key itself" in accounts[0].credential.status().detail

    def test_providers_by_protocol(self, home: Home) -> None:
        home.settings(
            modelProviders={
                "mine": [entry("a")],
                "wrapped": {"protocol": "openai", "models": [entry("b")]},
                "openai": {"models": [entry("c")]},
                "anthropic": [entry("d")],
                "else": [entry("e")],
                "unknown": [entry("f")],
                "broken": "text",
                "gemini": [],
                "odd": {"protocol": ["openai"], "models": [entry("g")]},
            },
            providerProtocol={"mine": "openai", "else": "gemini"},
            env={"MY_KEY": KEY},
        )

        discovery = home.discovery()

        assert model_ids(only(discovery)) == ["a", "b", "c"]
        skipped = "\n".join(discovery.problems())
        for provider in ("anthropic", "else", "unknown", "broken", "odd"):
            assert f"modelProviders.{provider} " in skipped
        assert "modelProviders.gemini" not in skipped

    def test_entries_that_cannot_be_used_are_named(self, home: Home) -> None:
        home.openai(
            entry("a"),
            entry("a", name="again"),
            {"name": "no id"},
            "text",  # type: ignore[arg-type]  # hand-edited files hold anything
            entry("b", baseUrl="https://user:hunter2@models.example.test"),
            entry("c", baseUrl="models.example.test"),
            env={"MY_KEY": KEY},
        )

        discovery = home.discovery()

        assert only(discovery).models == (ProviderModel("a"),)
        problems = "\n".join(discovery.problems())
        for text in ("openai[1]", "openai[2]", "openai[3]", "model b", "model c"):
            assert text in problems
        assert "hunter2" not in problems

    @pytest.mark.parametrize(
        "content",
        [
            {"modelProviders": []},
            {"modelProviders": None, "env": [], "security": "x", "model": "qwen"},
            {"modelProviders": {"openai": [[]]}, "providerProtocol": [], "env": {"A": 5}},
            {"security": {"auth": []}, "model": {"name": 5}},
        ],
    )
    def test_odd_shapes_are_no_crash(self, home: Home, content: Any) -> None:
        home.write(".qwen/settings.json", content)
        discovery = home.discovery()

        discovery.check()
        assert discovery.accounts() == ()

    def test_the_same_key_in_the_environment_makes_one_account(self, home: Home) -> None:
        home.openai(entry("a", baseUrl=BEIJING, envKey="MY_KEY"), entry("b", baseUrl=BEIJING))

        discovery = home.discovery(DASHSCOPE_API_KEY=KEY, MY_KEY=KEY)

        account = only(discovery)
        assert account.name == "dashscope"
        assert model_ids(account) == ["a", "b"]
        assert account.origin == (
            "environment DASHSCOPE_API_KEY and "
            "~/.qwen/settings.json (envKey MY_KEY from the environment)"
        )

    def test_another_key_for_the_same_endpoint_is_another_account(self, home: Home) -> None:
        home.openai(entry(baseUrl=BEIJING), env={"MY_KEY": OTHER_KEY})

        accounts = by_name(home.discovery(DASHSCOPE_API_KEY=KEY))

        assert list(accounts) == ["dashscope", "settings-dashscope"]

    def test_one_key_for_two_regions_is_pointed_out(self, home: Home) -> None:
        home.openai(entry(baseUrl=SINGAPORE, envKey="DASHSCOPE_API_KEY"))

        discovery = home.discovery(DASHSCOPE_API_KEY=KEY)

        assert list(by_name(discovery)) == ["dashscope", "settings-dashscope"]
        assert "DASHSCOPE_BASE_URL" in discovery.problems()[0]
        fixed = home.discovery(DASHSCOPE_API_KEY=KEY, DASHSCOPE_BASE_URL=SINGAPORE)
        assert (list(by_name(fixed)), fixed.problems()) == (["dashscope"], ())

    def test_files_merge_as_in_qwen_code(self, home: Home) -> None:
        home.write(
            "../etc/system-defaults.json",
            {
                "modelProviders": {"openai": [entry("default")]},
                "env": {"MY_KEY": "sk-0123456789-default", "OTHER_KEY": KEY},
                "security": {"auth": {"apiKey": KEY, "baseUrl": "https://a.test/v1"}},
            },
        )
        home.openai(
            entry("user"),
            entry("user2", envKey="OTHER_KEY"),
            env={"MY_KEY": "sk-0123456789-of-user"},
            security={"auth": {"baseUrl": "https://b.test/v1"}},
        )
        home.write("../etc/settings.json", {"env": {"MY_KEY": "sk-0123456789-system"}})

        accounts = home.discovery().accounts()

        assert [model_ids(account) for account in accounts] == [["user"], ["user2"], []]
        assert [account.credential.current().value for account in accounts] == [
            "sk-0123456789-system",
            KEY,
            KEY,
        ]
        assert accounts[2].base_url == "https://b.test/v1"

    def test_system_settings_replace_all_providers(self, home: Home) -> None:
        home.openai(entry("user"))
        home.write("../etc/settings.json", {"modelProviders": {"openai": [entry("system")]}})

        assert model_ids(only(home.discovery())) == ["system"]


class TestGeneralKeys:
    @pytest.mark.parametrize("selected", [{}, {"selectedType": "openai"}])
    def test_security_auth_is_the_lowest_layer(self, home: Home, selected: dict[str, str]) -> None:
        home.openai(
            entry("a"),
            env={"MY_KEY": OTHER_KEY},
            security={"auth": {"apiKey": KEY, "baseUrl": "https://a.test/v1/", **selected}},
            model={"name": "own"},
        )

        account = home.discovery().accounts()[-1]

        assert (account.name, account.base_url) == ("settings-a-test", "https://a.test/v1")
        assert account.origin == "~/.qwen/settings.json (security.auth.apiKey)"
        assert model_ids(account) == ["own"]
        assert account.credential.current().value == KEY

    def test_security_auth_of_another_type_is_left_alone(self, home: Home) -> None:
        home.settings(security={"auth": {"apiKey": KEY, "selectedType": "anthropic"}})

        assert home.discovery().accounts() == ()

    def test_security_auth_without_url_is_dashscope(self, home: Home) -> None:
        home.settings(security={"auth": {"apiKey": "$MY_KEY"}})

        account = only(home.discovery(MY_KEY=KEY))

        assert (account.name, account.base_url) == ("settings-dashscope", BEIJING)
        assert account.credential.current().value == KEY

    def test_a_classic_dotenv_is_an_account(self, home: Home) -> None:
        home.write(
            ".qwen/.env", f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={HOST}\nOPENAI_MODEL=qwen-x\n"
        )

        account = only(home.discovery(OPENAI_API_KEY=OTHER_KEY))

        assert account.origin == "~/.qwen/.env (OPENAI_API_KEY)"
        assert (account.base_url, model_ids(account)) == (HOST, ["qwen-x"])
        assert account.credential.current().value == KEY

    def test_an_entry_without_env_key_gets_the_general_key_of_its_own_endpoint(
        self, home: Home
    ) -> None:
        home.openai(
            {"id": "a", "baseUrl": "https://a.test/v1"},
            {"id": "b", "baseUrl": "https://b.test/v1"},
            {"id": "c"},
            {"id": "d", "baseUrl": "http://localhost:11434/v1"},
            security={"auth": {"apiKey": KEY, "baseUrl": "https://a.test/v1"}},
        )

        accounts = by_name(home.discovery())

        assert model_ids(accounts["settings-a-test"]) == ["a", "c"]
        assert accounts["settings-a-test"].credential.current().value == KEY
        assert accounts["settings-b-test"].credential.status().state is TokenState.MISSING
        assert accounts["settings-localhost-11434"].credential.current().value == ""

    def test_an_entry_without_anything_goes_where_the_files_say(self, home: Home) -> None:
        home.openai({"id": "a"}, security={"auth": {"apiKey": OTHER_KEY}})
        home.write(".env", f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL={HOST}\n")

        first, second = home.discovery(OPENAI_BASE_URL="https://o.test/v1").accounts()

        assert (first.base_url, first.credential.current().value) == (HOST, KEY)
        assert first.origin == (
            "~/.qwen/settings.json (no envKey, key from ~/.env) and ~/.env (OPENAI_API_KEY)"
        )
        assert (second.base_url, second.credential.current().value) == (BEIJING, OTHER_KEY)

    def test_a_general_base_url_that_cannot_be_used_is_named(self, home: Home) -> None:
        home.openai({"id": "a", "baseUrl": "http://localhost:9/v1"})
        home.write(".env", f"OPENAI_API_KEY={KEY}\nOPENAI_BASE_URL=models.example.test\n")

        discovery = home.discovery()

        assert only(discovery).credential.current().value == ""
        assert discovery.problems() == (
            "~/.env (OPENAI_API_KEY): its base URL cannot be used: it does not begin with http:// "
            "or https:// and a host.",
        )


class TestQwenHome:
    def test_from_the_environment(self, home: Home) -> None:
        home.write("elsewhere/oauth_creds.json", home.login_document())
        home.write("elsewhere/settings.json", {"modelProviders": {"openai": [entry()]}})
        home.write("elsewhere/.env", f"MY_KEY={KEY}\n")
        home.write(".qwen/.env", f"MY_KEY={OTHER_KEY}\n")

        accounts = home.discovery(QWEN_HOME="~/elsewhere").accounts()

        assert [account.origin for account in accounts] == [
            "~/elsewhere/settings.json (envKey MY_KEY from ~/elsewhere/.env)",
            "~/elsewhere/oauth_creds.json",
        ]

    def test_the_usual_dotenv_is_still_read(self, home: Home) -> None:
        home.write("elsewhere/settings.json", {"modelProviders": {"openai": [entry()]}})
        home.write(".qwen/.env", f"MY_KEY={KEY}\n")

        discovery = home.discovery(QWEN_HOME=str(home.path / "elsewhere"))

        assert only(discovery).credential.current().value == KEY

    @pytest.mark.parametrize("place", [".qwen/.env", ".env"])
    def test_from_a_dotenv_and_live(self, home: Home, place: str) -> None:
        home.write("elsewhere/oauth_creds.json", home.login_document())
        discovery = home.discovery()
        assert discovery.accounts() == ()

        home.write(place, "QWEN_HOME=~/elsewhere\n")

        assert only(discovery).origin == "~/elsewhere/oauth_creds.json"

    def test_a_path_that_is_no_directory_is_pointed_out(self, home: Home) -> None:
        discovery = home.discovery(QWEN_HOME="~/nowhere")

        assert discovery.problems() == ("QWEN_HOME is ~/nowhere, which is not a directory.",)


class TestLogins:
    def test_a_login_and_the_environments_login_are_two_accounts(self, home: Home) -> None:
        home.login()
        other = home.login_document(refresh_token="refresh-of-another", resource_url=None)

        accounts = home.discovery(
            QWEN_CLI_AUTH=json.dumps(other), OPENAI_BASE_URL="https://o.test/v1"
        ).accounts()

        assert [(a.name, a.kind, a.base_url, a.origin) for a in accounts] == [
            ("oauth", "oauth", "https://portal.qwen.ai/v1", "~/.qwen/oauth_creds.json"),
            ("oauth-env", "oauth", "https://o.test/v1", "environment QWEN_CLI_AUTH"),
        ]

    def test_further_logins_by_name(self, home: Home) -> None:
        home.login()
        for name in ("work", "a-1", "x" * 32):
            home.write(
                f".qwen/oauth_creds_{name}.json", home.login_document(refresh_token=f"rt-{name}")
            )
        for name in ("oauth_creds_Work.json", "oauth_creds_.json", "oauth_creds_a.json.bak"):
            home.write(f".qwen/{name}", home.login_document(refresh_token=name))

        accounts = home.discovery().accounts()

        assert [(a.name, a.origin) for a in accounts] == [
            ("oauth", "~/.qwen/oauth_creds.json"),
            ("oauth-a-1", "~/.qwen/oauth_creds_a-1.json"),
            ("oauth-work", "~/.qwen/oauth_creds_work.json"),
            ("oauth-" + "x" * 32, f"~/.qwen/oauth_creds_{'x' * 32}.json"),
        ]
        stores = [login.store.paths for login in home.discovery().logins()]
        for part in ("document", "cli_lock", "proxy_lock", "journal"):
            assert len({getattr(paths, part) for paths in stores}) == 4, f"they share a {part}"

    def test_a_new_file_is_noticed(self, home: Home) -> None:
        home.login()
        discovery = home.discovery()
        first = discovery.accounts()

        home.write(".qwen/oauth_creds_work.json", home.login_document(refresh_token="rt-work"))

        second = discovery.accounts()
        assert [account.name for account in second] == ["oauth", "oauth-work"]
        assert second[0] == first[0]
        assert discovery.accounts() is second
        (home.qwen / "oauth_creds_work.json").unlink()
        assert discovery.accounts() == first

    def test_twins_are_reported_and_left_out(self, home: Home) -> None:
        login = home.login()
        home.write(".qwen/oauth_creds_work.json", login)

        discovery = home.discovery(QWEN_CLI_AUTH=json.dumps(login))

        discovery.check()
        assert [account.name for account in discovery.accounts()] == ["oauth"]
        assert len(discovery.logins()) == 1, "only one of them is renewed"
        assert discovery.duplicates() == (
            "~/.qwen/oauth_creds_work.json holds the same login as the account oauth; "
            "it is not used.",
            "environment QWEN_CLI_AUTH holds the same login as the account oauth; it is not used.",
        )
        assert discovery.problems() == discovery.duplicates()

        home.write(".qwen/oauth_creds_work.json", home.login_document(refresh_token="rt-work"))
        assert [account.name for account in discovery.accounts()] == ["oauth", "oauth-work"]

    @pytest.mark.parametrize("renewed", ["", "_work"])
    @pytest.mark.parametrize("again", [False, True])
    def test_a_copy_from_before_a_renewal_is_left_out(
        self, home: Home, renewed: str, again: bool
    ) -> None:
        """Its refresh token is spent: sending it is what a login service revokes logins for."""
        old = home.login()
        home.write(".qwen/oauth_creds_work.json", old)
        new = home.login_document(refresh_token="rt-new", access_token="access-9876543210")
        journal = {
            "received": {
                "spent": fingerprint("rt-between" if again else old["refresh_token"]),
                "document": new,
                "at_ms": 1,
                "lifetime_ms": 1000,
            },
            "tombstones": {fingerprint(old["refresh_token"]): 1} if again else {},
        }
        home.write(f".qwen/.qwen-proxy/journal{renewed}.json", journal)
        home.write(f".qwen/oauth_creds{renewed}.json", new)

        discovery = home.discovery()

        name = "oauth-work" if renewed else "oauth"
        assert [account.name for account in discovery.accounts()] == [name]
        other = "oauth_creds.json" if renewed else "oauth_creds_work.json"
        assert discovery.duplicates() == (
            f"~/.qwen/{other} holds an older copy of the login of the account {name}; "
            "it is not used.",
        )

    def test_the_journal_of_a_deleted_file_is_an_account(self, home: Home) -> None:
        home.login()
        new = home.login_document(refresh_token="rt-new", access_token="access-9876543210")
        received = {"spent": "0" * 16, "document": new, "at_ms": 1, "lifetime_ms": 1000}
        home.write(".qwen/.qwen-proxy/journal_work.json", {"received": received})
        home.write(".qwen/.qwen-proxy/journal_other.json", {"tombstones": {}})

        accounts = by_name(home.discovery())

        assert list(accounts) == ["oauth", "oauth-work"]
        assert accounts["oauth-work"].credential.current().value == "access-9876543210"

    def test_an_environments_login_needs_no_file(self, home: Home, tmp_path: Path) -> None:
        document = home.login_document()
        discovery = home.discovery(
            QWEN_CLI_AUTH=f" {json.dumps(document)}\n", STATE_DIRECTORY=str(tmp_path / "state")
        )

        account = only(discovery)

        assert account.credential.current().value == document["access_token"]
        (login,) = discovery.logins()
        assert login.store.paths.document == tmp_path / "state/oauth_creds_env.json"
        assert not (tmp_path / "state").exists()

    def test_an_endpoint_that_cannot_be_used(self, home: Home) -> None:
        home.login()
        discovery = home.discovery(QWEN_OAUTH_BASE_URL="http://chat.qwen.ai")

        with pytest.raises(SettingsError, match="QWEN_OAUTH_BASE_URL cannot be used: it is plain"):
            discovery.check()

    def test_an_unusable_login_is_an_account_without_base_url(self, home: Home) -> None:
        home.write(".qwen/oauth_creds.json", "{}")
        discovery = home.discovery()

        discovery.check()
        account = only(discovery)
        assert account.base_url is None
        assert account.credential.status().state is TokenState.MISSING
        assert "~/.qwen/oauth_creds.json has no access_token" in discovery.problems()[0]


class TestLive:
    def test_nothing_changed_is_the_same_object(self, home: Home) -> None:
        home.login()
        home.openai(entry(), env={"MY_KEY": KEY})
        discovery = home.discovery(DASHSCOPE_API_KEY=KEY)

        first = discovery.accounts()

        assert all(discovery.accounts() is first for _ in range(5))

    def test_a_change_that_matters_to_nobody_keeps_the_object(self, home: Home) -> None:
        home.login()
        home.openai(entry(), env={"MY_KEY": KEY})
        discovery = home.discovery()
        first = discovery.accounts()

        home.openai(entry(), env={"MY_KEY": KEY}, ui={"theme": "dark"})
        home.login(access_token="access-9876543210-wxyz")

        assert discovery.accounts() is first
        assert first[-1].credential.current().value == "access-9876543210-wxyz"

    def test_changes_are_seen_at_once(self, home: Home) -> None:
        discovery = home.discovery()
        assert discovery.accounts() == ()

        home.openai(entry("a"))
        assert only(discovery).credential.status().state is TokenState.MISSING
        home.write(".env", f"MY_KEY={KEY}\n")
        assert only(discovery).credential.current().value == KEY
        home.write(".env", f"MY_KEY={OTHER_KEY}\n")
        assert only(discovery).credential.current().value == OTHER_KEY
        home.openai(entry("a"), entry("b"))
        assert model_ids(only(discovery)) == ["a", "b"]
        home.login()
        assert [account.name for account in discovery.accounts()][-1] == "oauth"
        (home.qwen / "oauth_creds.json").unlink()
        (home.qwen / "settings.json").unlink()
        assert discovery.accounts() == ()

    def test_a_broken_file_keeps_the_last_good_accounts(
        self, home: Home, clock: FakeClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        home.openai(entry(), env={"MY_KEY": KEY})
        discovery = home.discovery()
        first = discovery.accounts()

        with caplog.at_level(logging.WARNING):
            for text in ("{", "[]", '{"modelProviders": ', "// nothing"):
                home.write(".qwen/settings.json", text)
                assert discovery.accounts() is first
                clock.advance(1)
                assert discovery.accounts() is first
        assert len(caplog.records) == 1
        assert "~/.qwen/settings.json" in caplog.text
        assert discovery.problems()[0].startswith("~/.qwen/settings.json is not JSON")

        home.openai(entry("b"), env={"MY_KEY": KEY})
        assert model_ids(only(discovery)) == ["b"]
        assert discovery.problems() == ()

    def test_a_file_that_becomes_a_directory_keeps_the_last_good_accounts(self, home: Home) -> None:
        path = home.openai(entry(), env={"MY_KEY": KEY})
        discovery = home.discovery()
        first = discovery.accounts()

        path.unlink()
        path.mkdir()

        assert discovery.accounts() is first
        assert "it is a directory" in discovery.problems()[0]

    def test_nothing_is_ever_written(self, home: Home) -> None:
        home.login()
        home.openai(entry())
        home.write(".env", "A=1")

        def snapshot() -> list[Any]:
            return sorted(
                (str(path), path.stat().st_mtime_ns, path.stat().st_ctime_ns)
                for path in home.root.rglob("*")
            )

        before = snapshot()
        discovery = home.discovery()
        discovery.check()
        discovery.accounts()[-1].credential.status()

        assert snapshot() == before


class TestCheck:
    @pytest.mark.parametrize("text", ["[]", "{", "", "null", '{"a": 1,}'])
    def test_settings_that_are_no_json_object(self, home: Home, text: str) -> None:
        home.write(".qwen/settings.json", text)

        with pytest.raises(SettingsError, match=r"^~/\.qwen/settings\.json is not (a )?JSON"):
            home.discovery().check()

    @pytest.mark.parametrize("name", ["settings.json", ".env", "oauth_creds.json"])
    def test_a_directory_in_place_of_a_file(self, home: Home, name: str) -> None:
        (home.qwen / name).mkdir()

        with pytest.raises(SettingsError) as caught:
            home.discovery().check()

        assert str(caught.value) == (
            f"~/.qwen/{name} cannot be read (it is a directory). "
            "Make it a file that the user who runs qwen-proxy can read"
        )

    @pytest.mark.parametrize("name", ["settings.json", ".env", "oauth_creds.json"])
    def test_a_file_without_permission(self, home: Home, name: str) -> None:
        (home.qwen / name).touch(mode=0)

        with (
            as_ordinary_user(home.qwen),
            pytest.raises(SettingsError, match="Permission denied"),
        ):
            home.discovery().check()

    @pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
    def test_a_disk_or_mount_that_fails_just_now(
        self, home: Home, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        """No person has to correct that: the next start may find it healed."""
        home.write(".qwen/settings.json", "{}")
        real = os.open

        def failing(path: Any, *arguments: Any, **more: Any) -> int:
            if str(path).endswith("settings.json"):
                raise OSError(number, os.strerror(number))
            return real(path, *arguments, **more)

        monkeypatch.setattr(os, "open", failing)
        discovery = home.discovery()
        with pytest.raises(CannotStartYet, match=r"settings\.json cannot be read"):
            discovery.check()
        home.write(".qwen/oauth_creds.json", "{}")
        (home.qwen / ".env").mkdir()
        with pytest.raises(SettingsError, match="is a directory"):
            home.discovery().check()

    def test_an_environment_login_that_is_none(self, home: Home) -> None:
        with pytest.raises(SettingsError) as caught:
            home.discovery(QWEN_CLI_AUTH='{"access_token": "sk-0123456789"').check()

        assert str(caught.value).startswith("QWEN_CLI_AUTH is not JSON")
        assert "0123456789" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "url"),
        [
            ("DASHSCOPE_BASE_URL", "dashscope-intl.aliyuncs.com"),
            ("DASHSCOPE_BASE_URL", "https://user:hunter2@host"),
            ("QWEN_UPSTREAM_BASE_URL", "https://host/v1?key=hunter2"),
            ("OPENAI_BASE_URL", "https://user:hunter2@host"),
        ],
    )
    def test_a_base_url_that_cannot_be_used(self, home: Home, name: str, url: str) -> None:
        discovery = home.discovery(DASHSCOPE_API_KEY=KEY, **{name: url})

        with pytest.raises(SettingsError, match=f"^{name} cannot be used") as caught:
            discovery.check()

        assert "hunter2" not in str(caught.value) + repr(discovery.accounts())

    def test_everything_wrong_is_said_at_once(self, home: Home) -> None:
        home.write(".qwen/settings.json", "[]")

        with pytest.raises(SettingsError, match="QWEN_CLI_AUTH .*; ~/.qwen/settings.json "):
            home.discovery(QWEN_CLI_AUTH="x").check()


def test_no_secret_is_ever_shown(home: Home, clock: FakeClock, caplog: Any) -> None:
    """Every secret of a full machine, looked for in everything that can be printed."""
    secrets = {
        name: f"secret-{name}-0123456789abcdef-{number:04}"
        for number, name in enumerate(
            (
                "access",
                "refresh",
                "env-access",
                "upstream",
                "dashscope",
                "dotenv",
                "settings",
                "auth",
            )
        )
    }
    home.login(access_token=secrets["access"], refresh_token=secrets["refresh"])
    home.openai(
        entry("a"),
        entry("b", envKey="THEIR_KEY"),
        entry("c", envKey=secrets["settings"]),
        entry("d", baseUrl=f"https://u:{secrets['settings']}@x.test"),
        env={"THEIR_KEY": secrets["settings"]},
        security={"auth": {"apiKey": secrets["auth"]}},
    )
    home.write(".env", f"MY_KEY={secrets['dotenv']}\n")
    discovery = home.discovery(
        QWEN_CLI_AUTH=json.dumps(home.login_document(access_token=secrets["env-access"])),
        QWEN_UPSTREAM_BASE_URL=HOST,
        QWEN_UPSTREAM_API_KEY=secrets["upstream"],
        DASHSCOPE_API_KEY=secrets["dashscope"],
    )

    shown: list[Any] = []

    def look() -> None:
        shown.extend((discovery.accounts(), discovery.problems(), vars(discovery)))
        for account in discovery.accounts():
            source = account.credential
            shown.extend((source, account.origin, source.status()))
            for rejected in (None, *secrets.values()):
                try:
                    shown.append(source.current(rejected=rejected))
                except Exception as error:
                    shown.extend((error, vars(error), error.__cause__, error.__context__))

    with caplog.at_level(logging.DEBUG):
        look()
        clock.advance(86400)
        look()
        home.write(".qwen/oauth_creds.json", f'{{"access_token": "{secrets["access"]}"')
        home.write(".qwen/settings.json", f'{{"env": {{"X": "{secrets["settings"]}"')
        look()
        try:
            discovery.check()
        except SettingsError as error:
            shown.append(error)

    text = repr(shown) + "".join(str(one) for one in shown) + caplog.text
    assert len(discovery.accounts()) >= 7
    for secret in secrets.values():
        assert secret[:-4] not in text
        assert secret[-5:] not in text
