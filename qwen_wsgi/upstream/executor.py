"""One chat call, from the client's request to an upstream's answer: what the host needs changed,
who is asked, what is put together of the answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from qwen_wsgi.clock import Clock
from qwen_wsgi.greenlets import in_order
from qwen_wsgi.protocol import chat, sse
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.chat import ChatRequest, ChunkStream, Completion, functions
from qwen_wsgi.protocol.chat.completion import combined
from qwen_wsgi.protocol.chat.functions import LegacyChunkStream
from qwen_wsgi.protocol.json_object import JsonObject, JsonObjectError, compact
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.adapt import Adapted, Options, Target, adapt
from qwen_wsgi.upstream.client import Answer, OpenStream, UpstreamClient
from qwen_wsgi.upstream.retry import Course, Retrier
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.router import Plan, Route, Router

#: What a change of the request is called after which the answer has to be changed back.
_LEGACY: Final = "functions:as-tools"

#: Seeds that Model Studio takes.
_SEEDS: Final = 2**31


@dataclass
class ChatCall:
    """What a client asks, and what becomes of it.

    Attributes:
        request: in the chat dialect.
        headers: of the client, for the upstream.
        pinned: the account that the client named, or "".
        conversation: tells which conversation it belongs to, in the board's terms.
        changed: what the translation from the client's dialect changed or dropped.
        course: filled in as the call goes on.
    """

    request: ChatRequest
    headers: Mapping[str, str]
    pinned: str = ""
    conversation: Callable[[], bytes] | None = None
    changed: tuple[str, ...] = ()
    course: Course = field(default_factory=Course)


class Executor:
    """Carries chat calls to upstreams; shared by all greenlets of a worker, keeps no state."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        attempts: Retrier,
        client: UpstreamClient,
        clock: Clock,
    ) -> None:
        self._options = Options(strict=settings.strict, cache_control=settings.cache_control)
        self._router = router
        self._attempts = attempts
        self._client = client
        self._clock = clock

    def plan(self, call: ChatCall) -> Plan:
        """Who may answer.

        Raises:
            ApiError: nobody may.
        """
        return self._router.plan(
            call.request.model, pinned=call.pinned, conversation=call.conversation
        )

    def stream(self, call: ChatCall, plan: Plan) -> OpenStream:
        """An answer whose first event is there; its owner must close it.

        Several choices of a model that gives one at a time come when the last of them is complete.

        Raises:
            ApiError: nobody answered; nothing was sent to the client yet.
        """
        if (count := self._choices(call, plan)) > 1:
            whole = self._several(call, plan, count)
            return _streamed(whole, hide_usage=not call.request.wants_usage)
        return self._open(call, plan, hide_usage=not call.request.wants_usage)

    def complete(self, call: ChatCall, plan: Plan) -> Answer:
        """A whole answer.

        Raises:
            ApiError: nobody answered, or the answer broke off.
        """
        if (count := self._choices(call, plan)) > 1:
            return _answer(self._several(call, plan, count))
        return self._one(call, plan)

    def _choices(self, call: ChatCall, plan: Plan) -> int:
        """How many calls the client's one has to be split into, for `n` choices."""
        asked = call.request.body.get("n")
        if not isinstance(asked, int) or asked <= 1:
            return 1
        # Whoever answers in the end: a model that gives several itself is then asked for one, too.
        return max(self._adapted(call, route, stream=True).fan_out for route in plan.routes)

    def _adapted(self, call: ChatCall, route: Route, *, stream: bool) -> Adapted:
        account = route.account
        target = Target(
            family=account.family,
            model=route.model,
            explicit=account.explicit,
            search=route.search,
            thinking=route.thinking,
        )
        return adapt(call.request, target, self._options, stream=stream)

    def _body(self, call: ChatCall, route: Route, *, stream: bool) -> bytes:
        adapted = self._adapted(call, route, stream=stream)
        renamed: tuple[str, ...] = ()
        if route.model != call.request.model:
            renamed = (f"model:{header_token(route.model)}",)
        call.course.changed = (*call.changed, *renamed, *adapted.changed)
        return chat.upstream_body(
            call.request,
            model=route.model,
            stream=stream,
            changes=adapted.changes,
            drop=adapted.drop,
        )

    def _open(self, call: ChatCall, plan: Plan, *, hide_usage: bool) -> OpenStream:
        return self._attempts.run(
            plan,
            lambda route, place: self._ask_stream(call, route, place, hide_usage=hide_usage),
            call.course,
        )

    def _ask_stream(
        self, call: ChatCall, route: Route, place: Slot, *, hide_usage: bool
    ) -> OpenStream:
        body = self._body(call, route, stream=True)
        name = call.request.model or route.model
        kind = LegacyChunkStream if _LEGACY in call.course.changed else ChunkStream
        chunks = kind(
            hide_usage=hide_usage,
            normalize=route.account.family.is_qwen,
            model=(route.model, name) if name != route.model else None,
        )
        stream = self._client.open_stream(route.account, body, headers=call.headers, chunks=chunks)
        stream.place = place
        stream.on_failure = partial(self._attempts.failed_late, route)
        call.course.connect_s = stream.connect_s
        call.course.first_at = self._clock.monotonic()
        return stream

    def _one(self, call: ChatCall, plan: Plan) -> Answer:
        def ask(route: Route, place: Slot) -> OpenStream | Answer:
            if self._client.asks_stream(route.account):
                return self._ask_stream(call, route, place, hide_usage=False)
            body = self._body(call, route, stream=False)
            answer = self._client.whole(route.account, body, headers=call.headers)
            place.leave()
            if _LEGACY in call.course.changed:
                value = functions.completion(answer.value)
                answer = replace(answer, body=compact(value).encode(), value=value)
            name = call.request.model or route.model
            return _named(answer, name) if name != route.model else answer

        answer = self._attempts.run(plan, ask, call.course)
        if isinstance(answer, Answer):
            return answer
        route = call.course.route
        assert route is not None  # it has answered
        try:
            completion = self._client.aggregate(route.account, answer)
            answer.drain()
        finally:
            answer.close()
        return self._rendered(call, route, completion, answer.upstream_request_id)

    def _rendered(
        self, call: ChatCall, route: Route, completion: Completion, upstream_id: str
    ) -> Answer:
        value = completion.render(
            id="chatcmpl-" + (upstream_id or "0"),
            model=call.request.model or route.model,
            created=int(self._clock.now()),
        )
        if _LEGACY in call.course.changed:
            value = functions.completion(value)
        return Answer(compact(value).encode(), completion.usage, upstream_id, value)

    def _several(self, call: ChatCall, plan: Plan, count: int) -> list[Answer]:
        """One answer for each choice, all at a time; the first failure ends them all."""
        calls = [
            replace(call, request=request, course=Course(client=call.course.client))
            for request in _singles(call.request, count)
        ]
        answers: list[Answer] = []
        try:
            works = [partial(self._one, each, plan) for each in calls]
            for answer in in_order(works, at_a_time=len(works)):
                answers.append(answer)  # noqa: PERF402  # so many, if one of them fails
        finally:
            _note(call.course, [each.course for each in calls], len(answers))
        return answers


