"""Requests for videos: what is read, and what a model is asked with."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.media import File, Size, nearest_size
from qwen_wsgi.protocol.videos.models import IMAGE_PATH, PATH, Form, video_model
from qwen_wsgi.protocol.videos.request import NativeCall, native_call, parse_request
from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.native import videos as sandbox

ASKED = {"model": "wan3.0-video", "prompt": "a cat"}
PNG = File("image/png", b"\x89PNG\r\n\x1a\n")
MODELS = (
    *("wan3.0-video", "wan3.0-video-prime", "wan2.7-t2v", "wan2.7-t2v-2026-06-12"),
    *("happyhorse-1.0-t2v", "happyhorse-1.1-t2v", "wan2.6-t2v", "wan2.5-t2v-preview"),
)


def native(model: str = "wan3.0-video", *, strict: bool = False, **more: Any) -> NativeCall:
    return native_call(parse_request({**ASKED, **more}), model=model, strict=strict)


def body(model: str = "wan3.0-video", **more: Any) -> Any:
    return json.loads(native(model, **more).body)


def refusal(**more: Any) -> BadRequest:
    with pytest.raises(BadRequest) as refused:
        parse_request({**ASKED, **more})
    return refused.value


@pytest.mark.parametrize(
    ("model", "size", "parameters", "made", "changed"),
    [
        ("wan3.0-video", "1280x720", {"resolution": "720P", "ratio": "16:9"}, "1280x720", ()),
        (
            "wan3.0-video",
            "1024x1792",
            {"resolution": "1080P", "ratio": "9:16"},
            "1080x1920",
            ("size:1080P-9x16",),
        ),
        ("wan3.0-video", "480x480", {"resolution": "480P", "ratio": "1:1"}, "624x624", None),
        ("wan2.7-t2v", "832x480", {"resolution": "720P", "ratio": "16:9"}, "1280x720", None),
        ("wan2.7-t2v", None, {}, "1920x1080", ()),
        ("wan3.0-video", None, {}, "auto", ()),
        ("wan2.7-i2v", "720x1280", {"resolution": "720P"}, "auto", None),
        ("wan2.6-t2v", "1280x720", {"size": "1280*720"}, "1280x720", ()),
        ("wan2.6-t2v", "1792x1024", {"size": "1920*1080"}, "1920x1080", ("size:1920x1080",)),
        ("wan2.6-t2v", "480x480", {"size": "960*960"}, "960x960", ("size:960x960",)),
        ("wan2.2-t2v-plus", "1x1", {"size": "624*624"}, "624x624", ("size:624x624",)),
    ],
)
def test_sizes_become_what_the_model_makes(
    model: str, size: str | None, parameters: Any, made: str, changed: tuple[str, ...] | None
) -> None:
    call = native(model, size=size)
    sent = json.loads(call.body)["parameters"]

    assert {name: value for name, value in sent.items() if name != "duration"} == parameters
    assert call.size == made
    assert changed is None or call.changed == changed


@pytest.mark.parametrize(
    ("model", "seconds", "sent", "told"),
    [
        ("wan3.0-video", "8", 8, "8"),
        ("wan3.0-video", 12.0, 12, "12"),
        ("wan3.0-video", "-1", -1, "auto"),
        ("wan3.0-video", 90, 30, "30"),
        ("wan3.0-video", None, 5, "5"),
        ("wan2.7-t2v", -1, 2, "2"),
        ("wan2.5-t2v-preview", 8, 10, "10"),
        ("wan2.5-t2v-preview", 7, 5, "5"),
        ("wan2.2-t2v-plus", "12", 5, "5"),
        ("wan2.2-s2v", "12", None, "auto"),
    ],
)
def test_seconds_become_what_the_model_makes(
    model: str, seconds: Any, sent: int | None, told: str
) -> None:
    call = native(model, seconds=seconds)

    assert json.loads(call.body)["parameters"].get("duration") == sent
    assert call.seconds == told
    moved = seconds is not None and str(sent) != str(seconds).removesuffix(".0")
    assert any(entry.startswith("seconds:") for entry in call.changed) == moved


@pytest.mark.parametrize(
    ("model", "more", "wanted"),
    [
        ("wan3.0-video", {}, {"media": [{"type": "first_frame", "url": "https://x/a.png"}]}),
        ("wan2.7-i2v", {}, {"media": [{"type": "first_frame", "url": "https://x/a.png"}]}),
        ("wan2.7-r2v", {}, {"media": [{"type": "reference_image", "url": "https://x/a.png"}]}),
        (
            "wan3.0-video",
            {"media": [{"type": "last_frame", "url": "u"}]},
            {
                "media": [
                    {"type": "first_frame", "url": "https://x/a.png"},
                    {"type": "last_frame", "url": "u"},
                ]
            },
        ),
        ("wan2.6-i2v", {}, {"img_url": "https://x/a.png"}),
        ("wan2.6-r2v", {}, {"reference_urls": ["https://x/a.png"]}),
        ("wan2.2-kf2v-flash", {}, {"first_frame_url": "https://x/a.png"}),
        ("wan2.2-s2v", {}, {"image_url": "https://x/a.png"}),
    ],
)
def test_a_picture_goes_where_the_model_looks_for_it(model: str, more: Any, wanted: Any) -> None:
    for given_as in ("https://x/a.png", {"image_url": "https://x/a.png"}):
        sent = body(model, input_reference=given_as, **more)

        assert sent["input"] == {"prompt": "a cat", **wanted}
    path = IMAGE_PATH if "kf2v" in model or "s2v" in model else PATH
    assert native(model, input_reference="https://x/a.png").path == path


def test_a_model_of_text_takes_no_picture() -> None:
    with pytest.raises(BadRequest) as refused:
        native("wan2.7-t2v", input_reference="https://x/a.png")

    assert refused.value.param == "input_reference"


def test_qwens_own_members_go_where_they_belong() -> None:
    own: dict[str, Any] = {
        "negative_prompt": "[1]",
        "audio_url": "https://x/a.mp3",
        "seed": "7",
        "prompt_extend": "false",
        "shot_type": "multi",
        "resolution": "720p",
        "ratio": "9:16",
    }
    call = native("wan2.6-t2v", **own)

    assert json.loads(call.body) == {
        "model": "wan2.6-t2v",
        "input": {"prompt": "a cat", "negative_prompt": "[1]", "audio_url": "https://x/a.mp3"},
        "parameters": {
            "seed": 7,
            "prompt_extend": False,
            "shot_type": "multi",
            "size": "720*1280",
            "duration": 5,
        },
    }
    assert call.changed == ()


def test_what_a_model_lacks_is_dropped_and_named_or_refused() -> None:
    call = native(negative_prompt="dogs", shot_type="multi", n=2, unheard_of=1)

    assert set(call.changed) == {
        "negative_prompt:dropped",
        "shot_type:dropped",
        "n:dropped",
        "unheard_of:dropped",
    }
    with pytest.raises(BadRequest, match="QWEN_PROXY_STRICT"):
        native(negative_prompt="dogs", strict=True)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x" * 20_001}, "prompt"),
        ({"model": 5}, "model"),
        ({"seconds": "soon"}, "seconds"),
        ({"seconds": 0}, "seconds"),
        ({"seconds": 3601}, "seconds"),
        ({"seconds": True}, "seconds"),
        ({"duration": 2.5}, "duration"),
        ({"size": "large"}, "size"),
        ({"size": "0x720"}, "size"),
        ({"size": 5}, "size"),
        ({"resolution": "full"}, "resolution"),
        ({"ratio": "2:1"}, "ratio"),
        ({"media": "x"}, "media"),
        ({"media": [{}] * 21}, "media"),
        ({"input_reference": {"file_id": "f"}}, "input_reference"),
        ({"input_reference": "ftp://x"}, "input_reference"),
    ],
)
def test_what_is_wrong_is_refused(more: dict[str, Any], param: str) -> None:
    assert refusal(**more).param == param


def test_files_that_are_no_pictures_are_refused() -> None:
    for file in (File("video/mp4", b".."), File("text/plain", b"..")):
        with pytest.raises(BadRequest) as refused:
            parse_request(ASKED, {"input_reference": [file]})
        assert refused.value.param == "input_reference"
    assert parse_request(ASKED, {"input_reference": [PNG]}).picture.startswith("data:image/png")


def test_a_prompt_may_be_missing_where_something_else_goes_in() -> None:
    request = parse_request({"model": "wan2.7-i2v", "image_url": "https://x/a.png"})

    assert json.loads(native_call(request, model="wan2.7-i2v").body)["input"].keys() == {"media"}


def test_half_a_surrogate_pair_can_be_sent() -> None:
    assert "?" in body(prompt="a\ud83d")["input"]["prompt"]


@given(
    model=st.sampled_from(MODELS),
    size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    seconds=st.none() | st.integers(1, 3600) | st.just(-1),
    tier=st.none() | st.sampled_from(("480P", "720p", "1080P", "2160P")),
    ratio=st.none() | st.sampled_from(("16:9", "9:16", "1:1", "4:3", "3:4")),
)
def test_hosts_take_whatever_becomes_of_a_request(
    model: str, size: tuple[int, int] | None, seconds: int | None, tier: Any, ratio: Any
) -> None:
    """The sandbox has the vendor's limits in a table of its own."""
    asked = f"{size[0]}x{size[1]}" if size else None
    sent = body(model, size=asked, seconds=seconds, resolution=tier, ratio=ratio)

    made = sandbox.generate(sent, "/video-generation/video-synthesis", lambda text: "url")
    assert not isinstance(made, Refusal), made.message


@given(width=st.integers(1, 9999), height=st.integers(1, 9999), model=st.sampled_from(MODELS))
def test_a_size_that_is_made_stays(width: int, height: int, model: str) -> None:
    """Asking for what came out of the first mapping changes nothing more."""
    limits = video_model(model)
    if limits.form is Form.PIXELS:
        nearest = nearest_size(Size(width, height), limits.sizes)
        assert nearest_size(nearest, limits.sizes) == nearest
    made = native(model, size=f"{width}x{height}").size
    if made != "auto":
        assert native(model, size=made).size == made
        assert native(model, size=made).changed == ()
