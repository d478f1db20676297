"""Carries an answer of several turns: the model, tools of the proxy, the model again.

Each turn is a chat call of its own, on the road of every other one (executor, open stream). What
lies between two turns is done here, and one encoder shows all of it as one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, TypeVar

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError, forget_frames
from qwen_wsgi.greenlets import Task
from qwen_wsgi.protocol.chat import ChatRequest
from qwen_wsgi.protocol.encoder import Encoder, Outcome, ServerCall
from qwen_wsgi.protocol.usage import total
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.chat_attempt import ChatCall
from qwen_wsgi.upstream.executor import Executor
from qwen_wsgi.upstream.open_stream import OpenStream
from qwen_wsgi.upstream.relay import Relay, failed_late
from qwen_wsgi.upstream.routing.router import Plan

T = TypeVar("T")

#: Turns of the model in one answer. Each costs the whole conversation again; a model that still
#: calls tools then is going in circles, so the last turn is offered none.
MOST_TURNS: Final = 6


class TurnEncoder(Encoder, Protocol):
    """An encoder that shows several turns as one answer.

    After the events of a turn comes `end_turn`; then `begin_call` and `end_call` for each of
    `waiting`; then `next_turn`. `end` comes where that is None.
    """

    def end_turn(self) -> bytes:
        """Encode the end of a turn, which need not be the answer's."""

    def waiting(self) -> Sequence[ServerCall]:
        """The calls of the ended turn that the proxy is to carry out, in their order."""

    def begin_call(self, call: ServerCall) -> bytes:
        """Encode that a call is being carried out."""

    def end_call(self, call: ServerCall, outcome: Outcome) -> bytes:
        """Encode how it ended."""

    def next_turn(self, *, last: bool) -> ChatRequest | None:
        """The request of the next turn; None if the answer is over.

        Args:
            last: no tool of the proxy may be called any more.
        """


class ServerTool(Protocol):
    """A tool that the proxy runs."""

    #: How often it may run in one answer.
    most: int
    #: What its runs are called in the record: `pictures`.
    unit: str

    def run(self, call: ServerCall, record: CallRecord) -> Outcome:
        """Carry out a call. May wait; is broken off wherever it waits if the client goes.

        Args:
            record: of this run alone: `attempts` are added to those of the whole call.

        Raises:
            ApiError: the outcome is this failure.
        """


class Turns:
    """What the turns of one answer share: who makes them, and which tools there are.

    Args:
        tools: by the names that `ServerCall.tool` has.
    """

    def __init__(
        self,
        executor: Executor,
        call: ChatCall,
        plan: Plan,
        encoder: TurnEncoder,
        tools: Mapping[str, ServerTool],
    ) -> None:
        self.encoder = encoder
        self._executor = executor
        self._call = call
        self._plan = plan
        self._tools = tools
        self._runs = dict.fromkeys(tools, 0)
        self._made = dict.fromkeys(tools, 0)
        self._turns = 1
        #: The records of the turns after the first one, and those of tools.
        self._later: list[CallRecord] = []
        self._of_tools: list[CallRecord] = []

    def open_first(self) -> OpenStream:
        """Open the first turn. Raises as `Executor.stream`."""
        return self._executor.stream(self._call, self._plan)

    def open_next(self) -> Callable[[], OpenStream] | None:
        """What opens the next turn; None if the answer is over."""
        spent = self._turns + 1 >= MOST_TURNS or all(
            self._runs[name] >= tool.most for name, tool in self._tools.items()
        )
        request = self.encoder.next_turn(last=spent)
        if request is None or self._turns >= MOST_TURNS:
            return None
        self._turns += 1
        record = self._call.record.part()
        self._later.append(record)
        call = replace(self._call, request=request, record=record)
        return partial(self._executor.stream, call, self._plan)

    def run(self, call: ServerCall) -> Outcome:
        """Carry out a call; a failure is an outcome."""
        tool = self._tools[call.tool]
        if self._runs[call.tool] >= tool.most:
            return Outcome(failure=_too_many(tool.unit, tool.most))
        self._runs[call.tool] += 1
        record = self._call.record.part()
        self._of_tools.append(record)
        try:
            outcome = tool.run(call, record)
        except ApiError as error:
            forget_frames(error)
            return Outcome(failure=error)
        self._made[call.tool] += outcome.failure is None
        return outcome

    @property
    def has_made(self) -> bool:
        """Whether a tool has run with success."""
        return any(self._made.values())

    def settle(self) -> None:
        """Add the later turns and the tools to the record of the call, once, at its end."""
        record = self._call.record
        later, of_tools = self._later, self._of_tools
        self._later, self._of_tools = [], []
        if later:
            record.usage = total([record.usage, *(each.usage for each in later)])
        record.add_requests((*later, *of_tools))
        for each in (*later, *of_tools):
            record.attempts += each.attempts
            record.queued_s += each.queued_s
        made = [
            (tool.unit, count)
            for name, tool in self._tools.items()
            if (count := self._made.pop(name, 0))
        ]
        record.units += tuple(made)


