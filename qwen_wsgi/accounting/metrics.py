"""Counts what happens in one worker: calls, tokens, times, failures.

A row is a list of numbers, and its key the metric's name followed by the values of its labels. Rows
of workers are added number by number. Values of labels are from closed sets, so that no client can
make the rows grow without end.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

from qwen_wsgi.accounting import metric_families as families
from qwen_wsgi.accounting.metric_families import INVALID, NONE, OTHER, Family
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.protocol.usage import Usage

Key = tuple[str, ...]
Row = list[float]
Rows = dict[Key, Row]

#: Combinations of client, account and model that are told apart; further ones are `other`.
MOST_COMBINATIONS: Final = 1000
#: How often the models of the catalogue are looked up for names that are not among them. Seconds.
_LOOK_EVERY_S: Final = 1.0
#: Tokens of one call that can be true; an upstream may tell anything.
_MOST_TOKENS: Final = 10**12
#: Characters of the value of a label.
_LONGEST: Final = 100

#: Kinds of calls whose rows are remembered.
_MOST_KINDS: Final = 1000

_OTHERS: Final = (OTHER, OTHER, OTHER)
_STATUSES: Final = {1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"}

# Looked up once: `count` runs at the end of every call.
_CALLS: Final = families.CALLS.name
_CLIENT_CALLS: Final = families.CLIENT_CALLS.name
_TOKENS: Final = families.TOKENS.name
_CLIENT_TOKENS: Final = families.CLIENT_TOKENS.name
_DURATION: Final = families.DURATION.name
_FIRST_BYTE: Final = families.FIRST_BYTE.name
_ATTEMPTS: Final = families.ATTEMPTS.name
_GAP: Final = (families.GAP.name,)
_QUEUE: Final = (families.QUEUE.name,)
_LAG: Final = (families.LOOP_LAG.name,)
_SECONDS: Final = families.SECONDS
_WIDTH: Final = families.DURATION.width
#: Metrics with the combinations that are bounded.
_COMBINED: Final = frozenset({_CLIENT_CALLS, _CLIENT_TOKENS})


#: Endpoint, outcome, status, client, account and model.
_KindKey = tuple[str, str, int, str, str, str]


class _Kind:
    """The rows of calls that differ in numbers only, found once.

    Attributes:
        calls, of_client: that count them.
        combination: client, account and model.
        duration, first_byte: None before there was one.
        attempts: of their account; None before there was one.
        tokens: by kind, those of all calls and of the client.
    """

    __slots__ = (
        *("attempts", "calls", "combination", "duration", "endpoint"),
        *("first_byte", "of_client", "tokens"),
    )

    def __init__(self, endpoint: str, combination: Key, calls: Row, of_client: Row) -> None:
        self.endpoint = endpoint
        self.combination = combination
        self.calls = calls
        self.of_client = of_client
        self.duration: Row | None = None
        self.first_byte: Row | None = None
        self.attempts: Row | None = None
        self.tokens: dict[str, tuple[Row, Row]] = {}


class Metrics:
    """The counts of one worker. Not locked: greenlets switch at I/O only.

    Args:
        causes: names of the failures of upstreams.
        models: the models of the catalogue now.
        monotonic: seconds that never step.

    Attributes:
        rows: what was counted.
        changes: becomes another number whenever a call is counted.
    """

    def __init__(
        self,
        *,
        causes: Collection[str],
        models: Callable[[], Collection[str]],
        monotonic: Callable[[], float],
    ) -> None:
        self.rows: Rows = {}
        self.changes = 0
        self._causes = frozenset({*causes, *families.OWN_CAUSES, INVALID, OTHER})
        self._find_models = models
        self._models: frozenset[str] = frozenset()
        self._looked_at = float("-inf")
        self._monotonic = monotonic
        self._combinations: set[Key] = set()
        self._kinds: dict[_KindKey, _Kind] = {}

    def count(self, call: CallRecord) -> None:
        """Count a call that has ended."""
        if call.quiet:
            return
        self.changes += 1
        endpoint, model = endpoint_of(call.method, call.path), call.upstream_model or call.model
        key = (endpoint, call.outcome, call.status, call.client, call.account, model)
        kind = self._kinds.get(key) or self._new_kind(key)
        kind.calls[0] += 1
        kind.of_client[0] += 1
        if call.outcome != "complete":
            self._count_failure(call)
        if call.keepalives:
            self._add((families.KEEPALIVES.name,), call.keepalives)
        if call.attempts or call.failures:
            self._count_upstream(call, kind)

    def _new_kind(self, key: _KindKey) -> _Kind:
        """The rows of calls of a kind that is not known."""
        endpoint, outcome, status, client, account, model = key
        label = self._model(model)
        combination = self._combined((_client(client), account or NONE, label))
        kind = _Kind(
            endpoint,
            combination,
            self._row((_CALLS, endpoint, outcome, _STATUSES.get(status // 100, NONE))),
            self._row((_CLIENT_CALLS, *combination, outcome)),
        )
        if label in (model, NONE):  # another name may be one of the catalogue a moment later
            if len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            self._kinds[key] = kind
        return kind

    def _count_upstream(self, call: CallRecord, kind: _Kind) -> None:
        """Count what there is of a call that reached an upstream."""
        begun, times = call.started_at, [(self._row(_QUEUE, _WIDTH), call.queued_s)]
        if call.ended_at is not None:
            if kind.duration is None:
                kind.duration = self._row((_DURATION, kind.endpoint), _WIDTH)
            times.append((kind.duration, call.ended_at - begun))
        if call.first_byte_at is not None:
            if kind.first_byte is None:
                kind.first_byte = self._row((_FIRST_BYTE, kind.endpoint), _WIDTH)
            times.append((kind.first_byte, call.first_byte_at - begun))
            times.append((self._row(_GAP, _WIDTH), call.longest_gap_s))
        for row, seconds in times:
            row[bisect_left(_SECONDS, seconds)] += 1
            row[-1] += seconds
        for account, cause in call.failures:
            self._add((_ATTEMPTS, account))
            self._count_failed_attempt(account, cause)
        if (others := call.attempts - len(call.failures)) > 0:
            if kind.attempts is None:
                kind.attempts = self._row((_ATTEMPTS, call.account or NONE))
            kind.attempts[0] += others
            if call.outcome == "upstream_error" and call.cause:  # after the first byte
                self._count_failed_attempt(call.account, call.cause)
        self._count_tokens(call.usage, kind)

    def _count_tokens(self, usage: Usage | None, kind: _Kind) -> None:
        if usage is None:
            self._add((families.UNKNOWN_USAGE.name,))
            return
        for name, tokens in (
            ("input", usage.prompt),
            ("cached", usage.cached),
            ("cache_written", usage.cache_written),
            ("output", usage.completion),
            ("reasoning", usage.reasoning),
        ):
            if tokens is not None and 0 < tokens <= _MOST_TOKENS:
                rows = kind.tokens.get(name) or self._token_rows(kind, name)
                rows[0][0] += tokens
                rows[1][0] += tokens

    def _token_rows(self, kind: _Kind, name: str) -> tuple[Row, Row]:
        """The rows of one kind of tokens, of all calls and of the client."""
        of_client = self._row((_CLIENT_TOKENS, *kind.combination, name))
        rows = kind.tokens[name] = self._row((_TOKENS, name)), of_client
        return rows

    def _count_failed_attempt(self, account: str, cause: str) -> None:
        cause = cause if cause in self._causes else OTHER
        self._add((families.ATTEMPT_FAILURES.name, account, cause))

    def _count_failure(self, call: CallRecord) -> None:
        if call.outcome == "client_gone":
            phase = families.PHASES[call.first_byte_at is not None]
            self._add((families.CLIENT_ABORTS.name, phase))
            return
        cause = call.cause or call.error_code
        if cause not in self._causes:
            cause = INVALID if 400 <= call.status < 500 else OTHER
        self._add((families.ERRORS.name, cause))

    def observe_lag(self, seconds: float) -> None:
        """Count how late the event loop was, once."""
        row = self._row(_LAG, families.LOOP_LAG.width)
        row[bisect_left(families.LAGS, seconds)] += 1
        row[-1] += seconds

    def count_refreshes(self, account: str, outcome: str, count: int) -> None:
        """Count attempts to refresh a login."""
        self.changes += 1
        self._add((families.REFRESHES.name, account, outcome), count)

    def add(self, rows: Iterable[tuple[Key, Row]]) -> None:
        """Add what another worker has counted, which has ended."""
        self.changes += 1
        self._kinds.clear()  # a row may be replaced
        for key, row in rows:
            if key[0] in _COMBINED:
                key = (key[0], *self._combined(key[1:4]), key[4])
            add_row(self.rows, key, row)

    def _add(self, key: Key, count: float = 1) -> None:
        self._row(key)[0] += count

    def _row(self, key: Key, width: int = 1) -> Row:
        row = self.rows.get(key)
        if row is None:
            row = self.rows[key] = [0] * width
        return row

    def _combined(self, combination: Key) -> Key:
        """The combination if it is known or there is room for it."""
        known = self._combinations
        if combination not in known:
            if len(known) >= MOST_COMBINATIONS:
                return _OTHERS
            known.add(combination)
        return combination

    def _model(self, model: str) -> str:
        if model in self._models:
            return model
        if not model:
            return NONE
        now = self._monotonic()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            models = frozenset(filter(_is_label, self._find_models()))
            if models != self._models:
                self._models = models
                self._kinds.clear()
        return model if model in self._models else OTHER


def _client(name: str) -> str:
    if name in ("", "-"):
        return NONE
    # The name of an environment's key that is gone shows its end.
    return name if _is_label(name) and "…" not in name else OTHER


def _is_label(name: str) -> bool:
    """Whether a name is fit to be shown."""
    return len(name) <= _LONGEST and name.isprintable()


def add_row(rows: Rows, key: Key, row: Row) -> None:
    """Add a row's numbers to those of the same key."""
    present = rows.get(key)
    if present is None or len(present) != len(row):
        rows[key] = row[:]
        return
    for at, number in enumerate(row):
        present[at] += number


