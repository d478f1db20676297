"""Every setting: what it takes, what it refuses, and that secrets are never shown."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi import net, plan_limits, setting_values
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.redaction import SHOWN_SECRET_CHARS
from qwen_wsgi.settings import Settings, describe, load, names
from tests.kit.secrets import core, secret

FIELDS = {item.metadata["env"]: item for item in dataclasses.fields(Settings) if item.metadata}

#: Setting, text, value; at least one row for every setting.
TAKEN: list[tuple[str, str, Any]] = [
    ("HOST", "0.0.0.0", "0.0.0.0"),
    ("HOST", "::", "::"),
    ("PORT", "0", 0),
    ("PORT", "65535", 65_535),
    ("QWEN_PROXY_BIND", "unix:/run/x.sock", "unix:/run/x.sock"),
    ("QWEN_PROXY_WORKERS", "1", 1),
    ("QWEN_PROXY_WORKERS", "256", 256),
    ("QWEN_PROXY_MAX_IN_FLIGHT", "1", 1),
    ("QWEN_PROXY_PUBLIC_URL", "https://qwen.lan/v1/", "https://qwen.lan"),
    ("QWEN_PROXY_PUBLIC_URL", "http://192.168.1.5:8080", "http://192.168.1.5:8080"),
    ("QWEN_PROXY_MAX_BODY", "1024", 1024),
    ("QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT", "1024", 1024),
    ("QWEN_PROXY_KEY_SHARE", "0.25", 0.25),
    ("QWEN_PROXY_KEY_SHARE", "1", 1.0),
    ("QWEN_PROXY_MAX_ITEMS", "1", 1),
    ("QWEN_PROXY_MAX_VALUES", "1", 1),
    ("QWEN_PROXY_MAX_ANSWER", "1024", 1024),
    ("QWEN_PROXY_MAX_UPLOAD", "1g", 1024**3),
    ("QWEN_PROXY_BATCH_HOST", "https://batch.example/v1/", "https://batch.example/v1"),
    ("QWEN_PROXY_FLEX_TIMEOUT", "30m", 1800.0),
    ("QWEN_PROXY_BACKGROUND", "0", 0),
    ("QWEN_PROXY_BACKGROUND_PER_KEY", "5", 5),
    ("QWEN_PROXY_BACKGROUND_TIMEOUT", "30m", 1800.0),
    ("QWEN_PROXY_BODY_TIMEOUT", "0.5", 0.5),
    ("QWEN_PROXY_MAX_BODY", "64m", 67_108_864),
    ("QWEN_PROXY_MAX_BODY", "64 MiB", 67_108_864),
    ("QWEN_PROXY_MAX_BODY", "64MB", 67_108_864),
    ("QWEN_PROXY_MAX_BODY", "2K", 2048),
    ("QWEN_PROXY_GRACEFUL_TIMEOUT", "1", 1),
    ("QWEN_PROXY_GRACEFUL_TIMEOUT", "60s", 60),
    ("QWEN_PROXY_GRACEFUL_TIMEOUT", "1.5m", 90),
    ("QWEN_PROXY_CLIENT_KEEPALIVE", "5", 5),
    ("QWEN_PROXY_WEBSOCKETS", "0", 0),
    ("QWEN_PROXY_WEBSOCKETS_PER_KEY", "1", 1),
    ("QWEN_PROXY_WEBSOCKET_IDLE", "0.5", 0.5),
    ("QWEN_PROXY_WEBSOCKET_MEMORY", "1048576", 1_048_576),
    *[
        ("QWEN_PROXY_REDIS_URL", url, url)
        for url in (
            "redis://192.168.1.5",
            "rediss://user:a%2Fb@redis.lan:6380/2?ssl_ca_certs=/etc/ca.pem",
            "redis://[fd00::1]:6379/0",
            "unix:///run/redis/redis.sock?db=1",
            "unix://:word@/run/redis/redis.sock",
        )
    ],
    ("QWEN_PROXY_API_KEYS", "one", ("one",)),
    ("QWEN_PROXY_API_KEYS", " one , two,,", ("one", "two")),
    ("QWEN_PROXY_API_KEYS", ",", ()),
    ("QWEN_PROXY_ADMIN_KEYS", " one , two,,", ("one", "two")),
    ("OPENAI_API_KEY", " key ", "key"),
    ("QWEN_PROXY_ALLOWED_HOSTS", "a.lan, b.lan", ("a.lan", "b.lan")),
    ("QWEN_PROXY_TRUSTED_PROXIES", "unix", ("unix",)),
    ("QWEN_PROXY_TRUSTED_PROXIES", "10.0.0.1/8, ::1", ("10.0.0.1/8", "::1")),
    ("QWEN_PROXY_CORS_ORIGINS", "*", ("*",)),
    ("QWEN_PROXY_CORS_ORIGINS", "https://a, https://b", ("https://a", "https://b")),
    ("QWEN_UPSTREAM_BASE_URL", "http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
    ("QWEN_UPSTREAM_BASE_URL", "https://x.example", "https://x.example"),
    ("QWEN_UPSTREAM_API_KEY", "key", "key"),
    (
        "QWEN_PROXY_HOST_FAMILIES",
        "Gateway.example = dashscope, *.plan.example=token-plan",
        (("gateway.example", "dashscope"), ("*.plan.example", "token-plan")),
    ),
    ("QWEN_PROXY_HOST_FAMILIES", "127.0.0.1=other", (("127.0.0.1", "other"),)),
    ("QWEN_PROXY_RESULT_HOSTS", "CDN.example, *.b.example", ("cdn.example", "*.b.example")),
    ("QWEN_PROXY_VOICES", "alloy = Cherry", (("alloy", "Cherry"),)),
    ("QWEN_PROXY_UPSTREAM_STREAM", "always", "always"),
    ("QWEN_PROXY_UPSTREAM_STREAM", "as-asked", "as-asked"),
    ("QWEN_HOME", "~/other", "~/other"),
    ("QWEN_PROXY_STATE_KEY", "k" * 32, "k" * 32),
    ("QWEN_PROXY_STATE_KEY_OLD", "k" * 32, "k" * 32),
    ("QWEN_PROXY_TIMEZONE", "Europe/Berlin", "Europe/Berlin"),
    ("QWEN_CLI_AUTH", '{"a": "b c"}', '{"a": "b c"}'),
    ("QWEN_OAUTH_BASE_URL", "http://127.0.0.1:9/", "http://127.0.0.1:9"),
    ("QWEN_PROXY_WEB", "1", True),
    ("QWEN_WEB_BASE_URL", "http://127.0.0.1:9/", "http://127.0.0.1:9"),
    ("QWEN_WEB_TOKEN", "H4sI", "H4sI"),
    ("OPENAI_BASE_URL", "https://x.example/v1", "https://x.example/v1"),
    ("OPENAI_MODEL", "qwen3.7-plus", "qwen3.7-plus"),
    ("QWEN_PROXY_IMAGE_MODEL", "qwen-image-3.0", "qwen-image-3.0"),
    ("QWEN_PROXY_MODEL_ALIASES", "gpt-4o = qwen3.7-plus", (("gpt-4o", "qwen3.7-plus"),)),
    ("QWEN_PROXY_MODEL_ALIASES", "a=x,a=y, b-*=c:z=1,", (("a", "y"), ("b-*", "c:z=1"))),
    ("QWEN_PROXY_ACCOUNT_ORDER", "b, a", ("b", "a")),
    ("QWEN_PROXY_SAME_ACCOUNT", "a+b,c+d", ("a+b", "c+d")),
    ("QWEN_PROXY_PLANS", "coding=6000/5h ;", plan_limits.parse("coding=6000/5h ;")),
    ("QWEN_PROXY_PLAN_FALLBACK", "pay, local:llama-4", ("pay", "local:llama-4")),
    ("QWEN_PROXY_ACCOUNT_IN_FLIGHT", "8", 8),
    ("QWEN_PROXY_ACCOUNT_QUEUE", "0", 0),
    ("QWEN_PROXY_RETRY_BUDGET", "0", 0.0),
    ("QWEN_PROXY_STRICT", "1", True),
    ("QWEN_PROXY_TOOL_ROUNDS", "3", 3),
    ("QWEN_PROXY_TOOL_TIME", "2m", 120.0),
    ("QWEN_PROXY_STRICT", "Off", False),
    ("QWEN_PROXY_CACHE_CONTROL", "true", True),
    ("QWEN_PROXY_TOKENIZER", "host", "host"),
    ("QWEN_PROXY_SANDBOX", "1", "on"),
    ("QWEN_PROXY_SANDBOX", "0", "off"),
    ("QWEN_PROXY_SANDBOX", "AUTO", "auto"),
    ("MODEL_CACHE_DURATION", "0", 0.0),
    ("MODEL_CACHE_DURATION", "1.5", 1.5),
    ("MODEL_CACHE_DURATION", "5m", 300.0),
    ("MODEL_CACHE_DURATION", "1H", 3600.0),
    ("QWEN_PROXY_RETRY_BUDGET", "500ms", 0.5),
    ("QWEN_PROXY_RESPONSES_TTL", "7d", 604_800.0),
    ("QWEN_PROXY_RESPONSES_TTL", "2 min", 120.0),
    ("QWEN_PROXY_RESPONSES_TTL", "1w", 604_800.0),
    ("QWEN_PROXY_RESPONSES_MAX_BYTES", "1g", 1_073_741_824),
    ("QWEN_PROXY_CONNECT_TIMEOUT", "0.5", 0.5),
    ("QWEN_PROXY_FIRST_BYTE_TIMEOUT", "1", 1.0),
    ("QWEN_PROXY_IDLE_TIMEOUT", "1e3", 1000.0),
    ("QWEN_PROXY_KEEPALIVE", "chunk", "chunk"),
    ("QWEN_PROXY_KEEPALIVE", "off", "off"),
    ("QWEN_PROXY_KEEPALIVE_INTERVAL", "15", 15.0),
    ("QWEN_PROXY_RESPONSES_TTL", "0", 0.0),
    ("QWEN_PROXY_RESPONSES_TTL", "86400", 86_400.0),
    ("QWEN_PROXY_RESPONSES_MAX_BYTES", "1048576", 1_048_576),
    ("QWEN_PROXY_RESPONSE_CACHE", "1h", 3600.0),
    ("QWEN_PROXY_RESPONSE_CACHE", "0", 0.0),
    ("QWEN_PROXY_RESPONSE_CACHE_SIZE", "1m", 1_048_576),
    ("QWEN_PROXY_LEDGER_DAYS", "0", 0),
    ("QWEN_PROXY_LEDGER_DAYS", "400", 400),
    ("QWEN_PROXY_PRICES", "/etc/qwen-proxy/prices.json", "/etc/qwen-proxy/prices.json"),
    ("QWEN_PROXY_TOOLS", "/etc/qwen-proxy/tools.json", "/etc/qwen-proxy/tools.json"),
    ("QWEN_PROXY_TOOLS_SOCKET", "/run/tools.sock", "/run/tools.sock"),
    ("QWEN_PROXY_TOOL_CALLS", "4", 4),
    ("QWEN_PROXY_TOOL_TIMEOUT", "2m", 120.0),
    ("QWEN_PROXY_TOOL_OUTPUT", "64k", 65_536),
    ("QWEN_PROXY_TOOL_MEMORY", "2g", 2 * 1024**3),
    ("QWEN_PROXY_TOOL_PROCESSES", "64", 64),
    ("QWEN_PROXY_TOOL_DISK", "1g", 1024**3),
    ("QWEN_PROXY_FETCH_HOSTS", "docs.example,*.b.example", ("docs.example", "*.b.example")),
    ("QWEN_PROXY_TOOL_HOSTS", "MCP.example,box.lan:8080", ("mcp.example", "box.lan:8080")),
    ("QWEN_PROXY_ADMIN_KEYS", "a, b", ("a", "b")),
    ("LOG_LEVEL", "debug", "DEBUG"),
    ("QWEN_PROXY_LOG_FORMAT", "json", "json"),
    ("QWEN_PROXY_ENV_FILE", "/etc/x.env", "/etc/x.env"),
    ("QWEN_PROXY_STATE_DIR", "/var/lib/x", "/var/lib/x"),
]

SECONDS = ["-1", "nan", "inf", "-inf", "1e999", "soon", "5y", "s", "5s5", "1.2.3", "64mb", "-5m"]

REFUSED: dict[str, list[str]] = {
    "PORT": ["-1", "65536", "http", "80.5", "0x50"],
    "QWEN_PROXY_WORKERS": ["0", "257", "-1", "many"],
    "QWEN_PROXY_MAX_IN_FLIGHT": ["0", "-5", "1.5"],
    "QWEN_PROXY_MAX_BODY": ["1023", "1.5m", "64t", "64s", "m", "-64m", "1000b"],
    "QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT": ["1023", "512t"],
    "QWEN_PROXY_TOOLS": ["tools.json", "~/tools.json"],
    "QWEN_PROXY_TOOLS_SOCKET": ["tools.sock"],
    "QWEN_PROXY_TOOL_CALLS": ["0", "1001"],
    "QWEN_PROXY_TOOL_TIMEOUT": ["0", "soon"],
    "QWEN_PROXY_TOOL_OUTPUT": ["1023", "1t"],
    "QWEN_PROXY_TOOL_MEMORY": ["63m", "all"],
    "QWEN_PROXY_TOOL_PROCESSES": ["7", "10001"],
    "QWEN_PROXY_TOOL_DISK": ["1023k", "all"],
    "QWEN_PROXY_FETCH_HOSTS": ["https://a.example", "a/b"],
    "QWEN_PROXY_TOOL_HOSTS": ["https://a.example", "a.example:", "a:0", "a:1:2", "a/b"],
    "QWEN_PROXY_KEY_SHARE": ["0", "1.5", "nan", "half"],
    "QWEN_PROXY_MAX_ITEMS": ["0", "many"],
    "QWEN_PROXY_MAX_VALUES": ["0", "1.5"],
    "QWEN_PROXY_MAX_ANSWER": ["1023", "64t"],
    "QWEN_PROXY_MAX_UPLOAD": ["1023", "64t"],
    "QWEN_PROXY_BATCH_HOST": ["batch.example"],
    "QWEN_PROXY_FLEX_TIMEOUT": ["0", "soon"],
    "QWEN_PROXY_BACKGROUND": ["-1", "many"],
    "QWEN_PROXY_BACKGROUND_PER_KEY": ["0", "many"],
    "QWEN_PROXY_BACKGROUND_TIMEOUT": ["0", "soon"],
    "QWEN_PROXY_BODY_TIMEOUT": ["0", "-1", "inf"],
    "QWEN_PROXY_GRACEFUL_TIMEOUT": ["0", "1.5", "1500ms", "60x"],
    "QWEN_PROXY_PUBLIC_URL": ["qwen.lan", "https://qwen.lan/proxy"],
    "QWEN_PROXY_CLIENT_KEEPALIVE": ["0"],
    "QWEN_PROXY_WEBSOCKETS": ["-1", "all"],
    "QWEN_PROXY_WEBSOCKETS_PER_KEY": ["0", "-1"],
    "QWEN_PROXY_WEBSOCKET_IDLE": ["0", *SECONDS],
    "QWEN_PROXY_WEBSOCKET_MEMORY": ["0", "1048575", "128T"],
    "QWEN_PROXY_API_KEYS": ["a b", "one,t wo"],
    "QWEN_PROXY_ADMIN_KEYS": ["a b", "one,t wo"],
    "OPENAI_API_KEY": ["a b", "a\tb"],
    "QWEN_PROXY_TRUSTED_PROXIES": ["localhost", "10.0.0.0/33", "127.0.0.1,nginx", "1.2.3"],
    "QWEN_UPSTREAM_BASE_URL": ["x.example/v1", "ftp://x", "//x", "http://a b"],
    "QWEN_UPSTREAM_API_KEY": ["a b"],
    "QWEN_PROXY_REDIS_URL": [
        "http://redis.lan",
        "redis.lan:6379",
        "redis://:a@",
        "redis://redis.lan:none",
        "redis://redis.lan:0",
        "redis://redis.lan/first",
        "redis://redis.lan/0?timeout=5",
        "redis://redis.lan/0?db",
        "redis://redis.lan/0#x",
        "unix://:a@",
        "unix://run/redis.sock",
        "unix:///run/redis.sock?db=x",
    ],
    "QWEN_PROXY_STATE_KEY": ["k" * 31, "k" * 31 + " k"],
    "QWEN_PROXY_STATE_KEY_OLD": ["k" * 31],
    "QWEN_PROXY_TIMEZONE": ["Europe/Nowhere", "../../etc/passwd", "CEST+2 hours"],
    "QWEN_PROXY_HOST_FAMILIES": [
        "gateway.example",
        "gateway.example=model-studio",
        "gateway.example=sandbox",
        "https://gateway.example=dashscope",
        "gateway.example:443=dashscope",
        "gateway.example/v1=dashscope",
        "a.*.example=dashscope",
        "=dashscope",
    ],
    "QWEN_PROXY_RESULT_HOSTS": ["https://x.example", "x.example/path", "a.*.example", "x:443"],
    "QWEN_PROXY_VOICES": ["alloy", "=Cherry", "alloy="],
    "QWEN_PROXY_UPSTREAM_STREAM": ["never", "ALWAYS"],
    "QWEN_OAUTH_BASE_URL": ["chat.qwen.ai"],
    "QWEN_PROXY_WEB": ["maybe"],
    "QWEN_WEB_BASE_URL": ["chat.qwen.ai"],
    "OPENAI_BASE_URL": ["x.example"],
    "QWEN_PROXY_MODEL_ALIASES": ["gpt-4o", "=x", "x=", "a*b=c"],
    "QWEN_PROXY_ACCOUNT_IN_FLIGHT": ["-1", "many"],
    "QWEN_PROXY_ACCOUNT_QUEUE": ["-1", "1.5"],
    "QWEN_PROXY_RETRY_BUDGET": SECONDS,
    "QWEN_PROXY_TOOL_ROUNDS": ["0", "101", "1.5"],
    "QWEN_PROXY_TOOL_TIME": ["0", *SECONDS],
    "QWEN_PROXY_STRICT": ["yes", "2"],
    "QWEN_PROXY_CACHE_CONTROL": ["always"],
    "QWEN_PROXY_TOKENIZER": ["Host", "1", "remote"],
    "QWEN_PROXY_SANDBOX": ["yes", "2", "true"],
    "MODEL_CACHE_DURATION": SECONDS,
    "QWEN_PROXY_CONNECT_TIMEOUT": ["0", *SECONDS],
    "QWEN_PROXY_FIRST_BYTE_TIMEOUT": ["0", *SECONDS],
    "QWEN_PROXY_IDLE_TIMEOUT": ["0", *SECONDS],
    "QWEN_PROXY_KEEPALIVE": ["ping"],
    "QWEN_PROXY_KEEPALIVE_INTERVAL": ["0", *SECONDS],
    "QWEN_PROXY_RESPONSES_TTL": SECONDS,
    "QWEN_PROXY_RESPONSES_MAX_BYTES": ["0", "1048575", "1023k"],
    "QWEN_PROXY_PLANS": ["6000/5h", "coding=gold", "coding=1/5h;coding=1/5h"],
    "QWEN_PROXY_PLAN_FALLBACK": ["a,a:m", "a:", ":m", "A B"],
    "QWEN_PROXY_RESPONSE_CACHE": SECONDS,
    "QWEN_PROXY_RESPONSE_CACHE_SIZE": ["0", "1023k"],
    "QWEN_PROXY_LEDGER_DAYS": ["-1", "1.5", "7d", "36501"],
    "LOG_LEVEL": ["TRACE", "10"],
    "QWEN_PROXY_LOG_FORMAT": ["xml", "JSON"],
}


def test_every_setting_has_a_row_here() -> None:
    assert {name for name, _, _ in TAKEN} == FIELDS.keys()
    free_text = {
        "HOST",
        "QWEN_PROXY_BIND",
        "QWEN_PROXY_ALLOWED_HOSTS",
        "QWEN_PROXY_CORS_ORIGINS",
        "QWEN_HOME",
        "QWEN_CLI_AUTH",
        "QWEN_WEB_TOKEN",
        "OPENAI_MODEL",
        "QWEN_PROXY_IMAGE_MODEL",
        "QWEN_PROXY_ACCOUNT_ORDER",
        "QWEN_PROXY_SAME_ACCOUNT",
        "QWEN_PROXY_STATE_DIR",
        "QWEN_PROXY_PRICES",
        "QWEN_PROXY_ENV_FILE",
    }
    assert FIELDS.keys() - REFUSED.keys() == free_text


@pytest.mark.parametrize(("name", "text", "value"), TAKEN)
def test_a_good_value_is_taken(name: str, text: str, value: Any) -> None:
    assert getattr(load({name: text}), FIELDS[name].name) == value


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in REFUSED.items() for text in texts]
)
def test_a_bad_value_is_refused_by_its_name(name: str, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({name: text})

    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    if FIELDS[name].metadata["secret"]:
        assert text not in message
    else:
        assert repr(text) in message


def test_all_bad_values_are_named_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"PORT": "x", "LOG_LEVEL": "y", "HOST": "fine"})

    assert "PORT='x'" in str(caught.value)
    assert "LOG_LEVEL='y'" in str(caught.value)
    assert "HOST" not in str(caught.value)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
def test_an_empty_value_counts_as_unset(name: str, empty: str) -> None:
    """systemd's `NAME=` lines mean that."""
    field = FIELDS[name].name

    assert getattr(load({name: empty}), field) == getattr(load({}), field)


