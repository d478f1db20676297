"""The causes of upstream failures and what follows from each. Pure data.

A row says what is affected, whether another attempt helps, what the client gets and what the
operator can do. `patterns.py` recognises the causes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qwen_wsgi.errors import Failure, Scope

#: The cause on which `chat_attempt` repeats a request without its pictures, sound and video.
INPUT_REFUSED: Final = "input_refused"

#: Statuses that mean to our client what the upstream meant by them. 401 is not among them: it is
#: the proxy's account that was refused, and a client would look for the fault in its own key.
_UNDERSTOOD: Final = frozenset({400, 403, 404, 409, 413, 422, 500, 502, 503, 504})


#: The cause of a plan whose window is spent: its fallback answers, if it has one.
PLAN_SPENT: Final = "plan_window_spent"

#: The client's code where an account's credential is refused.
REFUSED_CODE: Final = "upstream_account_refused"


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause of failures and what follows from it.

    Attributes:
        name: a stable word of at most 20 characters.
        meaning: what is wrong, as half a sentence.
        scope, retry, elsewhere, wait_s, remedy, doubtful: as in `errors.Failure`.
        status: the client's status.
        keeps_status: the upstream's own status is passed on instead, where a client understands it.
        type, code, param: the client's; None passes the upstream's own on.
        should_retry: the client's `x-should-retry`.
        retry_after_s: the client's `Retry-After` where the upstream names no time.
        template: the client's message. `{message}` is what the upstream reported, as a sentence;
            `{why}` the same for parentheses; `{account}` the account's name.
    """

    name: str
    meaning: str
    scope: Scope
    retry: bool
    elsewhere: bool
    status: int
    keeps_status: bool = False
    type: str | None = None
    code: str | None = None
    param: str | None = None
    wait_s: float | None = None
    should_retry: bool | None = None
    retry_after_s: float | None = None
    template: str = "{message}"
    remedy: str = ""
    doubtful: bool = False

    def failure(self, wait_s: float | None = None, reset_s: float | None = None) -> Failure:
        """What it means for the calls to come.

        Args:
            wait_s: the time that the upstream named, or None.
            reset_s: the same, if it is longer than anybody is left alone.
        """
        if reset_s is None:
            reset_s = wait_s
        if self.scope is Scope.REQUEST:
            wait_s = None
        elif wait_s is None:
            wait_s = self.wait_s
        return Failure(
            self.name,
            self.scope,
            self.retry,
            self.elsewhere,
            wait_s,
            self.remedy,
            self.doubtful,
            reset_s=reset_s,
        )

    @property
    def refuses_account(self) -> bool:
        """Whether the upstream does not accept the account's credential."""
        return self.code == REFUSED_CODE

    def status_for(self, upstream_status: int | None) -> int:
        """The client's status for a status of the upstream."""
        same_kind = upstream_status is not None and upstream_status // 100 == self.status // 100
        if self.keeps_status and same_kind and upstream_status in _UNDERSTOOD:
            return upstream_status
        return self.status


def _request(
    name: str,
    meaning: str,
    status: int = 400,
    *,
    code: str | None = None,
    param: str | None = None,
    template: str = "{message}",
) -> Cause:
    """A fault of the request: no other account will take it."""
    return Cause(
        name,
        meaning,
        Scope.REQUEST,
        retry=False,
        elsewhere=False,
        status=status,
        keeps_status=code is None and status == 400,
        type="invalid_request_error" if code else None,
        code=code,
        param=param,
        template=template,
    )


def _throttle(
    name: str,
    meaning: str,
    template: str,
    remedy: str,
    *,
    retry_after_s: float | None,
    scope: Scope = Scope.ACCOUNT_MODEL,
    wait_s: float | None = None,
) -> Cause:
    """A rate limit: it passes. Without `retry_after_s` not soon enough for a client's SDK."""
    return Cause(
        name,
        meaning,
        scope,
        retry=True,
        elsewhere=True,
        status=429,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        wait_s=wait_s,
        should_retry=False if retry_after_s is None else None,
        retry_after_s=retry_after_s,
        template="{message} " + template,
        remedy=remedy,
    )


