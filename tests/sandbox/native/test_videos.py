"""The sandbox's videos, as the vendor's pages describe them."""

from __future__ import annotations

import http.client
from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import KEY, Answer, call

SERVICES = "/api/v1/services/aigc/"
NEW = SERVICES + "video-generation/video-synthesis"
OLD = SERVICES + "image2video/video-synthesis"
FRAME = {"type": "first_frame", "url": "https://a.example/1.png"}


def begun(
    sandbox: Sandbox,
    model: str,
    given: dict[str, Any],
    *,
    path: str = NEW,
    later: bool = True,
    **parameters: Any,
) -> Answer:
    headers = {"Authorization": f"Bearer {KEY}"}
    if later:
        headers["X-DashScope-Async"] = "enable"
    body = {"model": model, "input": given, "parameters": parameters}
    return call(sandbox, "POST", path, body, headers=headers)


def tasks(sandbox: Sandbox, path: str = "") -> Any:
    answer = call(
        sandbox, "GET", f"/api/v1/tasks{path}", headers={"Authorization": f"Bearer {KEY}"}
    )
    return answer.json()


def test_a_video_by_its_task(sandbox: Sandbox) -> None:
    answer = begun(
        sandbox, "wan3.0-video", {"prompt": "a cat"}, resolution="480P", ratio="1:1", duration=-1
    )
    id = answer.json()["output"]["task_id"]

    assert tasks(sandbox, f"/{id}")["output"]["task_status"] == "RUNNING"
    done = tasks(sandbox, f"/{id}")
    assert done["output"]["task_status"] == "SUCCEEDED"
    assert done["output"]["orig_prompt"] == "a cat"
    assert done["usage"] == {
        "duration": 8,
        "output_video_duration": 8,
        "input_video_duration": 0,
        "SR": 480,
        "ratio": "1:1",
        "video_count": 1,
    }
    video = call(sandbox, "GET", done["output"]["video_url"].removeprefix(sandbox.origin))
    assert video.headers["content-type"] == "video/mp4"
    assert video.body[4:8] == b"ftyp"


def test_videos_are_made_by_tasks_alone(sandbox: Sandbox) -> None:
    answer = begun(sandbox, "wan3.0-video", {"prompt": "a cat"}, later=False)

    assert answer.status == 403
    assert "synchronous" in answer.json()["message"]


def test_a_task_may_wait(sandbox: Sandbox) -> None:
    answer = begun(sandbox, "wan3.0-video", {"prompt": "[[sandbox: task-waits=2, task-looks=1]]"})
    id = answer.json()["output"]["task_id"]
    seen = [tasks(sandbox, f"/{id}")["output"]["task_status"] for _ in range(3)]

    assert seen == ["PENDING", "PENDING", "SUCCEEDED"]


def test_a_task_that_fails_has_the_code_of_the_spec(sandbox: Sandbox) -> None:
    spec = "task-looks=1, task-ends=FAILED, task-error=DataInspectionFailed"
    answer = begun(sandbox, "wan3.0-video", {"prompt": f"[[sandbox: {spec}]]"})
    id = answer.json()["output"]["task_id"]

    assert tasks(sandbox, f"/{id}")["output"]["code"] == "DataInspectionFailed"


@pytest.mark.parametrize(("spec", "count"), [("lost-answer", 1), ("never-began", 0)])
def test_answers_that_do_not_come(sandbox: Sandbox, spec: str, count: int) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        begun(sandbox, "wan3.0-video", {"prompt": f"[[sandbox: {spec}]]"})

    assert tasks(sandbox)["total"] == count


@pytest.mark.parametrize(
    ("model", "given", "parameters", "named"),
    [
        ("wan3.0-video", {"prompt": "x", "negative_prompt": "y"}, {}, "negative_prompt"),
        ("wan3.0-video", {"prompt": "x"}, {"shot_type": "multi"}, "shot_type"),
        ("wan3.0-video", {"prompt": "x"}, {"duration": 31}, "duration"),
        ("wan3.0-video", {"prompt": "x"}, {"duration": "5"}, "duration"),
        ("wan3.0-video", {"prompt": "x"}, {"size": "1280*720"}, "size"),
        ("wan3.0-video", {"media": [FRAME, {**FRAME, "type": "reference_image"}]}, {}, "together"),
        ("wan3.0-video", {"media": [{**FRAME, "type": "picture"}]}, {}, "media.type"),
        ("wan3.0-video", {"media": [{**FRAME, "url": "file:///x"}]}, {}, "url"),
        ("wan3.0-video", {"media": 5}, {}, "media"),
        ("wan2.7-t2v", {"prompt": "x"}, {"resolution": "480P"}, "resolution"),
        ("wan2.7-t2v", {"prompt": "x"}, {"ratio": "adaptive"}, "ratio"),
        ("wan2.7-t2v", {}, {}, "input.prompt"),
        ("wan2.7-i2v", {"prompt": "x"}, {}, "input.media"),
        ("wan2.7-i2v", {"media": [FRAME]}, {"ratio": "1:1"}, "ratio"),
        ("wan2.6-t2v", {"prompt": "x"}, {"size": "1*1"}, "size"),
        ("wan2.5-t2v-preview", {"prompt": "x"}, {"duration": 8}, "duration"),
    ],
)
def test_limits(sandbox: Sandbox, model: str, given: Any, parameters: Any, named: str) -> None:
    answer = begun(sandbox, model, given, **parameters)

    assert answer.status == 400
    assert answer.json()["code"] == "InvalidParameter"
    assert named in answer.json()["message"]


def test_each_model_has_its_path(sandbox: Sandbox) -> None:
    frame = {"first_frame_url": "https://a.example/1.png"}

    assert begun(sandbox, "wan2.2-kf2v-flash", frame, path=OLD).status == 200
    assert begun(sandbox, "wan2.2-kf2v-flash", frame).status == 404
    assert begun(sandbox, "wan3.0-video", {"prompt": "x"}, path=OLD).status == 404
    assert begun(sandbox, "qwen-plus", {"prompt": "x"}).status == 404


def test_the_list_has_times_and_models(sandbox: Sandbox) -> None:
    for model in ("wan3.0-video", "wan2.7-t2v"):
        begun(sandbox, model, {"prompt": "x"})

    (one,) = tasks(sandbox, "?model_name=wan2.7-t2v")["data"]
    assert one["status"] == "PENDING"
    assert tasks(sandbox, "?start_time=20000101000000&end_time=20000102000000")["total"] == 0
    assert tasks(sandbox, "?start_time=20000101000000&end_time=99990101000000")["total"] == 2
