"""Carries out calls: which accounts may answer, the attempts, and calls that are split."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from qwen_wsgi.access.cache_policy import CachePolicy
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError, BadRequest, NotFound, UpstreamError, forget_frames
from qwen_wsgi.greenlets import in_order
from qwen_wsgi.protocol import chat, sse
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.chat import ChatRequest, ChunkStream
from qwen_wsgi.protocol.chat.completion import combined
from qwen_wsgi.protocol.files import READERS, ids_in
from qwen_wsgi.protocol.json_object import JsonObject, loads
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.refused_inputs import RefusedInputs
from qwen_wsgi.upstream.answer_cache import AnswerCache, Entry
from qwen_wsgi.upstream.chat_attempt import ChatAnswer, ChatAttempt, ChatCall
from qwen_wsgi.upstream.client import JsonAnswer, UpstreamClient
from qwen_wsgi.upstream.native_stream import NativeStream
from qwen_wsgi.upstream.open_stream import OpenStream
from qwen_wsgi.upstream.retry import Retrier, ask_no_more
from qwen_wsgi.upstream.routing.accounts import MODEL_DENIED, MODEL_NOT_FOUND
from qwen_wsgi.upstream.routing.batch_chat import BatchChat
from qwen_wsgi.upstream.routing.limiter import Slot
from qwen_wsgi.upstream.routing.router import Plan, Route, Router
from qwen_wsgi.upstream.web.attempt import WebAttempt

T = TypeVar("T")

#: Seeds that Model Studio takes.
_SEEDS: Final = 2**31

#: Causes of a failure after which the upstream may have done what it was asked for: its answer did
#: not come, or a gateway says so.
_LOST: Final = frozenset(
    {"timeout", "closed", "broken", "empty", "bad_gateway", "no_answer", "connection_lost"}
)
#: Behind the error of a call that is not repeated, and whose answer was lost.
_MAYBE_DONE: Final = " The work may have been done, and billed, so it was not asked for again."

#: Causes (`failures.causes`) that mean that Batch Chat does not serve a model.
_NO_SUCH_MODEL: Final = frozenset({MODEL_NOT_FOUND, MODEL_DENIED, "not_found", "wrong_address"})

#: Requests of one call that are under way at a time. Model Studio counts 30 a second for
#: text-embedding-v4; four at a time stay below that and make 200 as quick as 50.
_AT_A_TIME: Final = 4

#: To name a request of this size takes some 100 µs, and it is a tenth of what a stream holds.
_LARGE_BYTES: Final = 16 * 1024


@dataclass(frozen=True)
class UnaryCall:
    """A call that is answered by whole JSON answers of one account.

    Attributes:
        path: behind the account's base URL, or behind the host's name (`at_origin`), where the
            requests for an account name no other.
        headers: of the client, for the upstream.
        record: filled in as the call goes on.
        requests: makes the bodies to be sent to an account: all at this one, or all at another one.
        absent: causes of a failure that mean that the account has no such path. They end the call
            without an answer, and do not count against the account.
        on_absent: called with such a failure.
        once: what the upstream does costs as much again when it is repeated: a request that was
            sent in full, and has no answer, is not sent again.
        recover: for `once`: finds out what was done. Called with the account, when it was asked
            (seconds since 1970), and the failure. What it returns is the answer; None means that
            nothing was done, so that the request may be sent again.
        several: of several requests, those that are answered count: what was done is not thrown
            away for one that failed.
        cache: what it may do with the response cache; None: nothing.
    """

    path: str
    headers: Mapping[str, str]
    record: CallRecord
    requests: Callable[[Route], UnaryRequests]
    absent: Container[str] = ()
    on_absent: Callable[[UpstreamError], None] = lambda error: None
    at_origin: bool = False
    once: bool = False
    recover: Callable[[Route, float, UpstreamError], dict[str, Any] | None] | None = None
    several: bool = False
    cache: CachePolicy | None = None


class UnaryRequests(NamedTuple):
    """What is sent to one account, and what was changed of the client's request for it.

    Attributes:
        native_path: where it is sent behind the host's name, for models that are called elsewhere
            than `UnaryCall` says; else "".
        works: what is done in place of sending bodies, at an account of another protocol.
    """

    bodies: Sequence[bytes]
    changed: tuple[str, ...] = ()
    native_path: str = ""
    works: Sequence[Callable[[], JsonAnswer]] = ()


class UnaryAnswer(NamedTuple):
    """The answers of one account, in the order of the requests.

    Attributes:
        keep: keeps them in the response cache, where that applies; to be called when they have
            proved to be what they should be.
    """

    route: Route
    answers: tuple[JsonAnswer, ...]
    keep: Callable[[], None] = lambda: None


class Executor:
    """Carries out calls; shared by all greenlets of a worker, keeps no state."""

    def __init__(
        self,
        settings: Settings,
        router: Router,
        retrier: Retrier,
        client: UpstreamClient,
        clock: Clock,
        refused_inputs: RefusedInputs,
        batch_chat: BatchChat,
        cache: AnswerCache,
        web: WebAttempt | None = None,
    ) -> None:
        self._cache = cache
        self._batch_chat = batch_chat
        self._router = router
        self._retrier = retrier
        self._client = client
        self._clock = clock
        self._most_bytes = settings.max_answer_bytes
        self._attempt = ChatAttempt(settings, client, clock, refused_inputs, web)

    # --- chat --------------------------------------------------------------------------------

    def plan(self, call: ChatCall) -> Plan:
        """The accounts that may answer.

        Raises:
            ApiError: none may.
        """
        plan = self._router.plan(
            call.request.model,
            permit=call.permit,
            conversation=call.conversation,
            evidence=call.evidence,
        )
        for route in plan.routes:
            if route.model.startswith(READERS):
                plan = _where_its_files_are(call, plan)
                break
        return self._batch_chat.preferred(plan) if call.request.flex else plan

    def stream(self, call: ChatCall, plan: Plan) -> OpenStream:
        """Open a chat stream whose first event has arrived; its owner must close it.

        Several choices of a model that gives one at a time come when the last of them is complete.

        Raises:
            ApiError: no account answered; nothing was sent to the client yet.
        """
        if plan.ordinary is not None:
            return _at_half_price(plan, lambda each: self.stream(call, each))
        hide_usage = not call.request.wants_usage
        entry = self._cache.of_chat(call, plan)
        answer = None if entry is None else _cached(entry)
        if answer is None and (count := self._choices(call, plan)) > 1:
            answer = self._several(call, plan, count, entry)
        if answer is not None:
            return _streamed(answer, call.record, self._clock.monotonic, hide_usage=hide_usage)
        stream = self._retrier.run(
            plan,
            partial(self._open, call, plan, hide_usage=hide_usage),
            call.record,
            discard=OpenStream.close,
        )
        if entry is not None:
            stream.kept = entry.collecting()
        return stream

    def complete(self, call: ChatCall, plan: Plan) -> ChatAnswer:
        """Get a whole chat answer: as the upstream sends it, or put together from a stream.

        Raises:
            ApiError: no account answered, or the answer broke off.
        """
        if plan.ordinary is not None:
            return _at_half_price(plan, lambda each: self.complete(call, each))
        entry = None if call.cache is None else self._cache.of_chat(call, plan)
        if entry is not None and (kept := _cached(entry)) is not None:
            return kept
        several = call.request.body.get("n") is not None
        if several and (count := self._choices(call, plan)) > 1:
            return self._several(call, plan, count, entry)

        def ask(route: Route, slot: Slot) -> tuple[Route, OpenStream | ChatAnswer]:
            if self._attempt.asks_stream(route):
                return route, self._open(call, plan, route, slot, hide_usage=False, whole=True)
            return route, self._attempt.ask_whole(call, route)

        route, answer = self._retrier.run(plan, ask, call.record, discard=_discard)
        if isinstance(answer, ChatAnswer):
            whole = answer
        else:
            try:
                whole = self._attempt.read_whole(call, route, answer)
            finally:
                answer.close()
        if entry is not None:
            entry.keep_chat(whole.value, lambda: whole.body)
        return whole

    def complete_each(
        self,
        record: CallRecord,
        calls: Sequence[ChatCall],
        plan: Plan,
        *,
        at_a_time: int = _AT_A_TIME,
    ) -> list[ChatAnswer]:
        """Whole answers to the parts of a call, in their order.

        The first failure, or the client's going away, stops those that are under way.

        Args:
            record: of the whole call; the records of its parts are joined in it.
        """
        answers: list[ChatAnswer] = []
        size = AnswerSize()
        if record.budget is not None:
            record.budget.reserve(len(calls))
        try:
            works = (partial(self.complete, replace(each, size=size), plan) for each in calls)
            for answer in in_order(works, at_a_time=at_a_time):
                answers.append(answer)  # noqa: PERF402  # so many, if one of them fails
        finally:
            record.join([each.record for each in calls], complete=len(answers))
        return answers

    def _open(
        self,
        call: ChatCall,
        plan: Plan,
        route: Route,
        slot: Slot,
        *,
        hide_usage: bool,
        whole: bool = False,
    ) -> OpenStream:
        """Open a stream, which keeps the slot."""
        stream = self._attempt.open(call, route, hide_usage=hide_usage, whole=whole)
        try:
            stream.slot = slot.keep()
            kept = _without_large_body(plan, call)
            stream.on_failure = partial(self._retrier.failed_late, kept, route, slot.began)
        except BaseException:
            stream.close()
            raise
        return stream

    def _choices(self, call: ChatCall, plan: Plan) -> int:
        """Into how many calls the client's one has to be split, for `n` choices."""
        n = call.request.body.get("n")
        if not isinstance(n, int) or n <= 1:
            return 1
        # Whichever account answers in the end: a model that gives several choices itself is then
        # asked for one, too.
        return max(self._attempt.fan_out(call, route) for route in plan.routes)

    def _several(self, call: ChatCall, plan: Plan, count: int, entry: Entry | None) -> ChatAnswer:
        """One answer for each choice, all at a time, combined to one answer."""
        calls = [
            replace(call, request=request, record=call.record.part(), cache=None)
            for request in _singles(call.request, count)
        ]
        answers = self.complete_each(call.record, calls, plan, at_a_time=count)
        whole = combined([answer.value for answer in answers])
        call.record.usage = parse_usage(whole.get("usage"))
        answer = ChatAnswer(whole)
        if entry is not None:
            entry.keep_chat(whole, lambda: answer.body)
        return answer

    # --- whole JSON answers ------------------------------------------------------------------

    def unary(self, call: UnaryCall, plan: Plan) -> UnaryAnswer | None:
        """Get whole JSON answers of one account; usage and request id are recorded.

        Returns:
            None if the account has no such path (`UnaryCall.absent`).

        Raises:
            ApiError: no account answered.
        """

        def ask(route: Route, slot: Slot) -> UnaryAnswer | None:
            bodies, call.record.changed, native_path, own = call.requests(route)
            count = len(own or bodies)
            if call.record.budget is not None and count > 1:
                call.record.budget.reserve(count)
                call.record.budget.sent(count - 1)
            # Each has a bound of its own; together they are one answer.
            size = AnswerSize(self._most_bytes) if count > 1 else None
            post = partial(self._post, call, route, native_path, size)
            asked_at = self._clock.now()
            works = list(own) or [partial(post, body) for body in bodies]
            try:
                if len(works) == 1:
                    return UnaryAnswer(route, (works[0](),))
                if call.several:
                    return UnaryAnswer(route, _answered(works))
                return UnaryAnswer(route, tuple(in_order(works, at_a_time=_AT_A_TIME)))
            except UpstreamError as error:
                cause = "" if error.failure is None else error.failure.cause
                if cause in call.absent:
                    call.on_absent(error)
                    return None
                if call.recover is not None and cause in _LOST:
                    if (found := call.recover(route, asked_at, error)) is not None:
                        return UnaryAnswer(route, (JsonAnswer(b"", found, ""),))
                elif call.once and cause in _LOST:
                    ask_no_more(error, _MAYBE_DONE)
                raise

        entry = self._cache.of_unary(
            call.cache, plan, call.record, call.headers, call.path, partial(_sent, call)
        )
        if entry is not None and (kept := _cached_answer(entry)) is not None:
            return kept
        answer = self._retrier.run(plan, ask, call.record)
        if entry is None or answer is None:
            return answer
        bodies = [each.body for each in answer.answers]
        return answer._replace(keep=lambda: entry.keep(bodies))

    def native_stream(self, call: UnaryCall, plan: Plan) -> tuple[Route, NativeStream]:
        """Open a stream of JSON events, of the only request of a call; its owner must close it.

        Raises:
            ApiError: no account answered; nothing was sent to the client yet.
        """

        def ask(route: Route, slot: Slot) -> tuple[Route, NativeStream]:
            (body,), call.record.changed, *_ = call.requests(route)
            try:
                stream = self._client.open_native(
                    route.account,
                    call.path,
                    body,
                    headers=call.headers,
                    record=call.record,
                    at_origin=call.at_origin,
                )
            except UpstreamError as error:
                if call.once and error.failure is not None and error.failure.cause in _LOST:
                    ask_no_more(error, _MAYBE_DONE)
                raise
            stream.slot = slot.keep()
            stream.on_failure = partial(self._retrier.failed_late, plan, route, slot.began)
            return route, stream

        return self._retrier.run(plan, ask, call.record, discard=lambda asked: asked[1].close())

    def _post(
        self,
        call: UnaryCall,
        route: Route,
        native_path: str,
        size: AnswerSize | None,
        body: bytes,
    ) -> JsonAnswer:
        answer = self._client.post_json(
            route.account,
            native_path or call.path,
            body,
            headers=call.headers,
            at_origin=call.at_origin or bool(native_path),
            request_id=call.record.request_id,
            size=size,
        )
        call.record.usage = parse_usage(answer.value.get("usage"))
        call.record.upstream_request_id = answer.upstream_request_id
        return answer


