"""Pictures, sound and video for models that are known not to read them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.adapt import adapt, media
from tests.upstream.adapt.support import (
    LAX,
    MARK,
    STRICT,
    USER,
    Json,
    adapted,
    difference,
    part,
    request_of,
    sent,
    target_of,
)

PICTURE: Json = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND: Json = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
VIDEO: Json = {"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}
FRAMES: Json = {"type": "video", "video": ["https://example.com/1.png"]}


def asked(*parts: Json) -> Json:
    return {"messages": [USER, {"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("media", "words", "what"),
    [
        (PICTURE, "A picture", "image"),
        (SOUND, "Sound", "audio"),
        (VIDEO, "A video", "video"),
        (FRAMES, "A video", "video"),
    ],
)
@pytest.mark.parametrize("model", ["qwen3-coder-plus", "qwen3-coder-plus-2025-09-23", "glm-5.1"])
def test_a_text_stands_for_what_the_model_cannot_read(
    model: str, media: Json, words: str, what: str
) -> None:
    members = asked(part("Look:"), media)

    made = adapted(members, target_of(model))

    text = f"[{words} was left out here, because the model {model} cannot read it.]"
    content = sent(members, made)["messages"][1]["content"]
    if model.startswith("glm"):  # gets a list as one text
        assert content == f"Look:\n\n{text}"
    else:
        assert content == [part("Look:"), part(text)]
    assert made.changed[0] == f"messages:{what}-left-out"
    with pytest.raises(BadRequest) as caught:
        adapted(members, target_of(model), STRICT)
    assert caught.value.param == "messages"
    assert f"reads no {what}" in caught.value.message


def test_all_that_is_left_out_is_named_at_once_and_marks_stay() -> None:
    members = asked({**PICTURE, "cache_control": MARK}, SOUND, PICTURE)

    made = adapted(members, target_of("qwen3-coder-plus"))

    assert made.changed == ("messages:audio-image-left-out",)
    first, *rest = sent(members, made)["messages"][1]["content"]
    assert first["cache_control"] == MARK
    assert ["cache_control" in each for each in rest] == [False, False]


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("qwen3.7-plus", [PICTURE, VIDEO, FRAMES]),
        ("qwen3.5-omni-plus", [PICTURE, SOUND, VIDEO]),
        ("kimi-k3", [PICTURE]),
        ("some-new-model", [PICTURE, SOUND, VIDEO]),
        ("qwen3-coder-plus", [part("a"), {"type": "other"}]),
    ],
    ids=str,
)
def test_what_the_model_reads_or_nobody_knows_stays(model: str, parts: list[Json]) -> None:
    assert adapted(asked(*parts), target_of(model), STRICT).changed == ()


def test_a_model_that_sees_may_be_deaf() -> None:
    members = asked(PICTURE, SOUND)

    made = adapted(members, target_of("qwen3.7-plus"))

    content = sent(members, made)["messages"][1]["content"]
    assert [each["type"] for each in content] == ["image_url", "text"]
    assert made.changed == ("messages:audio-left-out",)


def test_a_model_with_json_schemas_can_have_one_once_the_picture_is_gone() -> None:
    schema: Json = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
    members = {**asked(PICTURE), "response_format": schema}

    assert set(difference(members, adapted(members, target_of("qwen3.7-max")))) == {"messages"}


def test_another_server_gets_what_the_client_sent() -> None:
    target = target_of("qwen3-coder-plus", Family.OTHER)

    assert adapted(asked(PICTURE), target).changed == ()


def test_files_are_texts_as_far_as_they_can_be_read() -> None:
    file: Json = {"filename": "a.txt", "file_data": "data:text/plain;base64,aGk="}
    readable = asked({"type": "file", "file": file})
    unreadable = asked({"type": "file", "file": {"file_id": "file_1"}})

    after = sent(readable, adapted(readable, options=STRICT))
    assert after["messages"][1]["content"] == [part("hi")]
    after = sent(unreadable, adapted(unreadable))
    assert "was left out here" in after["messages"][1]["content"][0]["text"]
    assert adapted(unreadable).changed == ("messages:file-as-text",)
    with pytest.raises(BadRequest):
        adapted(unreadable, options=STRICT)
    # Whatever the model is: the hosts take none.
    assert adapted(unreadable, target_of("some-new-model")).changed == ("messages:file-as-text",)


@pytest.mark.parametrize("family", [Family.DASHSCOPE, Family.OTHER])
@pytest.mark.parametrize("model", ["some-new-model", "qwen9-new"])
def test_what_a_model_refused_is_left_out(family: Family, model: str) -> None:
    members = asked(part("Look:"), PICTURE, SOUND)

    made = adapted(members, target_of(model, family, refused=frozenset({"image"})))

    content = sent(members, made)["messages"][1]["content"]
    assert content[1]["text"].startswith("[A picture was left out here")
    assert content[2] == SOUND
    assert made.left_out == {"image"}
    assert "messages:image-left-out" in made.changed


def test_a_refused_input_that_is_not_there_changes_nothing() -> None:
    members = asked(part("Look:"))

    made = adapted(members, target_of("m", Family.OTHER, refused=frozenset({"image"})))

    assert made.left_out == frozenset()
    assert made.changed == ()


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("No endpoints found that support image input", {"image"}),
        ("This model does not support audio.", {"audio"}),
        ("Unexpected item type in content.", {"image", "audio"}),
        ("does not support video", {"image", "audio"}),  # which was not sent
    ],
)
def test_which_inputs_a_refusal_means(words: str, refused: set[str]) -> None:
    inputs = media.inputs_in(asked(part("a"), PICTURE, SOUND)["messages"])

    assert inputs == {"image", "audio"}
    assert media.refused_by(words, inputs) == refused


def test_a_file_with_a_known_text_is_sent_as_text() -> None:
    file: Json = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}
    members = asked({"type": "file", "file": file})
    request = replace(request_of(**members), documents={"AAAA": "[Page 1]\nHello"})

    made = adapt(request, target_of("some-new-model"), LAX, stream=True)

    content = sent(members, made)["messages"][1]["content"]
    assert content == [part("[Page 1]\nHello")]
    assert made.changed == ("messages:file-as-text",)