def is_row(key: Key, row: Row) -> bool:
    """Whether it is a row of a metric as it is now; another version of the program may have written
    it."""
    family = families.BY_NAME.get(key[0]) if key else None
    return family is not None and len(key) == len(family.labels) + 1 and len(row) == family.width


def zeros(
    causes: Iterable[str], accounts: Iterable[str], refreshes: Mapping[str, Iterable[str]]
) -> Iterator[Key]:
    """The keys of rows that are shown before anything was counted: rates can then see the first.

    Args:
        causes: of failures of upstreams.
        accounts: names of those that there are.
        refreshes: for each account with a login, the ways in which a refresh may end.
    """
    for endpoint in families.ENDPOINTS:
        for outcome, statuses in families.OUTCOMES.items():
            for status in statuses:
                yield _CALLS, endpoint, outcome, status
        yield _DURATION, endpoint
        yield _FIRST_BYTE, endpoint
    for kind in families.TOKEN_KINDS:
        yield _TOKENS, kind
    for cause in sorted({*causes, *families.OWN_CAUSES, INVALID, OTHER}):
        yield families.ERRORS.name, cause
    for phase in families.PHASES:
        yield families.CLIENT_ABORTS.name, phase
    for account in accounts:
        yield _ATTEMPTS, account
    for account, outcomes in refreshes.items():
        for outcome in outcomes:
            yield families.REFRESHES.name, account, outcome
    for family in families.FAMILIES:
        if not family.labels and family.kind != "gauge":
            yield (family.name,)


