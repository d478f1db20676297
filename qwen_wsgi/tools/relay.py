"""Carries an answer of several turns: the model, tools of the proxy, the model again.

Each turn is a chat call of its own, on the road of every other one (executor, open stream). What
lies between two turns is done here, and one encoder shows all of it as one answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, TypeVar

from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError, forget_frames
from qwen_wsgi.greenlets import Task, in_order
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

#: Turns of the model in one answer with pictures. Each costs the whole conversation again; a model
#: that still calls tools then is going in circles, so the last turn is offered none.
MOST_TURNS: Final = 6

#: Calls of tools of one answer that run at a time.
AT_A_TIME: Final = 8


class TurnEncoder(Encoder, Protocol):
    """An encoder that shows several turns as one answer.

    After the events of a turn comes `end_turn`; then `begin_call` and `end_call` for each of
    `waiting`, of which several may be under way; then `next_turn`. `end` comes where that is None,
    or after `stop`.

    Attributes:
        tells_failures: a whole answer that fails late has a form of its own in this dialect, with
            what was done before; else the client gets the error alone.
    """

    tells_failures: bool

    def approved(self) -> Sequence[ServerCall]:
        """The calls of an earlier answer that are to be carried out before the first turn."""

    def resume(self, outcomes: Sequence[Outcome]) -> ChatRequest:
        """The request of the first turn, with how the calls of `approved` ended."""

    def end_turn(self) -> bytes:
        """Encode the end of a turn, which need not be the answer's."""

    def waiting(self) -> Sequence[ServerCall]:
        """The calls of the ended turn that the proxy is to carry out, in their order."""

    def begin_call(self, call: ServerCall) -> bytes:
        """Encode that a call is being carried out."""

    def end_call(self, call: ServerCall, outcome: Outcome) -> bytes:
        """Encode how it ended."""

    def stop(self, error: ApiError) -> bytes:
        """Encode that none of `waiting` is carried out, and that the answer is cut off here."""

    def next_turn(self, *, last: bool) -> ChatRequest | None:
        """The request of the next turn; None if the answer is over.

        Args:
            last: no tool of the proxy may be called any more.
        """


class TurnTool(Protocol):
    """A tool that the proxy runs between turns."""

    #: How often it may run in one answer.
    most: int
    #: What its runs are called in the record: `pictures`.
    unit: str
    #: How many of its calls may run at a time.
    at_a_time: int

    def run(self, call: ServerCall, record: CallRecord) -> Outcome:
        """Carry out a call. May wait; is broken off wherever it waits if the client goes.

        Args:
            record: of this run alone: `attempts` are added to those of the whole call.

        Raises:
            ToolsUnavailable: no tool can run now: the answer fails.
            ApiError: the outcome is this failure.
        """


class ToolsUnavailable(ApiError):
    """What runs the tools cannot be used now: a fault of ours, which no model can answer for."""

    status = 503

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The tools of this server cannot be used now: {why}", code="tools_unavailable"
        )


class Bounds:
    """What limits the tools of one answer together.

    Args:
        rounds: turns of the model after which tools may run.
        seconds: from the first tool on.
    """

    def __init__(self, rounds: int, seconds: float, clock: Clock) -> None:
        self._rounds_left = self._rounds = rounds
        self._seconds = seconds
        self._clock = clock
        self._ends_at: float | None = None

    def begin_round(self) -> ApiError | None:
        """Begin a round of tools; if it is one too many, why no further tool may run."""
        if not self._rounds_left:
            return ApiError(
                f"The answer stops here: the limit of {self._rounds} rounds of tools in one answer "
                "is reached. Ask the model to go on.",
                status=429,
                code="tool_rounds_exceeded",
            )
        if self.left_s() <= 0:
            return ApiError(
                f"The answer stops here: the time for tools in one answer, {self._seconds:g} s, is "
                "over. Ask the model to go on.",
                status=429,
                code="tool_time_exceeded",
            )
        self._rounds_left -= 1
        return None

    def left_s(self) -> float:
        """The time that is left; the first question begins it."""
        now = self._clock.monotonic()
        if self._ends_at is None:
            self._ends_at = now + self._seconds
        return self._ends_at - now


