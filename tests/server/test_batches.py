"""Batches: the official OpenAI package against the running server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types import Batch

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import UPSTREAM_KEY, Proxy, start
from tests.kit.secrets import secret
from tests.kit.servers import wait_until

pytestmark = pytest.mark.server

ONE, TWO = secret("client-one"), secret("client-two")


@pytest.fixture(scope="module")
def proxy(upstream: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    running = start(
        tmp_path_factory.mktemp("batches"),
        {
            "DASHSCOPE_BASE_URL": upstream.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_API_KEYS": f"{ONE},{TWO}",
            "QWEN_PROXY_RETRY_BUDGET": "20",
        },
    )
    yield running
    running.stop()


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> openai.OpenAI:
    proxy.forget_troubles()
    return openai.OpenAI(base_url=proxy.base_url, api_key=ONE, max_retries=0, timeout=20)


@pytest.fixture
def other(proxy: Proxy, sandbox: Sandbox) -> openai.OpenAI:
    return openai.OpenAI(base_url=proxy.base_url, api_key=TWO, max_retries=0, timeout=20)


def lines(url: str, *models: str) -> bytes:
    return b"".join(
        json.dumps(
            {
                "custom_id": f"line-{number}",
                "method": "POST",
                "url": url,
                "body": {"model": model, "messages": [{"role": "user", "content": "Hello"}]},
            }
        ).encode()
        + b"\n"
        for number, model in enumerate(models)
    )


def begin(client: openai.OpenAI, content: bytes, endpoint: str = "/v1/chat/completions") -> Batch:
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,  # type: ignore[arg-type]  # the host's rehearsal is not OpenAI's
        completion_window="24h",
        metadata={"ds_name": "test"},
    )


def ended(client: openai.OpenAI, id: str) -> Batch:
    for _ in range(6):
        batch = client.batches.retrieve(id)
        if batch.status in ("completed", "failed", "cancelled"):
            return batch
    raise AssertionError(f"it does not end: {batch}")


def posts(sandbox: Sandbox, route: str = "batches") -> int:
    return sum(each.route == route and each.method == "POST" for each in sandbox.requests)


@pytest.mark.parametrize(
    ("endpoint", "model"),
    [("/v1/chat/completions", "qwen-plus"), ("/v1/chat/ds-test", "batch-test-model")],
)
def test_the_official_package_drives_a_batch(
    client: openai.OpenAI, endpoint: str, model: str
) -> None:
    made = begin(client, lines(endpoint, model, model), endpoint)

    assert made.object == "batch" and made.status == "validating" and made.errors is None
    assert made.metadata == {"ds_name": "test"}
    assert made.request_counts and made.request_counts.total == 0
    batch = ended(client, made.id)
    assert batch.status == "completed" and batch.output_file_id and not batch.error_file_id
    assert batch.request_counts and batch.request_counts.completed == 2
    rows = client.files.content(batch.output_file_id).text.splitlines()
    assert [json.loads(row)["custom_id"] for row in rows] == ["line-0", "line-1"]
    assert client.files.retrieve(batch.output_file_id).filename.endswith("_output.jsonl")
    assert batch.output_file_id in [each.id for each in client.files.list()]


def test_lines_that_fail_are_in_a_file_of_their_own(client: openai.OpenAI) -> None:
    url = "/v1/chat/completions"
    batch = ended(
        client, begin(client, lines(url, "qwen-plus", "qwen-plus/sandbox/bad-request")).id
    )

    assert batch.output_file_id and batch.error_file_id
    (row,) = client.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(row)["error"]["message"] == "bad request"


def test_what_the_host_finds_wrong_with_a_file_is_told(client: openai.OpenAI) -> None:
    batch = ended(client, begin(client, lines("/v1/chat/completions", "qwen-plus", "qwen-max")).id)

    assert batch.status == "failed"
    assert batch.errors and batch.errors.data and "one model" in str(batch.errors.data[0].message)


def test_a_batch_is_cancelled(client: openai.OpenAI) -> None:
    made = begin(client, lines("/v1/chat/completions", "qwen-plus"))

    assert client.batches.cancel(made.id).status == "cancelling"
    assert ended(client, made.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="Cannot cancel"):
        client.batches.cancel(made.id)


def test_nobody_gets_at_the_batches_of_another_key(
    client: openai.OpenAI, other: openai.OpenAI
) -> None:
    made = begin(client, lines("/v1/chat/completions", "qwen-plus"))
    batch = ended(client, made.id)
    assert batch.output_file_id

    for attempt in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            attempt(made.id)
    with pytest.raises(openai.NotFoundError):
        other.files.content(batch.output_file_id)
    with pytest.raises(openai.NotFoundError) as told:
        other.batches.create(
            input_file_id=made.input_file_id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
        )
    assert told.value.param == "input_file_id"
    assert made.id not in [each.id for each in other.batches.list()]


def test_a_list_tells_how_far_batches_are(client: openai.OpenAI, sandbox: Sandbox) -> None:
    ids = [begin(client, lines("/v1/chat/completions", "qwen-plus")).id for _ in range(3)]
    ended(client, ids[0])

    page = client.batches.list(limit=2)

    assert [each.id for each in page.data] == ids[:0:-1] and page.has_more
    assert {each.status for each in page.data} == {"in_progress"}
    looks = sum(each.route == "batches" and each.method == "GET" for each in sandbox.requests)
    assert client.batches.list(limit=2, after=ids[1]).data[0].status == "completed"
    after = sum(each.route == "batches" and each.method == "GET" for each in sandbox.requests)
    assert after == looks  # nothing more happens to it, so the host is not asked
    sandbox.control(faults={"batches": "internal"})
    assert {each.status for each in client.batches.list(limit=2).data} == {"in_progress"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"completion_window": "23h"}, "completion_window"),
        ({"completion_window": "15d"}, "completion_window"),
        ({"completion_window": "a day"}, "completion_window"),
        ({"metadata": "x"}, "metadata"),
        ({"input_file_id": 7}, "input_file_id"),
        ({"input_file_id": None}, "input_file_id"),
    ],
)
def test_a_wrong_request_is_refused_here(
    client: openai.OpenAI, sandbox: Sandbox, change: dict[str, object], param: str
) -> None:
    wanted = {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "14d"}

    with pytest.raises(openai.BadRequestError) as told:
        client.post("/batches", body={**wanted, **change}, cast_to=object)

    assert told.value.param == param
    assert posts(sandbox) == 0


def test_a_batch_whose_answer_is_lost_is_not_begun_again(
    client: openai.OpenAI, sandbox: Sandbox
) -> None:
    """It would be billed twice."""
    file = client.files.create(file=("a", lines("/v1/chat/completions", "q")), purpose="batch")
    for fault, status, known in (("lost-answer", 502, False), ("internal", 500, True)):
        sandbox.control(faults={"batches": fault})
        before = posts(sandbox)

        with pytest.raises(openai.APIStatusError) as told:
            client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )

        assert told.value.status_code == status
        assert ("not known whether" in told.value.message) is not known
        assert posts(sandbox) == before + 1


def test_a_batch_whose_client_leaves_is_its_own_all_the_same(
    client: openai.OpenAI, sandbox: Sandbox
) -> None:
    """It would be billed, and nobody could get at it."""
    file = client.files.create(file=("a", lines("/v1/chat/completions", "q")), purpose="batch")
    sandbox.control(faults={"batches": "slow-first=1"})

    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )

    sandbox.control(clear_faults=True)
    wait_until(lambda: client.batches.list().data, "the batch is its client's")


def test_a_throttle_is_waited_for(client: openai.OpenAI, sandbox: Sandbox) -> None:
    file = client.files.create(file=("a", lines("/v1/chat/completions", "q")), purpose="batch")
    sandbox.control(next=[{"spec": "throttle, retry-after=1", "route": "batches"}])

    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )

    assert made.status == "validating"
    assert posts(sandbox) == 2


def test_batches_are_known_after_a_restart(tmp_path: Path, sandbox: Sandbox) -> None:
    settings = {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_API_KEYS": ONE,
    }
    first = start(tmp_path, settings)
    with openai.OpenAI(base_url=first.base_url, api_key=ONE, max_retries=0) as client:
        made = begin(client, lines("/v1/chat/completions", "qwen-plus"))
    first.stop()
    second = start(tmp_path, settings)
    try:
        with openai.OpenAI(base_url=second.base_url, api_key=ONE, max_retries=0) as client:
            assert ended(client, made.id).status == "completed"
    finally:
        second.stop()
