"""Requests for pictures and videos as the web API takes them, and what it answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.images import request as images
from qwen_wsgi.protocol.videos import request as videos
from qwen_wsgi.protocol.web.errors import CHALLENGE
from qwen_wsgi.protocol.web.media import (
    MediaRequest,
    made_in,
    made_in_chat,
    picture_request,
    task_of,
    task_state,
    video_request,
)

URL = "https://cdn.qwenlm.ai/a/b.png?key=1"


def picture(strict: bool = False, **members: Any) -> MediaRequest:
    asked = images.parse_request({"model": "m-image", "prompt": "a cat", **members})
    return picture_request(asked, "m", strict=strict)


def video(strict: bool = False, **members: Any) -> MediaRequest:
    asked = videos.parse_request({"model": "m-video", "prompt": "a dog", **members})
    return video_request(asked, "m", strict=strict)


def events(*values: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(value).encode() + b"\r\n\r\n" for value in values)


def delta(**members: Any) -> dict[str, Any]:
    return {"choices": [{"delta": members}]}


class TestRequests:
    @pytest.mark.parametrize(
        ("size", "shape", "told"),
        [
            (None, "", ()),
            ("1024x1024", "1:1", ("size:1:1",)),
            ("1792x1024", "16:9", ("size:16:9",)),
            ("1024x1792", "9:16", ("size:9:16",)),
            ("2K", "", ("size:dropped",)),
        ],
    )
    def test_a_size_becomes_a_shape(self, size: str, shape: str, told: tuple[str, ...]) -> None:
        wanted = picture(size=size)

        assert (wanted.shape, wanted.changed) == (shape, told)
        assert wanted.completion("c", 1.5, lambda: "i").get("size", "") == shape

    @pytest.mark.parametrize("members", [{"size": "1000x100"}, {"seed": 5}, {"quality": "high"}])
    def test_what_is_lost_is_told_and_refused_in_strict_mode(self, members: dict[str, Any]) -> None:
        assert picture(**members).changed
        with pytest.raises(ApiError) as raised:
            picture(strict=True, **members)
        assert raised.value.code == "unsupported_parameter"

    @pytest.mark.parametrize(
        "members", [{"seconds": "8"}, {"ratio": "adaptive"}, {"seed": 1}, {"resolution": "720P"}]
    )
    def test_so_it_is_for_videos(self, members: dict[str, Any]) -> None:
        assert video(**members).changed
        with pytest.raises(ApiError):
            video(strict=True, **members)

    def test_a_video_needs_a_text_alone(self) -> None:
        assert video(ratio="9:16").shape == "9:16"
        with pytest.raises(ApiError) as raised:
            video(input_reference={"image_url": "https://a.example/x.png"})
        assert raised.value.param == "input_reference"


class TestAnswers:
    @pytest.mark.parametrize(
        "value",
        [
            delta(phase="image_gen", content=URL),
            delta(phase="answer", content=f"![picture]({URL})"),
            delta(content=URL),
            delta(phase="image_gen", content="", extra={"image_list": [{"image": URL}]}),
        ],
    )
    def test_an_address_is_found_wherever_it_is(self, value: Any) -> None:
        made = made_in(events({"response.created": {}}, value, value) + b"data: [DONE]\n\n")

        assert made.urls[0] == URL

    def test_an_address_in_pieces_is_one(self) -> None:
        pieces = (delta(phase="image_gen", content=each) for each in (URL[:20], URL[20:]))
        assert made_in(events(*pieces)).urls == (URL,)

    @pytest.mark.parametrize(
        "value",
        [
            delta(phase="think", content=URL),
            delta(extra={"image_list": [{"image": "javascript:x"}, 5]}),
            delta(extra={"image_list": 7}),
            {"choices": [5]},
            [],
        ],
    )
    def test_what_is_no_picture_is_none(self, value: Any) -> None:
        assert made_in(events(value)).urls == ()

    def test_a_failure_in_the_stream_is_told(self) -> None:
        made = made_in(events(delta(phase="image_gen", content=URL), {"ret": ["RGV587_ERROR"]}))

        assert made.reported is not None
        assert made.reported.cause == CHALLENGE
        assert made.urls == ()

    @pytest.mark.parametrize(
        "chat",
        [
            {"history": {"messages": {"a": {"role": "assistant", "content": URL}}}},
            {"messages": [{"role": "assistant", "content_list": [{"content": URL}]}]},
            {"messages": [{"role": "assistant", "extra": {"image_list": [{"image": URL}]}}]},
        ],
    )
    def test_a_chat_names_what_the_assistant_made(self, chat: Any) -> None:
        assert made_in_chat({"data": {"chat": chat}}) == (URL,)

    @pytest.mark.parametrize(
        "detail",
        [{}, {"data": 5}, {"data": {"chat": {"messages": [{"role": "user", "content": URL}]}}}],
    )
    def test_and_not_what_the_user_sent(self, detail: Any) -> None:
        assert made_in_chat(detail) == ()

    @pytest.mark.parametrize(
        ("answer", "task"),
        [
            ({"data": {"messages": [{"extra": {"wanx": {"task_id": "t-1"}}}]}}, "t-1"),
            ({"data": {"message_id": "t-2"}}, "t-2"),
            ({"taskId": "t-3"}, "t-3"),
            ({"data": {"task_id": "../x"}}, ""),
            ({"data": {"task_id": 5}}, ""),
            ({}, ""),
        ],
    )
    def test_the_id_of_a_task_is_one_that_can_go_into_a_path(self, answer: Any, task: str) -> None:
        assert task_of(answer) == task

    @pytest.mark.parametrize(
        ("told", "status"),
        [
            ({"task_status": "success", "content": "https://x.example/v.mp4"}, "SUCCEEDED"),
            ({"data": {"task_status": "COMPLETED", "content": ""}}, "SUCCEEDED"),
            ({"task_status": "failed", "message": "no"}, "FAILED"),
            ({"task_status": "running"}, "RUNNING"),
            ({"task_status": "new-word"}, "RUNNING"),
            ({}, "RUNNING"),
        ],
    )
    def test_a_task_is_told_as_model_studio_tells_it(self, told: Any, status: str) -> None:
        output = task_state(told, "t-1")["output"]

        assert (output["task_id"], output["task_status"]) == ("t-1", status)
