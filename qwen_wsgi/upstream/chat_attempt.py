"""One attempt of a chat call at one account: the request as its host needs it, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from qwen_wsgi.access.cache_policy import CachePolicy
from qwen_wsgi.access.permit import EVERYTHING, Permit
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.greenlets import apart
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import chat
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.changes import header_token
from qwen_wsgi.protocol.chat import ChatRequest, ChunkStream, functions, renamed_tools
from qwen_wsgi.protocol.chat.completion import mended
from qwen_wsgi.protocol.chat.functions import LegacyChunkStream
from qwen_wsgi.protocol.chat.renamed_tools import (
    CustomChunkStream,
    RenamedChunkStream,
    RenamedLegacyChunkStream,
    WholeCustomStream,
)
from qwen_wsgi.protocol.json_access import integer
from qwen_wsgi.protocol.json_object import (
    LEAST_LONG_BYTES,
    LONG_BYTES,
    JsonObjectError,
    encoded,
    with_members,
)
from qwen_wsgi.protocol.usage import parse as parse_usage
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.refused_inputs import PROVED_S, SUSPECTED_S, RefusedInputs
from qwen_wsgi.upstream.adapt import Adapted, Options, Target, adapt, leaves_alone, media
from qwen_wsgi.upstream.adapt.draft import UNCHANGED
from qwen_wsgi.upstream.client import CHAT_PATH, UpstreamClient
from qwen_wsgi.upstream.failures.causes import INPUT_REFUSED
from qwen_wsgi.upstream.open_stream import OpenStream
from qwen_wsgi.upstream.routing.affinity import evidence_of
from qwen_wsgi.upstream.routing.router import Route
from qwen_wsgi.upstream.web.attempt import WebAttempt


@dataclass(slots=True)  # a frozen one would take a call for each member, with each request
class ChatCall:
    """A chat request with what belongs to it. Nobody changes it.

    Attributes:
        headers: of the client, for the upstream.
        record: filled in as the call goes on.
        permit: what the call may use.
        conversation: computes the call's key for affinity.
        changed: what the translation from the client's dialect changed or dropped.
        size: shared by the parts of a call, whose answers become one; None for a call of one part.
        account_of_file: the name of the account that has a file of the client, by the file's id;
            None for a file that it has not.
        cache: what it may do with the response cache; None: nothing.
    """

    request: ChatRequest
    headers: Mapping[str, str]
    record: CallRecord
    permit: Permit = EVERYTHING
    conversation: Callable[[], bytes] | None = None
    changed: tuple[str, ...] = ()
    size: AnswerSize | None = None
    account_of_file: Callable[[str], str | None] = lambda id: None
    cache: CachePolicy | None = None

    def evidence(self) -> bytes:
        """Names the request, see `affinity.evidence_of`."""
        conversation = b"" if self.conversation is None else self.conversation()
        return evidence_of(conversation, self.request.body)


class ChatAnswer:
    """A whole `chat.completion`.

    Attributes:
        value: what other dialects render.

    Args:
        source: its bytes, where they are the upstream's own.
        name: the client's name for the model, where the source has another one. It is put into the
            source, so that numbers stay as they are written; a large one is rendered anew.
    """

    __slots__ = ("_name", "_source", "value")

    def __init__(self, value: dict[str, Any], source: bytes = b"", name: str = "") -> None:
        self.value = value if not name else {**value, "model": name}
        self._source = b"" if name and len(source) >= LONG_BYTES else source
        self._name = name

    @property
    def body(self) -> bytes:
        """Its bytes; rendered here, because most dialects do not need them."""
        if not self._source:
            return encoded(self.value)
        if not self._name:
            return self._source
        try:
            return with_members(self._source, {"model": self._name})
        except JsonObjectError:  # what Python reads is more than JSON: NaN, for one
            return encoded(self.value)


class ChatAttempt:
    """Makes single attempts; shared by all greenlets of a worker.

    Args:
        refused_inputs: what models refused to read; the attempts add to it.
        web: makes the attempts at web accounts; None where there are none.
    """

    def __init__(
        self,
        settings: Settings,
        client: UpstreamClient,
        clock: Clock,
        refused_inputs: RefusedInputs,
        web: WebAttempt | None = None,
    ) -> None:
        self._web = web
        self._options = Options(strict=settings.strict, cache_control=settings.cache_control)
        # Model Studio cuts other calls at 300 s and returns the part as a success.
        self._always_streams = settings.upstream_stream == "always"
        self._may_stream = settings.upstream_stream == "auto"
        self._client = client
        self._clock = clock
        self._refused_inputs = refused_inputs

    def asks_stream(self, route: Route) -> bool:
        """Whether a whole answer is put together from a stream at this account."""
        family = route.account.family
        return family is Family.WEB or self._always_streams or (self._may_stream and family.is_qwen)

    def fan_out(self, call: ChatCall, route: Route) -> int:
        """Into how many calls this one has to be split for the choices that it asks for."""
        if route.account.family is Family.WEB:
            return integer(call.request.body.get("n")) or 1
        return self._adapted(call, route, stream=True).fan_out

    def open(
        self, call: ChatCall, route: Route, *, hide_usage: bool, whole: bool = False
    ) -> OpenStream:
        """Open a stream and wait for its first event; the caller must close it.

        Args:
            whole: it is for `read_whole`.

        Raises:
            ApiError: the account did not answer.
        """
        if route.account.family is Family.WEB:
            assert self._web is not None, "there are no web accounts"
            return self._web.open(
                route,
                call.request,
                headers=call.headers,
                record=call.record,
                changed=call.changed,
                hide_usage=hide_usage,
            )
        body, adapted = self._prepared(call, route, stream=True)
        name = call.request.model or route.model
        chunks = _chunks(
            adapted,
            whole=whole,
            hide_usage=hide_usage,
            normalize=route.account.family.is_qwen,
            model=(route.model, name) if name != route.model else None,
        )
        try:
            stream = self._client.open_stream(
                route.account, body, headers=call.headers, chunks=chunks, record=call.record
            )
        except UpstreamError as error:
            self._learn(error, call, route)
            raise
        if adapted.left_out:
            try:
                self._prove(route, adapted.left_out)
            except BaseException:
                stream.close()
                raise
        return stream

    def read_whole(self, call: ChatCall, route: Route, stream: OpenStream) -> ChatAnswer:
        """Read an open stream to its end, and put the whole answer together; the caller closes it.

        Raises:
            UpstreamError: it broke off.
        """
        try:
            completion = stream.completion(call.size)
        finally:
            stream.close()  # now: rendering a long answer takes its time
        value = completion.render(
            id=call.record.completion_id,
            model=call.request.model or route.model,
            created=int(self._clock.now()),
        )
        if isinstance(stream.chunks, LegacyChunkStream):
            value = functions.completion(value)
        elif isinstance(stream.chunks, WholeCustomStream):
            value = stream.chunks.turned_back(value)
        return ChatAnswer(value)

    def ask_whole(self, call: ChatCall, route: Route) -> ChatAnswer:
        """Ask for a whole answer; only what clients cannot use is changed, and the model's name.

        Raises:
            ApiError: the account did not answer.
        """
        body, adapted = self._prepared(call, route, stream=False)
        try:
            answer = self._client.send(
                route.account,
                "POST",
                CHAT_PATH,
                body,
                headers=call.headers,
                request_id=call.record.request_id,
                size=call.size,
            )
        except UpstreamError as error:
            self._learn(error, call, route)
            raise
        if adapted.left_out:
            self._prove(route, adapted.left_out)
        call.record.usage = parse_usage(answer.value.get("usage"))
        call.record.upstream_request_id = answer.upstream_request_id
        value = mended(answer.value)
        if adapted.renamed or adapted.customs:
            value = renamed_tools.completion(value, adapted.renamed, adapted.customs)
        if adapted.legacy_functions:
            value = functions.completion(value)
        name = call.request.model or route.model
        source = answer.body if value is answer.value else b""
        return ChatAnswer(value, source, name if name != route.model else "")

    def complete(self, call: ChatCall, route: Route) -> ChatAnswer:
        """A whole answer of this account, whichever way it gives one.

        Raises:
            ApiError: the account did not answer, or its answer broke off.
        """
        if not self.asks_stream(route):
            return self.ask_whole(call, route)
        stream = self.open(call, route, hide_usage=False, whole=True)
        try:
            return self.read_whole(call, route, stream)
        finally:
            stream.close()

    def _learn(self, error: UpstreamError, call: ChatCall, route: Route) -> None:
        """Note that the model reads no pictures, sound or video, if its host says so, and let the
        request be repeated without them. In strict mode the refusal stands."""
        failure = error.failure
        if failure is None or failure.cause != INPUT_REFUSED or self._options.strict:
            return
        account = route.account
        inputs = media.inputs_in(call.request.body.get("messages"))
        inputs -= self._refused_inputs.of(account.name, account.base_url, route.model)
        if not inputs:
            return
        refused = media.refused_by(error.upstream_message, inputs)
        self._refused_inputs.remember(
            account.name, account.base_url, route.model, refused, believed_s=SUSPECTED_S
        )
        error.failure = replace(failure, retry=True, at_once=True)

    def _prove(self, route: Route, inputs: frozenset[str]) -> None:
        """The request succeeded without them: the refusal spoke of them, and is remembered."""
        account = route.account
        self._refused_inputs.remember(
            account.name, account.base_url, route.model, inputs, believed_s=PROVED_S
        )

    def _adapted(self, call: ChatCall, route: Route, *, stream: bool) -> Adapted:
        account = route.account
        refused = self._refused_inputs.of(account.name, account.base_url, route.model)
        if leaves_alone(call.request, account.family, route.model, refused):
            return UNCHANGED
        target = Target(
            family=account.family,
            model=route.model,
            search=route.search,
            thinking=route.thinking,
            refused=refused,
            flex=account.batch_wait_s is not None,
        )
        return adapt(call.request, target, self._options, stream=stream)

    def _prepared(self, call: ChatCall, route: Route, *, stream: bool) -> tuple[bytes, Adapted]:
        """The body for an account; what was changed for it is recorded."""
        sent = call.request.body
        if len(sent.source) >= LEAST_LONG_BYTES and sent.is_long:
            body, adapted = apart(partial(self._rendered, call, route, stream=stream))
        else:
            body, adapted = self._rendered(call, route, stream=stream)
        renamed: tuple[str, ...] = ()
        if route.model != call.request.model:
            renamed = (f"model:{header_token(route.model)}",)
        call.record.changed = (*call.changed, *renamed, *adapted.changed)
        return body, adapted

    def _rendered(self, call: ChatCall, route: Route, *, stream: bool) -> tuple[bytes, Adapted]:
        adapted = self._adapted(call, route, stream=stream)
        body = chat.upstream_body(
            call.request,
            model=route.model,
            stream=stream,
            changes=adapted.changes,
            drop=adapted.drop,
        )
        return body, adapted


def _chunks(
    adapted: Adapted,
    *,
    whole: bool,
    hide_usage: bool,
    normalize: bool,
    model: tuple[str, str] | None,
) -> ChunkStream:
    """The stream that turns back what was adapted."""
    if not (adapted.customs or adapted.renamed or adapted.legacy_functions):
        return ChunkStream(hide_usage=hide_usage, normalize=normalize, model=model)
    if adapted.customs:
        custom = WholeCustomStream if whole else CustomChunkStream
        return custom(
            names=adapted.renamed,
            customs=adapted.customs,
            hide_usage=hide_usage,
            normalize=normalize,
            model=model,
        )
    if adapted.renamed:
        renamed = RenamedLegacyChunkStream if adapted.legacy_functions else RenamedChunkStream
        return renamed(
            names=adapted.renamed, hide_usage=hide_usage, normalize=normalize, model=model
        )
    return LegacyChunkStream(hide_usage=hide_usage, normalize=normalize, model=model)
