"""What is counted of a call, under which labels, and that labels cannot grow without end."""

from __future__ import annotations

import pytest

from qwen_wsgi.accounting import metric_families as families
from qwen_wsgi.accounting.metrics import (
    MOST_COMBINATIONS,
    Metrics,
    Row,
    Rows,
    add_row,
    endpoint_of,
    is_row,
    zero_row,
    zeros,
)
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.errors import (
    AnswerTooLarge,
    BadRequest,
    ClientGone,
    Failure,
    Overloaded,
    Scope,
    UpstreamError,
)
from qwen_wsgi.protocol.usage import Usage
from tests.fakes.clock import FakeClock

THROTTLED = Failure("rate_limited", Scope.ACCOUNT_MODEL, retry=True, elsewhere=True)


class World:
    """Metrics with a catalogue and a clock that a test changes."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.models = ["qwen-a", "qwen-b"]
        self.looks = 0
        self.metrics = Metrics(
            causes=["rate_limited", "timeout"],
            models=self._find,
            monotonic=self.clock.monotonic,
        )

    def _find(self) -> list[str]:
        self.looks += 1
        return self.models

    def count(self, call: CallRecord) -> None:
        call.end(self.clock.monotonic())
        self.metrics.count(call)

    def row(self, *key: str) -> Row:
        return self.metrics.rows.get(("qwen_proxy_" + key[0], *key[1:]), [0])

    def named(self, name: str) -> Rows:
        return {k[1:]: r for k, r in self.metrics.rows.items() if k[0] == "qwen_proxy_" + name}


@pytest.fixture
def world() -> World:
    return World()


def call(**members: object) -> CallRecord:
    known = {
        "client": "env-1",
        "client_id": "id-1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "account": "dashscope",
        "model": "qwen-a",
        "upstream_model": "qwen-a",
        "attempts": 1,
        "status": 200,
        "started_at": 1000.0,
        "usage": Usage(prompt=10, completion=4, cached=3, reasoning=2),
    }
    return CallRecord(**{**known, **members})  # type: ignore[arg-type]  # of every member


def test_a_call_is_counted_by_what_it_was_and_by_who_called(world: World) -> None:
    for _ in range(3):
        world.count(call())

    assert world.row("calls_total", "chat_completions", "complete", "2xx") == [3]
    assert world.row("client_calls_total", "env-1", "dashscope", "qwen-a", "complete") == [3]
    assert world.row("attempts_total", "dashscope") == [3]
    assert world.named("errors_total") == {}
    assert world.metrics.changes == 3


def test_tokens_are_counted_by_kind_as_far_as_they_are_known(world: World) -> None:
    world.count(call())
    world.count(call(usage=Usage(prompt=5, cache_written=5)))
    world.count(call(usage=None))
    world.count(call(usage=None, attempts=0, account=""))

    kinds = {"input": 15, "cached": 3, "cache_written": 5, "output": 4, "reasoning": 2}
    assert world.named("tokens_total") == {(kind,): [count] for kind, count in kinds.items()}
    assert world.named("client_tokens_total") == {
        ("env-1", "dashscope", "qwen-a", kind): [count] for kind, count in kinds.items()
    }
    assert world.row("calls_without_usage_total") == [1], "the last one reached no upstream"


@pytest.mark.parametrize("tokens", [-1, 10**30])
def test_what_cannot_be_true_is_no_number_of_tokens(world: World, tokens: int) -> None:
    world.count(call(usage=Usage(prompt=tokens, completion=1)))

    assert world.named("tokens_total") == {("output",): [1]}


def test_times_are_in_histograms(world: World) -> None:
    world.clock.steady_s = 1003.0
    world.count(call(first_byte_at=1000.4, longest_gap_s=0.2, queued_s=700.0))

    bounds = families.SECONDS
    expected: list[tuple[tuple[str, ...], float, float]] = [
        (("call_duration_seconds", "chat_completions"), 5.0, 3.0),
        (("first_byte_seconds", "chat_completions"), 0.5, 0.4),
        (("longest_gap_seconds",), 0.25, 0.2),
        (("queue_seconds",), float("inf"), 700.0),
    ]
    for key, bound, total in expected:
        row = world.row(*key)
        place = [*bounds, float("inf")].index(bound)
        assert [at for at, count in enumerate(row[:-1]) if count] == [place], key
        assert row[-1] == pytest.approx(total)


def test_a_value_at_a_bound_belongs_to_its_bucket(world: World) -> None:
    world.metrics.observe_lag(families.LAGS[3])

    assert world.row("loop_lag_seconds")[3] == 1


def test_a_call_that_never_reached_an_upstream_has_no_times(world: World) -> None:
    refused = call(attempts=0, account="", upstream_model="")
    refused.fail(Overloaded("full", code="overloaded"))
    world.count(refused)

    assert world.named("call_duration_seconds") == world.named("queue_seconds") == {}
    assert world.row("errors_total", "overloaded") == [1]
    assert world.row("client_calls_total", "env-1", "none", "qwen-a", "refused") == [1]


def test_health_checks_are_not_counted(world: World) -> None:
    world.count(call(quiet=True))

    assert world.metrics.rows == {}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (UpstreamError("x", failure=THROTTLED, status=429, code="of the host's"), "rate_limited"),
        (UpstreamError("x", failure=Failure("new", Scope.REQUEST, False, False)), "other"),
        (AnswerTooLarge("is large"), "answer_too_large"),
        (BadRequest("x", code="invalid_value"), "invalid_request"),
        (BadRequest("x", code="request_too_large", status=413), "request_too_large"),
        (RuntimeError("x"), "other"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_failures_have_causes_of_a_closed_set(world: World, error: Exception, cause: str) -> None:
    failed = call()
    failed.fail(error)
    world.count(failed)

    assert world.named("errors_total") == {(cause,): [1]}


@pytest.mark.parametrize(
    ("first_byte_at", "phase"), [(None, "before_first_byte"), (1000.0, "after_first_byte")]
)
def test_a_client_that_leaves_is_no_error(
    world: World, first_byte_at: float | None, phase: str
) -> None:
    left = call(first_byte_at=first_byte_at)
    left.fail(ClientGone())
    world.count(left)

    assert world.named("errors_total") == {}
    assert world.named("client_aborts_total") == {(phase,): [1]}


def test_attempts_belong_to_the_accounts_that_were_asked(world: World) -> None:
    tried = call(attempts=3, failures=(("a", "rate_limited"), ("b", "unheard of")), account="c")
    world.count(tried)

    assert world.named("attempts_total") == {("a",): [1], ("b",): [1], ("c",): [1]}
    assert world.named("attempt_failures_total") == {
        ("a", "rate_limited"): [1],
        ("b", "other"): [1],
    }
    assert world.named("errors_total") == {}, "the call succeeded"


def test_a_failure_after_the_first_byte_is_one_of_its_attempt(world: World) -> None:
    broken = call(first_byte_at=1000.0)
    broken.outcome = "upstream_error"
    broken.note(UpstreamError("x", failure=THROTTLED))
    world.count(broken)

    assert world.row("attempt_failures_total", "dashscope", "rate_limited") == [1]
    assert world.row("calls_total", "chat_completions", "upstream_error", "2xx") == [1]


def test_a_model_is_looked_up_when_the_catalogue_has_changed(world: World) -> None:
    world.count(call(upstream_model="qwen-new"))
    world.models.append("qwen-new")
    world.clock.advance(1.0)
    world.count(call(upstream_model="qwen-new"))

    assert {key[2] for key in world.named("client_calls_total")} == {"other", "qwen-new"}


def test_a_model_that_left_the_catalogue_is_other_after_the_next_look(world: World) -> None:
    world.count(call())
    world.models = ["qwen-b"]
    world.clock.advance(1.0)
    world.count(call(upstream_model="unknown"))  # looks
    world.count(call())

    counted = {key[2]: row for key, row in world.named("client_calls_total").items()}
    assert counted == {"qwen-a": [1], "other": [2]}


def test_kinds_of_calls_are_remembered_within_bounds(world: World) -> None:
    for number in range(2500):
        world.count(call(client=f"person-{number}"))
        world.count(call())

    assert 0 < len(world.metrics._kinds) <= 1000
    assert world.row("calls_total", "chat_completions", "complete", "2xx") == [5000]
    assert world.row("client_calls_total", "env-1", "dashscope", "qwen-a", "complete") == [2500]
    assert world.row("tokens_total", "input") == [50_000]


def test_random_models_cost_one_look_a_second_and_make_no_rows(world: World) -> None:
    world.count(call(upstream_model="", model="made-up"))
    rows = len(world.metrics.rows)
    for number in range(500):
        world.count(call(upstream_model="", model=f"made-up-{number}"))

    assert world.looks == 1
    assert len(world.metrics.rows) == rows


@pytest.mark.parametrize("name", ["x" * 101, 'a"\n', "\ud800"])
def test_names_of_a_list_that_nobody_can_show_are_other(world: World, name: str) -> None:
    world.models = [name]
    world.count(call(upstream_model=name))

    assert [key[2] for key in world.named("client_calls_total")] == ["other"]


@pytest.mark.parametrize(
    ("id", "name", "shown"),
    [
        ("id-1", "env-1", "env-1"),
        ("id-2", "anna", "anna"),
        ("local", "local", "local"),
        ("", "-", "none"),
        ("gone", "key…wxyz", "other"),
        ("id-3", "a\nb", "other"),
    ],
)
def test_no_end_of_a_key_is_shown(world: World, id: str, name: str, shown: str) -> None:
    world.count(call(client_id=id, client=name))

    assert [key[0] for key in world.named("client_calls_total")] == [shown]


def test_combinations_are_bounded_also_those_of_workers_before(world: World) -> None:
    for number in range(MOST_COMBINATIONS + 500):
        world.count(call(client_id="", client=f"person-{number}"))
    assert len(world.named("client_calls_total")) == MOST_COMBINATIONS + 1
    assert world.row("client_calls_total", "other", "other", "other", "complete") == [500]

    name = families.CLIENT_CALLS.name
    world.metrics.add(
        ((name, f"former-{number}", "a", "m", "complete"), [2]) for number in range(500)
    )
    assert len(world.named("client_calls_total")) == MOST_COMBINATIONS + 1
    assert world.row("client_calls_total", "other", "other", "other", "complete") == [1500]


def test_what_a_worker_before_has_counted_is_added(world: World) -> None:
    world.count(call())
    before = {key: row[:] for key, row in world.metrics.rows.items()}
    world.metrics.add(before.items())

    assert world.metrics.rows == {
        key: [2 * number for number in row] for key, row in before.items()
    }


def test_a_call_after_that_is_counted_in_the_same_rows(world: World) -> None:
    world.count(call())
    before = {key: row[:] for key, row in world.metrics.rows.items()}
    # Of another layout: it takes the place of the row, and does not add to it.
    tokens = ("qwen_proxy_calls_total", "chat_completions", "complete", "2xx")
    world.metrics.add([*before.items(), (tokens, [7, 7])])

    world.count(call())

    assert world.metrics.rows[tokens] == [8, 7]
    assert world.row("tokens_total", "input") == [30]


def test_rows_of_another_layout_are_none() -> None:
    assert is_row(("qwen_proxy_tokens_total", "input"), [1])
    assert not is_row(("qwen_proxy_tokens_total",), [1])
    assert not is_row(("qwen_proxy_tokens_total", "input"), [1, 2])
    assert not is_row(("qwen_proxy_former_total",), [1])
    assert not is_row((), [1])
    rows: Rows = {("a",): [1]}
    add_row(rows, ("a",), [1, 2])
    assert rows == {("a",): [1, 2]}


def test_every_row_of_a_closed_set_is_there_at_zero(world: World) -> None:
    known = set(zeros(["rate_limited", "timeout"], ["dashscope"], {"qwen": ["ok", "rejected"]}))
    world.count(call())
    failed = call()
    failed.fail(UpstreamError("x", failure=THROTTLED))
    world.count(failed)
    left = call()
    left.fail(ClientGone())
    world.count(left)
    world.metrics.observe_lag(0.1)
    world.metrics.count_refreshes("qwen", "ok", 1)

    open_sets = {families.CLIENT_CALLS, families.CLIENT_TOKENS, families.ATTEMPT_FAILURES}
    names = {family.name for family in open_sets}
    assert {key for key in world.metrics.rows if key[0] not in names} <= known
    assert {key[0] for key in known} == {
        family.name
        for family in families.FAMILIES
        if family.kind != "gauge" and family not in open_sets
    }
    for key in known:
        assert is_row(key, zero_row(families.BY_NAME[key[0]]))


@pytest.mark.parametrize(
    ("method", "path", "endpoint"),
    [
        ("POST", "/v1/chat/completions", "chat_completions"),
        ("POST", "/v1//v1/chat/completions/", "chat_completions"),
        ("POST", "/chat/completions", "chat_completions"),
        ("POST", "/v1/completions", "completions"),
        ("POST", "/v1/responses", "responses"),
        ("POST", "/v1/responses/compact", "responses"),
        ("WS", "/v1/responses", "responses"),
        ("BACKGROUND", "/v1/responses", "responses"),
        ("GET", "/v1/responses", "websockets"),
        ("GET", "/v1/responses/resp_1", "stored_responses"),
        ("DELETE", "/v1/responses/resp_1", "stored_responses"),
        ("POST", "/v1/responses/input_tokens", "token_counts"),
        ("POST", "/v1/messages", "messages"),
        ("POST", "/v1/messages/count_tokens", "token_counts"),
        ("POST", "/v2/rerank", "rerank"),
        ("POST", "/v1/reranks", "rerank"),
        ("POST", "/v1/audio/speech", "speech"),
        ("POST", "/v1/audio/translations", "transcriptions"),
        ("GET", "/v1/videos/v_1/content", "videos"),
        ("GET", "/v1/models/a/b", "models"),
        ("GET", "/v1", "other"),
        ("GET", "/wp-login.php", "other"),
    ],
)
def test_an_endpoint_is_known_by_its_path(method: str, path: str, endpoint: str) -> None:
    assert endpoint_of(method, path) == endpoint
    assert endpoint in families.ENDPOINTS
