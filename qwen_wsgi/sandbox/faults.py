"""The table of behaviours that the sandbox can simulate, and their short notation. Pure, no I/O.

A spec is a list like `slow-first=2.5, cut-after=3`: names from the table, some with a value,
separated by comma or semicolon. Values may be percent-encoded, so that they can contain a comma.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import unquote

Takes = Literal["nothing", "number", "count", "text"]
_TAKES: Final[tuple[Takes, ...]] = ("nothing", "number", "count", "text")

# A larger number is probably a typing error, and would only exhaust the memory.
_LARGEST_COUNT: Final = 1_000_000_000


class BadSpec(ValueError):
    """A spec has an unknown name, or a value that its behaviour does not accept."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One behaviour of the real services; `default` is its value if the spec has none."""

    name: str
    topic: str
    takes: Takes
    default: str
    what: str
    source: str


_SSE: Final = "server-sent events as the WHATWG standard allows them"
_SEEN: Final = "seen in logs of DashScope's OpenAI-compatible mode"
_DOC: Final = "DashScope's documentation"
_CLI: Final = "quirk that qwen-code handles"
_NET: Final = "what networks, gateways and load balancers do"
_OAUTH: Final = "the login service and its portal, as observed by qwen-code and others"
_WEB: Final = "projects that use the web API, mid 2026"
_TEST: Final = "for tests"

