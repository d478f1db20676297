"""Videos: the official openai package against the running server, and what goes wrong."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.processes import memory_kb
from tests.kit.proxy import CLIENT_KEY, UPSTREAM_KEY, Proxy, StartProxy
from tests.kit.raw_client import Exchange
from tests.kit.secrets import secret
from tests.kit.servers import wait_until

pytestmark = [
    pytest.mark.server,
    # The package calls its videos deprecated since OpenAI's own service was to end.
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]

MODEL = "wan3.0-video"
KEY = secret("state") * 2


@pytest.fixture
def client(proxy: Proxy, sandbox: Sandbox) -> Iterator[openai.OpenAI]:
    with client_of(proxy) as made:
        yield made


def client_of(proxy: Proxy, **options: Any) -> openai.OpenAI:
    given = {"api_key": CLIENT_KEY, "max_retries": 2, "timeout": 30, **options}
    return openai.OpenAI(base_url=proxy.base_url, **given)


def proxy_for(start_proxy: StartProxy, sandbox: Sandbox, **environment: str) -> Proxy:
    return start_proxy(
        **{
            "DASHSCOPE_BASE_URL": sandbox.base_url,
            "DASHSCOPE_API_KEY": UPSTREAM_KEY,
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
            "QWEN_PROXY_KEEPALIVE_INTERVAL": "0.3",
            **environment,
        }
    )


def create(client: openai.OpenAI, spec: str = "", **more: Any) -> Any:
    prompt = f"a cat [[sandbox: {spec}]]" if spec else "a cat"
    return client.videos.create(model=MODEL, prompt=prompt, **more)


def completed(client: openai.OpenAI, spec: str = "", **more: Any) -> Any:
    video = client.videos.poll(create(client, spec, **more).id, poll_interval_ms=300)
    assert video.status == "completed", video
    return video


def tasks_of(sandbox: Sandbox) -> list[Any]:
    return list(sandbox._world.media.tasks.values())


def counted(sandbox: Sandbox, route: str) -> int:
    return sum(record.route == route for record in sandbox.settle())


def wait_for_outcome(proxy: Proxy, outcome: str) -> None:
    wait_until(
        lambda: any(line["outcome"] == outcome for line in proxy.call_lines()),
        f"a call is recorded as {outcome}",
    )


def test_create_poll_download_list_and_delete(client: openai.OpenAI, sandbox: Sandbox) -> None:
    video = client.videos.create_and_poll(
        model=MODEL,
        prompt="a cat",
        seconds="8",
        size="1280x720",
        input_reference=("a.png", b"\x89PNG\r\n\x1a\n...", "image/png"),
        poll_interval_ms=300,
    )

    assert (video.object, video.status, video.progress) == ("video", "completed", 100)
    assert (video.size, video.seconds, video.model) == ("1280x720", "8", MODEL)
    assert video.expires_at == (video.completed_at or 0) + 86_400
    assert abs((video.completed_at or 0) - time.time()) < 60
    assert b"ftypisom" in client.videos.download_content(video.id).read()
    (fetched,) = [r for r in sandbox.settle() if r.route == "results"]
    assert "authorization" not in fetched.headers

    others = [create(client).id for _ in range(3)]
    listed = [each.id for each in client.videos.list(limit=2)]  # through all pages
    assert listed == [*reversed(others), video.id]
    assert client.videos.delete(video.id).deleted
    assert video.id not in [each.id for each in client.videos.list()]
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    for id in others:
        client.videos.delete(id)


def test_failed_and_moderated_ones(client: openai.OpenAI) -> None:
    for spec, code in (
        ("task-ends=FAILED", "InternalError.Algo"),
        ("task-ends=FAILED,task-error=DataInspectionFailed", "moderation_blocked"),
        ("task-ends=CANCELED", "video_cancelled"),
    ):
        video = client.videos.poll(create(client, spec).id, poll_interval_ms=300)

        assert video.status == "failed"
        assert video.error is not None
        assert video.error.code == code
        with pytest.raises(openai.BadRequestError) as refused:
            client.videos.download_content(video.id)
        assert refused.value.code == code


def test_a_restart_in_the_middle_loses_nothing(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    before = proxy_for(start_proxy, sandbox)
    with client_of(before) as client:
        id = create(client).id
        assert client.videos.retrieve(id).status == "in_progress"
    before.stop()
    key = before.home / ".local/state/qwen-proxy/state.key"
    assert key.stat().st_mode & 0o777 == 0o600

    after = proxy_for(start_proxy, sandbox)
    with client_of(after) as client:
        assert [each.id for each in client.videos.list()] == [id]
        assert client.videos.poll(id, poll_interval_ms=300).status == "completed"
        assert client.videos.download_content(id).read()
    assert len(tasks_of(sandbox)) == 1


def test_another_box_with_the_same_key_and_account(
    start_proxy: StartProxy, sandbox: Sandbox, proxy: Proxy, tmp_path: Path
) -> None:
    boxes = [
        proxy_for(
            start_proxy,
            sandbox,
            QWEN_PROXY_STATE_KEY=KEY,
            QWEN_PROXY_STATE_DIR=str(tmp_path / name),
        )
        for name in ("one", "other")
    ]
    with client_of(boxes[0]) as one, client_of(boxes[1]) as other, client_of(proxy) as third:
        id = create(one, seconds="8", size="720x1280").id
        seen = other.videos.poll(id, poll_interval_ms=300)

        assert (seen.status, seen.seconds, seen.size) == ("completed", "8", "720x1280")
        assert other.videos.download_content(id).read()
        assert list(other.videos.list()) == []
        with pytest.raises(openai.NotFoundError):  # a box with a key of its own
            third.videos.retrieve(id)


# --- lost answers --------------------------------------------------------------------------------


def test_a_lost_answer_begins_one_video_only(start_proxy: StartProxy, sandbox: Sandbox) -> None:
    proxy = proxy_for(start_proxy, sandbox, QWEN_PROXY_RETRY_BUDGET="30")
    sandbox.control(next={"route": "video-task", "spec": "lost-answer"})
    with client_of(proxy) as client:
        video = completed(client)

        assert len(tasks_of(sandbox)) == 1
        assert [each.id for each in client.videos.list()] == [video.id]


def test_what_is_unclear_is_not_sent_again_by_the_sdk_either(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = proxy_for(start_proxy, sandbox, QWEN_PROXY_RETRY_BUDGET="30")
    sandbox.control(
        next=[
            {"route": "video-task", "spec": "lost-answer"},
            {"route": "tasks", "spec": "internal", "count": 9},
        ]
    )
    with client_of(proxy) as client, pytest.raises(openai.APIStatusError) as failed:
        create(client)

    assert (failed.value.status_code, failed.value.code) == (504, "task_may_run")
    assert counted(sandbox, "video-task") == len(tasks_of(sandbox)) == 1


def test_what_never_began_begins_on_another_account(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    with Sandbox() as other:
        proxy = proxy_for(
            start_proxy,
            sandbox,
            QWEN_PROXY_RETRY_BUDGET="30",
            QWEN_UPSTREAM_BASE_URL=other.base_url,
            QWEN_UPSTREAM_API_KEY=UPSTREAM_KEY,
            QWEN_PROXY_HOST_FAMILIES="127.0.0.1=dashscope",
        )
        for each in (sandbox, other):
            each.control(next={"route": "video-task", "spec": "never-began"})
        with client_of(proxy) as client:
            assert create(client).status == "queued"

        assert len(tasks_of(sandbox)) + len(tasks_of(other)) == 1


# --- bytes ---------------------------------------------------------------------------------------


def test_two_hundred_megabytes_go_through_without_being_held(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    size = 200_000_000
    proxy = proxy_for(start_proxy, sandbox)
    with client_of(proxy) as client:
        small, large = completed(client), completed(client, f"result-bytes={size}")
        client.videos.download_content(small.id).read()  # what is loaded once is loaded
        before_kb, most_kb, seen = memory_kb(proxy.workers()), 0.0, 0
        with client.videos.with_streaming_response.download_content(large.id) as answer:
            assert answer.headers["content-length"] == str(size)
            for number, piece in enumerate(answer.iter_bytes(1 << 20)):
                seen += len(piece)
                if number % 20 == 0:
                    most_kb = max(most_kb, memory_kb(proxy.workers()))

    assert seen == size
    assert most_kb - before_kb < 4096


def test_a_slow_client_makes_a_slow_download_and_one_that_leaves_ends_it(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = proxy_for(start_proxy, sandbox)
    with client_of(proxy) as client:
        id = completed(client, "result-bytes=200000000").id
    with Exchange(
        proxy.port, method="GET", path=f"/v1/videos/{id}/content", key=CLIENT_KEY
    ) as exchange:
        assert exchange.head()[0] == 200
        before_kb = memory_kb(proxy.workers())
        time.sleep(1)  # it reads nothing
        assert memory_kb(proxy.workers()) - before_kb < 4096
        (fetched,) = [r for r in sandbox.requests if r.route == "results"]
        assert fetched.outcome == "open"
    wait_until(lambda: fetched.outcome != "open", "the download is closed")
    wait_for_outcome(proxy, "client_gone")


def test_a_video_that_breaks_off_is_no_whole_one(proxy: Proxy, sandbox: Sandbox) -> None:
    with client_of(proxy, max_retries=0) as client:
        video = completed(client, "result-bytes=5000000")
        for spec in ("cut-after", "cut-after,no-length"):
            sandbox.control(next={"route": "results", "spec": spec})
            with pytest.raises(openai.APIConnectionError):
                client.videos.download_content(video.id).read()
    wait_for_outcome(proxy, "upstream_error")


def test_a_video_that_trickles_comes_as_it_comes(proxy: Proxy, sandbox: Sandbox) -> None:
    with client_of(proxy) as client:
        video = completed(client)
        sandbox.control(next={"route": "results", "spec": "trickle=0.05"})
        with client.videos.with_streaming_response.download_content(video.id) as answer:
            pieces = answer.iter_bytes(1)
            first = next(pieces)
            (fetched,) = [r for r in sandbox.requests if r.route == "results"]
            assert fetched.outcome == "open"
    assert first == b"\x00"
    wait_until(lambda: fetched.outcome != "open", "the download is closed")


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("result-host=https://evil.example", "upstream_result_refused"),
        ("result-host=http://10.0.0.1:80", "upstream_result_refused"),
        ("result-bytes=600000000", "upstream_too_large"),
    ],
)
def test_results_that_are_refused(client: openai.OpenAI, spec: str, code: str) -> None:
    video = completed(client, spec)
    with pytest.raises(openai.APIStatusError) as failed:
        client.with_options(max_retries=0).videos.download_content(video.id)

    assert (failed.value.status_code, failed.value.code) == (502, code)


def test_an_oversized_video_without_a_length_is_cut(
    client: openai.OpenAI, sandbox: Sandbox
) -> None:
    video = completed(client, "result-bytes=540000000")
    sandbox.control(next={"route": "results", "spec": "no-length"})
    seen = 0
    with (
        client.videos.with_streaming_response.download_content(video.id) as answer,
        pytest.raises(Exception, match=r"(?i)incomplete|closed|peer|reset"),
    ):
        for piece in answer.iter_bytes(1 << 20):
            seen += len(piece)

    assert seen <= 512 * 1024 * 1024


def test_a_head_request_tells_of_the_video_and_fetches_nothing_more(
    proxy: Proxy, client: openai.OpenAI, sandbox: Sandbox
) -> None:
    video = completed(client, "result-bytes=5000000")
    with Exchange(
        proxy.port, method="HEAD", path=f"/v1/videos/{video.id}/content", key=CLIENT_KEY
    ) as exchange:
        status, headers = exchange.head()
    assert status == 200, headers
    (fetched,) = [r for r in sandbox.requests if r.route == "results"]
    wait_until(lambda: fetched.outcome != "open", "the download is closed")

    assert (status, headers["content-length"]) == (200, "5000000")
    assert headers["accept-ranges"] == "bytes"


# --- the older form ------------------------------------------------------------------------------


def posted(proxy: Proxy, body: dict[str, Any], *, timeout_s: float = 30) -> tuple[int, bytes]:
    request = urllib.request.Request(
        proxy.base_url + "/videos/generations",
        json.dumps({"model": MODEL, **body}).encode(),
        {"Authorization": f"Bearer {CLIENT_KEY}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return answer.status, answer.read()


def test_the_older_form_keeps_its_connection_alive(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = proxy_for(start_proxy, sandbox)
    status, data = posted(proxy, {"prompt": "x [[sandbox: task-looks=3]]", "seconds": 4})

    assert status == 200
    assert data.startswith(b"\n")
    made = json.loads(data)
    assert made["status"] == "completed"
    with urllib.request.urlopen(made["data"][0]["url"], timeout=5) as video:
        assert b"ftypisom" in video.read()


def test_a_failure_after_keep_alives_is_in_the_body(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = proxy_for(start_proxy, sandbox)
    spec = "task-looks=3,task-ends=FAILED,task-error=DataInspectionFailed"
    status, data = posted(proxy, {"prompt": f"x [[sandbox: {spec}]]"})

    assert status == 200
    assert data.startswith(b"\n")
    assert set(json.loads(data)) == {"error"}
    wait_for_outcome(proxy, "upstream_error")


@pytest.mark.parametrize("after_keep_alives", [False, True])
def test_a_client_that_leaves_the_older_form_cancels_what_waits(
    start_proxy: StartProxy, sandbox: Sandbox, after_keep_alives: bool
) -> None:
    proxy = proxy_for(start_proxy, sandbox)
    asked = {"model": MODEL, "prompt": "x [[sandbox: task-waits=99]]"}
    with Exchange(proxy.port, asked, path="/v1/videos/generations", key=CLIENT_KEY) as exchange:
        wait_until(lambda: counted(sandbox, "tasks") >= 1, "the task is looked at")
        if after_keep_alives:
            exchange.read_until(b"\r\n\r\n")
    wait_until(lambda: tasks_of(sandbox)[0].status == "CANCELED", "the task is cancelled")
    wait_for_outcome(proxy, "client_gone")


def test_a_client_that_leaves_while_a_video_begins_finds_it_in_its_list(
    start_proxy: StartProxy, sandbox: Sandbox
) -> None:
    proxy = proxy_for(start_proxy, sandbox)
    sandbox.control(next={"route": "video-task", "spec": "slow-first=0.5"})
    with Exchange(proxy.port, {"model": MODEL, "prompt": "x"}, path="/v1/videos", key=CLIENT_KEY):
        wait_until(lambda: bool(tasks_of(sandbox)), "the task begins")
    with client_of(proxy) as client:
        wait_until(lambda: len(list(client.videos.list())) == 1, "the video is listed")
