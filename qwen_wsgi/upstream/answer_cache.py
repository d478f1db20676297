"""The response cache: identical requests of one client, answered with what was answered before.

Two requests are identical if they say the same to the same model at the same host, however the
members of their JSON are ordered; whether the answer is wanted as a stream is not a part of that.
An answer is kept as a whole, when it is complete; a stream is made of it again. It belongs to one
client, whose id is in its key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from qwen_wsgi.access.cache_policy import CachePolicy
from qwen_wsgi.accounting.record import HIT, MISS, CallRecord
from qwen_wsgi.errors import AnswerTooLarge, ApiError, forget_frames
from qwen_wsgi.greenlets import apart
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.chat import ChatRequest, ChunkStream, Completion
from qwen_wsgi.protocol.json_access import objects
from qwen_wsgi.protocol.json_object import LONG_BYTES, JsonObject, elements, encoded, loads
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.database.cached_answers import CachedAnswers
from qwen_wsgi.upstream.chat_attempt import ChatCall
from qwen_wsgi.upstream.routing.router import Plan, Route

#: A part of each key: after a change of what keys mean, what was kept before is not found.
_VERSION: Final = "1"
#: Accounts of a plan whose answers are looked for.
_MOST_ROUTES: Final = 8
#: Members that choose only in which form an answer comes.
_FORM: Final = ("stream", "stream_options")
#: Finishes of answers that another attempt would end in the same way.
_FINISHES: Final = frozenset({"stop", "length", "tool_calls"})
_DASHSCOPE: Final = "x-dashscope-"


class Entry:
    """The place of one call in the cache.

    Args:
        routes: the accounts that may answer, each with its key.
    """

    def __init__(
        self,
        store: CachedAnswers,
        policy: CachePolicy,
        record: CallRecord,
        routes: Sequence[tuple[Route, bytes]],
    ) -> None:
        self._store = store
        self._policy = policy
        self._record = record
        self._routes = routes

    def find(self) -> tuple[Route, list[bytes]] | None:
        """The bodies that were kept, and the account that stands for them; None if there are none.
        It is noted in the call's record."""
        record, policy = self._record, self._policy
        record.cache = MISS
        if not policy.reads:
            return None
        found = self._store.get([key for _, key in self._routes], policy.ttl_s)
        if found is None:
            return None
        try:
            bodies = elements(found.body)
        except ValueError:
            return None
        route = self._routes[found.at][0]
        record.cache = HIT
        record.account, record.upstream_model = route.account.name, route.model
        return route, bodies

    def keep(self, bodies: Sequence[bytes]) -> None:
        """Keep what the account has answered that the record names last."""
        record, policy = self._record, self._policy
        if not policy.keeps or sum(map(len, bodies)) > self._store.largest:
            return
        for route, key in self._routes:
            if (route.account.name, route.model) == (record.account, record.upstream_model):
                body = b"[" + b",".join(bodies) + b"]"
                self._store.put(policy.owner, key, body, policy.ttl_s)
                return

    def keep_chat(self, value: Mapping[str, Any], body: Callable[[], bytes]) -> None:
        """Keep a whole chat answer, if it is one.

        Args:
            body: renders it.
        """
        if is_whole(value):
            self.keep([body()])

    def collecting(self) -> Collecting:
        """Collects a stream, to be kept at its end."""
        return Collecting(self, self._store.largest)


