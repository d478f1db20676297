"""Declares every setting once: environment name, parser, default, unit and description.

The only module that reads `os.environ`. `qwen-proxy settings`, the gunicorn configuration and the
application all read the table that is declared here.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import tzinfo
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from qwen_wsgi import env_file, net
from qwen_wsgi import setting_values as values
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.plan_limits import Plans
from qwen_wsgi.redaction import mask, masked_url

#: Shown for a value that is not set.
UNSET: Final = "–"

#: The variable in which a command tells the server that it starts how it was called.
COMMAND: Final = "_QWEN_PROXY_COMMAND"

#: Connections of a worker beyond its calls, and files of the process itself.
_SPARE_CONNECTIONS: Final = 256
_SPARE_FILES: Final = 128


#: A key that is shorter can be guessed; `openssl rand -hex 24` gives 48 characters.
STRONG_KEY_CHARS: Final = 16

#: What people type in a hurry, also repeated until it is long enough.
_COMMON: Final = (
    *("secret", "password", "passwd", "changeme", "change-me", "example", "qwen-proxy", "qwen"),
    *("your-api-key", "your_api_key", "api-key", "apikey", "test", "dummy", "none", "1234567890"),
    *("openai", "anthropic", "client", "local", "abcdefghijklmnopqrstuvwxyz", "0123456789"),
)


def _is_weak(key: str) -> bool:
    if len(key) < STRONG_KEY_CHARS or len(set(key)) < 5:
        return True
    rest = key.lower().removeprefix("sk-")
    for word in _COMMON:
        rest = rest.replace(word, "")
    return len(rest.strip("-_.")) < STRONG_KEY_CHARS // 2


def setting(
    env: str,
    description: str,
    *,
    default: Any,
    parse: Callable[[str], Any] = values.text,
    unit: str = "",
    secret: bool = False,
    shown_default: str | None = None,
    wins: str = "",
    show: Callable[[Any], str] | None = None,
) -> Any:
    """Declare one setting; `load` and `describe` read its metadata.

    Args:
        wins: a second name of the variable, which is read first.
        show: shows a value without what is secret of it.
    """
    return field(
        default=default,
        repr=not secret,
        metadata={
            "env": env,
            "description": description,
            "parse": parse,
            "unit": unit,
            "secret": secret,
            "shown_default": shown_default,
            "wins": wins,
            "show": show,
        },
    )


@dataclass(frozen=True)
class Settings:
    """The operator's settings. Durations are seconds, sizes are bytes."""

    host: str = setting(
        "HOST",
        "Address to listen on. Shells may set it to the machine's name, which is ignored.",
        default="127.0.0.1",
        wins="QWEN_PROXY_HOST",
    )
    port: int = setting(
        "PORT",
        "Port to listen on.",
        default=8080,
        parse=values.integer(0, 65535),
        wins="QWEN_PROXY_PORT",
    )
    bind: str = setting(
        "QWEN_PROXY_BIND",
        "Used instead of host and port: `unix:/run/qwen-proxy/http.sock` or `ADDRESS:PORT`.",
        default="",
    )
    public_url: str = setting(
        "QWEN_PROXY_PUBLIC_URL",
        "The address that clients use, e.g. https://qwen.lan, for `qwen-proxy clients`.",
        default="",
        parse=values.public_url,
        shown_default="from the address that it listens on",
    )
    workers: int = setting(
        "QWEN_PROXY_WORKERS",
        "Worker processes.",
        default=0,
        parse=values.integer(1, 256),
        shown_default="number of CPUs",
    )
    max_in_flight: int = setting(
        "QWEN_PROXY_MAX_IN_FLIGHT",
        "Calls that one worker serves at a time; further ones get 503 with Retry-After.",
        default=1000,
        parse=values.integer(1),
    )
    max_body_bytes: int = setting(
        "QWEN_PROXY_MAX_BODY",
        "Largest request body.",
        default=64 * 1024 * 1024,
        parse=values.size(1024),
        unit="bytes",
    )
    max_upload_bytes: int = setting(
        "QWEN_PROXY_MAX_UPLOAD",
        "Largest upload of a file; it is passed on as it comes and not held.",
        default=512 * 1024 * 1024,
        parse=values.size(1024),
        unit="bytes",
    )
    key_share: float = setting(
        "QWEN_PROXY_KEY_SHARE",
        "The share of QWEN_PROXY_MAX_IN_FLIGHT that one of several client keys may have.",
        default=0.5,
        parse=values.share,
    )
    max_items: int = setting(
        "QWEN_PROXY_MAX_ITEMS",
        "Most messages, content blocks together, or tools of one request.",
        default=20_000,
        parse=values.integer(1),
    )
    max_values: int = setting(
        "QWEN_PROXY_MAX_VALUES",
        "Most JSON values in one request body.",
        default=2_000_000,
        parse=values.integer(1),
    )
    body_timeout_s: float = setting(
        "QWEN_PROXY_BODY_TIMEOUT",
        "How long a request's body may pause; in all it has a second more for each 64 kB.",
        default=30,
        parse=values.seconds(),
        unit="s",
    )
    max_body_bytes_in_flight: int = setting(
        "QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT",
        "All request bodies of one worker together; further calls get 503 with Retry-After.",
        default=512 * 1024 * 1024,
        parse=values.size(1024),
        unit="bytes",
    )
    max_answer_bytes: int = setting(
        "QWEN_PROXY_MAX_ANSWER",
        "Largest whole answer of an upstream; the client gets 502 `upstream_too_large` above it.",
        default=64 * 1024 * 1024,
        parse=values.size(1024),
        unit="bytes",
    )
    graceful_timeout_s: int = setting(
        "QWEN_PROXY_GRACEFUL_TIMEOUT",
        "How long open streams may continue after a stop or reload.",
        default=60,
        parse=values.whole_seconds(1),
        unit="s",
    )
    client_keepalive_s: int = setting(
        "QWEN_PROXY_CLIENT_KEEPALIVE",
        "How long an idle client connection stays open; keep it above nginx's 60 s.",
        default=75,
        parse=values.whole_seconds(1),
        unit="s",
    )

    websockets: int = setting(
        "QWEN_PROXY_WEBSOCKETS",
        "WebSockets (Responses) that one worker keeps open; beyond, clients get 426 and use HTTP.",
        default=256,
        parse=values.integer(0),
    )
    websockets_per_key: int = setting(
        "QWEN_PROXY_WEBSOCKETS_PER_KEY",
        "So many of them may be of one client key.",
        default=64,
        parse=values.integer(1),
    )
    websocket_idle_s: float = setting(
        "QWEN_PROXY_WEBSOCKET_IDLE",
        "How long a WebSocket stays open without a response.",
        default=900.0,
        parse=values.seconds(),
        unit="s",
    )
    websocket_memory_bytes: int = setting(
        "QWEN_PROXY_WEBSOCKET_MEMORY",
        "Memory of one worker for conversations that its WebSockets may continue.",
        default=128 * 1024 * 1024,
        parse=values.size(1024 * 1024),
        unit="bytes",
    )

    client_keys: tuple[str, ...] = setting(
        "QWEN_PROXY_API_KEYS",
        "Client keys, comma separated. Without any client key, also none of `qwen-proxy keys`, "
        "only this machine is served.",
        default=(),
        parse=values.keys,
        secret=True,
    )
    openai_api_key: str = setting(
        "OPENAI_API_KEY",
        "One more client key (never sent upstream).",
        default="",
        parse=values.key,
        secret=True,
    )
    admin_keys: tuple[str, ...] = setting(
        "QWEN_PROXY_ADMIN_KEYS",
        "Client keys that may use /admin/v1 and the console as well, comma separated.",
        default=(),
        parse=values.keys,
        secret=True,
    )
    allowed_hosts: tuple[str, ...] = setting(
        "QWEN_PROXY_ALLOWED_HOSTS",
        "Further host names for the Host header, without client keys and on the console.",
        default=(),
        parse=values.words,
    )
    trusted_proxies: tuple[str, ...] = setting(
        "QWEN_PROXY_TRUSTED_PROXIES",
        "Peers whose X-Forwarded-For is trusted: networks, or `unix` for the unix socket.",
        default=("127.0.0.0/8", "::1/128", "unix"),
        parse=values.trusted_proxies,
    )
    cors_origins: tuple[str, ...] | None = setting(
        "QWEN_PROXY_CORS_ORIGINS",
        "Origins of web pages that may call, comma separated, or `*`.",
        default=None,
        parse=values.words,
        shown_default="* when client keys are set, none otherwise",
    )

    upstream_base_url: str = setting(
        "QWEN_UPSTREAM_BASE_URL",
        "One explicit OpenAI-compatible upstream, e.g. http://127.0.0.1:8000/v1.",
        default="",
        parse=values.base_url,
    )
    upstream_api_key: str = setting(
        "QWEN_UPSTREAM_API_KEY",
        "The key for QWEN_UPSTREAM_BASE_URL; may be empty.",
        default="",
        parse=values.key,
        secret=True,
    )
    host_families: tuple[tuple[str, str], ...] = setting(
        "QWEN_PROXY_HOST_FAMILIES",
        "Kinds of hosts whose names do not show it: `gateway.example=dashscope,*.b.example=other`.",
        default=(),
        parse=values.host_families,
    )
    result_hosts: tuple[str, ...] = setting(
        "QWEN_PROXY_RESULT_HOSTS",
        "Further hosts of pictures, videos and sounds: `cdn.example,*.b.example`.",
        default=(),
        parse=values.hosts,
    )
    voices: tuple[tuple[str, str], ...] = setting(
        "QWEN_PROXY_VOICES",
        "Names of voices that clients send, and the models' own: `alloy=Cherry,nova=Serena`.",
        default=(),
        parse=values.voices,
    )
    batch_host: str = setting(
        "QWEN_PROXY_BATCH_HOST",
        "Base URL of Batch Chat (service_tier flex), for every account of Model Studio.",
        default="",
        parse=values.base_url,
        shown_default="https://batch.dashscope.aliyuncs.com/compatible-mode/v1 for the keys of "
        "dashscope.aliyuncs.com",
    )
    flex_timeout_s: float = setting(
        "QWEN_PROXY_FLEX_TIMEOUT",
        "Longest wait of a call with service_tier flex for its first event, at Batch Chat.",
        default=3600.0,
        parse=values.seconds(),
        unit="s",
    )
    upstream_stream: str = setting(
        "QWEN_PROXY_UPSTREAM_STREAM",
        "Whether non-stream calls are streamed upstream: auto (Qwen hosts), always, as-asked.",
        default="auto",
        parse=values.choice("auto", "always", "as-asked"),
    )
    qwen_home: str = setting(
        "QWEN_HOME",
        "qwen-code's directory.",
        default="",
        shown_default="~/.qwen",
    )
    qwen_cli_auth: str = setting(
        "QWEN_CLI_AUTH",
        "Credentials JSON as in oauth_creds.json, used instead of that file.",
        default="",
        secret=True,
    )
    oauth_base_url: str = setting(
        "QWEN_OAUTH_BASE_URL",
        "Origin of the device-code and token endpoints.",
        default="https://chat.qwen.ai",
        parse=values.base_url,
    )
    web: bool = setting(
        "QWEN_PROXY_WEB",
        "Clients may bring a login of their own at chat.qwen.ai (docs/web-account.md).",
        default=False,
        parse=values.flag,
    )
    web_base_url: str = setting(
        "QWEN_WEB_BASE_URL",
        "Origin of the web API, with QWEN_PROXY_WEB=1.",
        default="https://chat.qwen.ai",
        parse=values.base_url,
    )
    web_token: str = setting(
        "QWEN_WEB_TOKEN",
        "Compressed token of the operator's own web account, with QWEN_PROXY_WEB=1.",
        default="",
        secret=True,
    )
    openai_base_url: str = setting(
        "OPENAI_BASE_URL",
        "Base URL of logins whose credentials contain none.",
        default="",
        parse=values.base_url,
    )
    openai_model: str = setting(
        "OPENAI_MODEL",
        "Model used when the client names none, or one that no account serves.",
        default="",
        shown_default="off",
    )
    image_model: str = setting(
        "QWEN_PROXY_IMAGE_MODEL",
        "Model for the Responses tool `image_generation` where the tool names none that is here.",
        default="",
        shown_default="off",
    )
    tool_rounds: int = setting(
        "QWEN_PROXY_TOOL_ROUNDS",
        "Most rounds in one answer in which a model calls tools of this server (docs/tools.md).",
        default=10,
        parse=values.integer(1, 100),
    )
    tool_time_s: float = setting(
        "QWEN_PROXY_TOOL_TIME",
        "Longest time of one answer from its first tool of this server to its last.",
        default=300.0,
        parse=values.seconds(),
        unit="s",
    )
    model_aliases: tuple[tuple[str, str], ...] = setting(
        "QWEN_PROXY_MODEL_ALIASES",
        "Other names for models: `gpt-4o=qwen3.7-plus,claude-*=qwen3.8-max`.",
        default=(),
        parse=values.aliases,
    )
    account_order: tuple[str, ...] = setting(
        "QWEN_PROXY_ACCOUNT_ORDER",
        "Names of the accounts to use first, comma separated; the others follow as found.",
        default=(),
        parse=values.words,
    )
    same_account: tuple[str, ...] = setting(
        "QWEN_PROXY_SAME_ACCOUNT",
        "Accounts of the same Alibaba account, which share its limits: `a+b,c+d`.",
        default=(),
        parse=values.words,
    )
    plans: Plans = setting(
        "QWEN_PROXY_PLANS",
        "Limits of plans, by account or kind: `coding=6000/5h,45000/week,90000/month@17; token=…`.",
        default=Plans(),
        parse=values.plans,
        shown_default="Coding Plan: pro; Token Plan: counted without limits",
    )
    plan_fallback: tuple[str, ...] = setting(
        "QWEN_PROXY_PLAN_FALLBACK",
        "Accounts that answer only while a plan's window is spent, in this order: `a,b:MODEL`.",
        default=(),
        parse=values.fallbacks,
    )
    account_in_flight: int = setting(
        "QWEN_PROXY_ACCOUNT_IN_FLIGHT",
        "Calls that one account serves at a time, in all workers together; 0 is no limit.",
        default=0,
        parse=values.integer(0),
    )
    account_queue: int = setting(
        "QWEN_PROXY_ACCOUNT_QUEUE",
        "Calls of one worker that may wait for an account; further ones get 503.",
        default=100,
        parse=values.integer(0),
    )
    retry_budget_s: float = setting(
        "QWEN_PROXY_RETRY_BUDGET",
        "How long a call may be retried, at any account, before its first byte.",
        default=30.0,
        parse=values.seconds(zero=True),
        unit="s",
    )
    strict: bool = setting(
        "QWEN_PROXY_STRICT",
        "1 refuses a request that must be changed for its upstream, instead of changing it.",
        default=False,
        parse=values.flag,
    )
    cache_control: bool = setting(
        "QWEN_PROXY_CACHE_CONTROL",
        "1 adds cache markers for Qwen hosts to requests, as qwen-code does.",
        default=False,
        parse=values.flag,
    )
    tokenizer: str = setting(
        "QWEN_PROXY_TOKENIZER",
        "Who counts tokens for clients: local (an estimate), or host (Model Studio's tokenizer).",
        default="local",
        parse=values.choice("local", "host"),
    )
    sandbox: str = setting(
        "QWEN_PROXY_SANDBOX",
        "Built-in fake upstream: 1, 0, or auto (only while no account is found).",
        default="off",
        parse=values.sandbox,
        shown_default="0 (`make run` sets auto)",
    )
    model_cache_s: float = setting(
        "MODEL_CACHE_DURATION",
        "How long a live model list is kept.",
        default=3600.0,
        parse=values.seconds(zero=True),
        unit="s",
    )

    connect_timeout_s: float = setting(
        "QWEN_PROXY_CONNECT_TIMEOUT",
        "Longest wait for an upstream connection.",
        default=10.0,
        parse=values.seconds(),
        unit="s",
    )
    first_byte_timeout_s: float = setting(
        "QWEN_PROXY_FIRST_BYTE_TIMEOUT",
        "Longest wait for the first event or a whole answer, or while only keep-alives arrive.",
        default=600.0,
        parse=values.seconds(),
        unit="s",
    )
    idle_timeout_s: float = setting(
        "QWEN_PROXY_IDLE_TIMEOUT",
        "Longest silence in an upstream stream.",
        default=240.0,
        parse=values.seconds(),
        unit="s",
    )
    keepalive: str = setting(
        "QWEN_PROXY_KEEPALIVE",
        "Sent to keep a silent stream open: comment, chunk (an empty delta), or off.",
        default="comment",
        parse=values.choice("comment", "chunk", "off"),
    )
    keepalive_interval_s: float = setting(
        "QWEN_PROXY_KEEPALIVE_INTERVAL",
        "Silence before each keep-alive.",
        default=15.0,
        parse=values.seconds(),
        unit="s",
    )

    responses_ttl_s: float = setting(
        "QWEN_PROXY_RESPONSES_TTL",
        "How long stored responses are kept after their last use; 0 stores none.",
        default=604800.0,
        parse=values.seconds(zero=True),
        unit="s",
    )
    responses_max_bytes: int = setting(
        "QWEN_PROXY_RESPONSES_MAX_BYTES",
        "Total size of the stored responses; the least recently used are removed first.",
        default=256 * 1024 * 1024,
        parse=values.size(1024 * 1024),
        unit="bytes",
    )
    response_cache_s: float = setting(
        "QWEN_PROXY_RESPONSE_CACHE",
        "How long answers are kept for identical requests of the same key; 0 keeps none.",
        default=0.0,
        parse=values.seconds(zero=True),
        unit="s",
    )
    response_cache_bytes: int = setting(
        "QWEN_PROXY_RESPONSE_CACHE_SIZE",
        "Total size of these answers; the oldest are removed first.",
        default=128 * 1024 * 1024,
        parse=values.size(1024 * 1024),
        unit="bytes",
    )
    background: int = setting(
        "QWEN_PROXY_BACKGROUND",
        "Responses in the background that one worker makes at a time; 0 refuses all.",
        default=8,
        parse=values.integer(0),
    )
    background_per_key: int = setting(
        "QWEN_PROXY_BACKGROUND_PER_KEY",
        "Responses in the background of one client key that wait or are made, in all workers.",
        default=100,
        parse=values.integer(1),
    )
    background_timeout_s: float = setting(
        "QWEN_PROXY_BACKGROUND_TIMEOUT",
        "In what time a response in the background has to be done, if it has no completion window.",
        default=7200.0,
        parse=values.seconds(),
        unit="s",
    )

    ledger_days: int = setting(
        "QWEN_PROXY_LEDGER_DAYS",
        "How long each call's record is kept for `qwen-proxy usage`; 0 keeps none.",
        default=400,
        parse=values.integer(0, 36_500),
        unit="days",
    )
    prices: str = setting(
        "QWEN_PROXY_PRICES",
        "A file with prices of models, which win over the built-in ones.",
        default="",
        shown_default="the built-in prices",
    )

    tools: str = setting(
        "QWEN_PROXY_TOOLS",
        "A file with the tools that the proxy runs itself (docs/tool-runner.md), e.g. tools.json.",
        default="",
        parse=values.whole_path,
        shown_default="none are offered",
    )
    tools_socket: str = setting(
        "QWEN_PROXY_TOOLS_SOCKET",
        "The socket of the process that runs tools.",
        default="",
        parse=values.whole_path,
        shown_default="/run/qwen-proxy-tools/tools.sock if it is there, else tools.sock in the "
        "state directory",
    )
    tool_calls: int = setting(
        "QWEN_PROXY_TOOL_CALLS",
        "Calls of tools that run at a time; further ones wait, as long as their own time allows.",
        default=16,
        parse=values.integer(1, 1000),
    )
    tool_timeout_s: float = setting(
        "QWEN_PROXY_TOOL_TIMEOUT",
        "Longest time of one call of a tool whose entry in tools.json has no `timeout`.",
        default=60.0,
        parse=values.seconds(),
        unit="s",
    )
    tool_output_bytes: int = setting(
        "QWEN_PROXY_TOOL_OUTPUT",
        "Most text of one call of a tool; what is beyond it is cut.",
        default=1024 * 1024,
        parse=values.size(1024),
        unit="bytes",
    )
    tool_memory_bytes: int = setting(
        "QWEN_PROXY_TOOL_MEMORY",
        "Memory of a sandbox: of a server over stdio, or of a Python process.",
        default=1024 * 1024 * 1024,
        parse=values.size(64 * 1024 * 1024),
        unit="bytes",
    )
    tool_processes: int = setting(
        "QWEN_PROXY_TOOL_PROCESSES",
        "Processes and threads of a sandbox.",
        default=128,
        parse=values.integer(8, 10_000),
    )
    tool_disk_bytes: int = setting(
        "QWEN_PROXY_TOOL_DISK",
        "The /tmp of a sandbox, and the largest file that it may write elsewhere.",
        default=256 * 1024 * 1024,
        parse=values.size(1024 * 1024),
        unit="bytes",
    )
    fetch_hosts: tuple[str, ...] = setting(
        "QWEN_PROXY_FETCH_HOSTS",
        "The only hosts from which the tool `fetch` reads: `docs.example,*.b.example`.",
        default=(),
        parse=values.hosts,
        shown_default="every public host",
    )
    tool_hosts: tuple[str, ...] = setting(
        "QWEN_PROXY_TOOL_HOSTS",
        "Hosts of MCP servers whose addresses clients may bring: `mcp.example,*.b.example`, "
        "`box.lan:8080`.",
        default=(),
        parse=values.hosts_with_ports,
        shown_default="none",
    )

    log_level: str = setting(
        "LOG_LEVEL", "Lowest level that is logged.", default="INFO", parse=values.log_level
    )
    log_format: str = setting(
        "QWEN_PROXY_LOG_FORMAT",
        "Format of log lines: human or json.",
        default="human",
        parse=values.choice("human", "json"),
    )
    state_dir: str = setting(
        "QWEN_PROXY_STATE_DIR",
        "Directory of the proxy's own files.",
        default="",
        shown_default="$STATE_DIRECTORY, else ~/.local/state/qwen-proxy ($XDG_STATE_HOME)",
    )

    environment_file: str = setting(
        env_file.VARIABLE,
        "File with settings, which win over the environment; it is read again at each reload.",
        default="",
        shown_default="none; the service has /etc/qwen-proxy/qwen-proxy.env",
    )

    timezone: str = setting(
        "QWEN_PROXY_TIMEZONE",
        "Time zone in which the days and months of limits end, e.g. Europe/Berlin.",
        default="",
        parse=values.timezone,
        shown_default="this machine's",
    )
    state_key: str = setting(
        "QWEN_PROXY_STATE_KEY",
        "Signs ids of videos, and seals logins that boxes share (docs/boxes.md); the same on all.",
        default="",
        parse=values.long_key,
        secret=True,
        shown_default="a random one, kept in the state directory",
    )
    old_state_key: str = setting(
        "QWEN_PROXY_STATE_KEY_OLD",
        "The key before, while boxes change to a new QWEN_PROXY_STATE_KEY: opens shared logins.",
        default="",
        parse=values.long_key,
        secret=True,
    )
    redis_url: str = setting(
        "QWEN_PROXY_REDIS_URL",
        "A Redis or Valkey that several boxes share: redis://:PASSWORD@HOST:6379/0, rediss://…, "
        "unix:///….",
        default="",
        parse=values.redis_url,
        secret=True,
        shown_default="none: this box is alone",
        show=masked_url,
    )

    #: The process environment, with the environment file's values in it; it holds API keys by
    #: qwen-code's names.
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: The home directory.
    home: Path = field(default_factory=Path)
    #: What HOST was, if it is not used because this machine cannot listen there; else "".
    ignored_host: str = ""
    #: What an operator types to call this program: `qwen-proxy`, `.venv/bin/qwen-proxy`, ...
    command: str = "qwen-proxy"

    @property
    def all_client_keys(self) -> tuple[str, ...]:
        """Every client key of the environment, each once. Those of the database are not here."""
        return tuple(key for key, _ in self.named_client_keys)

    @property
    def named_client_keys(self) -> tuple[tuple[str, str], ...]:
        """The same, each with its client's name: `env-1`, …, and `env-admin-1`, … of admins."""
        extra = (self.openai_api_key,) if self.openai_api_key else ()
        ordinary = [
            key for key in dict.fromkeys(self.client_keys + extra) if key not in self.admin_keys
        ]
        return (
            *((key, f"env-{number}") for number, key in enumerate(ordinary, 1)),
            *(
                (key, f"env-admin-{number}")
                for number, key in enumerate(dict.fromkeys(self.admin_keys), 1)
            ),
        )

    @property
    def redis_secrets(self) -> tuple[str, ...]:
        """The password in `redis_url`, also as it is written there, and the URL with it; () if
        there is none."""
        passwords = values.passwords_of(self.redis_url)
        return (self.redis_url, *passwords) if passwords else ()

    @property
    def zone(self) -> tzinfo | None:
        """The time zone of days and months; None is this machine's."""
        return ZoneInfo(self.timezone) if self.timezone else None

    @property
    def weak_client_keys(self) -> int:
        """How many client keys can be guessed: short ones, and those that everybody tries first."""
        return sum(map(_is_weak, self.all_client_keys))

    @property
    def worker_connections(self) -> int:
        """Connections that a worker accepts: its calls and WebSockets, and also health checks,
        model lists, idle clients, and the calls that get a 503."""
        return self.max_in_flight + self.websockets + _SPARE_CONNECTIONS

    @property
    def worker_files(self) -> int:
        """Open files of a full worker. A stream needs two: the client's connection and the
        upstream's."""
        return 2 * self.worker_connections + _SPARE_FILES

    @property
    def bind_address(self) -> str:
        """Where to listen, in gunicorn's notation."""
        if self.bind:
            return self.bind
        return str(net.Address("", self.host.strip("[]"), self.port))


