"""One real call for one token, made as a client's call is made, and what its failure means."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import qwen_wsgi.protocol.chat as chat
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.capabilities import is_chat_model
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.doctor.clocks import Sighting, sighting
from qwen_wsgi.doctor.findings import Level
from qwen_wsgi.errors import (
    AccountUnavailable,
    ApiError,
    CredentialError,
    Failure,
    Scope,
    UpstreamError,
)
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.refused_inputs import RefusedInputs
from qwen_wsgi.upstream.chat_attempt import ChatAttempt, ChatCall
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.http.download import Downloads
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.routing.router import Route
from qwen_wsgi.upstream.web.attempt import WebAttempt
from qwen_wsgi.upstream.web.chats import WebChats
from qwen_wsgi.upstream.web.site import WebSite
from qwen_wsgi.upstream.web.uploads import WebUploads

#: A model that needs longer for one token is of no use to a person who waits.
FIRST_BYTE_S: Final = 60.0
IDLE_S: Final = 30.0

#: Parts of the names of cheap, fast models, the best first.
_CHEAP: Final = ("qwen-flash", "qwen-turbo", "flash", "turbo", "lite", "mini", "small", "plus")
#: How much of an upstream's message is quoted.
_QUOTED_CHARS: Final = 300

_TIER_CLOSED: Final = (
    "Qwen closed the free OAuth tier on 2026-04-15: a login still seems to succeed, but every "
    "call is refused"
)
_KEY_INSTEAD: Final = (
    "Use an API key of Model Studio: put DASHSCOPE_API_KEY into the server's environment or into "
    "~/.qwen/settings.json. To remove the login: delete ~/.qwen/oauth_creds.json, then "
    "`qwen-proxy creds forget`."
)
_TEMPORARY: Final = "This passes by itself: wait a few minutes and run doctor again."
_REPORT: Final = "Try another model of this account; if none works, report this line."


class Diagnosis(NamedTuple):
    """What a failure means to the operator."""

    level: Level
    what: str
    remedy: str
    #: A stable word; "" where the cause is unknown.
    cause: str = ""


class NotingTransport(Transport):
    """The ordinary transport, which also records the upstreams' `Date` headers."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        super().__init__(settings)
        self._clock = clock
        #: By host.
        self.sightings: dict[str, Sighting] = {}

    def send(self, method: str, token: AccessToken, *args: Any, **kwargs: Any) -> Any:
        response = super().send(method, token, *args, **kwargs)
        seen = sighting(response.headers.get("date", ""), self._clock.now())
        if seen is not None:
            self.sightings[urlsplit(token.base_url).netloc] = seen
        return response


class TokenProbe:
    """Requests one token from an account. Thread-safe."""

    def __init__(self, settings: Settings, transport: Transport, clock: Clock) -> None:
        settings = replace(
            settings,
            first_byte_timeout_s=min(settings.first_byte_timeout_s, FIRST_BYTE_S),
            idle_timeout_s=min(settings.idle_timeout_s, IDLE_S),
        )
        client = UpstreamClient(settings, transport, clock)
        site = WebSite(settings, transport, clock)
        # In strict mode `max_tokens` would be refused, which the web API does not have.
        web = WebAttempt(
            replace(settings, strict=False),
            site,
            WebChats(site),
            WebUploads(settings, site, Downloads(settings, transport), clock),
            clock,
        )
        self._attempt = ChatAttempt(settings, client, clock, RefusedInputs(None), web)

    def request(self, account: Account, model: str) -> int | None:
        """Make the call and return the tokens that it used, None if the upstream reports none.

        Raises:
            ApiError: it failed.
        """
        value = {
            "model": model,
            "messages": [{"role": "user", "content": "Say one word."}],
            "max_tokens": 1,
        }
        request = chat.parse_request(JsonObject(json.dumps(value).encode()))
        record = CallRecord()
        call, route = ChatCall(request, {}, record), Route(account, model)
        try:
            self._attempt.complete(call, route)
        except UpstreamError as error:
            if error.failure is None or not error.failure.at_once:
                raise
            self._attempt.complete(call, route)
        return record.usage.total if record.usage else None


def chat_models(ids: Iterable[str]) -> list[str]:
    """The chat models among these, the cheapest first, as far as names show."""

    def price_rank(id: str) -> int:
        name = id.lower()
        return next((n for n, word in enumerate(_CHEAP) if word in name), len(_CHEAP))

    return sorted(filter(is_chat_model, ids), key=price_rank)


def meaning(error: ApiError) -> Diagnosis:
    """What a failed call means, and what to do."""
    if isinstance(error, AccountUnavailable):
        return _of_credential(error)
    failure = error.failure if isinstance(error, UpstreamError) else None
    cause = CAUSES.get(failure.cause) if failure is not None else None
    if failure is None or cause is None:
        return Diagnosis(Level.FAIL, quoted(error.message), _REPORT)
    in_short = f"({cause.name}; clients get HTTP {error.status})"
    what = f"{cause.meaning} {in_short}"
    # Without an answer from the upstream, our own message says what happened on the way to it.
    detail = quoted(isinstance(error, UpstreamError) and error.upstream_message or error.message)
    if detail.lower().startswith(cause.meaning.lower()):
        what = f"{detail.rstrip('.')} {in_short}"
    elif detail.rstrip(".") != cause.meaning:
        what += f": {detail}"
    if _passes(failure):
        return Diagnosis(Level.WARN, what, cause.remedy or _TEMPORARY, cause.name)
    if cause.name == "agents_only":
        # The key works: the upstream refuses doctor's User-Agent, and accepts a coding agent's.
        return Diagnosis(Level.WARN, what, cause.remedy, cause.name)
    return Diagnosis(Level.FAIL, what, cause.remedy or _remedy(failure), cause.name)


def quoted(text: str) -> str:
    """Text from outside, on one line and cut to a readable length."""
    text = " ".join(text.split())
    return text if len(text) <= _QUOTED_CHARS else text[: _QUOTED_CHARS - 1] + "…"


def tier_closed() -> Diagnosis:
    """The diagnosis for a login whose tier is closed."""
    return Diagnosis(Level.FAIL, _TIER_CLOSED, _KEY_INSTEAD, "oauth_tier_closed")


def _of_credential(error: AccountUnavailable) -> Diagnosis:
    if error.code == "oauth_tier_closed":
        return tier_closed()
    cause = error.__cause__
    if isinstance(cause, CredentialError):
        remedy = cause.remedy or "`qwen-proxy status` shows more."
        return Diagnosis(Level.FAIL, quoted(str(cause)), remedy, cause.code)
    return Diagnosis(Level.FAIL, quoted(error.message), "`qwen-proxy status` shows more.")


def _passes(failure: Failure) -> bool:
    """Whether it is only a throttle: the account works, and is busy."""
    return failure.retry and failure.scope in (Scope.ACCOUNT, Scope.ACCOUNT_MODEL)


def _remedy(failure: Failure) -> str:
    if failure.scope is Scope.UPSTREAM:
        return "The upstream or the network in between has failed: try again in a few minutes."
    return _REPORT