def test_without_anything_set_only_this_machine_is_served() -> None:
    settings = load({})

    assert settings.bind_address == "127.0.0.1:8080"
    assert settings.all_client_keys == ()
    assert settings.cors_origins is None
    assert settings.sandbox == "off"
    assert settings.workers == os.cpu_count()


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, "127.0.0.1:8080"),
        ({"HOST": "0.0.0.0", "PORT": "80"}, "0.0.0.0:80"),
        ({"HOST": "::1"}, "[::1]:8080"),
        ({"HOST": "::", "PORT": "1"}, "[::]:1"),
        ({"HOST": "localhost"}, "localhost:8080"),
        ({"HOST": "192.0.2.1"}, "192.0.2.1:8080"),
        ({"HOST": "::1", "QWEN_PROXY_HOST": "0.0.0.0"}, "0.0.0.0:8080"),
        ({"PORT": "1", "QWEN_PROXY_PORT": "2"}, "127.0.0.1:2"),
        ({"QWEN_PROXY_HOST": "box.lan"}, "box.lan:8080"),
        ({"HOST": "::1", "QWEN_PROXY_BIND": "unix:/x"}, "unix:/x"),
        ({"HOST": "[::1]"}, "[::1]:8080"),
    ],
    ids=str,
)
def test_where_to_listen(environ: dict[str, str], address: str) -> None:
    assert load(environ).bind_address == address


