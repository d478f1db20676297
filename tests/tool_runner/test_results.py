"""Results of tools: what a model can see of them, and how much."""

from __future__ import annotations

import base64

import pytest

from qwen_wsgi.tool_runner.results import Result, cut, of_mcp

PNG = base64.b64encode(b"\x89PNG").decode()


def test_texts_pictures_and_structured_content() -> None:
    result = of_mcp(
        {
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "mimeType": "image/png", "data": PNG},
                {"type": "resource", "resource": {"uri": "u:1", "text": "b"}},
                {"type": "resource", "resource": {"mimeType": "image/png", "blob": PNG}},
                {"type": "resource", "resource": {"uri": "u:2", "blob": "AA=="}},
                {"type": "resource_link", "name": "n", "uri": "u:3"},
                {"type": "audio", "data": "AA=="},
            ],
            "structuredContent": {"k": 1},
        },
        1000,
    )

    assert result == Result(
        "a\nb\n[u:2: data, which is no text]\n[n: u:3]\n[audio: it cannot be shown to a model]",
        pictures=(("image/png", PNG), ("image/png", PNG)),
        structured={"k": 1},
    )


def test_structured_content_alone_is_a_text_too() -> None:
    assert of_mcp({"content": [], "structuredContent": {"k": "ä"}}, 1000).text == '{"k": "ä"}'


def test_an_error_is_one() -> None:
    assert of_mcp({"content": [{"type": "text", "text": "no"}], "isError": True}, 99).is_error


@pytest.mark.parametrize("answer", [{}, {"content": 3}, {"content": [4, {"type": 5}]}])
def test_what_is_no_result_breaks_nothing(answer: dict[str, object]) -> None:
    assert not of_mcp(answer, 1000).is_error


@pytest.mark.parametrize(
    ("blocks", "told"),
    [
        ([("image/png", "?")], "damaged"),
        ([("image/tiff", PNG)], "image/tiff"),
        ([("image/png", PNG)] * 17, "the limit is 16"),
        ([("image/png", base64.b64encode(bytes(9 << 20)).decode())], "8 MiB"),
    ],
)
def test_a_picture_that_is_left_out_is_told(blocks: list[tuple[str, str]], told: str) -> None:
    content = [{"type": "image", "mimeType": kind, "data": data} for kind, data in blocks]

    result = of_mcp({"content": content}, 1000)

    assert told in result.text
    assert len(result.pictures) == len(blocks) - 1


def test_a_long_text_is_cut_and_says_so() -> None:
    assert cut("ä" * 10, 20) == "ä" * 10
    assert cut("ä" * 10, 9) == "ä" * 4 + "\n[cut: this is the first 9 of 20 bytes]"
    assert cut("x" * 5, 4) == "xxxx\n[cut: this is the first 4 of 5 bytes]"
