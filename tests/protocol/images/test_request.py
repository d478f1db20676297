"""Requests for pictures, JSON or forms, and what models are asked with."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.images.models import Road
from qwen_wsgi.protocol.images.request import native_calls, parse_request
from qwen_wsgi.protocol.media import File, Size

PNG = b"\x89PNG\r\n\x1a\n..."
ASKED = {"model": "qwen-image-3.0", "prompt": "a cat"}


def bodies(
    members: dict[str, Any], *, model: str = "", files: dict[str, list[File]] | None = None
) -> list[dict[str, Any]]:
    request = parse_request({**ASKED, **members}, files or {})
    return [json.loads(each) for each in native_calls(request, model=model or request.model).bodies]


def changed(members: dict[str, Any], model: str = "qwen-image-3.0") -> tuple[str, ...]:
    return native_calls(parse_request({**ASKED, **members}), model=model).changed


def refusal(members: dict[str, Any], **options: Any) -> BadRequest:
    with pytest.raises(BadRequest) as raised:
        parse_request({**ASKED, **members}, **options)
    return raised.value


def test_a_plain_request() -> None:
    (body,) = bodies({})

    assert body == {
        "model": "qwen-image-3.0",
        "input": {"messages": [{"role": "user", "content": [{"text": "a cat"}]}]},
        "parameters": {},
    }


def test_size_count_and_qwens_own_parameters() -> None:
    (body,) = bodies(
        {
            "size": "1024x1536",
            "n": 3,
            "negative_prompt": "dogs",
            "seed": 7,
            "prompt_extend": False,
            "watermark": True,
        }
    )

    assert body["parameters"] == {
        "size": "1024*1536",
        "n": 3,
        "negative_prompt": "dogs",
        "seed": 7,
        "prompt_extend": False,
        "watermark": True,
    }


def test_the_values_of_a_form_are_texts() -> None:
    (body,) = bodies({"n": "2", "seed": "7", "prompt_extend": "false", "watermark": "true"})

    assert body["parameters"] == {"n": 2, "seed": 7, "prompt_extend": False, "watermark": True}
    assert bodies({"prompt": "123"})[0]["input"]["messages"][0]["content"] == [{"text": "123"}]


def test_half_a_surrogate_pair_can_be_sent() -> None:
    (body,) = bodies({"prompt": "a\ud83d"})

    assert body["input"]["messages"][0]["content"] == [{"text": "a\ud83d"}]


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_the_pictures_of_a_form_come_before_the_prompt(name: str) -> None:
    data = base64.b64encode(PNG).decode()
    jpeg = File("application/octet-stream", b"\xff\xd8\xff..")

    (body,) = bodies({}, files={name: [File("", PNG), jpeg]})

    first, second, last = body["input"]["messages"][0]["content"]
    assert first == {"image": "data:image/png;base64," + data}
    assert second["image"].startswith("data:image/jpeg;base64,")
    assert last == {"text": "a cat"}


@pytest.mark.parametrize(
    "members",
    [
        {"image": "https://a.example/1.png"},
        {"image": ["https://a.example/1.png"]},
        {"image": '["https://a.example/1.png"]'},
        {"images": [{"image_url": "https://a.example/1.png"}]},
        {"images": [{"image_url": {"url": "https://a.example/1.png"}}]},
        {"images": [{"url": "https://a.example/1.png"}]},
    ],
)
def test_pictures_by_url(members: dict[str, Any]) -> None:
    (body,) = bodies(members)

    assert body["input"]["messages"][0]["content"][0] == {"image": "https://a.example/1.png"}


def test_more_pictures_than_a_model_makes_are_several_calls() -> None:
    found = bodies({"n": 8, "seed": 2**31 - 1})

    assert [each["parameters"]["n"] for each in found] == [6, 2]
    # With one seed the second call would make the pictures of the first again.
    assert [each["parameters"]["seed"] for each in found] == [2**31 - 1, 0]
    assert changed({"n": 8}) == ("n:2-calls",)
    assert len(bodies({"n": 3}, model="qwen-image-max")) == 3
    assert "n" not in bodies({"n": 3}, model="qwen-image-max")[0]["parameters"]


def test_wan27_always_says_how_many() -> None:
    """The vendor's pages do not agree on what happens without."""
    assert bodies({}, model="wan2.7-image")[0]["parameters"] == {"n": 1}


def test_what_a_model_lacks_is_dropped_and_named() -> None:
    asked = {
        "quality": "high",
        "style": "vivid",
        "background": "transparent",
        "output_format": "jpeg",
        "something": 1,
    }
    entries = changed(asked)

    assert set(entries) == {f"{name}:dropped" for name in asked}
    for name, value in asked.items():
        with pytest.raises(BadRequest) as raised:
            request = parse_request({**ASKED, name: value})
            native_calls(request, model="qwen-image-3.0", strict=True)
        assert raised.value.param == name
    assert changed({"negative_prompt": "x"}, "wan2.7-image") == ("negative_prompt:dropped",)
    assert changed({"size": "512x512"}, "qwen-image-edit") == ("size:dropped",)
    assert changed({"size": "1024x1024"}, "qwen-image-max") == ("size:1328x1328",)


