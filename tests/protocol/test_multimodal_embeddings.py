"""Rows of texts, pictures and videos: the calls they need of each model, and the answers."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import BadRequest, UpstreamError
from qwen_wsgi.protocol.embeddings import calls_for, combine, parse_request, takes_media
from qwen_wsgi.protocol.embeddings.multimodal import MOST_CALLS, PATH, limits_of
from qwen_wsgi.protocol.embeddings.request import EmbeddingRequest
from qwen_wsgi.protocol.json_object import JsonObject
from tests.kit.properties import examples

MODEL = "qwen3-vl-embedding"
SNAPSHOT = "tongyi-embedding-vision-plus-2026-03-06"
IMAGE = {"type": "image_url", "image_url": {"url": "https://x/1.png"}}
VIDEO = {"type": "video_url", "video_url": {"url": "https://x/1.mp4"}}
MODELS = {
    MODEL: (20, 5, 1),
    SNAPSHOT: (20, 64, 8),
    "tongyi-embedding-vision-plus": (20, 8, 8),
    "tongyi-embedding-vision-flash": (20, 8, 8),
    "multimodal-embedding-v1": (20, 1, 1),
    "qwen2.5-vl-embedding": (3, 1, 1),
}


def request_of(rows: Any, **members: Any) -> EmbeddingRequest:
    body = {"model": MODEL, "input": rows, **members}
    return parse_request(JsonObject(json.dumps(body).encode()))


def sent(rows: Any, model: str = MODEL, **members: Any) -> list[dict[str, Any]]:
    calls = calls_for(request_of(rows, **members), model=model)
    assert calls.native_path == PATH
    return [json.loads(body) for body in calls.bodies]


def contents(rows: Any, model: str = MODEL) -> list[list[Any]]:
    return [body["input"]["contents"] for body in sent(rows, model)]


def answer_to(body: dict[str, Any], usage: Any = None) -> dict[str, Any]:
    """What an upstream says: the vector of a content tells what it was made of."""
    rows = body["input"]["contents"]
    if body["parameters"].get("enable_fusion") or body["model"] == "qwen2.5-vl-embedding":
        rows = [rows]
    embeddings = [
        {"index": index, "embedding": told_by(row), "type": "x"} for index, row in enumerate(rows)
    ]
    return {"output": {"embeddings": embeddings}, "usage": usage, "request_id": "r"}


def told_by(content: Any) -> list[float]:
    return [float(sum(json.dumps(content).encode()))]


@pytest.mark.parametrize(
    ("model", "media"),
    [
        *((model, True) for model in MODELS),
        ("Qwen/Qwen3-VL-Embedding", True),
        ("text-embedding-v4", False),
        ("qwen3.7-text-embedding-flash", False),
    ],
)
def test_which_models_take_pictures_is_known_by_their_names(model: str, media: bool) -> None:
    assert takes_media(model) is media


@pytest.mark.parametrize(
    ("row", "content"),
    [
        ("a", {"text": "a"}),
        ({"type": "text", "text": "a"}, {"text": "a"}),
        (IMAGE, {"image": "https://x/1.png"}),
        ({"type": "image_url", "image_url": "https://x/1.png"}, {"image": "https://x/1.png"}),
        ([IMAGE], {"image": "https://x/1.png"}),
        (VIDEO, {"video": "https://x/1.mp4"}),
        ({"image": "data:image/png;base64,AA=="}, {"image": "data:image/png;base64,AA=="}),
        ({"image": "/9j/4AAQ"}, {"image": "data:image/jpeg;base64,/9j/4AAQ"}),
        ({"image": "iVBORw0KGgoA"}, {"image": "data:image/png;base64,iVBORw0KGgoA"}),
        ({"video": "https://x/1.mp4", "image": None}, {"video": "https://x/1.mp4"}),
    ],
    ids=str,
)
def test_each_form_of_a_part_becomes_the_native_one(row: Any, content: Any) -> None:
    assert sent([row]) == [
        {"model": MODEL, "input": {"contents": [content]}, "parameters": {}},
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"image": "file:///etc/passwd"},
        {"image": "AAAA"},
        {"video": "data:video/mp4;base64,AAAA"},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
    ],
    ids=str,
)
def test_what_is_no_url_of_a_picture_or_a_video_is_refused_without_its_text(row: Any) -> None:
    with pytest.raises(BadRequest, match="http or https URL") as caught:
        request_of([row])

    assert caught.value.code == "invalid_value"
    assert caught.value.param and caught.value.param.startswith("input[0].")
    assert "passwd" not in caught.value.message


def test_rows_of_one_part_share_calls_within_the_limits_of_the_model() -> None:
    rows = [IMAGE] * 6 + ["a"] * 20 + [VIDEO, VIDEO]

    sizes = [Counter(kind for each in call for kind in each) for call in contents(rows)]

    assert sizes == [{"image": 5}, {"image": 1, "text": 19}, {"text": 1, "video": 1}, {"video": 1}]


def test_a_row_of_several_parts_is_fused_in_a_call_of_its_own() -> None:
    bodies = sent(["a", [{"text": "b"}, IMAGE], {"text": "c", "image": "https://x/2.png"}, "d"])

    assert [body["input"]["contents"] for body in bodies] == [
        [{"text": "a"}],
        [{"text": "b"}, {"image": "https://x/1.png"}],
        [{"text": "c"}, {"image": "https://x/2.png"}],
        [{"text": "d"}],
    ]
    assert [body["parameters"].get("enable_fusion") for body in bodies] == [None, True, True, None]


def test_a_snapshot_of_tongyi_fuses_what_is_in_one_object() -> None:
    (body,) = sent(["a", [{"text": "b"}, IMAGE]], SNAPSHOT)

    assert body["input"]["contents"] == [{"text": "a"}, {"text": "b", "image": "https://x/1.png"}]
    assert body["parameters"] == {}


def test_a_model_that_always_fuses_gets_one_row_a_call() -> None:
    rows = ["a", "b", [{"text": "c"}, IMAGE, VIDEO]]

    assert [len(each) for each in contents(rows, "qwen2.5-vl-embedding")] == [1, 1, 3]


@pytest.mark.parametrize(
    ("model", "row", "why"),
    [
        ("tongyi-embedding-vision-plus", [{"text": "a"}, IMAGE], "one text, picture or video"),
        ("multimodal-embedding-v1", [IMAGE, IMAGE], "one text, picture or video"),
        ("qwen2.5-vl-embedding", [IMAGE, IMAGE], "one text, one picture and one video"),
        (SNAPSHOT, [{"text": "a"}, {"text": "b"}], "one text, one picture and one video"),
        (MODEL, [IMAGE] * 6, "20 parts in a row, 5 pictures and 1 video"),
        (MODEL, [{"text": "a"}] * 21, "20 parts in a row"),
        (MODEL, [VIDEO, VIDEO], "1 video"),
    ],
)
def test_a_row_that_the_model_cannot_fuse_is_refused(model: str, row: Any, why: str) -> None:
    with pytest.raises(BadRequest, match=why) as caught:
        sent(["a", row], model)

    assert caught.value.code == "unsupported_content"
    assert "input[1]" in caught.value.message
    assert ("`qwen3-vl-embedding` takes more" in caught.value.message) is (model != MODEL)


def test_rows_that_need_too_many_calls_are_refused() -> None:
    assert len(sent([VIDEO] * MOST_CALLS)) == MOST_CALLS
    with pytest.raises(BadRequest, match="Send fewer rows") as caught:
        sent([VIDEO] * (MOST_CALLS + 1))

    assert caught.value.code == "array_above_max_length"


PARTS = st.sampled_from([{"text": "a"}, {"text": "bb"}, IMAGE, VIDEO])


@examples(150)
@given(
    rows=st.lists(st.one_of(PARTS, st.lists(PARTS, min_size=1, max_size=3)), min_size=1),
    model=st.sampled_from(sorted(MODELS)),
)
def test_calls_keep_the_order_and_the_limits_and_their_answers_make_a_vector_for_each_row(
    rows: list[Any], model: str
) -> None:
    try:
        bodies = sent(rows, model)
    except BadRequest:
        assert any(isinstance(row, list) and len(row) > 1 for row in rows)
        return
    parts, images, videos = MODELS[model]
    for body in bodies:
        kinds = Counter(kind for each in body["input"]["contents"] for kind in each)
        assert len(body["input"]["contents"]) <= parts
        assert (kinds["image"] <= images) and (kinds["video"] <= videos)

    answer = combine(request_of(rows), [answer_to(body) for body in bodies], model=model)

    # Each row alone makes the same vector, so none was mixed up with another.
    alone = [answer_to(sent([row], model)[0])["output"]["embeddings"][0] for row in rows]
    assert [each["embedding"] for each in answer["data"]] == [each["embedding"] for each in alone]
    assert [each["index"] for each in answer["data"]] == list(range(len(rows)))


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ({"input_tokens": 43, "image_tokens": 1247, "total_tokens": 1290}, (1290, 1290)),
        ({"input_tokens": 10, "image_tokens": 896, "image_count": 1, "duration": 0}, (906, 906)),
        (
            {
                "input_tokens": 903,
                "input_tokens_details": {"image_tokens": 896, "text_tokens": 7},
                "output_tokens": 3,
                "total_tokens": 906,
            },
            (903, 906),
        ),
        (None, (0, 0)),
        ({"input_tokens": "3", "total_tokens": None}, (0, 0)),
    ],
)
def test_usage_is_summed_from_each_form_that_a_model_has(usage: Any, told: Any) -> None:
    rows = [[{"text": "a"}, IMAGE], "b"]
    first, second = sent(rows)

    answer = combine(request_of(rows), [answer_to(first, usage), answer_to(second, usage)])

    assert answer["usage"] == {"prompt_tokens": 2 * told[0], "total_tokens": 2 * told[1]}
    assert answer["model"] == MODEL


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"output": None},
        {"output": {"embeddings": []}},
        {"output": {"embeddings": [{"index": 0, "embedding": [1.0]}] * 2}},
        {"data": [{"index": 0, "embedding": [1.0]}]},
    ],
    ids=str,
)
def test_an_answer_without_the_vectors_is_an_error_of_the_upstream(answer: Any) -> None:
    with pytest.raises(UpstreamError) as caught:
        combine(request_of([IMAGE]), [answer])

    assert (caught.value.status, caught.value.code) == (502, "upstream_bad_answer")


def test_dimensions_and_the_vendors_own_parameters_are_passed_on_and_the_rest_is_told() -> None:
    members = {"instruct": "Find it.", "fps": 0.5, "user": "u", "input_type": "x", "max": None}
    calls = calls_for(
        request_of(["a"], dimensions=256.0, encoding_format="base64", **members), model=MODEL
    )

    (body,) = map(json.loads, calls.bodies)
    assert body["parameters"] == {"dimension": 256, "instruct": "Find it.", "fps": 0.5}
    assert calls.changed == ("user:dropped", "input_type:dropped")


def test_strict_refuses_to_lose_what_changes_vectors() -> None:
    kept = request_of(["a"], user="u", encoding_format="float", dimensions=64)
    assert calls_for(kept, model=MODEL, strict=True).changed == ("user:dropped",)
    with pytest.raises(BadRequest, match="QWEN_PROXY_STRICT") as caught:
        calls_for(request_of(["a"], input_type="query"), model=MODEL, strict=True)

    assert (caught.value.param, caught.value.code) == ("input_type", "unsupported_parameter")


def test_dimensions_that_a_model_does_not_have_are_refused() -> None:
    model = "tongyi-embedding-vision-plus"
    assert sent(["a"], model, dimensions=1152)[0]["parameters"] == {}
    with pytest.raises(BadRequest, match="always have 1152 numbers"):
        sent(["a"], model, dimensions=512)


def test_limits_are_known_for_models_of_pictures_alone() -> None:
    assert limits_of("text-embedding-v4") is None