def _sent(call: UnaryCall, route: Route) -> tuple[str, Sequence[bytes]]:
    """What is sent to an account, and where if not to the call's own path."""
    requests = call.requests(route)
    return requests.native_path, requests.bodies


def _cached(entry: Entry) -> ChatAnswer | None:
    """The chat answer that is kept for a call, or None."""
    if (found := entry.find()) is None:
        return None
    (body,) = found[1]
    return ChatAnswer(loads(body), body)


def _cached_answer(entry: Entry) -> UnaryAnswer | None:
    """The answers that are kept for a call, or None."""
    if (found := entry.find()) is None:
        return None
    route, bodies = found
    return UnaryAnswer(route, tuple(JsonAnswer(body, loads(body), "") for body in bodies))


def _answered(works: Sequence[Callable[[], JsonAnswer]]) -> tuple[JsonAnswer, ...]:
    """The answers of those that succeed; the first failure if none does."""

    def tried(work: Callable[[], JsonAnswer]) -> JsonAnswer | ApiError:
        try:
            return work()
        except ApiError as error:
            forget_frames(error)
            return error

    ended = list(in_order([partial(tried, work) for work in works], at_a_time=_AT_A_TIME))
    answers = tuple(each for each in ended if isinstance(each, JsonAnswer))
    if not answers:
        raise next(each for each in ended if isinstance(each, ApiError))
    return answers


