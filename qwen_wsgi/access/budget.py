"""What one call takes of its client's limits: reserved before the first upstream request, settled
by what the upstream says.

A client without limits has no budget: its calls pay for a look whether there is one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Protocol

from qwen_wsgi.access.guard import Client
from qwen_wsgi.access.limits import GUESSED_ANSWER, Granted, Limits, Refused, Room
from qwen_wsgi.errors import LimitReached
from qwen_wsgi.protocol.usage import Usage

#: Clients that are told to wait longer are told not to repeat the request by themselves: their
#: libraries would do so within seconds, in vain.
_PATIENT_S: Final = 60.0
#: A number of tokens that a client names may be of any size.
_MOST_TOKENS: Final = 2**40
#: Bytes of an answer's text that are about one token.
_TOKEN_BYTES: Final = 4


class Counter(Protocol):
    """Counts what one client takes; `state.limits.counter.Counter` is one."""

    def reserve(
        self, limits: Limits, *, requests: int = 1, tokens: int = 0, places: int = 1
    ) -> Granted | Refused: ...
    def count(self, requests: int) -> None: ...
    def settle(
        self,
        granted: Granted,
        tokens: int,
        money: int = 0,
        *,
        requests: int = 0,
        places: int = 1,
    ) -> None: ...
    def remaining(self, limits: Limits) -> Mapping[str, Room]: ...
    def known_remaining(self, limits: Limits) -> Mapping[str, Room]: ...


class Counters(Protocol):
    """The counters of all clients; `state.limits.counters.LimitCounters` is one."""

    def of(self, client: str, /) -> Counter: ...
    def look_after(self) -> None: ...
    def close(self) -> None: ...


def limits_of(client: Client) -> Limits | None:
    """The limits of a client's key; only those of the database have some."""
    return None if client.key is None else client.key.limits


class Budgets:
    """Gives calls their budgets.

    Args:
        limits_of: the limits of a client, which is known by its `id` (of a response in the
            background only that and the name are known); None for one without.

    Attributes:
        counters: what all clients have taken.
    """

    def __init__(self, limits_of: Callable[[Client], Limits | None], counters: Counters) -> None:
        self._limits_of = limits_of
        self.counters = counters

    def of(self, client: Client) -> Budget | None:
        """The budget of a call of this client; None if it has no limits."""
        limits = self._limits_of(client)
        return None if limits is None else Budget(limits, partial(self.counters.of, client.payer))

    def remaining(self, client: Client) -> Mapping[str, Room]:
        """What is left of each limit of a client, by its name in `Limits`."""
        limits = self._limits_of(client)
        return {} if limits is None else self.counters.of(client.payer).remaining(limits)

    def look_after(self) -> None:
        """To be called every few seconds, see `state.limits.counters.LimitCounters`."""
        self.counters.look_after()

    def close(self) -> None:
        """Free what the counters hold."""
        self.counters.close()


