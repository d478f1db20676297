"""The metrics that there are: names, kinds, labels and buckets. Pure data.

docs/metrics.md has the same as a table for people; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]

#: Upper bounds of durations. Seconds; up to what a long answer takes.
SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
#: Of delays of the event loop, which are milliseconds where all is well.
LAGS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)

#: The values of `endpoint`; `accounting.metrics.endpoint_of` chooses among them.
ENDPOINTS: Final = (
    "chat_completions",
    "responses",
    "messages",
    "completions",
    "embeddings",
    "rerank",
    "images",
    "videos",
    "speech",
    "transcriptions",
    "files",
    "batches",
    "models",
    "token_counts",
    "stored_responses",
    "websockets",
    "usage",
    "admin",
    "web_account",
    "other",
)
#: Of `outcome`, as in `CallRecord.outcome`, each with the classes of statuses that belong to it.
OUTCOMES: Final[Mapping[str, tuple[str, ...]]] = {
    "complete": ("2xx",),
    "refused": ("4xx", "5xx"),
    "upstream_error": ("2xx", "4xx", "5xx"),
    "client_gone": ("2xx", "4xx"),
    "cancelled": ("2xx", "4xx"),
    "cut_by_stop": ("2xx",),
    "failed": ("2xx", "5xx"),
}
#: Of `kind`: cached and written tokens are among the input, reasoning is among the output.
TOKEN_KINDS: Final = ("input", "cached", "cache_written", "output", "reasoning")
#: Of `phase`: of a client that left.
PHASES: Final = ("before_first_byte", "after_first_byte")
#: Causes of failed calls that are none of an upstream (`upstream.failures.causes`), by the code
#: that the client got. Another one is INVALID where the request was at fault, else OTHER.
OWN_CAUSES: Final = (
    "account_not_allowed",
    "answer_too_large",
    "call_cancelled",
    "credentials_expired",
    "credentials_missing",
    "credentials_rejected",
    "expired_api_key",
    "insufficient_quota",
    "internal_error",
    "invalid_api_key",
    "keys_unavailable",
    "missing_api_key",
    "model_not_allowed",
    "network_not_allowed",
    "no_usable_account",
    "oauth_tier_closed",
    "overloaded",
    "proxy_stopping",
    "rate_limit_exceeded",
    "request_timeout",
    "request_too_large",
    "revoked_api_key",
    "upstream_account_refused",
    "upstream_unavailable",
)
INVALID: Final = "invalid_request"
OTHER: Final = "other"
NONE: Final = "none"


class Family(NamedTuple):
    """One metric.

    Attributes:
        name: as it is exposed; that of a counter ends in `_total`.
        help: one sentence for people.
        buckets: upper bounds of a histogram, without the infinite one.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers a row has: a histogram's has its buckets, the infinite one, the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