@pytest.mark.parametrize(
    "members",
    [
        {"quality": "auto"},
        {"background": "opaque"},
        {"background": "auto"},
        {"moderation": "auto"},
        {"output_format": "png"},
        {"output_compression": 100},
        {"size": "auto"},
        {"user": "me"},
        {"stream": False},
        {"partial_images": 0},
        {"response_format": "url"},
        {"style": None},
    ],
)
def test_what_asks_for_nothing_is_no_loss(members: dict[str, Any]) -> None:
    assert changed(members) == ()
    assert bodies(members)[0]["parameters"] == {}


@pytest.mark.parametrize(
    ("model", "wanted", "base64_"),
    [
        ("gpt-image-1", None, True),
        ("openai/gpt-image-1.5", None, True),
        ("qwen-image-3.0", None, False),
        ("dall-e-3", None, False),
        ("gpt-image-1", "url", False),
        ("dall-e-3", "b64_json", True),
    ],
)
def test_the_form_of_the_answer_by_the_clients_name_for_the_model(
    model: str, wanted: str | None, base64_: bool
) -> None:
    request = parse_request({**ASKED, "model": model, "response_format": wanted})
    assert request.base64 is base64_


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"model": 5}, "model"),
        ({"n": 0}, "n"),
        ({"n": 11}, "n"),
        ({"n": True}, "n"),
        ({"n": "two"}, "n"),
        ({"n": 1.5}, "n"),
        ({"size": "large"}, "size"),
        ({"size": "0x5"}, "size"),
        ({"size": 1024}, "size"),
        ({"size": "9999999x1"}, "size"),
        ({"response_format": "gif"}, "response_format"),
        ({"stream": True}, "stream"),
        ({"stream": "true"}, "stream"),
        ({"partial_images": 2}, "stream"),
        ({"mask": "https://a.example/m.png"}, "mask"),
        ({"image": 5}, "image"),
        ({"image": "/etc/passwd"}, "image"),
        ({"image": "file:///etc/passwd"}, "image"),
        ({"images": [{"file_id": "file-1"}]}, "images"),
        ({"image": ["https://a.example/1.png"] * 17}, "image"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(members: dict[str, Any], param: str) -> None:
    assert refusal(members).param == param


def test_files_that_are_no_pictures_and_masks_are_refused() -> None:
    assert refusal({}, files={"image": [File("text/html", b"<html>")]}).param == "image"
    assert refusal({}, files={"mask": [File("image/png", PNG)]}).param == "mask"
    assert refusal({}, edit=True).param == "image"


@pytest.mark.parametrize(
    ("model", "count"), [("qwen-image-max", 1), ("qwen-image-3.0", 4), ("qwen-image-edit", 4)]
)
def test_pictures_beyond_a_models_limit_are_refused(model: str, count: int) -> None:
    request = parse_request({**ASKED, "image": ["https://a.example/1.png"] * count})

    with pytest.raises(BadRequest) as raised:
        native_calls(request, model=model)

    assert raised.value.param == "image"
    assert model in raised.value.message


def test_old_models_have_requests_of_another_form() -> None:
    request = parse_request({**ASKED, "size": "1024x1024"})
    road, (body,), _ = native_calls(request, model="wan2.5-t2i-preview")

    assert road is Road.TEXT_TASK
    assert json.loads(body)["input"] == {"prompt": "a cat"}
    request = parse_request({**ASKED, "image": "https://a.example/1.png"})
    road, (body,), _ = native_calls(request, model="wan2.5-i2i-preview")
    assert road is Road.EDIT_TASK
    assert json.loads(body)["input"] == {"prompt": "a cat", "images": ["https://a.example/1.png"]}


def test_named_sizes() -> None:
    assert bodies({"size": "4K"}, model="wan2.7-image-pro")[0]["parameters"]["size"] == "4K"
    assert parse_request({**ASKED, "size": "2k"}).size == "2K"
    assert bodies({"size": "2K"})[0]["parameters"]["size"] == "2048*2048"
    assert parse_request({**ASKED, "size": "1024*768"}).size == Size(1024, 768)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_NAMES = st.sampled_from(
    ["model", "prompt", "n", "size", "image", "images", "mask", "seed", "quality", "stream"]
    + ["response_format", "negative_prompt", "output_format", "background", "x"]
)


@given(members=st.dictionaries(_NAMES, _JSON | st.sampled_from(["2", "1024x1024", "true"])))
def test_any_request_is_taken_or_refused(members: dict[str, Any]) -> None:
    try:
        request = parse_request(members)
        calls = native_calls(request, model="qwen-image-max")
    except BadRequest as error:
        assert error.param
        return
    assert sum(json.loads(each)["parameters"].get("n", 1) for each in calls.bodies) == request.count
