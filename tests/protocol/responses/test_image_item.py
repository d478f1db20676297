"""The item of a picture: what does not fit, and what was never made."""

from __future__ import annotations

from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.responses.events import Events
from qwen_wsgi.protocol.responses.server_tools.image_item import ImageCall
from qwen_wsgi.protocol.responses.server_tools.image_tool import NAME, Picture
from qwen_wsgi.protocol.responses.tools import Tool


def item(size: AnswerSize) -> ImageCall:
    return ImageCall(Events(), size, "ig_1", 0, call_id="c", tool=Tool(NAME, server=True))


def test_a_picture_that_does_not_fit_is_no_failure_of_the_answer() -> None:
    size = AnswerSize(10_000)
    small, large = item(size), item(size)

    small.complete(Picture("QUJD", "a cat", "generate"))
    large.complete(Picture("A" * 10_000, "a cat", "generate"))

    assert (small.object()["status"], small.data) == ("completed", "QUJD")
    assert (large.object()["status"], large.data) == ("failed", "")
    assert "too large" in large.object()["error"]["message"]
    size.add(1000)  # what did not fit was not counted


def test_a_picture_under_way_is_failed_where_the_answer_ends() -> None:
    under_way = item(AnswerSize())
    begun = under_way.begin()

    assert b'"status":"in_progress"' in begun
    assert b"response.image_generation_call.in_progress" in begun
    assert under_way.object()["status"] == "failed"
