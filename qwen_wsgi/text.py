"""Renders text for terminals: the accounts, an example call, the start-up banner. Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Protocol

from qwen_wsgi import __version__, net
from qwen_wsgi.capabilities import is_chat_model
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import CredentialStatus, TokenState
from qwen_wsgi.settings import UNSET, Settings, with_command

_SANDBOX_NOTE = (
    "No Qwen account was found, so a built-in fake upstream (the sandbox) answers.\n"
    "            For real models set an API key, such as DASHSCOPE_API_KEY=sk-…, and start the\n"
    "            server again. (The free Qwen login ended on 2026-04-15. Who still has one that\n"
    "            works: `qwen-proxy login`. The server then uses it at once.)"
)
_SANDBOX_ON = "QWEN_PROXY_SANDBOX=1: a built-in fake upstream (the sandbox) answers."

_NO_ACCOUNT = (
    "No account was found. Set an API key, such as DASHSCOPE_API_KEY, in the environment of the\n"
    "server and start it again, or name an OpenAI-compatible server in QWEN_UPSTREAM_BASE_URL.\n"
    "(The free Qwen login ended on 2026-04-15. Who still has one that works: `qwen-proxy login`.)"
)


def account_row(account: Account, status: CredentialStatus | None = None) -> dict[str, str]:
    """Render one account as `{"name", "kind", "origin", "endpoint", "state", "detail",
    "credential", "remedy"}`, with the credential masked.

    Args:
        status: of the account; None for what its credential says of itself.
    """
    status = status or account.credential.status()
    return {
        "name": account.name,
        "kind": account.kind,
        "origin": account.origin,
        "endpoint": account.base_url or UNSET,
        "state": status.state.value,
        "detail": status.detail,
        "credential": status.shown,
        "remedy": status.remedy,
    }


class Latest(Protocol):
    """How the latest call of an account ended (`upstream.routing.outcomes.LatestCall`)."""

    @property
    def age_s(self) -> float:
        """How long ago."""

    @property
    def cause(self) -> str:
        """Why it failed; "" if the account answered."""

    @property
    def answered_s(self) -> float | None:
        """How long ago the account answered, or None."""


def status_row(
    account: Account,
    status: CredentialStatus,
    latest: Latest | None,
    plan: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """As `account_row`, with `{"usable", "cause", "left_alone_s", "last_call": {"age_s", "cause",
    "answered_s"}, "plan"}`.

    Args:
        plan: how much of its plan's windows is used (`PlanWatch.report`), if it has one.
    """
    last_call = None
    if latest is not None:
        before = None if latest.answered_s is None else round(latest.answered_s, 1)
        last_call = {"age_s": round(latest.age_s, 1), "cause": latest.cause, "answered_s": before}
    return {
        **account_row(account, status),
        "usable": status.state.is_usable,
        "cause": status.cause,
        "left_alone_s": round(status.again_s or 0.0, 1),
        "last_call": last_call,
        "plan": plan,
    }


def accounts_text(rows: Iterable[Mapping[str, Any]], problems: Sequence[str]) -> str:
    """Render the accounts, each with its source, endpoint, state and remedy.

    Args:
        rows: as `status_row` makes them.
    """
    blocks = []
    for row in rows:
        lines = [
            f"{row['name']}  {_headline(row)}",
            f"    from        {row['origin']}",
            f"    endpoint    {row['endpoint']}",
            f"    credential  {row['credential']}",
        ]
        if told := _last_call(row):
            lines.append(f"    last call   {told}")
        for window in (row.get("plan") or {}).get("windows", ()):
            lines.append(f"    plan        {window_text(window)}")
        if row["remedy"]:
            lines.append(f"    to do       {row['remedy']}")
        blocks.append("\n".join(lines))
    if not blocks:
        blocks.append(_NO_ACCOUNT)
    blocks += [f"note: {problem}" for problem in problems]
    return "\n".join(blocks)


def _headline(row: Mapping[str, Any]) -> str:
    """The state in a word, and in a sentence. A key that is there has not proved to work."""
    state, detail = str(row["state"]).upper(), str(row["detail"])
    last = row.get("last_call")
    if row["kind"] == "key" and row["state"] == TokenState.FRESH.value:
        state = "NOT TRIED YET" if last is None else "WORKS"
        if last is not None and last["cause"]:
            state = "LAST CALL FAILED"
        if row.get("left_alone_s"):
            detail += f"; gets no calls for {row['left_alone_s']:.0f} s ({row['cause']})"
    return f"{state}  {detail}"


def _last_call(row: Mapping[str, Any]) -> str:
    last = row.get("last_call")
    if last is None:
        return ""
    if not last["cause"]:
        return f"answered {duration(last['age_s'])} ago"
    before = last["answered_s"]
    answered = "" if before is None else f"; answered {duration(before)} ago"
    return f"failed {duration(last['age_s'])} ago: {last['cause']}{answered}"


def window_text(window: Mapping[str, Any]) -> str:
    """One window of a plan, in the machine's time: `5h: 4,120 of 6,000 calls (69%), ends 16:40`.

    Args:
        window: as `accounting.plans.State` renders it.
    """
    parts = [f"{window['window']}: {used_text(window)}"]
    if window["spent"]:
        by = ", its vendor says" if window["told_by_vendor"] else ""
        parts.append(f"SPENT until {moment(window['free_at'])}{by}")
    elif window["ends_at"] is not None:
        word = "the first leave" if window["kind"] == "rolling" else "ends"
        parts.append(f"{word} {moment(window['ends_at'])}")
    if window["forecast_at"] is not None:
        parts.append(f"spent at {moment(window['forecast_at'])} if it goes on so")
    return ", ".join(parts)


def used_text(window: Mapping[str, Any]) -> str:
    """What is used of a window: `4,120 of 6,000 calls (69%)`."""
    unit = window["unit"]
    used = "unknown" if window["used"] is None else f"{window['used']:,.0f}"
    limit = "an unknown limit" if window["limit"] is None else f"{window['limit']:,.0f}"
    share = "" if window["share"] is None else f" ({window['share']:.0%})"
    text = f"{used} of {limit}{'' if window['limit'] is None else ' ' + unit}{share}"
    if unit == "credits" or window["limit"] is None:
        text += f": {window['calls']:,} calls, {window['tokens']:,} tokens"
    return text


def moment(at: float, *, now: float | None = None) -> str:
    """A time in the machine's zone: `16:40` of today, else `2026-11-30 16:40`."""
    when = datetime.fromtimestamp(at)
    today = datetime.now() if now is None else datetime.fromtimestamp(now)
    return f"{when:%H:%M}" if when.date() == today.date() else f"{when:%Y-%m-%d %H:%M}"


