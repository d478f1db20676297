"""Asks a host's own tokenizer how many tokens a prompt has (QWEN_PROXY_TOKENIZER=host)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from qwen_wsgi.access.permit import EVERYTHING, Permit
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.clock import Clock
from qwen_wsgi.errors import ApiError, UpstreamError, forget_frames
from qwen_wsgi.greenlets import Task
from qwen_wsgi.hosts import has_native_api
from qwen_wsgi.protocol.json_access import integer, mapping
from qwen_wsgi.protocol.json_object import compact
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.executor import Executor, UnaryAnswer, UnaryCall, UnaryRequests
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.routing.router import Plan, Route, Router

log = logging.getLogger(__name__)

#: Of Model Studio's native API, behind the host's name (`dashscope.Tokenization`).
_PATH: Final = "/api/v1/tokenizer"

#: A client that counts tokens shows a number to a person, or decides how to go on.
_TIMEOUT_S: Final = 3.0

#: Longer prompts are not sent: the answer names every token, a dozen bytes for each, and to read it
#: would hold up the other calls.
_MOST_CHARACTERS: Final = 1_000_000

#: Causes of a failure (`failures.causes`) which mean that the host has no tokenizer, and for how
#: long it is not asked then, and after any other failure. Seconds.
_NO_SUCH_PATH: Final = frozenset({"wrong_address", "not_found"})
_WITHOUT_ONE_S: Final = 3600.0
_FAILED_S: Final = 60.0


class HostTokenizer:
    """Counts the tokens of prompts at hosts. Shared by all greenlets of a worker.

    Args:
        timeout_s: for one count, whatever it waits for.

    Attributes:
        enabled: the operator wants hosts to be asked.
    """

    def __init__(
        self,
        settings: Settings,
        router: Router,
        executor: Executor,
        clock: Clock,
        *,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self.enabled = settings.tokenizer == "host"
        self._router = router
        self._executor = executor
        self._clock = clock
        self._timeout_s = timeout_s
        #: Until when an account is not asked, by its name; monotonic.
        self._resting: dict[str, float] = {}
        #: Accounts whose failure was logged.
        self._told: set[str] = set()

    def count(
        self,
        model: str,
        messages: list[dict[str, Any]],
        *,
        headers: Mapping[str, str],
        record: CallRecord,
        permit: Permit = EVERYTHING,
    ) -> int | None:
        """The tokens of some messages whose contents are texts; None if no host says it, or the
        texts are too long to ask one.

        Args:
            headers: of the client, for the upstream.
            record: of the client's call.
            permit: what the call may use.
        """
        if sum(len(each["content"]) for each in messages) > _MOST_CHARACTERS:
            return None
        try:
            plan = self._router.plan(model, permit=permit)
        except ApiError:
            return None  # no such model or account: the client hears it when it calls
        routes = tuple(route for route in plan.routes if self._may_ask(route))
        if not routes:
            return None
        tokens = self._ask(replace(plan, routes=routes), messages, headers, record)
        record.usage = None  # nothing was generated
        return tokens

    def _may_ask(self, route: Route) -> bool:
        account = route.account
        if not has_native_api(account.family):
            return False
        return self._clock.monotonic() >= self._resting.get(account.name, 0.0)

    def _ask(
        self,
        plan: Plan,
        messages: list[dict[str, Any]],
        headers: Mapping[str, str],
        record: CallRecord,
    ) -> int | None:
        call = UnaryCall(
            _PATH,
            headers,
            record,
            partial(_request, messages),
            # Whatever it is, it is not held against the account, which may well answer chats.
            absent=CAUSES.keys(),
            on_absent=lambda error: self._failed(record.account, error),
            at_origin=True,
        )
        task = Task(lambda: self._executor.unary(call, plan), discard=lambda answer: None)
        try:
            if not task.wait(self._timeout_s):
                self._rest(record.account, "timeout", _FAILED_S)
                return None
            answer = task.take()
        except ApiError as error:
            forget_frames(error)
            self._rest(record.account, error.code or error.type, _FAILED_S)
            return None
        finally:
            task.cancel()
        return None if answer is None else self._read(answer)

    def _read(self, answer: UnaryAnswer) -> int | None:
        name, value = answer.route.account.name, answer.answers[0].value
        tokens = integer(mapping(value.get("usage")).get("input_tokens"))
        if not tokens or tokens < 0:
            self._rest(name, "an answer without a number", _FAILED_S)
            return None
        self._told.discard(name)
        return tokens

    def _failed(self, account: str, error: UpstreamError) -> None:
        cause = error.failure.cause if error.failure is not None else error.code or error.type
        absent = cause in _NO_SUCH_PATH
        self._rest(account, cause, _WITHOUT_ONE_S if absent else _FAILED_S)

    def _rest(self, account: str, cause: str, seconds: float) -> None:
        """Leave an account alone for a while, and say so once."""
        if not account:
            return  # none was asked
        self._resting[account] = self._clock.monotonic() + seconds
        if account not in self._told:
            self._told.add(account)
            log.warning(
                "the host's tokenizer does not answer, so tokens are estimated "
                "account=%s cause=%s (told once)",
                account,
                cause,
            )


def _request(messages: list[dict[str, Any]], route: Route) -> UnaryRequests:
    body = {"model": route.model, "input": {"messages": messages}, "parameters": {}}
    return UnaryRequests([compact(body).encode()])