@pytest.mark.parametrize(
    ("environ", "address", "ignored"),
    [
        ({"HOST": "box.lan"}, "box.lan:8080", ""),
        ({"HOST": "other.lan"}, "127.0.0.1:8080", "other.lan"),
        ({"HOST": net.machine_name()}, "127.0.0.1:8080", net.machine_name()),
        ({"HOST": "other.lan", "QWEN_PROXY_HOST": "box.lan"}, "box.lan:8080", ""),
        ({"HOST": "other.lan", "QWEN_PROXY_BIND": "unix:/x"}, "unix:/x", ""),
    ],
    ids=str,
)
def test_the_name_of_a_machine_that_a_shell_has_set_is_no_address(
    environ: dict[str, str], address: str, ignored: str
) -> None:
    settings = load(environ, is_here=lambda host: host == "box.lan")

    assert (settings.bind_address, settings.ignored_host) == (address, ignored)


@pytest.mark.parametrize(
    ("environ", "keys"),
    [
        ({"QWEN_PROXY_API_KEYS": "a,b"}, ("a", "b")),
        ({"OPENAI_API_KEY": "c"}, ("c",)),
        ({"QWEN_PROXY_API_KEYS": "a,b", "OPENAI_API_KEY": "c"}, ("a", "b", "c")),
        ({"QWEN_PROXY_API_KEYS": "a,b,a", "OPENAI_API_KEY": "b"}, ("a", "b")),
        ({"QWEN_PROXY_API_KEYS": "a,b", "QWEN_PROXY_ADMIN_KEYS": "a,d"}, ("b", "a", "d")),
    ],
    ids=str,
)
def test_client_keys_come_from_both_settings(
    environ: dict[str, str], keys: tuple[str, ...]
) -> None:
    assert load(environ).all_client_keys == keys


