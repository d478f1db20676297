"""The look-alike's web search: pages, and marks in the text that name them."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.sandbox.support import ask, stream

SOURCES: dict[str, Any] = {
    "enable_search": True,
    "search_options": {"enable_source": True, "enable_citation": True},
}


def test_a_search_tells_its_pages(sandbox: Sandbox) -> None:
    body = ask(sandbox, text="hi", **SOURCES).json()

    pages = body["search_info"]["search_results"]
    assert [(page["index"], page["url"]) for page in pages] == [
        (1, "https://sandbox.example/1"),
        (2, "https://sandbox.example/2"),
    ]
    assert body["choices"][0]["message"]["content"] == "[sandbox] You said: hi[1][2]."


def test_marks_have_the_form_that_was_requested(sandbox: Sandbox) -> None:
    options = {**SOURCES["search_options"], "citation_format": "[ref_<number>]"}
    answer = ask(sandbox, "pages=1,text=So", enable_search=True, search_options=options)

    assert answer.json()["choices"][0]["message"]["content"] == "So[ref_1]."


def test_nothing_is_told_that_was_not_requested(sandbox: Sandbox) -> None:
    others: list[dict[str, Any]] = [
        {},
        {"enable_search": True},
        {"search_options": SOURCES["search_options"]},
        {"enable_search": True, "search_options": {"enable_citation": True}},
    ]
    for members in others:
        body = ask(sandbox, text="hi", **members).json()
        assert "search_info" not in body
        assert body["choices"][0]["message"]["content"] == "[sandbox] You said: hi"


def test_a_stream_tells_them_once(sandbox: Sandbox) -> None:
    first = stream(sandbox, text="hi", **SOURCES)
    last = stream(sandbox, "pages-last", text="hi", **SOURCES)

    assert first.text == last.text == "[sandbox] You said: hi[1][2]."
    assert ["search_info" in chunk for chunk in first.chunks].index(True) == 0
    told = [chunk for chunk in last.chunks if "search_info" in chunk]
    assert [chunk["choices"][0]["finish_reason"] for chunk in told] == ["stop"]


@pytest.mark.parametrize("ask_", [ask, stream])
def test_a_host_may_keep_them_or_have_no_search(sandbox: Sandbox, ask_: Any) -> None:
    kept = ask_(sandbox, "no-pages,text=So", **SOURCES)
    assert b"search_info" not in kept.body
    assert b"[2]" in kept.body

    refused = ask_(sandbox, "no-search", **SOURCES)
    assert (refused.status, refused.message) == (400, "This model does not support enable_search.")
    assert ask_(sandbox, "no-search").status == 200