def load(
    environ: Mapping[str, str] | None = None,
    *,
    is_here: Callable[[str], bool] = net.is_here,
) -> Settings:
    """Read the settings from the environment (`os.environ` when None).

    An empty value counts as unset, as in systemd's `NAME=` lines.

    Args:
        is_here: whether this machine can listen at a host; asked only about a name in `HOST`.

    Raises:
        SettingsError: a value is invalid; all invalid ones are named, secrets are not quoted.
    """
    env = environment() if environ is None else dict(environ)
    found: dict[str, Any] = {}
    problems: list[str] = []
    ignored_host = _foreign_host(env, is_here)
    for item in dataclasses.fields(Settings):
        if not (meta := item.metadata):
            continue
        names = (meta["wins"], meta["env"])
        name = next((each for each in names if env.get(each, "").strip()), "")
        if not name or (name == "HOST" and ignored_host):
            continue
        raw = env[name].strip()
        try:
            found[item.name] = meta["parse"](raw)
        except ValueError as error:
            shown = "(not shown)" if meta["secret"] else repr(_without_password(raw))
            problems.append(f"{name}={shown}: {error}")
    if problems:
        raise SettingsError("bad setting: " + "; ".join(problems))
    found.setdefault("workers", os.cpu_count() or 1)
    home = Path(env.get("HOME") or os.path.expanduser("~"))
    found["state_dir"] = found.get("state_dir") or _state_dir(env, home)
    return Settings(
        **found,
        environ=env,
        home=home,
        ignored_host=ignored_host,
        command=env.get(COMMAND, "") or "qwen-proxy",
    )


