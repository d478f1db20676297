"""Client keys in words: what the console and `qwen-proxy keys` show, and what a form's fields mean.
Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from qwen_wsgi import text
from qwen_wsgi.access.client_key import ClientKey, changes_of, value_of
from qwen_wsgi.access.limits import Room


class Field(NamedTuple):
    """A field of the form.

    Attributes:
        member: of the key's JSON.
        hint: what to write, below the field.
        numeric: a phone shows digits.
    """

    member: str
    label: str
    hint: str
    numeric: bool = False


#: Of a key's limits.
LIMITS: Final = (
    Field("rpm", "Requests a minute", "a number; empty for no limit", numeric=True),
    Field("tpm", "Tokens a minute", "a number; empty for no limit", numeric=True),
    Field("tokens_per_day", "Tokens a day", "a number; empty for no limit", numeric=True),
    Field("money_per_month", "Money a month", "in the currency of the price table", numeric=True),
    Field("concurrency", "Calls at a time", "a number; empty for no limit", numeric=True),
)
#: Of what it may use, and of everything else.
RIGHTS: Final = (
    Field("models", "Models", "such as qwen3*, text-embedding-v4; empty for all"),
    Field("accounts", "Accounts", "names, with commas; empty for all"),
    Field("cidr", "Networks", "such as 192.168.1.0/24; empty for all"),
    Field("tools", "Tools of the proxy", "such as time, python; empty for none"),
    Field("cache", "Response cache", "such as 1h, or off; empty leaves it to the server"),
    Field("note", "Note", "for yourself"),
)
FLAGS: Final = (
    Field("tools_always", "Tools always", "its chat calls get these tools without naming them"),
    Field("admin", "Admin", "may use this console and /admin/v1"),
    Field("metrics", "Metrics", "may read /metrics from elsewhere"),
)

_SIZES: Final = ((86_400, "d"), (3600, "h"), (60, "m"))


class Use(NamedTuple):
    """How much of a limit is used.

    Attributes:
        share: from 0 to 1.
    """

    label: str
    told: str
    share: float


class ShownKey(NamedTuple):
    """A key in the list.

    Attributes:
        mood: `good` for one that works, `bad` for one that ended; see `accounts`.
        state: whether it works, in words.
        rules: what else it has, in words.
        works: whether it can still be changed.
    """

    id: str
    name: str
    mood: str
    state: str
    last_use: str
    uses: tuple[Use, ...]
    rules: tuple[str, ...]
    note: str
    works: bool


def shown(key: ClientKey, rooms: Mapping[str, Room], *, now: float) -> ShownKey:
    """A key for the list.

    Args:
        rooms: what is left of its limits, by name (`Budgets.remaining`).
    """
    works = key.is_valid(now)
    return ShownKey(
        key.id,
        key.name,
        "good" if works else "bad",
        state(key, now),
        last_use(key, now),
        tuple(_use(field, rooms[field.member]) for field in LIMITS if field.member in rooms),
        (*(f"{name}: {value}" for name, value in bounds(key)), *rights(key)),
        key.note,
        key.revoked_at is None,
    )


def in_order(keys: Iterable[ClientKey], now: float) -> list[ClientKey]:
    """Those that work first, each group by name."""
    return sorted(keys, key=lambda key: (not key.is_valid(now), key.name.lower(), key.created_at))


def state(key: ClientKey, now: float) -> str:
    """Whether it works, in words."""
    if key.revoked_at is not None:
        return f"revoked {span(now - key.revoked_at)} ago"
    if key.expires_at is None:
        return "valid"
    if key.expired(now):
        return f"expired {span(now - key.expires_at)} ago"
    return f"valid for {span(key.expires_at - now)}"


def last_use(key: ClientKey, now: float) -> str:
    """When a call had it last."""
    return "never" if key.last_used_at is None else f"{span(now - key.last_used_at)} ago"


def span(seconds: float) -> str:
    """A duration in its largest unit."""
    return text.duration(max(0.0, seconds))


def bounds(key: ClientKey) -> Iterator[tuple[str, str]]:
    """What it may use, and what holds for its calls besides numbers: names and values."""
    for label, words in (
        ("models", key.models),
        ("accounts", key.accounts),
        ("networks", key.cidr),
        ("tools", key.tools),
    ):
        if words:
            yield label, ", ".join(words)
    if key.cache is not None:
        yield "response cache", span(key.cache) if key.cache else "off"


def rights(key: ClientKey) -> Iterator[str]:
    """What it may do besides, in a word or two each."""
    if key.tools_always:
        yield "tools always"
    if key.admin:
        yield "admin"
    if key.metrics:
        yield "metrics"


def _use(field: Field, room: Room) -> Use:
    used = max(0.0, room.limit - room.left)
    share = min(1.0, used / room.limit) if room.limit else 1.0
    return Use(field.label, f"{_number(used)} of {_number(room.limit)}", share)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.2f}"


# --- the form ------------------------------------------------------------------------------------


def fields_of(key: ClientKey) -> dict[str, str]:
    """What the form shows of a key; a field that is checked has `on`."""
    found = {"name": key.name, "expires": ""}
    for field in (*LIMITS, *RIGHTS):
        found[field.member] = _text_of(field.member, getattr(key, field.member))
    for field in FLAGS:
        found[field.member] = "on" if getattr(key, field.member) else ""
    return found


def changes_in(form: Mapping[str, str], *, now: float) -> dict[str, Any]:
    """What a form says of a key: every member that the form has a field for.

    An empty `expires` leaves the end of the key as it is; `never` takes it away.

    Raises:
        KeyProblem: a value is wrong.
    """
    body: dict[str, Any] = {"name": form.get("name", "").strip()}
    for field in (*LIMITS, *RIGHTS):
        body[field.member] = value_of(field.member, form.get(field.member, "").strip())
    for field in FLAGS:
        body[field.member] = bool(form.get(field.member))
    if expires := form.get("expires", "").strip():
        body["expires"] = value_of("expires", expires)
    return changes_of(body, now=now)


def _text_of(member: str, value: Any) -> str:
    if member == "cache":
        return "" if value is None else _duration(value)
    if isinstance(value, tuple):
        return ", ".join(value)
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e6 else repr(value)
    return "" if value is None else str(value)


def _duration(seconds: int) -> str:
    """As one writes it: `1h`, `off`."""
    if not seconds:
        return "off"
    return next(
        (f"{seconds // size}{unit}" for size, unit in _SIZES if not seconds % size), f"{seconds}s"
    )