def _named(answer: Answer, name: str) -> Answer:
    """A whole answer with the client's name for the model, however the upstream spells its own."""
    value = {**answer.value, "model": name}
    try:
        body = JsonObject(answer.body).render({"model": name})
    except JsonObjectError:
        body = compact(value).encode()  # what Python reads is more than JSON: NaN, for one
    return replace(answer, body=body, value=value)


def _note(course: Course, parts: list[Course], answered: int) -> None:
    """Tell of a call that was split: all its attempts, and the account of the part that failed, or
    of the first one."""
    course.count = sum(part.count for part in parts)
    decisive = parts[answered % len(parts)]
    course.route = decisive.route or next((part.route for part in parts if part.route), None)
    course.changed = decisive.changed


def _singles(request: ChatRequest, count: int) -> list[ChatRequest]:
    """One request for each choice. With one seed, which hosts also have by default, they would all
    be the same choice."""
    asked = request.body.get("seed")
    first = asked if isinstance(asked, int) else random.randrange(_SEEDS)
    return [
        replace(
            request,
            body=JsonObject(request.body.render({"seed": (first + i) % _SEEDS}, drop=("n",))),
        )
        for i in range(count)
    ]


def _answer(answers: list[Answer]) -> Answer:
    whole = combined([answer.value for answer in answers])
    return Answer(
        compact(whole).encode(),
        parse_usage(whole.get("usage")),
        answers[0].upstream_request_id,
        whole,
    )


def _streamed(answers: list[Answer], *, hide_usage: bool) -> OpenStream:
    """Whole answers as a stream that is complete already."""
    answer = _answer(answers)
    chunks = ChunkStream(hide_usage=hide_usage, normalize=False)
    events = b"".join(chat.chunks_of(answer.value, with_usage=True)) + sse.DONE
    return OpenStream(
        reader=None,
        chunks=chunks,
        first=chunks.feed(events),
        upstream_request_id=answer.upstream_request_id,
    )
