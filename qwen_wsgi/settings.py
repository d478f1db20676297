"""Declares every setting once: environment name, parser, default, unit and description.

The only module that reads `os.environ`. `qwen-proxy settings`, the gunicorn configuration and the
application all read the table that is declared here.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.errors import SettingsError
from qwen_wsgi.hosts import Family
from qwen_wsgi.net import Address
from qwen_wsgi.redaction import mask

#: Shown for a value that is not set.
UNSET: Final = "–"

#: Connections of a worker beyond its calls, and files of the process itself.
_SPARE_CONNECTIONS: Final = 256
_SPARE_FILES: Final = 64


def _text(raw: str) -> str:
    return raw


def _words(raw: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in raw.split(",")) if word)


def _integer(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        value = int(raw)
        if value < minimum or (maximum is not None and value > maximum):
            upper = "" if maximum is None else f" and at most {maximum}"
            raise ValueError(f"must be at least {minimum}{upper}")
        return value

    return parse


def _seconds(*, zero: bool = False) -> Callable[[str], float]:
    def parse(raw: str) -> float:
        value = float(raw)
        # `not >` also refuses NaN.
        if not (value >= 0 if zero else value > 0) or value == float("inf"):
            raise ValueError("must be a number of seconds " + ("from 0" if zero else "above 0"))
        return value

    return parse


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in allowed:
            raise ValueError("must be one of " + ", ".join(allowed))
        return raw

    return parse


def _sandbox(raw: str) -> str:
    words = {"0": "off", "off": "off", "1": "on", "on": "on", "auto": "auto"}
    if raw.lower() not in words:
        raise ValueError("must be 0, 1 or auto")
    return words[raw.lower()]


def _flag(raw: str) -> bool:
    words = {"0": False, "off": False, "false": False, "1": True, "on": True, "true": True}
    if raw.lower() not in words:
        raise ValueError("must be 0 or 1")
    return words[raw.lower()]


def _aliases(raw: str) -> tuple[tuple[str, str], ...]:
    aliases = {}
    for word in _words(raw):
        name, equals, model = (part.strip() for part in word.partition("="))
        if not equals or not name or not model:
            raise ValueError("must be pairs of NAME=MODEL")
        if "*" in name[:-1]:
            raise ValueError("a * may only end a name")
        aliases[name] = model
    return tuple(aliases.items())


def _host_families(raw: str) -> tuple[tuple[str, str], ...]:
    allowed = tuple(each.value for each in Family if each is not Family.SANDBOX)
    families = {}
    for word in _words(raw):
        host, equals, family = (part.strip().lower() for part in word.partition("="))
        if not equals or not re.fullmatch(r"(\*\.)?[a-z0-9_]([a-z0-9._-]*[a-z0-9])?", host):
            raise ValueError("must be pairs of HOST=FAMILY, the host without scheme, port and path")
        if family not in allowed:
            raise ValueError("the family must be one of " + ", ".join(allowed))
        families[host] = family
    return tuple(families.items())


def _log_level(raw: str) -> str:
    return _choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")(raw.upper())


def _base_url(raw: str) -> str:
    if not raw.startswith(("http://", "https://")) or any(c.isspace() for c in raw):
        raise ValueError("must be a URL that begins with http:// or https://")
    return raw.rstrip("/")


def _trusted_proxies(raw: str) -> tuple[str, ...]:
    words = _words(raw)
    for word in words:
        if word != "unix":
            ipaddress.ip_network(word, strict=False)
    return words


def _key(raw: str) -> str:
    if any(c.isspace() for c in raw):
        raise ValueError("must not contain white space")
    return raw


def _keys(raw: str) -> tuple[str, ...]:
    return tuple(_key(word) for word in _words(raw))


def setting(
    env: str,
    description: str,
    *,
    default: Any,
    parse: Callable[[str], Any] = _text,
    unit: str = "",
    secret: bool = False,
    shown_default: str | None = None,
) -> Any:
    """Declare one setting; `load` and `describe` read its metadata."""
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
        },
    )


@dataclass(frozen=True)
class Settings:
    """The operator's settings. Durations are seconds, sizes are bytes."""

    host: str = setting("HOST", "Address to listen on.", default="127.0.0.1")
    port: int = setting("PORT", "Port to listen on.", default=8080, parse=_integer(0, 65535))
    bind: str = setting(
        "QWEN_PROXY_BIND",
        "Overrides HOST and PORT: `unix:/run/qwen-proxy/http.sock` or `ADDRESS:PORT`.",
        default="",
    )
    workers: int = setting(
        "QWEN_PROXY_WORKERS",
        "Worker processes.",
        default=0,
        parse=_integer(1, 256),
        shown_default="number of CPUs",
    )
    max_in_flight: int = setting(
        "QWEN_PROXY_MAX_IN_FLIGHT",
        "Calls that one worker serves at a time; further ones get 503 with Retry-After.",
        default=1000,
        parse=_integer(1),
    )
    max_body_bytes: int = setting(
        "QWEN_PROXY_MAX_BODY",
        "Largest request body.",
        default=64 * 1024 * 1024,
        parse=_integer(1024),
        unit="bytes",
    )
    body_timeout_s: float = setting(
        "QWEN_PROXY_BODY_TIMEOUT",
        "How long a request's body may pause; in all it has a second more for each 64 kB.",
        default=30,
        parse=_seconds(),
        unit="s",
    )
    max_body_bytes_in_flight: int = setting(
        "QWEN_PROXY_MAX_BODY_BYTES_IN_FLIGHT",
        "All request bodies of one worker together; further calls get 503 with Retry-After.",
        default=512 * 1024 * 1024,
        parse=_integer(1024),
        unit="bytes",
    )
    max_answer_bytes: int = setting(
        "QWEN_PROXY_MAX_ANSWER",
        "Largest whole answer of an upstream; the client gets 502 `upstream_too_large` above it.",
        default=64 * 1024 * 1024,
        parse=_integer(1024),
        unit="bytes",
    )
    graceful_timeout_s: int = setting(
        "QWEN_PROXY_GRACEFUL_TIMEOUT",
        "How long open streams may continue after a stop or reload.",
        default=60,
        parse=_integer(1),
        unit="s",
    )
    client_keepalive_s: int = setting(
        "QWEN_PROXY_CLIENT_KEEPALIVE",
        "How long an idle client connection stays open; keep it above nginx's 60 s.",
        default=75,
        parse=_integer(1),
        unit="s",
    )

    client_keys: tuple[str, ...] = setting(
        "QWEN_PROXY_API_KEYS",
        "Client keys, comma separated. Without any client key, only this machine is served.",
        default=(),
        parse=_keys,
        secret=True,
    )
    openai_api_key: str = setting(
        "OPENAI_API_KEY",
        "One more client key (never sent upstream).",
        default="",
        parse=_key,
        secret=True,
    )
    allowed_hosts: tuple[str, ...] = setting(
        "QWEN_PROXY_ALLOWED_HOSTS",
        "Further host names that the Host header may have while no client key is set.",
        default=(),
        parse=_words,
    )
    trusted_proxies: tuple[str, ...] = setting(
        "QWEN_PROXY_TRUSTED_PROXIES",
        "Peers whose X-Forwarded-For is trusted: networks, or `unix` for the unix socket.",
        default=("127.0.0.0/8", "::1/128", "unix"),
        parse=_trusted_proxies,
    )
    cors_origins: tuple[str, ...] | None = setting(
        "QWEN_PROXY_CORS_ORIGINS",
        "Origins of web pages that may call, comma separated, or `*`.",
        default=None,
        parse=_words,
        shown_default="* when client keys are set, none otherwise",
    )

    upstream_base_url: str = setting(
        "QWEN_UPSTREAM_BASE_URL",
        "One explicit OpenAI-compatible upstream, e.g. http://127.0.0.1:8000/v1.",
        default="",
        parse=_base_url,
    )
    upstream_api_key: str = setting(
        "QWEN_UPSTREAM_API_KEY",
        "The key for QWEN_UPSTREAM_BASE_URL; may be empty.",
        default="",
        parse=_key,
        secret=True,
    )
    host_families: tuple[tuple[str, str], ...] = setting(
        "QWEN_PROXY_HOST_FAMILIES",
        "Kinds of hosts whose names do not show it: `gateway.example=dashscope,*.b.example=other`.",
        default=(),
        parse=_host_families,
    )
    upstream_stream: str = setting(
        "QWEN_PROXY_UPSTREAM_STREAM",
        "Whether non-stream calls are streamed upstream: auto (Qwen hosts), always, as-asked.",
        default="auto",
        parse=_choice("auto", "always", "as-asked"),
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
        parse=_base_url,
    )
    openai_base_url: str = setting(
        "OPENAI_BASE_URL",
        "Base URL of logins whose credentials contain none.",
        default="",
        parse=_base_url,
    )
    openai_model: str = setting(
        "OPENAI_MODEL",
        "Model used when the client names none, or one that no account serves.",
        default="",
        shown_default="off",
    )
    model_aliases: tuple[tuple[str, str], ...] = setting(
        "QWEN_PROXY_MODEL_ALIASES",
        "Other names for models: `gpt-4o=qwen3.7-plus,claude-*=qwen3.8-max`.",
        default=(),
        parse=_aliases,
    )
    account_order: tuple[str, ...] = setting(
        "QWEN_PROXY_ACCOUNT_ORDER",
        "Names of the accounts to use first, comma separated; the others follow as found.",
        default=(),
        parse=_words,
    )
    same_account: tuple[str, ...] = setting(
        "QWEN_PROXY_SAME_ACCOUNT",
        "Accounts of the same Alibaba account, which share its limits: `a+b,c+d`.",
        default=(),
        parse=_words,
    )
    account_in_flight: int = setting(
        "QWEN_PROXY_ACCOUNT_IN_FLIGHT",
        "Calls that one account serves at a time, in all workers together; 0 is no limit.",
        default=0,
        parse=_integer(0),
    )
    account_queue: int = setting(
        "QWEN_PROXY_ACCOUNT_QUEUE",
        "Calls of one worker that may wait for an account; further ones get 503.",
        default=100,
        parse=_integer(0),
    )
    retry_budget_s: float = setting(
        "QWEN_PROXY_RETRY_BUDGET",
        "How long a call may be retried, at any account, before its first byte.",
        default=30.0,
        parse=_seconds(zero=True),
        unit="s",
    )
    strict: bool = setting(
        "QWEN_PROXY_STRICT",
        "1 refuses a request that must be changed for its upstream, instead of changing it.",
        default=False,
        parse=_flag,
    )
    cache_control: bool = setting(
        "QWEN_PROXY_CACHE_CONTROL",
        "1 adds cache markers for Qwen hosts to requests, as qwen-code does.",
        default=False,
        parse=_flag,
    )
    tokenizer: str = setting(
        "QWEN_PROXY_TOKENIZER",
        "Who counts tokens for clients: local (an estimate), or host (Model Studio's tokenizer).",
        default="local",
        parse=_choice("local", "host"),
    )
    sandbox: str = setting(
        "QWEN_PROXY_SANDBOX",
        "Built-in fake upstream: 1, 0, or auto (only while no account is found).",
        default="off",
        parse=_sandbox,
        shown_default="0 (`make run` sets auto)",
    )
    model_cache_s: float = setting(
        "MODEL_CACHE_DURATION",
        "How long a live model list is kept.",
        default=3600.0,
        parse=_seconds(zero=True),
        unit="s",
    )

    connect_timeout_s: float = setting(
        "QWEN_PROXY_CONNECT_TIMEOUT",
        "Longest wait for an upstream connection.",
        default=10.0,
        parse=_seconds(),
        unit="s",
    )
    first_byte_timeout_s: float = setting(
        "QWEN_PROXY_FIRST_BYTE_TIMEOUT",
        "Longest wait for the first event or a whole answer, or while only keep-alives arrive.",
        default=600.0,
        parse=_seconds(),
        unit="s",
    )
    idle_timeout_s: float = setting(
        "QWEN_PROXY_IDLE_TIMEOUT",
        "Longest silence in an upstream stream.",
        default=240.0,
        parse=_seconds(),
        unit="s",
    )
    keepalive: str = setting(
        "QWEN_PROXY_KEEPALIVE",
        "Sent to keep a silent stream open: comment, chunk (an empty delta), or off.",
        default="comment",
        parse=_choice("comment", "chunk", "off"),
    )
    keepalive_interval_s: float = setting(
        "QWEN_PROXY_KEEPALIVE_INTERVAL",
        "Silence before each keep-alive.",
        default=15.0,
        parse=_seconds(),
        unit="s",
    )

    responses_ttl_s: float = setting(
        "QWEN_PROXY_RESPONSES_TTL",
        "How long stored responses are kept after their last use; 0 stores none.",
        default=604800.0,
        parse=_seconds(zero=True),
        unit="s",
    )
    responses_max_bytes: int = setting(
        "QWEN_PROXY_RESPONSES_MAX_BYTES",
        "Total size of the stored responses; the least recently used are removed first.",
        default=256 * 1024 * 1024,
        parse=_integer(1024 * 1024),
        unit="bytes",
    )

    log_level: str = setting(
        "LOG_LEVEL", "Lowest level that is logged.", default="INFO", parse=_log_level
    )
    log_format: str = setting(
        "QWEN_PROXY_LOG_FORMAT",
        "Format of log lines: human or json.",
        default="human",
        parse=_choice("human", "json"),
    )
    state_dir: str = setting(
        "QWEN_PROXY_STATE_DIR",
        "Directory of the proxy's own files.",
        default="",
        shown_default="$STATE_DIRECTORY, else ~/.local/state/qwen-proxy",
    )

    #: The process environment at start, which holds API keys by qwen-code's names.
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: The home directory.
    home: Path = field(default_factory=Path)

    @property
    def all_client_keys(self) -> tuple[str, ...]:
        """Every client key; empty means "this machine only"."""
        extra = (self.openai_api_key,) if self.openai_api_key else ()
        return self.client_keys + extra

    @property
    def worker_connections(self) -> int:
        """Connections that a worker accepts: its calls, and also health checks, model lists, idle
        clients, and the calls that get a 503."""
        return self.max_in_flight + _SPARE_CONNECTIONS

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
        return str(Address("", self.host.strip("[]"), self.port))


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment (`os.environ` when None).

    An empty value counts as unset, as in systemd's `NAME=` lines.

    Raises:
        SettingsError: a value is invalid; all invalid ones are named, secrets are not quoted.
    """
    env = dict(os.environ if environ is None else environ)
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in dataclasses.fields(Settings):
        meta = item.metadata
        if not meta or not (raw := env.get(meta["env"], "").strip()):
            continue
        try:
            values[item.name] = meta["parse"](raw)
        except ValueError as error:
            shown = "(not shown)" if meta["secret"] else repr(_without_password(raw))
            problems.append(f"{meta['env']}={shown}: {error}")
    if problems:
        raise SettingsError("bad setting: " + "; ".join(problems))
    values.setdefault("workers", os.cpu_count() or 1)
    if not values.get("state_dir"):
        # systemd's StateDirectory= exports a colon-separated list; ours is the first.
        values["state_dir"] = env.get("STATE_DIRECTORY", "").split(":")[0]
    home = Path(env.get("HOME") or os.path.expanduser("~"))
    values["state_dir"] = values["state_dir"] or str(home / ".local/state/qwen-proxy")
    return Settings(**values, environ=env, home=home)


def describe(settings: Settings) -> list[dict[str, str]]:
    """Rows for `qwen-proxy settings`: `{"name", "value", "default", "unit", "description"}`."""
    rows = []
    for item in dataclasses.fields(Settings):
        if not (meta := item.metadata):
            continue
        value = getattr(settings, item.name)
        default = meta["shown_default"] or _shown(item.default)
        rows.append(
            {
                "name": meta["env"],
                "value": _shown(value, secret=meta["secret"]),
                "default": default,
                "unit": meta["unit"],
                "description": meta["description"],
            }
        )
    return rows


def _shown(value: object, *, secret: bool = False) -> str:
    if value is None or value == "" or value == ():
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