# Name, value (kind and default; empty if it takes none), source, meaning; by topic.
# fmt: off
_TABLE: Final[Mapping[str, tuple[tuple[str, str, str, str], ...]]] = {
    "time": (
        ("slow-headers", "number 1", _NET, "the status line comes after that many seconds"),
        ("stall-after", "count 3", _NET,
            "silence after that many events; the connection stays open"),
        ("stall-for", "number 1", _NET,
            "a stall ends after that many seconds, and the answer continues"),
        ("hang", "", _NET, "never answers; the connection stays open"),
        ("slow-first", "number 1", _DOC,
            "headers at once, first event or body that many seconds later"),
        ("heartbeat", "number 0.1", _SSE, "an SSE comment every that many seconds while it waits"),
        ("interval", "number 0.05", _TEST, "seconds between two events"),
    ),
    "answer": (
        ("text", "text hello", _TEST, "the answer is this text (percent-encode commas)"),
        ("chunks", "count 100", _TEST, "the answer comes in that many content deltas"),
        ("long", "count 100000", _TEST, "the answer has at least that many characters"),
        ("size", "count 1000", _TEST, "each content delta has that many characters"),
        ("lax", "", _TEST, "parameters are not checked"),
        ("text-only", "", _SEEN,
            "the model reads text only: 400 to a picture, sound or video in a message"),
        ("think", "", _DOC, "reasoning_content first, although enable_thinking was not sent"),
        ("no-tools", "", _DOC, "answers with text although tools were offered"),
        ("finish", "text length", _DOC, "the finish_reason is this word"),
        ("partial-success", "", _DOC,
            "a non-stream call hit its time limit: half of the text, as success"),
    ),
    "web search": (
        ("pages", "count 3", _TEST, "a search with enable_source finds that many pages"),
        ("pages-last", "", _TEST, "the pages come with the finish instead of the first chunk"),
        ("no-pages", "", _DOC, "the text has marks, but the pages are not told"),
        ("no-search", "", _DOC, "400 to enable_search: the model does not support it"),
    ),
    "connection": (
        ("drop", "", _NET, "closes the connection without any byte of an answer"),
        ("reset", "", _NET, "resets the connection (RST) without any byte of an answer"),
        ("garbage", "", _NET, "answers with bytes that are not HTTP"),
        ("half-headers", "", _NET, "closes in the middle of the response headers"),
        ("cut-after", "count 3", _NET, "closes after that many events, inside the chunked body"),
        ("cut-mid-event", "count 3", _NET, "closes in the middle of that event (counted from 0)"),
        ("reset-after", "count 3", _NET, "resets the connection after that many events"),
        ("bad-chunk", "count 3", _NET,
            "an HTTP chunk with an unreadable size after that many events"),
        ("split", "count 1", _NET, "the body in pieces of that many bytes, each one flushed"),
        ("close", "", _NET, "Connection: close, neither chunked nor with a length"),
        ("close-silently", "", _NET, "promises keep-alive, but closes after the whole answer"),
        ("gzip", "", _NET, "the body is gzip-compressed, a stream with a flush after each event"),
    ),
    "other whole answers": (
        ("html-502", "", _NET, "a gateway's HTML error page with status 502"),
        ("empty-503", "", _NET, "status 503, no body"),
        ("redirect", "", _NET, "302 to another place"),
        ("html-200", "", _OAUTH, "a firewall's HTML page (captcha wall) with status 200"),
        ("empty-200", "", _OAUTH, "status 200, no body"),
        ("not-json", "", _OAUTH, "status 200 and JSON content type, but the body is not JSON"),
        ("empty-404", "", _DOC, "status 404, no body, as for a wrong path"),
        ("json-error-200", "", _DOC, "status 200 with a native {code, message} body"),
        ("non-stream-json", "", _CLI, "answers a stream request with one JSON completion"),
        ("stream-anyway", "", _CLI, "answers a non-stream request with a stream"),
    ),
    "refusals": (
        ("error", "text internal_error", _DOC,
            "refuses with that code of the error table; code@status picks a row"),
        ("form", "text native", _DOC, "body of the refusal: compat, native or sse"),
        ("throttle", "", _DOC, "429 limit_requests: too many requests"),
        ("burst", "number 0.2", _DOC,
            "429 limit_burst_rate, unless X-DashScope-Wait-Timeout allows that many seconds"),
        ("quota", "", _DOC, "429 insufficient_quota that only means tokens per minute (transient)"),
        ("plan-quota", "text hour", _DOC,
            "429, the plan's window (hour, week, month) or concurrency is used up"),
        ("free-tier", "", _DOC, "403 AllocationQuota.FreeTierOnly: the free tier is used up"),
        ("arrearage", "", _DOC, "400 Arrearage: the account is overdue"),
        ("invalid-key", "", _DOC, "401 invalid_api_key"),
        ("denied", "", _DOC, "403 access_denied"),
        ("agents-only", "", _DOC, "405, the plan refuses clients that are not coding agents"),
        ("model-not-found", "", _DOC, "404 model_not_found"),
        ("context-length", "count 30720", _DOC, "400, the prompt is longer than that many tokens"),
        ("inspection", "", _DOC, "400 data_inspection_failed: content filter on the input"),
        ("overload", "", _DOC, "503 ModelUnavailable"),
        ("internal", "", _DOC, "500 internal_error"),
        ("status", "count 500", _TEST, "the status of the refusal"),
        ("message", "text message", _TEST, "the message of the refusal"),
        ("retry-after", "number 1", _NET, "the refusal has Retry-After with that many seconds"),
        ("retry-after-date", "number 1", _NET, "the same as an HTTP date"),
        ("too-large", "", _NET, "413 payload too large"),
        ("reset-in", "number 3600", _CLI,
            "the plan-quota text says that the window resets in that many seconds"),
        ("free-quota", "", _OAUTH,
            "429 insufficient_quota: free allocated quota exceeded (login accounts)"),
        ("token-expired", "", _OAUTH, "401 invalid access token or token expired"),
        ("gateway-timeout", "", _OAUTH, "504 stream timeout"),
        ("bad-request", "", _OAUTH, "400 with nothing but the text 'bad request'"),
        ("strict-portal", "", _OAUTH,
            "400 unless message 0 is a system part list with cache_control"),
        ("sse-400", "", _SEEN, "400 to a stream request; the JSON body is framed as an event"),
    ),
    "failures inside a stream": (
        ("error-frame-after", "count 2", _SEEN,
            "an error event after that many events, then the end without [DONE]"),
        ("inspection-mid-stream", "count 2", _SEEN,
            "the content filter ends the stream after that many events"),
        ("throttle-in-stream", "count 0", _CLI, "throttling as an error event inside a 200"),
        ("error-finish", "text", _CLI,
            "finish_reason error_finish, the text of the error as content"),
        ("native-error-event", "count 0", _DOC, "an error event in the native SSE form"),
    ),
    "shape of the stream": (
        ("crlf", "", _SSE, "lines end with CR LF"),
        ("cr", "", _SSE, "lines end with CR alone"),
        ("comments", "", _SSE, "comment lines between the events"),
        ("ids", "", _SSE, "id:, event: and retry: fields in the events"),
        ("no-space", "", _SSE, "no space after data:"),
        ("multi-data", "", _SSE, "the JSON of an event spread over two data: lines"),
        ("bom", "", _SSE, "a byte order mark before the first event"),
        ("no-blank-end", "", _SSE, "the last event is not ended by a blank line"),
        ("bad-json-event", "count 2", _SSE, "an event that is not JSON after that many events"),
        ("huge-event", "count 1000000", _SSE, "one event with that many characters of content"),
        ("empty-stream", "", _OAUTH, "200, an event stream without any event"),
        ("done-only", "", _OAUTH, "200, only [DONE]"),
        ("finish-only", "", _OAUTH, "finish_reason stop and no content: an empty success"),
        ("dup-first", "", _OAUTH, "the first content chunk is sent twice"),
        ("no-done", "", _SEEN, "all chunks and a clean end, but no [DONE]"),
        ("no-finish", "", _CLI, "content, then a clean end: neither finish_reason nor [DONE]"),
        ("cumulative", "", _CLI, "each delta repeats the whole text so far"),
        ("empty-chunks", "", _CLI, "chunks without content between the others"),
        ("think-tags", "", _CLI, "thinking leaks into the content in <think> tags"),
        ("reasoning-field", "", _CLI, "thinking in `reasoning` instead of `reasoning_content`"),
        ("twice-finish", "", _CLI, "a second finish chunk"),
    ),
    "web account": (
        ("web", "text challenge", _WEB,
            "the web API: challenge, limited, unauthorized, internal, refused (with status 200); "
            "error-event, no-end, no-status, no-text, think-only (in the stream); no-picture, "
            "late-picture, listed-picture, no-task, failing-video"),
    ),
    "tool calls": (
        ("tools", "count 2", _DOC, "that many parallel tool calls"),
        ("tool-args", "text {}", _TEST, "the arguments of calls (percent-encode commas)"),
        ("tool-rounds", "count 2", _TEST,
            "calls tools in that many answers, one after the other, before it answers with text"),
        ("null-args", "", _SEEN, "arguments: null in the first fragment and in an extra last one"),
        ("tool-collide", "", _CLI, "parallel calls share index 0 and differ by id"),
        ("tool-no-index", "", _CLI, "fragments without index"),
        ("tool-late-id", "", _CLI, "the id comes with the second fragment"),
        ("tool-no-id", "", _CLI, "no id at all"),
        ("tool-replay", "", _CLI, "a finished call is sent once more"),
        ("tool-name-again", "", _CLI, "the name is repeated in every fragment"),
        ("tool-whole", "", _CLI, "each call in one fragment"),
        ("tool-bad-json", "", _CLI, "the arguments end too early"),
        ("tool-empty-args", "", _CLI, "the arguments are the empty string"),
        ("tool-finish-stop", "", _CLI, "tool calls, but finish_reason stop"),
        ("xml-tools", "", _CLI, "the tool call is written as XML into the text"),
    ),
    "usage": (
        ("no-usage", "", _SEEN, "no usage, although it was requested"),
        ("usage-null", "", _SEEN, "usage: null in each chunk, although it was not requested"),
        ("usage-with-finish", "", _CLI, "usage in the finish chunk instead of a chunk of its own"),
        ("usage-each", "", _CLI, "usage in every chunk"),
        ("usage-totals-only", "", _CLI, "total_tokens only, the parts are 0"),
        ("cached-top-level", "", _CLI,
            "cached_tokens at the top of usage instead of in the details"),
        ("details-null", "", _DOC, "the token details are null"),
        ("prompt-tokens", "count 100", _TEST, "usage says that many prompt tokens"),
        ("completion-tokens", "count 10", _TEST, "usage says that many completion tokens"),
        ("cached", "count 64", _TEST, "usage says that many cached prompt tokens"),
    ),
    "pictures, videos, speech": (
        ("partial", "count 1", _DOC, "that many of the pictures, or files, fail"),
        ("one-choice", "", _DOC, "all pictures are parts of one choice"),
        ("no-pieces", "", _DOC, "speech comes as a URL only, also in a stream"),
        ("task-looks", "count 5", _TEST, "a task is done when it was looked at so many times"),
        ("task-waits", "count 5", _TEST, "a task is pending for so many looks before that"),
        ("task-ends", "text FAILED", _DOC, "the last status of a task"),
        ("task-error", "text DataInspectionFailed", _DOC, "the code of a task that failed"),
        ("never-began", "", _NET, "closes without an answer, and without having done anything"),
        ("lost-answer", "", _NET, "does what was asked for, then closes without an answer"),
        ("result-host", "text https://results.example", _TEST, "results are at that origin"),
        ("result-bytes", "count 200000000", _TEST, "a result has that many bytes"),
        ("content-type", "text text/html", _TEST, "the content type of a result"),
        ("no-length", "", _NET, "a result does not tell its length"),
        ("trickle", "number 0.1", _NET, "a result comes byte by byte, with pauses of that length"),
    ),
    "files and batches": (
        ("early", "", _NET,
            "refuses an upload (with the refusal of the spec) before its body has come"),
        ("slow-body", "number 0.1", _NET, "waits so many seconds before each piece of an upload"),
    ),
    "token endpoint": (
        ("slow-before", "number 1", _OAUTH,
            "waits before the refresh token is spent; a client that leaves keeps it"),
        ("slow-after", "number 1", _OAUTH,
            "spends the refresh token, then waits before it answers"),
        ("after-rotation", "", _OAUTH,
            "the other failure of the spec comes after the refresh token was spent"),
        ("token-error", "text invalid_request", _OAUTH,
            "the token endpoint's own error form with that word"),
        ("expires-in", "text missing", _OAUTH,
            "expires_in is missing, string, zero, null, or that value"),
        ("no-refresh-token", "", _OAUTH, "no refresh_token in the answer; the old one stays valid"),
        ("no-resource-url", "", _OAUTH, "no resource_url in the answer"),
        ("no-access-token", "", _OAUTH, "no access_token in the answer"),
        ("resource-url", "text portal.qwen.ai", _OAUTH, "this resource_url in the answer"),
        ("cut-after-rotation", "", _NET, "spends the refresh token, then closes without an answer"),
    ),
}
# fmt: on


