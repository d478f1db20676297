"""A real call for one token, as the product makes it, and what its failure means."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import qwen_wsgi.protocol.chat as chat
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
)
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.adapt import Options, Target, adapt
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.failures.causes import CAUSES, Cause
from qwen_wsgi.upstream.http.transport import Transport

#: A model that needs longer for one token is of no use to anybody who waits.
FIRST_BYTE_S: Final = 60.0
IDLE_S: Final = 30.0

#: Cheap and quick, the best first: found anywhere in a model's name.
_CHEAP: Final = ("qwen-flash", "qwen-turbo", "flash", "turbo", "lite", "mini", "small", "plus")
#: No chat models, by their names.
_NO_CHAT: Final = re.compile(
    r"embed|rerank|image|wanx|wan\d|video|tts|asr|audio|speech|voice|realtime|livetranslate"
    r"|omni|ocr|-mt-|^bge|whisper|moderation",
    re.IGNORECASE,
)

#: How much of an upstream's own words is quoted.
_QUOTED_CHARS: Final = 300

_TIER_CLOSED: Final = (
    "Qwen closed the free OAuth tier on 2026-04-15: logging in still seems to work, but every "
    "call is refused"
)
_KEY_INSTEAD: Final = (
    "Use an API key of Model Studio: put DASHSCOPE_API_KEY into the server's environment or into "
    "~/.qwen/settings.json. To be rid of the login: remove ~/.qwen/oauth_creds.json, then "
    "`qwen-proxy creds forget`."
)
#: What a client is told of a failed connection, at the end; who reads this is that operator.
_TO_CLIENTS: Final = " The operator of this proxy must look at it."
_PASSES: Final = "It passes by itself: wait some minutes and run this again."
_OURS: Final = "Ask this account for another model; if none works, report it with these words."


class Diagnosis(NamedTuple):
    """What a failure means for whoever runs the box."""

    level: Level
    what: str
    remedy: str
    #: A stable word, "" where there is none.
    cause: str = ""


class NotingTransport(Transport):
    """The product's transport, that remembers what time the upstreams said it was."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        super().__init__(settings)
        self._clock = clock
        #: By host.
        self.sightings: dict[str, Sighting] = {}

    def post(
        self,
        token: AccessToken,
        path: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        read_timeout_s: float,
    ) -> Any:
        response = super().post(token, path, body, headers=headers, read_timeout_s=read_timeout_s)
        seen = sighting(response.headers.get("date", ""), self._clock.now())
        if seen is not None:
            self.sightings[urlsplit(token.base_url).netloc] = seen
        return response


class OneToken:
    """Asks accounts for one token. Thread-safe."""

    def __init__(self, settings: Settings, transport: Transport, clock: Clock) -> None:
        settings = replace(
            settings,
            first_byte_timeout_s=min(settings.first_byte_timeout_s, FIRST_BYTE_S),
            idle_timeout_s=min(settings.idle_timeout_s, IDLE_S),
        )
        self._client = UpstreamClient(settings, transport, clock)
        self._options = Options(strict=settings.strict, cache_control=settings.cache_control)

    def ask(self, account: Account, model: str) -> int | None:
        """Make the call; the tokens that it used, None where the upstream does not tell.

        Raises:
            ApiError: it failed.
        """
        stream = self._client.asks_stream(account)
        body = self._body(account, model, stream=stream)
        if not stream:
            answer = self._client.whole(account, body, headers={})
            return answer.usage.total if answer.usage else None
        chunks = chat.ChunkStream(hide_usage=False, normalize=account.family.is_qwen)
        opened = self._client.open_stream(account, body, headers={}, chunks=chunks)
        try:
            completion = self._client.aggregate(account, opened)
            opened.drain()
        finally:
            opened.close()
        return completion.usage.total if completion.usage else None

    def _body(self, account: Account, model: str, *, stream: bool) -> bytes:
        asked = {
            "model": model,
            "messages": [{"role": "user", "content": "Say one word."}],
            "max_tokens": 1,
            "stream": stream,
        }
        request = chat.parse_request(JsonObject(json.dumps(asked).encode()))
        target = Target(family=account.family, model=model, explicit=account.explicit)
        adapted = adapt(request, target, self._options, stream=stream)
        return chat.upstream_body(
            request, model=model, stream=stream, changes=adapted.changes, drop=adapted.drop
        )


def chat_models(ids: Iterable[str]) -> list[str]:
    """The chat models among these, the cheapest first, as far as names tell."""

    def dear(id: str) -> int:
        name = id.lower()
        return next((n for n, word in enumerate(_CHEAP) if word in name), len(_CHEAP))

    return sorted((id for id in ids if not _NO_CHAT.search(id)), key=dear)


def meaning(error: ApiError) -> Diagnosis:
    """What a failed call means, and what to do."""
    if isinstance(error, AccountUnavailable):
        return _of_credential(error)
    failure = classify.failure_of(error)
    cause = CAUSES.get(failure.cause) if failure is not None else None
    if failure is None or cause is None:
        return Diagnosis(Level.FAIL, quoted(error.message), _OURS)
    said = quoted(said_in(error.message, cause).removesuffix(_TO_CLIENTS))
    what = f"{cause.meaning} ({cause.name}; clients get HTTP {error.status})"
    if said and said.rstrip(".") != cause.meaning:
        what += f": {said}"
    if _passes(failure):
        return Diagnosis(Level.WARN, what, cause.remedy or _PASSES, cause.name)
    if cause.name == "agents_only":
        # Another program's User-Agent is let in, and the key is good.
        return Diagnosis(Level.WARN, what, cause.remedy, cause.name)
    return Diagnosis(Level.FAIL, what, cause.remedy or _remedy(failure), cause.name)


def said_in(message: str, cause: Cause) -> str:
    """What the upstream itself said, out of the message that a client would get."""
    pattern = re.escape(cause.says)
    for name in ("said", "why", "account"):
        group = f"(?P<{name}>.*?)" if name != "account" else ".*?"
        pattern = pattern.replace(re.escape("{" + name + "}"), group, 1)
        pattern = pattern.replace(re.escape("{" + name + "}"), ".*?")
    found = re.fullmatch(pattern, message, re.DOTALL)
    told = found.groupdict() if found else {}
    return str(told.get("said") or told.get("why") or ("" if found else message)).strip()


def quoted(text: str) -> str:
    """Somebody's words on one line, and not too many of them."""
    text = " ".join(text.split())
    return text if len(text) <= _QUOTED_CHARS else text[: _QUOTED_CHARS - 1] + "…"


def tier_closed() -> Diagnosis:
    """What it means that a login's tier is closed."""
    return Diagnosis(Level.FAIL, _TIER_CLOSED, _KEY_INSTEAD, "oauth_tier_closed")


def _of_credential(error: AccountUnavailable) -> Diagnosis:
    if error.code == "oauth_tier_closed":
        return tier_closed()
    cause = error.__cause__
    if isinstance(cause, CredentialError):
        remedy = cause.remedy or "`qwen-proxy status` tells more."
        return Diagnosis(Level.FAIL, quoted(str(cause)), remedy, cause.code)
    return Diagnosis(Level.FAIL, quoted(error.message), "`qwen-proxy status` tells more.")


def _passes(failure: Failure) -> bool:
    """A throttle: the account is good, and busy."""
    return failure.retry and failure.scope in (Scope.ACCOUNT, Scope.ACCOUNT_MODEL)


def _remedy(failure: Failure) -> str:
    if failure.scope is Scope.UPSTREAM:
        return "It is the upstream's own trouble, or the way to it: try again in some minutes."
    return _OURS