class Collecting:
    """Collects what a stream brings, beside its way to the client; an answer that is too large is
    let go."""

    def __init__(self, entry: Entry, largest: int) -> None:
        self._entry = entry
        self._completion: Completion | None = Completion(AnswerSize(largest))

    def passing(self, feed: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        """An encoder's `feed` that also collects."""

        def both(events: bytes) -> bytes:
            self._add(events)
            return feed(events)

        return both

    def _add(self, events: bytes) -> None:
        completion = self._completion
        if completion is None:
            return
        try:
            for event in sse.events(events):
                chunk = sse.parse(event)
                if isinstance(chunk, dict):
                    completion.add(chunk)
        except AnswerTooLarge as error:
            forget_frames(error)
            self._completion = None

    def complete(self, chunks: ChunkStream, *, id: str, model: str, created: int) -> None:
        """Keep the answer: its stream has ended well.

        Args:
            chunks: of the stream; it has the usage that was hidden from the client.
            id, model, created: as for `Completion.render`.
        """
        completion, self._completion = self._completion, None
        if completion is None:
            return
        if completion.usage is None and (usage := chunks.hidden_usage) is not None:
            completion.add({"usage": usage})
        value = completion.render(id=id, model=model, created=created)
        self._entry.keep_chat(value, partial(encoded, value))


class AnswerCache:
    """Finds the places of calls in the cache; shared by all greenlets of a worker, keeps no
    state."""

    def __init__(self, settings: Settings, store: CachedAnswers) -> None:
        self._store = store
        self._options = (settings.strict, settings.cache_control)

    def of_chat(self, call: ChatCall, plan: Plan) -> Entry | None:
        """The place of a chat call; None where the cache does not apply."""
        policy = call.cache
        if policy is None or not is_repeatable(call.request):
            return None
        make = partial(self._chat_key, call, policy)
        try:
            key = apart(make) if call.request.body.is_long else make()
        except (RecursionError, ValueError):
            return None
        routes = [(route, _at(key, route)) for route in plan.routes[:_MOST_ROUTES]]
        return Entry(self._store, policy, call.record, routes)

    def of_unary(
        self,
        policy: CachePolicy | None,
        plan: Plan,
        record: CallRecord,
        headers: Mapping[str, str],
        path: str,
        bodies_of: Callable[[Route], tuple[str, Sequence[bytes]]],
    ) -> Entry | None:
        """The place of a call with whole JSON answers; None where the cache does not apply.

        Args:
            path: where requests are sent.
            bodies_of: another path or "", and the requests, for an account.
        """
        if policy is None:
            return None
        routes = []
        for route in plan.routes[:_MOST_ROUTES]:
            try:
                native_path, bodies = bodies_of(route)
                key = digest(policy.owner, "unary", [native_path or path, _switches(headers)])
                for body in bodies:
                    key.update(_canonical_of(body))
            except ApiError as error:
                forget_frames(error)  # if this account is asked, its client is told
                continue
            except (RecursionError, ValueError):
                continue
            routes.append((route, _at(key, route)))
        return Entry(self._store, policy, record, routes) if routes else None

    def _chat_key(self, call: ChatCall, policy: CachePolicy) -> hashlib._Hash:
        request = call.request
        # All that has a part in what is sent, and in how the answer is turned back.
        said = [
            loads(request.body.render(drop=_FORM)),
            sorted(request.added),
            None if request.origins is None else dict(request.origins),
            dict(request.documents),
            request.flex,
            _switches(call.headers),
            self._options,
        ]
        return digest(policy.owner, "chat", said)


def is_repeatable(request: ChatRequest) -> bool:
    """Whether a request wants the same answer each time, as far as a model can: with a seed, or
    with temperature 0.

    What depends on more than the request is not: the web of that moment. Neither are functions of
    the old form and custom tools, whose answers are turned back as they come.
    """
    if not is_fixed(request.body):
        return False
    return not (request.searches or request.customs or "functions" in request.body)


def is_fixed(body: JsonObject) -> bool:
    """Whether a request leaves nothing to chance: it has temperature 0, or a seed."""
    temperature = body.get("temperature")
    is_zero = temperature.__class__ in (int, float) and temperature == 0
    return is_zero or body.get("seed") is not None


def is_whole(value: Mapping[str, Any]) -> bool:
    """Whether a chat answer may be given again: each choice has ended as the model wanted, or at
    the client's limit."""
    finishes = [choice.get("finish_reason") for choice in objects(value.get("choices"))]
    return bool(finishes) and all(
        isinstance(finish, str) and finish in _FINISHES for finish in finishes
    )


def canonical(value: Any) -> bytes:
    """A JSON value as bytes that do not depend on the order of members.

    Raises:
        RecursionError, ValueError: it is nested too deep.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def digest(owner: str, kind: str, said: Any) -> hashlib._Hash:
    """The beginning of a key: who says what. Raises as `canonical`."""
    return hashlib.sha256(canonical([_VERSION, owner, kind, said]))


def _canonical_of(body: bytes) -> bytes:
    value = loads(body)
    text = apart(partial(canonical, value)) if len(body) >= LONG_BYTES else canonical(value)
    return b"%d:%b" % (len(text), text)


def _at(key: hashlib._Hash, route: Route) -> bytes:
    """The key at an account. Another account of the same host gives the same answer."""
    own = key.copy()
    place = [route.account.base_url, route.model, route.search, route.thinking]
    own.update(canonical(place))
    return own.digest()


def _switches(headers: Mapping[str, str]) -> dict[str, str]:
    """The client's switches of DashScope, which may change an answer."""
    return {
        name.lower(): value
        for name, value in headers.items()
        if name.lower().startswith(_DASHSCOPE)
    }