@pytest.mark.parametrize(
    ("environ", "directory"),
    [
        ({"QWEN_PROXY_STATE_DIR": "/a", "STATE_DIRECTORY": "/b"}, "/a"),
        ({"STATE_DIRECTORY": "/b"}, "/b"),
        ({"STATE_DIRECTORY": "/b:/c:/d"}, "/b"),
        ({"STATE_DIRECTORY": ""}, "/home/me/.local/state/qwen-proxy"),
        ({}, "/home/me/.local/state/qwen-proxy"),
        ({"XDG_STATE_HOME": "/x"}, "/x/qwen-proxy"),
        ({"XDG_STATE_HOME": "/x", "STATE_DIRECTORY": "/b"}, "/b"),
        ({"XDG_STATE_HOME": "not/absolute"}, "/home/me/.local/state/qwen-proxy"),
    ],
    ids=str,
)
def test_where_the_state_is_kept(environ: dict[str, str], directory: str) -> None:
    """systemd exports a colon separated list for StateDirectory=; ours is the first."""
    assert load({"HOME": "/home/me", **environ}).state_dir == directory


def test_the_home_directory_is_that_of_the_environment(home: Path) -> None:
    assert load({"HOME": "/home/me"}).home == Path("/home/me")
    assert load({}).home == home