def zero_row(family: Family) -> Row:
    """The numbers of a row before anything was counted."""
    return [0] * family.width


#: Endpoints by the path behind `/v1`, and by the beginning of it.
_EXACT: Final = {
    "chat/completions": "chat_completions",
    "messages/count_tokens": "token_counts",
    "responses/input_tokens": "token_counts",
    "responses/compact": "responses",
    "audio/speech": "speech",
    "audio/transcriptions": "transcriptions",
    "audio/translations": "transcriptions",
    "validate": "web_account",
    "refresh": "web_account",
    "chats/delete": "web_account",
}
_FIRST: Final = {
    "reranks": "rerank",
    **{
        name: name
        for name in (
            *("completions", "messages", "embeddings", "rerank", "images", "videos"),
            *("files", "batches", "models", "usage", "admin"),
        )
    },
}


@functools.lru_cache(maxsize=1024)
def endpoint_of(method: str, path: str) -> str:
    """The endpoint of a call as a word of `ENDPOINTS`, however its path is spelled."""
    segments = [segment for segment in path.split("/") if segment]
    while segments and segments[0] in ("v1", "v2"):
        del segments[0]
    behind = "/".join(segments)
    if behind in _EXACT:
        return _EXACT[behind]
    if behind == "responses":
        return "websockets" if method == "GET" else "responses"
    first = segments[0] if segments else ""
    if first == "responses":
        return "stored_responses"
    return _FIRST.get(first, OTHER)