def environment() -> dict[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)


def become(environ: Mapping[str, str]) -> None:
    """Make this process's environment another one, for what it starts and for the libraries."""
    for name in set(os.environ) - set(environ):
        del os.environ[name]
    os.environ.update(environ)


def _foreign_host(env: Mapping[str, str], is_here: Callable[[str], bool]) -> str:
    """The value of HOST if it is not for us; "" if it is, or does not matter.

    Shells such as tcsh set it to the name of a machine. An address comes from the operator: one
    that is not there yet, at boot, must not be replaced by another one.
    """
    host = env.get("HOST", "").strip()
    matters = not any(env.get(n, "").strip() for n in ("QWEN_PROXY_HOST", "QWEN_PROXY_BIND"))
    if not host or not matters or net.ip_address(host.strip("[]")) is not None:
        return ""
    return "" if host.lower() != net.machine_name().lower() and is_here(host) else host


def _state_dir(env: Mapping[str, str], home: Path) -> str:
    """systemd's StateDirectory=, else a place by the XDG base directory specification."""
    # A list with colons; ours is the first.
    if given := env.get("STATE_DIRECTORY", "").split(":")[0]:
        return given
    base = env.get("XDG_STATE_HOME", "")
    # The specification: a relative path is to be ignored.
    return str((Path(base) if base.startswith("/") else home / ".local/state") / "qwen-proxy")