class Budget:
    """What one client call takes. `close` must be called on every exit.

    The first upstream request of the call reserves for all that are known to come (`n` choices,
    several prompts); what comes beyond them (further attempts, turns after a tool) is counted, and
    never refused.

    Args:
        counter: finds the client's counter.

    Attributes:
        is_closed: it is settled.
    """

    __slots__ = (
        *("_answer", "_booked", "_bytes", "_counter", "_events", "_granted", "_held"),
        *("_prompt", "_prompts", "_refused", "_sent", "_shortest", "is_closed", "limits"),
    )

    def __init__(self, limits: Limits, counter: Callable[[], Counter]) -> None:
        self.limits = limits
        self._counter = counter
        #: The counter, once something was reserved: it stays until that is settled.
        self._held: Counter | None = None
        self._granted: list[Granted] = []
        self._refused = False
        self.is_closed = False
        #: What the requests of the call are expected to take, and of how many that is the sum.
        self._prompt = self._answer = self._prompts = 0
        #: Upstream requests that are booked, and those that were sent.
        self._booked = self._sent = 0
        #: Of streams: events, their bytes, and those of the shortest one.
        self._events = self._bytes = self._shortest = 0

    # --- while it runs ---------------------------------------------------------------------------

    def expect(self, prompt: int, answer: int | None) -> None:
        """Tell the tokens that one upstream request will take; of several, one after the other.

        Args:
            answer: the most that the client allows for it; None if it does not say.
        """
        answer = GUESSED_ANSWER if answer is None else answer
        self._prompt += prompt
        self._answer += min(max(answer, 0), _MOST_TOKENS)
        self._prompts += 1

    def reserve(self, calls: int = 1) -> None:
        """Reserve for so many upstream requests in the place of one.

        Harmless when repeated for one. After some were sent, nothing is refused any more.

        Raises:
            LimitReached: 429.
        """
        begun = bool(self._granted)
        if self.is_closed or (begun and (calls == 1 or self._sent > 1)):
            return
        more = calls - 1 if begun else calls
        each = (self._prompt + self._answer) / max(1, self._prompts)
        counter = self._held or self._counter()
        found = counter.reserve(
            self.limits, requests=more, tokens=math.ceil(each * more), places=0 if begun else 1
        )
        if isinstance(found, Refused):
            self._refused = True
            if begun and found.limit == "rpm":  # the call as a whole is what its client knows
                own = self._booked
                found = found._replace(used=found.used - own, wanted=found.wanted + own)
            raise refusal(found)
        self._held = counter
        self._granted.append(found)
        self._booked += more

    def sent(self, calls: int = 1) -> None:
        """Note that upstream requests are sent."""
        self._sent += calls
        if (beyond := self._sent - self._booked) > 0 and not self.is_closed:
            self._booked += beyond
            (self._held or self._counter()).count(beyond)

    def unsent(self) -> None:
        """Note that one of them did not reach an upstream."""
        self._sent -= 1

    def streamed(self, events: bytes, count: int) -> None:
        """Note what a stream has brought: so many whole events."""
        self._events += count
        self._bytes += len(events)
        if (length := len(events) // count) < self._shortest or not self._shortest:
            self._shortest = length

    def close(self, usage: Usage | None, *, money: int = 0) -> None:
        """Settle by what the upstream said was used, and give the place back. Harmless when
        repeated.

        Args:
            money: what that costs, in millionths (`limits.MICROS`).
        """
        if self.is_closed:
            return
        self.is_closed = True
        if self._held is None:
            return
        tokens, unsent = self._used(usage), self._booked - self._sent
        for place, granted in enumerate(self._granted):
            back = min(max(0, unsent), granted.requests)
            unsent -= back
            first = place == 0
            self._held.settle(
                granted,
                tokens if first else 0,
                money if first else 0,
                requests=back,
                places=1 if first else 0,
            )

    def _used(self, usage: Usage | None) -> int:
        if self._sent <= 0:
            return 0
        total = None if usage is None else usage.total
        if usage is not None and total is None:
            known = [each for each in (usage.prompt, usage.completion) if each is not None]
            total = sum(known) if known else None
        if total is not None:
            return min(max(0, total), _MOST_TOKENS)
        # What was seen of it: the prompt, and what has come of the answer.
        planned = sum(granted.requests for granted in self._granted)
        prompts = self._prompt * min(self._sent, planned) // max(1, self._prompts)
        return prompts + self._streamed_tokens()

    def _streamed_tokens(self) -> int:
        """An estimate of what was streamed: an event has a token or more, and the events of a
        stream are alike but for their texts."""
        return self._events + (self._bytes - self._events * self._shortest) // _TOKEN_BYTES

    # --- what the client is told -----------------------------------------------------------------

    def headers(self, *, anthropic: bool, now: float) -> list[tuple[str, str]]:
        """The headers that tell what is left, this call counted.

        Args:
            anthropic: also in Anthropic's names.
            now: seconds since 1970.
        """
        counter = self._held or self._counter()
        booked = self._refused or bool(self._granted)
        told = _told(self.limits)
        rooms = counter.known_remaining(told) if booked else counter.remaining(told)
        requests, tokens, day = map(rooms.get, _TOLD)
        if tokens is None or (day is not None and day.left < tokens.left):
            tokens = day  # of which less is left
        found: list[tuple[str, str]] = []
        for name, room in (("requests", requests), ("tokens", tokens)):
            if room is None:
                continue
            limit, left = str(int(room.limit)), str(int(room.left))
            found += [
                (f"x-ratelimit-limit-{name}", limit),
                (f"x-ratelimit-remaining-{name}", left),
                (f"x-ratelimit-reset-{name}", duration(room.reset_s)),
            ]
            if anthropic:
                at = datetime.fromtimestamp(math.floor(now), UTC)
                at += timedelta(seconds=math.ceil(room.reset_s))
                found += [
                    (f"anthropic-ratelimit-{name}-limit", limit),
                    (f"anthropic-ratelimit-{name}-remaining", left),
                    (f"anthropic-ratelimit-{name}-reset", f"{at:%Y-%m-%dT%H:%M:%SZ}"),
                ]
        return found


#: The limits that headers tell of.
_TOLD: Final = ("rpm", "tpm", "tokens_per_day")


@functools.lru_cache(maxsize=1024)
def _told(limits: Limits) -> Limits:
    """The limits that headers tell of, alone."""
    return Limits(limits.rpm, limits.tpm, limits.tokens_per_day)


def duration(seconds: float) -> str:
    """A duration as OpenAI writes it: `200ms`, `1s`, `6m0s`, `5h0m0s`; never shorter than it is."""
    if 0 < seconds < 1:
        return f"{max(1, math.ceil(seconds * 1000 - 1e-6))}ms"
    whole = math.ceil(seconds - 1e-6)
    minutes, rest = divmod(whole, 60)
    if not minutes:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"


#: What a limit is called, what of it is used, and the type of the error.
_WORDS: Final[Mapping[str, tuple[str, str]]] = {
    "rpm": ("requests in 60 seconds (rpm)", "requests"),
    "tpm": ("tokens in 60 seconds (tpm)", "tokens"),
    "tokens_per_day": ("tokens per day (tokens_per_day)", "tokens"),
    "money_per_month": ("of money per month (money_per_month)", "insufficient_quota"),
    "concurrency": ("calls at the same time (concurrency)", "requests"),
}


def refusal(refused: Refused) -> LimitReached:
    """The client's error for a call that a limit is against."""
    what, kind = _WORDS[refused.limit]
    limit, used, wanted = (f"{each:.15g}" for each in (refused.value, refused.used, refused.wanted))
    code = "insufficient_quota" if kind == "insufficient_quota" else "rate_limit_exceeded"
    wait_s = refused.retry_after_s
    if wait_s is None:
        hint = {
            "tpm": " The request's size and its maximum of answer tokens (max_tokens) are counted.",
            "rpm": " Each choice (n) and each of several prompts is one.",
        }.get(refused.limit.replace("tokens_per_day", "tpm"), "")
        return LimitReached(
            f"Request too large for your key: it needs {wanted} and the limit is {limit} {what}, "
            f"so it can never be allowed.{hint} Ask for less.",
            type=kind,
            code=code,
            should_retry=False,
        )
    needs = "" if refused.limit == "money_per_month" else f", this call needs {wanted}"
    return LimitReached(
        f"Rate limit reached for your key: the limit is {limit} {what}, {used} are used{needs}. "
        f"Please try again in {duration(max(1.0, wait_s))}.",
        type=kind,
        code=code,
        retry_after_s=wait_s,
        should_retry=False if wait_s > _PATIENT_S else None,
    )