def _value(text: str) -> tuple[Takes, str]:
    kind, _, default = text.partition(" ")
    return next((takes for takes in _TAKES if takes == kind), "nothing"), default


BEHAVIOURS: Final[Mapping[str, Behaviour]] = {
    name: Behaviour(name, topic, *_value(value), what, source)
    for topic, rows in _TABLE.items()
    for name, value, source, what in rows
}


@dataclass(frozen=True, slots=True)
class Spec:
    """The behaviours selected for one request, checked against the table."""

    items: Mapping[str, str] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.items

    def __bool__(self) -> bool:
        return bool(self.items)

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" if value else name for name, value in self.items.items())

    def merged(self, other: Spec) -> Spec:
        """Return the items of both; `other` wins where both have a name."""
        return Spec({**self.items, **other.items})

    def number(self, name: str, absent: float = 0.0) -> float:
        return float(self.items.get(name, absent))

    def count(self, name: str, absent: int = 0) -> int:
        return int(self.items.get(name, absent))

    def position(self, name: str) -> int | None:
        """Return the count of an `…-after` behaviour, or None if it was not selected."""
        return int(self.items[name]) if name in self.items else None

    def text(self, name: str, absent: str = "") -> str:
        return self.items.get(name, absent)


def parse_spec(text: str) -> Spec:
    """Parse the short notation.

    Raises:
        BadSpec: a name is unknown, or its value is invalid; the message says which.
    """
    items: dict[str, str] = {}
    for part in re.split(r"[,;]", text):
        name, equals, value = part.strip().partition("=")
        name = name.strip().lower()
        if not name:
            continue
        behaviour = BEHAVIOURS.get(name)
        if behaviour is None:
            raise BadSpec(f"unknown behaviour {name!r}; GET /_sandbox/faults lists the known ones")
        items[name] = _checked(behaviour, unquote(value.strip()) if equals else behaviour.default)
    return Spec(items)