def _at_half_price(plan: Plan, run: Callable[[Plan], T]) -> T:
    """Run a call at Batch Chat, or as usual if no account there has the model.

    No other failure leads to the full price, which the client did not ask for.
    """
    assert plan.ordinary is not None
    try:
        return run(replace(plan, ordinary=None))
    except UpstreamError as error:
        if error.failure is None or error.failure.cause not in _NO_SUCH_MODEL:
            raise
        forget_frames(error)
    return run(plan.ordinary)


def _where_its_files_are(call: ChatCall, plan: Plan) -> Plan:
    """The plan for a call whose texts may name files: at the account that has them, if they are the
    client's own. The account would read any file that it has.

    Raises:
        NotFound: one is not the client's.
        BadRequest: no account that may answer has them all.
    """
    accounts = set()
    for id in ids_in(call.request.body.get("messages")):
        if (account := call.account_of_file(id)) is None:
            raise NotFound(
                f"No such File object: {id}. Files belong to the key that uploaded them through "
                "this proxy.",
                param="messages",
                code="not_found",
            )
        accounts.add(account)
    if not accounts:
        return plan
    routes = tuple(route for route in plan.routes if {route.account.name} == accounts)
    if not routes:
        raise BadRequest(
            f"The files of this request are at {', '.join(sorted(accounts))}, and no account that "
            "may answer it has all of them. Upload them to one (header x-qwen-account).",
            param="messages",
        )
    return replace(plan, routes=routes)