def test_the_process_environment_is_read_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PORT", "4321")

    settings = load()

    assert settings.port == 4321
    assert settings.environ["PORT"] == "4321"


def test_the_environment_is_kept_as_it_was() -> None:
    environ = {"DASHSCOPE_API_KEY": "x"}
    settings = load(environ)
    environ["DASHSCOPE_API_KEY"] = "y"

    assert settings.environ["DASHSCOPE_API_KEY"] == "x"


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        load({}).port = 1  # type: ignore[misc]  # that is the point


# --- secrets -------------------------------------------------------------------------------------

SECRETS = [name for name, item in FIELDS.items() if item.metadata["secret"]]


def test_what_is_a_secret() -> None:
    assert set(SECRETS) == {
        "QWEN_PROXY_API_KEYS",
        "QWEN_PROXY_ADMIN_KEYS",
        "OPENAI_API_KEY",
        "QWEN_UPSTREAM_API_KEY",
        "QWEN_CLI_AUTH",
        "QWEN_WEB_TOKEN",
        "QWEN_PROXY_STATE_KEY",
        "QWEN_PROXY_STATE_KEY_OLD",
        "QWEN_PROXY_REDIS_URL",
    }


def test_of_the_url_of_a_redis_the_place_is_shown_and_no_password() -> None:
    word = secret("redis")
    settings = load({"QWEN_PROXY_REDIS_URL": f"rediss://user:{word}%2F@redis.lan:6380/1"})

    rows = {row["name"]: row for row in describe(settings)}

    assert rows["QWEN_PROXY_REDIS_URL"]["value"] == "rediss://****@redis.lan:6380/1"
    assert settings.redis_secrets[1:] == (word + "/", word + "%2F")
    assert settings.redis_secrets[0].startswith("rediss://user:")
    assert core(word) not in repr(settings) + str(rows)
    assert load({"QWEN_PROXY_REDIS_URL": "redis://redis.lan"}).redis_secrets == ()