class Turns:
    """What the turns of one answer share: who makes them, and which tools there are.

    Args:
        tools: by the names that `ServerCall.tool` has.
        bounds: None for pictures alone, which have limits of their own.
    """

    def __init__(
        self,
        executor: Executor,
        call: ChatCall,
        plan: Plan,
        encoder: TurnEncoder,
        tools: Mapping[str, TurnTool],
        bounds: Bounds | None = None,
    ) -> None:
        self.encoder = encoder
        self._bounds = bounds
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
        """Open the first turn, after the calls that the client has approved. Raises as
        `Executor.stream`, and ToolsUnavailable."""
        call = self._call
        if approved := self.encoder.approved():
            works = (partial(self.run, each) for each in approved)
            call = replace(
                call, request=self.encoder.resume(list(in_order(works, at_a_time=AT_A_TIME)))
            )
        return self._executor.stream(call, self._plan)

    def begin_round(self) -> ApiError | None:
        """Begin to carry out the calls of a turn; why that may not be, or None."""
        return None if self._bounds is None else self._bounds.begin_round()

    def open_next(self) -> Callable[[], OpenStream] | None:
        """What opens the next turn; None if the answer is over."""
        over = self._bounds is None and self._turns >= MOST_TURNS
        request = self.encoder.next_turn(last=self._is_spent())
        if request is None or over:
            return None
        self._turns += 1
        record = self._call.record.part()
        self._later.append(record)
        call = replace(self._call, request=request, record=record)
        return partial(self._executor.stream, call, self._plan)

    def _is_spent(self) -> bool:
        """Whether no tool may run any more, so that the next turn is offered none."""
        circles = self._bounds is None and self._turns + 1 >= MOST_TURNS
        return circles or all(self._runs[name] >= tool.most for name, tool in self._tools.items())

    def at_a_time(self, call: ServerCall) -> int:
        """How many calls may run while this one does, with it."""
        return self._tools[call.tool].at_a_time

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
        except ToolsUnavailable:
            raise
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
            record.count_tools(each.tools)
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
        #: The tools that are under way, in the order of their calls, and the opening of a turn.
        self._running: deque[tuple[ServerCall, Task[Outcome]]] = deque()
        self._next: Task[OpenStream] | None = None

    def complete(self) -> None:
        """Carry the answer to its end for a client that takes it as a whole: the encoder has it.

        After a tool has made something, which is billed, a failure is told in the answer, beside
        what was made; a client that got an error alone would have it made again.

        Raises:
            ApiError: it failed before.
        """
        self._opening.wait(None)
        try:
            self._stream = first = self._opening.take()
            for _ in self._carry(first):
                pass
        except ApiError as error:
            if self._stream is not None:
                self._stream.on_failure(error)
            if not (self._turns.has_made and self._turns.encoder.tells_failures):
                raise
            self._encoder.fail(failed_late(error, self._record))

    def close(self) -> None:
        try:
            for _, running in self._running:
                running.cancel()
            if self._next is not None:
                self._next.cancel()
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
            waiting = encoder.waiting()
            if waiting and (error := self._turns.begin_round()) is not None:
                yield encoder.stop(error)
                break
            yield from self._run(waiting)
            if (open_next := self._turns.open_next()) is None:
                break
            opening = self._next = Task(open_next, discard=OpenStream.close)
            yield from self._wait_for(opening)
            self._stream = stream = opening.take()
        last = encoder.end()
        self._record.outcome = "complete"
        self._settle()
        yield last

    def _settle(self) -> None:
        self._turns.settle()
        super()._settle()

    def _run(self, calls: Sequence[ServerCall]) -> Iterator[bytes]:
        """Carry out the calls of a turn, some of them at a time; their ends come in their order."""
        encoder = self._turns.encoder
        for call in calls:
            while len(self._running) >= self._turns.at_a_time(call):
                yield from self._end_first()
            yield encoder.begin_call(call)
            work = partial(self._turns.run, call)
            self._running.append((call, Task(work, discard=lambda outcome: None)))
        while self._running:
            yield from self._end_first()

    def _end_first(self) -> Iterator[bytes]:
        call, running = self._running[0]
        yield from self._wait_for(running)
        self._running.popleft()
        yield self._turns.encoder.end_call(call, running.take())

    def _wait_for(self, task: Task[Outcome] | Task[OpenStream]) -> Iterator[bytes]:
        """Keep-alives until a task has ended."""
        settings = self._settings
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
