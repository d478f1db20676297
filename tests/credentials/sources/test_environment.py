"""Variables and keys that have no effect, or another than they seem to have, are told."""

from __future__ import annotations

import pytest

from qwen_wsgi.credentials.sources import environment
from qwen_wsgi.settings import load
from tests.kit.qwen_home import Home
from tests.kit.secrets import core, secret

KEY = secret("environment")


def notes(**environ: str) -> tuple[str, ...]:
    found = environment.notes(load({"HOME": "/nowhere", **environ}, is_here=lambda host: False))
    return tuple(map(str, found))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("QWEN_PROXY_API_KEY", "QWEN_PROXY_API_KEYS"),
        ("QWEN_PROXY_APIKEYS", "QWEN_PROXY_API_KEYS"),
        ("QWENPROXY_API_KEYS", "QWEN_PROXY_API_KEYS"),
        ("QWEN_PROXY_WORKER", "QWEN_PROXY_WORKERS"),
        ("QWEN_PROXY_LOGFORMAT", "QWEN_PROXY_LOG_FORMAT"),
        ("QWEN_PROXY_LOG_LEVEL", "LOG_LEVEL"),
        ("QWEN_PROXY_DASHSCOPE_API_KEY", "DASHSCOPE_API_KEY"),
        ("QWEN_UPSTREAM_URL", "QWEN_UPSTREAM_BASE_URL"),
        ("DASHSCOPE_APIKEY", "DASHSCOPE_API_KEY"),
        ("QWEN_CLOUD_API_KEY", "QWENCLOUD_API_KEY"),
    ],
)
def test_a_misspelt_name_is_told_with_what_was_meant(written: str, meant: str) -> None:
    (note,) = notes(**{written: KEY})

    assert written in note
    assert note.endswith(f"Did you mean {meant}?")
    assert core(KEY) not in note


def test_a_name_of_ours_that_is_like_no_other_is_told() -> None:
    (note,) = notes(QWEN_PROXY_XYZZY="1")

    assert "QWEN_PROXY_XYZZY has no effect" in note
    assert "`qwen-proxy settings`" in note


@pytest.mark.parametrize(
    "name",
    [
        # Of qwen-code, of the dashscope package, and of nobody we know.
        "QWEN_CODE_SYSTEM_SETTINGS_PATH",
        "QWEN_RUNTIME_DIR",
        "QWEN_MODEL",
        "QWEN_TLS_INSECURE",
        "DASHSCOPE_API_KEY_FILE_PATH",
        "DASHSCOPE_HTTP_BASE_URL",
        "LOG_LEVELS",
        "PORTS",
        "GITHUB_API_KEY",
        "_QWEN_PROXY_COMMAND",
    ],
)
def test_names_of_other_programs_are_left_alone(name: str) -> None:
    assert notes(**{name: "x"}) == ()


def test_settings_and_accounts_are_not_notes() -> None:
    assert (
        notes(
            QWEN_PROXY_HOST="127.0.0.1",
            QWEN_PROXY_PORT="1",
            PORT="2",
            DASHSCOPE_API_KEY=KEY,
            DASHSCOPE_BASE_URL="https://x.example/v1",
            OPENAI_API_KEY=KEY,
        )
        == ()
    )


def test_what_makes_an_account_elsewhere_is_explained() -> None:
    (note,) = notes(OPENAI_API_KEY=KEY, OPENAI_BASE_URL="https://x.example/v1")

    assert "make no account here" in note
    assert "QWEN_UPSTREAM_API_KEY" in note
    assert "QWEN_UPSTREAM_BASE_URL" in note
    assert core(KEY) not in note


def test_a_host_that_is_no_address_of_this_machine_is_told() -> None:
    (note,) = notes(HOST="other.lan")

    assert "HOST=other.lan is ignored" in note
    assert "QWEN_PROXY_HOST" in note


def test_a_key_of_another_vendor_is_told_with_the_reason() -> None:
    (note,) = notes(ANTHROPIC_API_KEY=KEY)

    assert "ANTHROPIC_API_KEY is not used" in note
    assert core(KEY) not in note


def test_a_base_url_without_its_key_is_told() -> None:
    (note,) = notes(BAILIAN_CODING_PLAN_BASE_URL="https://x.example/v1")

    assert note == (
        "BAILIAN_CODING_PLAN_BASE_URL is not used: BAILIAN_CODING_PLAN_API_KEY is not set."
    )


def test_keys_in_qwen_codes_files_that_make_no_account_are_told(home: Home) -> None:
    used, unused, dotenv = secret("used"), secret("unused"), secret("dotenv")
    home.settings(
        env={"USED_API_KEY": used, "UNUSED_API_KEY": unused, "EDITOR": "vi"},
        modelProviders={
            "openai": [{"id": "m", "baseUrl": "https://x.example/v1", "envKey": "USED_API_KEY"}]
        },
    )
    home.write(".qwen/.env", f"GEMINI_API_KEY={dotenv}\nUSED_API_KEY={used}\n")
    first, second = map(str, home.discovery().notes())

    assert first.startswith("GEMINI_API_KEY in ~/.qwen/.env is not used: no entry")
    assert second.startswith("UNUSED_API_KEY in the env of ~/.qwen/settings.json is not used")
    for value in (used, unused, dotenv):
        assert core(value) not in first + second
