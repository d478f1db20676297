"""Tasks: how they are waited for, and how they end."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from qwen_wsgi.errors import UpstreamError
from qwen_wsgi.upstream.tasks.tasks import Tasks, task_id_of
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import account_of

ACCOUNT = account_of()


class FakeClient:
    """Tells states in order, the last one for ever; a failure is raised."""

    def __init__(self, *states: Any) -> None:
        self.states = list(states)
        self.looks = 0
        self.canceled = threading.Event()

    def get_json(self, account: Any, path: str) -> dict[str, Any]:
        assert path == "/api/v1/tasks/id-1"
        self.looks += 1
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return {"output": {"task_status": state, **MORE.get(state, {})}}

    def post_json(self, account: Any, path: str, body: bytes, **_: Any) -> None:
        assert path == "/api/v1/tasks/id-1/cancel"
        self.canceled.set()


MORE = {"FAILED": {"code": "DataInspectionFailed", "message": "Output data may be improper."}}


def tasks_of(client: FakeClient, clock: FakeClock) -> Tasks:
    upstream: Any = client
    return Tasks(upstream, clock, sleep=clock.advance)


def waited(*states: Any, within_s: float = 60) -> tuple[FakeClient, FakeClock, Any]:
    client, clock = FakeClient(*states), FakeClock()
    started = clock.monotonic()
    state = tasks_of(client, clock).wait(ACCOUNT, "id-1", within_s=within_s)
    assert clock.monotonic() - started < within_s
    return client, clock, state


def failure(*states: Any, **options: Any) -> tuple[FakeClient, UpstreamError]:
    client, clock = FakeClient(*states), FakeClock()
    with pytest.raises(UpstreamError) as raised:
        tasks_of(client, clock).wait(ACCOUNT, "id-1", within_s=options.get("within_s", 60))
    return client, raised.value


def test_a_task_is_looked_at_until_it_has_succeeded() -> None:
    client, _, state = waited("PENDING", "RUNNING", "RUNNING", "SUCCEEDED")

    assert (client.looks, state.status) == (4, "SUCCEEDED")
    assert not client.canceled.is_set()


def test_looks_are_rare_enough_for_the_hosts_limit() -> None:
    client, _ = failure("RUNNING", within_s=600)

    assert client.looks < 220  # 20 a second are allowed for all tasks of an account


def test_a_look_that_fails_is_repeated_and_many_are_given_up() -> None:
    lost = UpstreamError("lost", status=502)
    _, _, state = waited(lost, lost, "RUNNING", lost, "SUCCEEDED")
    client, error = failure(lost)

    assert state.status == "SUCCEEDED"
    assert (client.looks, error.message) == (4, "lost")
    assert client.canceled.wait(5)


def test_a_task_that_takes_too_long_is_canceled() -> None:
    client, error = failure("RUNNING", within_s=10)

    assert error.code == "upstream_timeout"
    assert client.canceled.wait(5)


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [
        ("FAILED", 400, "content_filter"),
        ("CANCELED", 502, "upstream_task_cancelled"),
        ("UNKNOWN", 502, "upstream_task_failed"),
        ("NEW WORD", 502, "upstream_task_failed"),
    ],
)
def test_other_ends_are_errors(ending: str, status: int, code: str) -> None:
    client, error = failure("PENDING", ending)

    assert (error.status, error.code) == (status, code)
    assert not client.canceled.is_set()


@pytest.mark.parametrize("id", [None, 5, "", "a/b", "../x", "a b", "x" * 200])
def test_an_id_that_is_no_id_is_no_answer(id: Any) -> None:
    with pytest.raises(UpstreamError):
        task_id_of({"output": {"task_id": id}})
    assert task_id_of({"output": {"task_id": "a-1"}}) == "a-1"