def _spent(
    name: str,
    meaning: str,
    template: str,
    remedy: str,
    *,
    scope: Scope = Scope.ACCOUNT,
    wait_s: float | None = None,
) -> Cause:
    """Money or quota is used up: more attempts do not help.

    The client gets OpenAI's `insufficient_quota`, at which SDKs and agents stop.
    """
    return Cause(
        name,
        meaning,
        scope,
        retry=False,
        elsewhere=True,
        status=429,
        type="insufficient_quota",
        code="insufficient_quota",
        wait_s=wait_s,
        should_retry=False,
        template="{message} " + template,
        remedy=remedy,
    )


def _refused(name: str, meaning: str, remedy: str) -> Cause:
    """The account's credential is refused; it is never the client's key (docs/decisions/003)."""
    return Cause(
        name,
        meaning,
        Scope.ACCOUNT,
        retry=False,
        elsewhere=True,
        status=502,
        type="upstream_error",
        code=REFUSED_CODE,
        should_retry=False,
        template="The upstream refused the credential of the proxy's account '{account}' ({why}). "
        f"Your own key is fine. For the operator of this proxy: {remedy} `qwen-proxy status` shows "
        "more.",
        remedy=remedy,
    )


def _model(name: str, meaning: str, status: int, says: str, remedy: str) -> Cause:
    """The account has no such model, or may not use it."""
    return Cause(
        name,
        meaning,
        Scope.ACCOUNT_MODEL,
        retry=False,
        elsewhere=True,
        status=status,
        type="invalid_request_error",
        code="model_not_found",
        param="model",
        wait_s=300.0,
        template="{message} " + says,
        remedy=remedy,
    )


def _upstream(
    name: str,
    meaning: str,
    status: int = 502,
    *,
    keeps_status: bool = False,
    remedy: str = "",
    sent: bool = True,
) -> Cause:
    """A failure of the upstream itself, or of the way to it.

    Args:
        sent: the upstream may have read the request, which may be what it fails on.
    """
    return Cause(
        name,
        meaning,
        Scope.UPSTREAM,
        retry=True,
        elsewhere=True,
        status=status,
        keeps_status=keeps_status,
        remedy=remedy,
        doubtful=sent,
    )