def duration(seconds: float) -> str:
    """A duration in its largest unit: `12 s`, `3 min`, `5 h`, `2 d`."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Lines with columns below each other; the first row is their head."""
    rows = list(rows)
    return "\n".join(aligned(rows, left=len(rows[0])))


def aligned(rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """The lines of a table.

    Args:
        left: so many columns begin below one another; the others end so.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()
        for cells in rows
    ]


def base_url(settings: Settings) -> str:
    """The base URL for clients on this machine, from the settings."""
    address = net.parse(settings.bind_address)
    if address.path:
        return "http://localhost/v1"
    if address.here != address.host:  # every interface, where IPv4 is understood by more clients
        address = address._replace(host="127.0.0.1")
    return f"http://{address}/v1"


def url(settings: Settings) -> str:
    """The base URL that clients use: what the operator says, else as `base_url`."""
    return f"{settings.public_url}/v1" if settings.public_url else base_url(settings)


def ready(
    settings: Settings,
    accounts: Sequence[Account],
    models: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
    statuses: Mapping[str, CredentialStatus] = MappingProxyType({}),
    *,
    keys: int | None = None,
) -> dict[str, Any]:
    """The facts of the banner, as the fields of a log line for programs; `keys` as for `banner`."""
    rows = [account_row(account, statuses.get(account.name)) for account in accounts]
    return {
        "version": __version__,
        "url": url(settings),
        "listens_on": settings.bind_address,
        "client_keys": len(settings.all_client_keys) if keys is None else keys,
        "accounts": [
            {"name": row["name"], "state": row["state"], "origin": row["origin"]} for row in rows
        ],
        "models": len(models),
        "problems": list(problems),
    }


def curl(settings: Settings, model: str, *, keyed: bool = False) -> str:
    """A curl command that streams an answer.

    Args:
        keyed: a key is needed, also if the settings have none.
    """
    body = json.dumps(
        {
            "model": model,
            "stream": True,
            "messages": [{"role": "user", "content": "Say hello in three languages."}],
        }
    )
    socket = ""
    if path := net.parse(settings.bind_address).path:
        socket = f"--unix-socket {path} "
    keyed = keyed or bool(settings.all_client_keys)
    key = "-H 'Authorization: Bearer YOUR_CLIENT_KEY' " if keyed else ""
    return (
        f"curl -N {socket}{base_url(settings)}/chat/completions {key}"
        f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
    )


def chat_model(models: Iterable[Mapping[str, Any]]) -> str:
    """A model for an example: the first chat model."""
    ids = (str(model["id"]) for model in models)
    return next(filter(is_chat_model, ids), "qwen3.7-plus")


def banner(
    settings: Settings,
    accounts: Sequence[Account],
    models: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
    endpoints: Iterable[str] = (),
    statuses: Mapping[str, CredentialStatus] = MappingProxyType({}),
    *,
    keys: int | None = None,
) -> str:
    """Render what the first worker prints when it is ready.

    Args:
        endpoints: each as `POST /v1/responses`.
        statuses: by account name; what is missing is asked of the credential.
        keys: how many client keys are valid; None where no key is needed, or the settings have all.
    """
    lines = [
        "",
        f"  qwen-proxy {__version__} is ready",
        "",
        f"  URL       {url(settings)}",
        f"  clients   {_clients(settings, keys)}",
    ]
    if any(account.kind == "sandbox" for account in accounts):
        note = _SANDBOX_ON if settings.sandbox == "on" else _SANDBOX_NOTE
        lines.append(f"  SANDBOX   {note}")
    label = "accounts"
    for account in accounts:
        row = account_row(account, statuses.get(account.name))
        lines.append(f"  {label:<9} {row['name']}: {row['state']}, {row['detail']}")
        lines.append(f"            from {row['origin']}, endpoint {row['endpoint']}")
        if row["remedy"]:
            lines.append(f"            to do: {row['remedy']}")
        label = ""
    if not accounts:
        lines.append("  accounts  none: every call gets a 503 until there is one")
    lines += [f"  note      {problem}" for problem in problems]
    names = [str(model["id"]) for model in models]
    # Names come from upstreams, and must not control the terminal.
    shown = [name if name.isprintable() else repr(name) for name in names[:8]]
    more = f", … ({len(models)} in total)" if len(models) > len(shown) else ""
    lines.append(f"  models    {', '.join(shown) or 'none'}{more}")
    label = "endpoints"
    for methods, path in _by_path(endpoints):
        lines.append(f"  {label:<9} {methods:<11} {path}")
        label = ""
    lines += [
        "",
        "  Try it:",
        f"  {curl(settings, chat_model(models), keyed=keys is not None)}",
        "",
    ]
    return with_command("\n".join(lines), settings.command)


def _by_path(endpoints: Iterable[str]) -> list[tuple[str, str]]:
    """The methods of each path: `("GET, DELETE", "/v1/responses/{id}")`."""
    methods: dict[str, list[str]] = {}
    for endpoint in endpoints:
        method, _, path = endpoint.partition(" ")
        methods.setdefault(path, []).append(method)
    return [(", ".join(sorted(found, reverse=True)), path) for path, found in methods.items()]


def _clients(settings: Settings, keys: int | None) -> str:
    number = len(settings.all_client_keys) if keys is None else keys
    if keys == 0:
        return "nobody: every client key was revoked or has expired (`qwen-proxy keys add NAME`)"
    if number:
        return "all that have " + (
            "the client key" if number == 1 else f"one of the {number} client keys"
        )
    return "this machine only (`qwen-proxy keys add NAME` lets others in)"
