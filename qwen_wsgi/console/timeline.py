"""The stages of one call: queue, connection, wait for the first byte, answer; and why it failed.

Pure. Made of a row of the ledger, or of what is told of a call in flight.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from qwen_wsgi.state.database.calls import CallRow

#: Units of the drawing's width.
_WIDTH: Final = 100
#: As many as a call notes.
_MOST_GAPS: Final = 5

#: The kinds of stages, in their order, and what they are.
KINDS: Final = (
    ("queue", "queue and pauses"),
    ("connect", "connection"),
    ("wait", "wait for the first byte"),
    ("answer", "answer"),
)


class Stage(NamedTuple):
    """One part of a call.

    Attributes:
        kind: a class of the stylesheet.
        begin_ms: since the call's arrival.
    """

    kind: str
    name: str
    begin_ms: float
    ms: float


class Gap(NamedTuple):
    """A silence of the upstream within its answer; `begin_ms` as that of a stage."""

    begin_ms: float
    ms: float


class Timeline(NamedTuple):
    """The stages of a call in their order.

    Attributes:
        total_ms: until its end, or until now.
        gap_ms: the longest silence of the upstream within its answer.
        gaps: the longest ones, in their order; shorter ones are not known.
    """

    stages: tuple[Stage, ...]
    total_ms: float
    gap_ms: float
    gaps: tuple[Gap, ...] = ()


def of_row(row: CallRow) -> Timeline:
    """The stages of a call that has ended."""
    return _timeline(
        *(row.queue_ms, row.connect_ms, row.first_byte_ms, row.total_ms, row.longest_gap_ms),
        gaps=_gaps(row.gaps),
    )


def _gaps(text: str | None) -> Iterable[Gap]:
    """The gaps of a row; none of what another version has written in another way."""
    try:
        return [Gap(float(begin), float(ms)) for begin, ms in json.loads(text or "[]")]
    except (ValueError, TypeError):
        return []


def of_call(told: Mapping[str, Any]) -> Timeline:
    """The stages of a call in flight, so far (`in_flight.CallsInFlight`)."""
    first = told["seconds_to_first_byte"]
    return _timeline(
        told["seconds_queued"] * 1000,
        told["seconds_connecting"] * 1000,
        None if first is None else first * 1000,
        told["seconds"] * 1000,
        told["longest_gap"] * 1000,
        gaps=[Gap(each["after"] * 1000, each["seconds"] * 1000) for each in told["gaps"]],
    )


def _timeline(
    queue_ms: float,
    connect_ms: float,
    first_ms: float | None,
    total_ms: float,
    gap_ms: float,
    *,
    gaps: Iterable[Gap],
) -> Timeline:
    total = max(0.0, total_ms)
    first = total if first_ms is None else min(max(0.0, first_ms), total)
    queued = min(max(0.0, queue_ms), first)
    connected = min(queued + max(0.0, connect_ms), first)
    stages, begin = [], 0.0
    for (kind, name), end in zip(KINDS, (queued, connected, first, total), strict=True):
        if end > begin:
            stages.append(Stage(kind, name, begin, end - begin))
            begin = end
    # Two clocks' roundings may lay one a little beyond the end.
    inside = [Gap(max(0.0, begin), min(ms, total - begin)) for begin, ms in gaps if begin < total]
    shown = tuple(sorted(each for each in inside if each.ms > 0)[:_MOST_GAPS])
    return Timeline(tuple(stages), total, max(0.0, gap_ms), shown)


def drawn(timeline: Timeline, *, large: bool = False) -> str:
    """The stages as one bar, in SVG. What it says is also said in words, so it is hidden from
    screen readers."""
    total = timeline.total_ms or 1.0
    bars, x = [], 0
    for stage in timeline.stages:
        end = round((stage.begin_ms + stage.ms) / total * _WIDTH)
        if end > x:
            # A page has two hundred of them: the shortest notation that HTML and SVG have.
            bars.append(f"<path class={stage.kind[0]} d=M{x},6h{end - x} />")
            x = end
    if large:
        for gap in timeline.gaps:
            begin, length = gap.begin_ms / total * _WIDTH, gap.ms / total * _WIDTH
            bars.append(f"<path class=gap d=M{begin:.2f},6h{max(0.3, length):.2f} />")
    inside = "".join(bars)
    if not large:  # the stylesheet makes it as wide as its units
        return f"<svg aria-hidden=true>{inside}</svg>"
    return (
        f'<svg class=timeline viewBox="0 0 {_WIDTH} 12" preserveAspectRatio=none '
        f"aria-hidden=true>{inside}</svg>"
    )


def spoken(ms: float) -> str:
    """A duration for people: `850 ms`, `12.3 s`, `4 min 5 s`, `2 h 30 min`."""
    if ms < 1000:
        return f"{ms:.0f} ms"
    if ms < 100_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    if minutes < 100:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


#: What an outcome means, and what to do.
_OUTCOMES: Final = {
    "complete": "The answer was complete.",
    "refused": "The proxy refused the call before a model was asked.",
    "upstream_error": "The upstream failed, and no other account could answer.",
    "client_gone": "The client closed the connection before the end. Nothing went wrong here.",
    "cancelled": "An admin ended the call. Its client was told so.",
    "cut_by_stop": (
        "The server stopped before the end of the answer. Longer answers are waited for with a "
        "longer QWEN_PROXY_GRACEFUL_TIMEOUT."
    ),
    "failed": "A fault of the proxy itself. Its log has the details under the id of this call.",
}

#: What a code means for the operator.
_CODES: Final = {
    "admin_key_required": "The key is no admin's.",
    "call_cancelled": "It was ended on this console, or by `qwen-proxy calls cancel`.",
    "content_filter": "The host's filter refused the request or the answer.",
    "context_length_exceeded": "The conversation is longer than the model's context.",
    "expired_api_key": "The client's key has expired. `qwen-proxy keys edit` gives it a new end.",
    "host_not_allowed": "The client used a name of this server that it does not know: "
    "QWEN_PROXY_ALLOWED_HOSTS.",
    "insufficient_quota": "The account has no money or no quota left.",
    "invalid_api_key": "The client's key is not known here: it has a typing error, or is of "
    "another server.",
    "local_only": "There is no client key yet, so only this machine is served: `qwen-proxy keys "
    "add NAME`.",
    "missing_api_key": "The client sent no key.",
    "model_not_allowed": "The client's key may not use this model.",
    "model_not_found": "No account has this model. The page Try shows those that there are.",
    "network_not_allowed": "The client's key may not be used from this network.",
    "no_usable_account": "No account can be used now. The overview says why, and what to do.",
    "overloaded": "The server had as many calls as it takes at a time: QWEN_PROXY_MAX_IN_FLIGHT.",
    "proxy_stopping": "The server was stopping.",
    "rate_limit_exceeded": "A limit was reached: the client's own, or the account's.",
    "request_too_large": "The request was larger than QWEN_PROXY_MAX_BODY.",
    "revoked_api_key": "The client's key was revoked.",
    "upstream_account_refused": "The host refused the account's key or login: the overview says "
    "which, and what to do.",
    "upstream_challenge": "The host wants a person to solve a captcha.",
}


def why(outcome: str, error: str) -> list[str]:
    """How a call ended, in sentences: what happened, what it means, what to do."""
    found = [_OUTCOMES.get(outcome, f"It ended as {outcome}.")]
    if (meaning := _CODES.get(error)) is not None:
        found.append(meaning)
    return found