_LIST: Final[tuple[Cause, ...]] = (
    # --- the request -------------------------------------------------------------------------
    _request("bad_request", "the request is wrong as it is"),
    _request(
        "context_length",
        "the prompt is longer than the model's context",
        code="context_length_exceeded",  # agents compact their history when they see it
        param="messages",
        # OpenAI's words: some agents know the case by them.
        template="{message} The prompt exceeds this model's maximum context length: shorten or "
        "compact the conversation.",
    ),
    _request(
        "content_filter",
        "the upstream's content inspection refused it",
        code="content_filter",
        template="{message} The upstream's content inspection refused this, and will refuse it "
        "again.",
    ),
    _request(
        "no_web_search",
        "the model has no web search",
        code="web_search_unavailable",
        template="{message} Choose a model with a web search, leave the search out, or offer a "
        "tool of your own.",
    ),
    _request("too_large", "the request is larger than the upstream takes", 413),
    _request(INPUT_REFUSED, "the model reads no pictures, sound or video", param="messages"),
    Cause(
        "over_token_limit",
        "the request alone is more than the account's tokens per minute",
        Scope.REQUEST,
        retry=False,
        elsewhere=True,
        status=429,
        type="rate_limit_error",
        code="rate_limit_exceeded",
        should_retry=False,
        template="{message} Waiting does not help: send less at once.",
        remedy="Have the account's limit of tokens per minute raised.",
    ),
    Cause(
        "conflict",
        "something else is at work on the same thing",
        Scope.REQUEST,
        retry=True,
        elsewhere=False,
        status=409,
    ),
    Cause(
        # Of the request and not of the account: another client's User-Agent is accepted.
        "agents_only",
        "the plan serves coding agents only",
        Scope.REQUEST,
        retry=False,
        elsewhere=True,
        status=403,
        type="permission_error",
        code="coding_agents_only",
        should_retry=False,
        template="{message} The terms of the plan behind account '{account}' allow coding agents "
        "only, which it knows by their User-Agent; this proxy passes yours on as it is. Use a "
        "coding agent, or ask the operator of this proxy for an account without that rule.",
        remedy="The plan's terms allow interactive coding agents only and forbid shared keys; give "
        "other clients a pay-as-you-go key.",
    ),
    Cause(
        "unexpected",
        "the upstream, or something before it, refused in a way that is not known",
        Scope.REQUEST,
        retry=False,
        elsewhere=True,
        status=502,
        should_retry=False,
    ),
    Cause(
        "answer_too_large",  # `errors.AnswerTooLarge`
        "the answer is larger than the proxy takes",
        Scope.REQUEST,
        retry=False,
        elsewhere=False,
        status=502,
        code="upstream_too_large",
        should_retry=False,
        remedy="If such answers are wanted and the message names QWEN_PROXY_MAX_ANSWER, raise it; "
        "other limits are fixed.",
    ),
    # --- an account and a model --------------------------------------------------------------
    _throttle(
        "rate_limited",
        "too many requests were made for this model",
        "This is a limit of the rate of requests: wait a moment.",
        "Send fewer requests at a time, or add an account.",
        retry_after_s=5.0,
    ),
    _throttle(
        "tokens_limited",
        "the account's tokens per minute for this model are used up",
        "This is a limit of tokens per minute, and no matter of money: it recovers within a "
        "minute.",
        "Have the model's limit raised in the Model Studio console, or add an account.",
        retry_after_s=10.0,
    ),
    _throttle(
        "burst_limited",
        "requests came faster and faster",
        "Send requests at a steadier rate.",
        "Let fewer calls run at the same time.",
        retry_after_s=10.0,
    ),
    Cause(
        "overloaded",
        "the upstream has no capacity left for this model",
        Scope.ACCOUNT_MODEL,
        retry=True,
        elsewhere=True,
        status=503,
        retry_after_s=10.0,
    ),
    _spent(
        "free_tier_spent",
        "the account's free quota for this model is used up",
        "The free quota of account '{account}' for this model is used up. Use another model, or "
        "ask the operator of this proxy.",
        'Switch "free tier only" off in the Model Studio console to pay for the model, or use '
        "another one. On a Coding Plan this means that its own base URL is not set.",
        scope=Scope.ACCOUNT_MODEL,
        wait_s=600.0,
    ),
    _model(
        "model_not_found",
        "the account has no such model",
        404,
        "`GET /v1/models` lists what this proxy serves.",
        "Look up the model's exact name; plans are strict about upper and lower case.",
    ),
    _model(
        "model_denied",
        "the account may not use this model",
        403,
        "Account '{account}' of this proxy may not use the model: choose another one, or ask the "
        "operator of this proxy.",
        "Activate or apply for the model in the Model Studio console, or allow it to the key's "
        "workspace.",
    ),
    Cause(
        "denied",
        "the account may not do this",
        Scope.ACCOUNT_MODEL,
        retry=False,
        elsewhere=True,
        status=403,
        doubtful=True,
    ),
    Cause(
        "not_found",
        "the upstream knows nothing of the kind",
        Scope.ACCOUNT_MODEL,
        retry=False,
        elsewhere=True,
        status=404,
        doubtful=True,
    ),
    Cause(
        # Not of the whole account: on some hosts only some paths are missing (no embeddings on a
        # Coding Plan), or only some models have another path.
        "wrong_address",
        "the account's base URL does not lead to this service",
        Scope.ACCOUNT_MODEL,
        retry=False,
        elsewhere=True,
        status=502,
        should_retry=False,
        template="{message} The account's base URL is probably wrong.",
        remedy="Check the account's base URL; `qwen-proxy status` shows it.",
        doubtful=True,
    ),
    # --- an account --------------------------------------------------------------------------
    _throttle(
        "concurrency_limited",
        "the account has as many calls in flight as its plan allows",
        "The plan allows so many calls at a time, which changes with its load.",
        "Let fewer calls run at the same time (QWEN_PROXY_ACCOUNT_IN_FLIGHT).",
        retry_after_s=5.0,
        scope=Scope.ACCOUNT,
        wait_s=2.0,
    ),
    _throttle(
        "usage_limited",
        "the plan throttles the account after heavy use",
        "The plan throttles heavy use for a while, as a rule for an hour.",
        "Wait (as a rule an hour), or add an account without a plan.",
        retry_after_s=None,
        scope=Scope.ACCOUNT,
        wait_s=600.0,
    ),
    _spent(
        PLAN_SPENT,
        "the plan is used up until its window of hours, a week or a month ends",
        "The plan behind account '{account}' is used up until its window ends. Another model of "
        "the same plan does not help.",
        "Wait until the window ends, upgrade the plan, or add an account.",
        # Some plans that say so without a time serve again after minutes (seen).
        wait_s=300.0,
    ),
    _spent(
        "billing",
        "the account cannot pay",
        "Account '{account}' of this proxy cannot pay for the call; the operator of this proxy "
        "must settle the bill.",
        "Settle the account's bill or top it up; it takes some minutes to be noticed.",
    ),
    _spent(
        "login_quota_spent",
        "the free quota of the Qwen login is used up",
        "The free quota of the Qwen login '{account}' is used up; the operator of this proxy can "
        "add an API key.",
        "Free Qwen OAuth ended on 2026-04-15: use an API key.",
        wait_s=600.0,
    ),
    _refused(
        "key_refused",
        "the key is not accepted",
        "Check the key, and the base URL: a Model Studio key works only in its own region, a "
        "plan's key only at its plan's host.",
    ),
    _refused(
        "plan_key_refused",
        "the plan does not accept the key",
        "Use the key of this very plan (`sk-sp-…`; Coding Plan and Token Plan keys look alike and "
        "are not interchangeable) and region, and see that the subscription still runs.",
    ),
    _refused(
        "key_not_for_host",
        "a key of a plan was sent to the pay-as-you-go host",
        "A plan's key (`sk-sp-…`) works only with the base URL of its plan and region.",
    ),
    _refused(
        "login_refused",
        "the Qwen login is not accepted",
        "Log in again (`qwen-proxy login`). If a fresh login is refused, too: free Qwen OAuth "
        "ended on 2026-04-15, and an API key is needed.",
    ),
    _refused(
        "workspace_refused",
        "the key is not of this workspace",
        "Check the workspace in the base URL, and that the key belongs to it.",
    ),
    _refused(
        "account_blocked",
        "the vendor has locked the account",
        "Ask the vendor's support; a breach of the plan's terms may be the reason.",
    ),
    Cause(
        "challenge",
        "the upstream's firewall asks for a captcha",
        Scope.ACCOUNT,
        retry=False,
        elsewhere=True,
        status=502,
        type="upstream_error",
        code="upstream_challenge",
        wait_s=900.0,
        should_retry=False,
        template="{message} It is the upstream's firewall, which wants proof of a human. This "
        "proxy neither solves nor evades that; the operator of this proxy can see more with "
        "`qwen-proxy doctor`.",
        remedy="Wait, send less, and see whether the address that this machine calls from is "
        "blocked. A challenge is never evaded.",
    ),
    Cause(
        "bad_url",
        "the account's base URL cannot be used",
        Scope.ACCOUNT,
        retry=False,
        elsewhere=True,
        status=502,
        code="upstream_bad_url",
        should_retry=False,
        remedy="Correct the account's base URL; `qwen-proxy status` shows it.",
    ),
    # --- the upstream ------------------------------------------------------------------------
    _upstream("internal_error", "the upstream failed inside", keeps_status=True),
    _upstream("bad_gateway", "a gateway before the upstream failed", keeps_status=True),
    _upstream("timeout", "the upstream took too long", 504),
    _upstream("connection_lost", "the upstream lost its connection to us or to its own parts"),
    _upstream(
        "no_answer",
        "the upstream answered with something that is no answer",
        remedy="If it lasts, check the account's base URL; `qwen-proxy status` shows it.",
    ),
    # --- no answer came: by the codes of http/transport.py and client.py -----------------------
    _upstream(
        "unreachable", "the upstream cannot be reached", remedy="Check the network.", sent=False
    ),
    _upstream("connect_timeout", "the upstream accepts no connection", 504, sent=False),
    _upstream("closed", "the upstream closed the connection without an answer"),
    _upstream("broken", "the upstream's answer broke off"),
    _upstream("empty", "the upstream's answer was empty"),
    _upstream(
        "tls",
        "the TLS connection to the upstream failed",
        remedy="Check the base URL, the machine's clock, and REQUESTS_CA_BUNDLE.",
        sent=False,
    ),
    _upstream("proxy", "the HTTP proxy in between failed", remedy="Check HTTPS_PROXY.", sent=False),
)

#: Every cause, by its name.
CAUSES: Final[Mapping[str, Cause]] = {cause.name: cause for cause in _LIST}


def remedy_of(cause: str) -> str:
    """What the operator can do about a cause; "" for nothing, or a cause that is not of here."""
    row = CAUSES.get(cause)
    return "" if row is None else row.remedy