def _checked(behaviour: Behaviour, value: str) -> str:
    if behaviour.takes == "text":
        return value
    if behaviour.takes == "nothing":
        if value:
            raise BadSpec(f"{behaviour.name} takes no value")
        return ""
    try:
        number = float(value) if behaviour.takes == "number" else int(value)
    except ValueError:
        raise BadSpec(f"{behaviour.name} takes a {behaviour.takes}, not {value!r}") from None
    if not math.isfinite(number) or not 0 <= number <= _LARGEST_COUNT:
        raise BadSpec(f"{behaviour.name}={value} is out of range")
    return value


_MAGIC: Final = re.compile(r"\[\[\s*sandbox\s*:(.*?)\]\]", re.IGNORECASE | re.DOTALL)
_MODEL_MARK: Final = "sandbox/"


def spec_in_model(model: str) -> str:
    """Return the spec in a model name of the form `sandbox/<spec>` or `<model>/sandbox/<spec>`."""
    if model.startswith(_MODEL_MARK):
        return model[len(_MODEL_MARK) :]
    _, found, spec = model.partition("/" + _MODEL_MARK)
    return spec if found else ""


def spec_in_text(text: str) -> str:
    """Return the specs in all `[[sandbox: <spec>]]` marks of a text, as one spec."""
    return ",".join(match.group(1) for match in _MAGIC.finditer(text))


def without_magic(text: str) -> str:
    """Return the text without `[[sandbox: …]]` marks."""
    return _MAGIC.sub("", text).strip()


def merged_specs(texts: Iterable[str]) -> Spec:
    """Parse and merge several specs; later ones win.

    Raises:
        BadSpec: one of them is invalid.
    """
    spec = Spec()
    for text in texts:
        spec = spec.merged(parse_spec(text))
    return spec


def listing() -> Iterator[dict[str, str]]:
    """Yield the table as JSON objects, for `GET /_sandbox/faults`."""
    for row in BEHAVIOURS.values():
        yield {
            "name": row.name,
            "topic": row.topic,
            "takes": row.takes,
            "default": row.default,
            "what": row.what,
            "source": row.source,
        }