def test_without_its_package_the_url_of_a_redis_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setting_values, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'qwen-wsgi\[redis\]'"):
        load({"QWEN_PROXY_REDIS_URL": "redis://redis.lan"})


@pytest.mark.parametrize("name", [name for name in SECRETS if name != "QWEN_PROXY_REDIS_URL"])
def test_a_secret_is_shown_nowhere_but_by_its_end(name: str) -> None:
    value = secret("setting")
    settings = load({name: value, "DASHSCOPE_API_KEY": value})

    rows = {row["name"]: row for row in describe(settings)}

    assert rows[name]["value"] == "…" + value[-SHOWN_SECRET_CHARS:]
    for text in (repr(settings), str(settings), str(rows)):
        assert core(value) not in text


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("bad", ["with space", "with\ttab", "with\nline"])
def test_a_bad_secret_is_not_quoted(name: str, bad: str) -> None:
    value = secret("bad") + bad
    try:
        load({name: value})
    except SettingsError as error:
        assert name in str(error)
        assert "notforlogs" not in str(error)
        assert bad not in str(error)


# --- the table that `qwen-proxy settings` prints -------------------------------------------------


def test_the_table_has_every_setting_with_words_for_a_person() -> None:
    rows = describe(load({}))

    assert [row["name"] for row in rows] == list(FIELDS)
    for row in rows:
        assert row.keys() == {"name", "value", "default", "unit", "description", "source"}
        assert row["description"].endswith(".")
        assert len(row["description"]) < 120