def _without_large_body(plan: Plan, call: ChatCall) -> Plan:
    """A plan for as long as its stream lasts. It is asked what names the request if the stream
    fails; a large request is named now, so that nothing holds its body until the end."""
    if plan.evidence is None or len(call.request.body.source) < _LARGE_BYTES:
        return plan
    named = plan.evidence()
    return replace(plan, evidence=lambda: named)


def _discard(asked: tuple[Route, OpenStream | ChatAnswer]) -> None:
    """Free an answer that nobody takes."""
    if isinstance(asked[1], OpenStream):
        asked[1].close()


def _singles(request: ChatRequest, count: int) -> list[ChatRequest]:
    """One request for each choice. With one seed, which hosts also have by default, they would all
    be the same choice."""
    seed = request.body.get("seed")
    first = seed if isinstance(seed, int) else random.randrange(_SEEDS)
    return [
        replace(
            request,
            body=JsonObject(request.body.render({"seed": (first + i) % _SEEDS}, drop=("n",))),
        )
        for i in range(count)
    ]


def _streamed(
    answer: ChatAnswer,
    record: CallRecord,
    monotonic: Callable[[], float],
    *,
    hide_usage: bool,
) -> OpenStream:
    """A whole answer as a stream that is complete already."""
    chunks = ChunkStream(hide_usage=hide_usage, normalize=False)
    stream = OpenStream(None, chunks, record, monotonic=monotonic)
    stream.begin(chunks.feed(b"".join([*chat.chunks_of(answer.value, with_usage=True), sse.DONE])))
    return stream