def describe(settings: Settings) -> list[dict[str, str]]:
    """Rows for `qwen-proxy settings`: `{"name", "value", "default", "unit", "description",
    "source"}`; the source is `default`, `environment`, `command line`, or the path of the
    environment file."""
    rows = []
    for item in dataclasses.fields(Settings):
        if not (meta := item.metadata):
            continue
        value = getattr(settings, item.name)
        default = meta["shown_default"] or _shown(item.default)
        also = f" {meta['wins']} wins over it." if meta["wins"] else ""
        rows.append(
            {
                "name": meta["env"],
                "value": meta["show"](value)
                if meta["show"] and value
                else _shown(value, secret=meta["secret"]),
                "default": default,
                "unit": meta["unit"],
                "description": meta["description"] + also,
                "source": _source(settings, meta["wins"], meta["env"]),
            }
        )
    return rows


def _source(settings: Settings, *names: str) -> str:
    """Where the value of a setting comes from: of the first name that has one, as in `load`."""
    environ = settings.environ
    name = next((each for each in names if environ.get(each, "").strip()), "")
    if not name or (name == "HOST" and settings.ignored_host):
        return env_file.DEFAULT
    return env_file.source(environ, name)


def names() -> tuple[str, ...]:
    """The names of all variables that are settings, with their second names."""
    found = []
    for item in dataclasses.fields(Settings):
        if meta := item.metadata:
            found += [name for name in (meta["env"], meta["wins"]) if name]
    return tuple(found)


def with_command(text: str, command: str) -> str:
    """The text with the command as its reader has to type it, instead of `qwen-proxy`."""
    return re.sub(r"`qwen-proxy(?=[ `])", lambda found: f"`{command}", text)


def _shown(value: object, *, secret: bool = False) -> str:
    if value is None or value == () or str(value) == "":
        return UNSET
    if isinstance(value, bool):
        return str(int(value))
    parts = value if isinstance(value, tuple) else (value,)
    return ",".join(mask(str(part)) if secret else _plain(part) for part in parts)


def _plain(value: object) -> str:
    if isinstance(value, tuple):
        return "=".join(map(str, value))
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value)
    return _without_password(str(value))


def _without_password(url: str) -> str:
    """Mask a password in a URL: it is not accepted there, but must not be shown either."""
    return re.sub(r"//[^/@]*@", "//****@", url)