def _counter(name: str, help: str, *labels: str) -> Family:
    return Family(f"qwen_proxy_{name}_total", "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Family:
    return Family(f"qwen_proxy_{name}", "gauge", help, labels)


def _histogram(name: str, help: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Family:
    return Family(f"qwen_proxy_{name}_seconds", "histogram", help, labels, buckets)


CALLS: Final = _counter(
    "calls",
    "Calls of clients that ended, without health checks and the like.",
    *("endpoint", "outcome", "status"),
)
CLIENT_CALLS: Final = _counter(
    "client_calls",
    "The same calls by who called and who answered.",
    *("client", "account", "model", "outcome"),
)
TOKENS: Final = _counter("tokens", "Tokens of all calls, as upstreams reported them.", "kind")
CLIENT_TOKENS: Final = _counter(
    "client_tokens",
    "The same tokens by who called and who answered.",
    *("client", "account", "model", "kind"),
)
UNKNOWN_USAGE: Final = _counter(
    "calls_without_usage",
    "Calls that reached an upstream and ended without a report of their tokens.",
)
ERRORS: Final = _counter("errors", "Calls that failed or were refused, by cause.", "cause")
ATTEMPTS: Final = _counter("attempts", "Requests to upstreams that were begun.", "account")
ATTEMPT_FAILURES: Final = _counter(
    "attempt_failures",
    "Requests to upstreams that failed, also those after which another one succeeded.",
    *("account", "cause"),
)
CLIENT_ABORTS: Final = _counter(
    "client_aborts", "Calls whose client left before their end.", "phase"
)
KEEPALIVES: Final = _counter(
    "keepalives", "Keep-alives that were sent to clients while an upstream was silent."
)
REFRESHES: Final = _counter(
    "login_refreshes", "Attempts to refresh the login of an account.", "account", "outcome"
)
DURATION: Final = _histogram(
    "call_duration", "Time of a call that reached an upstream, to its last byte.", "endpoint"
)
FIRST_BYTE: Final = _histogram(
    "first_byte", "Time from the arrival of a call to the upstream's first event.", "endpoint"
)
GAP: Final = _histogram(
    "longest_gap", "Longest silence of the upstream within each answer, after its first event."
)
QUEUE: Final = _histogram(
    "queue", "Time that a call which reached an upstream waited for a slot or a pause."
)
LOOP_LAG: Final = _histogram(
    "loop_lag", "Delay of a worker's event loop, measured twice a second.", buckets=LAGS
)

IN_FLIGHT: Final = _gauge("in_flight_calls", "Calls with a body that are being served.")
WEBSOCKETS: Final = _gauge("open_websockets", "WebSockets that are open.")
WORKERS: Final = _gauge("workers", "Worker processes that run.")
ACCOUNT_IN_FLIGHT: Final = _gauge(
    "account_in_flight_calls", "Requests that an account is serving.", "account"
)
QUEUED: Final = _gauge("queued_calls", "Calls that wait for a slot of an account.", "account")
ACCOUNT_USABLE: Final = _gauge(
    "account_usable", "1 if calls can go to the account now, else 0.", "account"
)
ACCOUNT_STATE: Final = _gauge(
    "account_state", "1 for the state that the account is in, 0 for the others.", "account", "state"
)
CREDENTIAL_LEFT: Final = _gauge(
    "credential_left_seconds",
    "Seconds until the credential expires; none for one that does not expire.",
    "account",
)
COOLDOWN: Final = _gauge(
    "cooldown_seconds", "Seconds for which the account gets no calls; 0 if it does.", "account"
)
PAUSED_MODELS: Final = _gauge(
    "paused_models", "Models for which the account gets no calls now.", "account"
)
PLAN_USED: Final = _gauge(
    "plan_used",
    "What our own calls used of a window of the account's plan; none where that is not known.",
    *("account", "window", "unit"),
)
PLAN_LIMIT: Final = _gauge(
    "plan_limit",
    "The limit of a window of the account's plan; none where it is not known.",
    *("account", "window", "unit"),
)
PLAN_SPENT: Final = _gauge(
    "plan_spent",
    "1 if a window of the account's plan is spent, by our count or by its vendor's word, else 0.",
    *("account", "window", "unit"),
)
PLAN_LEFT: Final = _gauge(
    "plan_left_seconds",
    "Seconds until a window of the account's plan ends, or is free again if it is spent.",
    *("account", "window", "unit"),
)
START_TIME: Final = _gauge(
    "start_time_seconds", "Start of the oldest worker that runs, in seconds since 1970."
)
BUILD_INFO: Final = _gauge(
    "build_info", "Always 1; the labels tell what runs.", "version", "python"
)

#: All of them, in the order in which they are shown.
FAMILIES: Final = (
    *(CALLS, CLIENT_CALLS, TOKENS, CLIENT_TOKENS, UNKNOWN_USAGE, ERRORS),
    *(DURATION, FIRST_BYTE, GAP, QUEUE),
    *(ATTEMPTS, ATTEMPT_FAILURES, CLIENT_ABORTS, KEEPALIVES, REFRESHES),
    *(IN_FLIGHT, ACCOUNT_IN_FLIGHT, QUEUED, WEBSOCKETS, WORKERS, LOOP_LAG),
    *(ACCOUNT_USABLE, ACCOUNT_STATE, CREDENTIAL_LEFT, COOLDOWN, PAUSED_MODELS),
    *(PLAN_USED, PLAN_LIMIT, PLAN_SPENT, PLAN_LEFT),
    *(START_TIME, BUILD_INFO),
)
BY_NAME: Final[Mapping[str, Family]] = {family.name: family for family in FAMILIES}