def test_the_second_name_of_a_setting_is_told_with_it() -> None:
    rows = {row["name"]: row["description"] for row in describe(load({}))}

    assert rows["HOST"].endswith("QWEN_PROXY_HOST wins over it.")
    assert set(names()) - set(FIELDS) == {"QWEN_PROXY_HOST", "QWEN_PROXY_PORT"}


def test_a_bad_value_is_named_as_it_was_written() -> None:
    with pytest.raises(SettingsError, match=r"QWEN_PROXY_PORT='http'"):
        load({"QWEN_PROXY_PORT": "http", "PORT": "80"})


@pytest.mark.parametrize(
    ("environ", "name", "value", "default"),
    [
        ({}, "PORT", "8080", "8080"),
        ({"PORT": "9"}, "PORT", "9", "8080"),
        ({}, "OPENAI_MODEL", "–", "off"),
        ({}, "QWEN_PROXY_API_KEYS", "–", "–"),
        ({"MODEL_CACHE_DURATION": "0.5"}, "MODEL_CACHE_DURATION", "0.5", "3600"),
        ({}, "QWEN_PROXY_MAX_BODY", "67108864", "67108864"),
        ({}, "QWEN_PROXY_TRUSTED_PROXIES", "127.0.0.0/8,::1/128,unix", "127.0.0.0/8,::1/128,unix"),
        ({}, "QWEN_HOME", "–", "~/.qwen"),
        ({"MODEL_CACHE_DURATION": "0"}, "MODEL_CACHE_DURATION", "0", "3600"),
        ({"MODEL_CACHE_DURATION": "1234567"}, "MODEL_CACHE_DURATION", "1234567", "3600"),
    ],
    ids=str,
)  # fmt: skip
def test_a_row_of_the_table(environ: dict[str, str], name: str, value: str, default: str) -> None:
    row = {row["name"]: row for row in describe(load(environ))}[name]

    assert (row["value"], row["default"]) == (value, default)


@pytest.mark.parametrize("scheme", ["http", "ftp"])
@pytest.mark.parametrize("name", ["QWEN_UPSTREAM_BASE_URL", "OPENAI_BASE_URL"])
def test_a_password_in_a_base_url_is_not_shown(name: str, scheme: str) -> None:
    """Such a URL is refused later on, but that is too late for the screen."""
    try:
        shown = str(describe(load({name: f"{scheme}://user:secretword@x.example/"})))
    except SettingsError as error:
        shown = str(error)

    assert "secretword" not in shown


@pytest.mark.parametrize(
    ("keys", "weak"),
    [
        ("", 0),
        ("short", 1),
        ("aaaaaaaaaaaaaaaaaaaaaaaa", 1),
        ("sk-changeme-changeme", 1),
        ("password1234567890", 1),
        ("3f9c1b7e52a84d06b1f0c7d2", 0),
        ("3f9c1b7e52a84d06b1f0c7d2,secret", 1),
    ],
)
def test_keys_that_can_be_guessed_are_counted(keys: str, weak: int) -> None:
    assert load({"QWEN_PROXY_API_KEYS": keys}).weak_client_keys == weak