class TurnRelay(Relay):
    """A relay for an answer of several turns. Tools and later turns run in tasks of their own, so
    that keep-alives flow meanwhile; whatever runs when the client goes is stopped by `close`."""

    def __init__(
        self,
        turns: Turns,
        *,
        settings: Settings,
        clock: Clock,
        record: CallRecord,
        write_record: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            turns.open_first,
            settings=settings,
            clock=clock,
            encoder=turns.encoder,
            record=record,
            write_record=write_record,
        )
        self._turns = turns
        #: The tool or the opening of a turn that is under way.
        self._running: Task[Outcome] | Task[OpenStream] | None = None

    def complete(self) -> None:
        """Carry the answer to its end for a client that takes it as a whole: the encoder has it.

        After a tool has made something, which is billed, a failure is told in the answer, beside
        what was made; a client that got an error alone would have it made again.

        Raises:
            ApiError: it failed before.
        """
        self._opening.wait(None)
        self._stream = first = self._opening.take()
        try:
            for _ in self._carry(first):
                pass
        except ApiError as error:
            if self._stream is not None:
                self._stream.on_failure(error)
            if not self._turns.has_made:
                raise
            self._encoder.fail(failed_late(error, self._record))

    def close(self) -> None:
        try:
            if self._running is not None:
                self._running.cancel()
        finally:
            try:
                super().close()
            finally:
                self._turns.settle()

    def _carry(self, stream: OpenStream, end: Callable[[], bytes] | None = None) -> Iterator[bytes]:
        encoder = self._turns.encoder
        while True:
            yield from filter(None, super()._carry(stream, encoder.end_turn))
            # Its slot is free while tools run, and what fails from here on is not its failure.
            stream.close()
            self._stream = None
            for call in encoder.waiting():
                yield encoder.begin_call(call)
                running = Task(partial(self._turns.run, call), discard=lambda outcome: None)
                yield from self._wait_for(running)
                yield encoder.end_call(call, running.take())
            if (open_next := self._turns.open_next()) is None:
                break
            opening = Task(open_next, discard=OpenStream.close)
            yield from self._wait_for(opening)
            self._stream = stream = opening.take()
        last = encoder.end()
        self._record.outcome = "complete"
        self._settle()
        yield last

    def _settle(self) -> None:
        self._turns.settle()
        super()._settle()

    def _wait_for(self, task: Task[Outcome] | Task[OpenStream]) -> Iterator[bytes]:
        """Keep-alives until a task has ended."""
        settings, self._running = self._settings, task
        wait_s = None if settings.keepalive == "off" else settings.keepalive_interval_s
        while not task.wait(wait_s):
            self._record.keepalives += 1
            yield self._encoder.keep_alive(settings.keepalive)


def _too_many(unit: str, most: int) -> ApiError:
    return ApiError(
        f"No more {unit} in this answer: the limit is {most}. Tell the user, who may ask for more.",
        status=429,
        code="too_many_tool_calls",
    )
