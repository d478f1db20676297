"""What tasks tell, as OpenAI's video; and the ids."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Video

from qwen_wsgi.protocol.videos.answer import generation, status_of, video
from qwen_wsgi.protocol.videos.ids import VideoRef, digest_of, id_of, read_id

REF = VideoRef("dashscope", "t-1", "wan3.0-video", 1_795_176_000, "auto", "auto")
KEY = b"k" * 32
#: Noon in UTC, which is eight in the evening in Beijing.
ENDED = "2026-11-20 20:01:00.250"
DONE = {
    "output": {
        "task_status": "SUCCEEDED",
        "video_url": "https://x/v.mp4",
        "end_time": ENDED,
        "orig_prompt": "a cat",
    },
    "usage": {"output_video_duration": 7.5, "SR": 720, "ratio": "9:16"},
}


def made(task: Any, *, later_s: float = 100) -> dict[str, Any]:
    return video("video_x", REF, task, now=REF.created + later_s)


def ended(status: str, **more: Any) -> dict[str, Any]:
    return {"output": {"task_status": status, **more}}


def test_a_finished_one_is_told_as_it_was_made() -> None:
    told = made(DONE)

    assert told["size"] == "720x1280"
    assert told["seconds"] == "7.5"
    assert told["completed_at"] == REF.created + 60
    assert told["expires_at"] == REF.created + 60 + 86_400
    assert told["prompt"] == "a cat"


@pytest.mark.parametrize(
    ("task", "later_s", "status", "code"),
    [
        (ended("PENDING"), 1, "queued", None),
        (ended("SUSPENDED"), 1, "queued", None),
        (ended("RUNNING"), 1, "in_progress", None),
        (DONE, 1, "completed", None),
        (DONE, 86_459, "completed", None),
        (DONE, 86_460, "failed", "video_expired"),
        (ended("SUCCEEDED"), 1, "failed", "no_video"),
        (ended("CANCELED"), 1, "failed", "video_cancelled"),
        (ended("UNKNOWN"), 10, "queued", None),
        (ended("UNKNOWN"), 100, "failed", "video_unknown"),
        (ended("UNKNOWN"), 86_400, "failed", "video_expired"),
        (ended("FAILED", code="X.Y", message="m"), 1, "failed", "X.Y"),
        (ended("FAILED", code="a b\n", message="m"), 1, "failed", "video_failed"),
        (ended("FAILED", code="DataInspectionFailed"), 1, "failed", "moderation_blocked"),
        ({}, 1, "failed", "video_failed"),
        ({"output": 5}, 1, "failed", "video_failed"),
    ],
)
def test_statuses(task: Any, later_s: float, status: str, code: str | None) -> None:
    found, error = status_of(REF, task, now=REF.created + later_s)

    assert found == status
    assert (error and error["code"]) == code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(
    output=st.fixed_dictionaries(
        {},
        optional={
            name: JSON | st.sampled_from(("SUCCEEDED", "FAILED", ENDED, "9999-12-31 23:59:59"))
            for name in ("task_status", "video_url", "end_time", "code", "message", "orig_prompt")
        },
    ),
    usage=st.fixed_dictionaries({}, optional={"duration": JSON, "SR": JSON, "ratio": JSON}),
)
def test_whatever_a_host_tells_becomes_a_video(output: Any, usage: Any) -> None:
    told = made({"output": output, "usage": usage})

    read = Video.model_validate(told, strict=True) if told["size"] in SIZES else None
    assert told["status"] in ("queued", "in_progress", "completed", "failed")
    assert (told["status"] == "failed") == (told["error"] is not None)
    assert all(isinstance(told[name], str) for name in ("id", "model", "size", "seconds"))
    assert read is None or read.status == told["status"]
    older = generation(told, {"output": output})
    assert bool(older["data"]) == (told["status"] == "completed")


SIZES = ("720x1280", "1280x720")


def test_a_found_task_with_another_prompt_is_not_given_out() -> None:
    """After a lost answer, a task may turn out to be another client's."""
    for prompt, status in (("a cat", "completed"), (" a cat\n", "completed"), ("a dog", "failed")):
        ref = REF._replace(prompt=digest_of(prompt))
        told = video("video_x", ref, DONE, now=REF.created + 100)

        assert told["status"] == status
        assert (told["prompt"] is None) == (status == "failed")
        older = generation(told, DONE)
        assert bool(older["data"]) == (status == "completed")
    error = status_of(ref, DONE, now=REF.created + 100)[1]
    assert error is not None
    assert error["code"] == "task_of_another"


# --- ids -----------------------------------------------------------------------------------------


@given(
    account=st.text(max_size=20),
    task=st.text(max_size=40),
    model=st.text(max_size=80),
    owner=st.text(st.characters(codec="utf-8"), max_size=40),
)
def test_an_id_is_read_by_its_owner_alone(account: str, task: str, model: str, owner: str) -> None:
    ref = REF._replace(account=account, task=task, model=model)
    id = id_of(ref, KEY, owner)

    if len(id) > 1000:
        return
    assert read_id(id, KEY, owner) == ref
    assert read_id(id, KEY, owner + "x") is None
    assert read_id(id, b"other" * 8, owner) is None


@given(place=st.integers(0, 200), letter=st.sampled_from("Aa0_-z"))
def test_a_changed_id_is_none(place: int, letter: str) -> None:
    id = id_of(REF, KEY, "me")
    changed = id[:place] + letter + id[place + 1 :]

    assert read_id(changed, KEY, "me") == (REF if changed == id else None)


@pytest.mark.parametrize("id", ["", "video_", "video_x", "video_" + "A" * 5000, "resp_" + "A" * 40])
def test_what_is_no_id(id: str) -> None:
    assert read_id(id, KEY, "me") is None


def test_a_long_name_of_a_model_makes_no_long_id() -> None:
    id = id_of(REF._replace(model="m" * 10_000), KEY, "me")

    assert len(id) < 500
    found = read_id(id, KEY, "me")
    assert found is not None
    assert found.model == "m" * 100
