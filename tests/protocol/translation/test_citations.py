"""The marks by which a text names the pages of a search."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_wsgi.protocol.translation import citations
from qwen_wsgi.protocol.translation.citations import CitedText, Mark, MarkReader, Sources
from qwen_wsgi.protocol.translation.search import Page, is_requested, pages_of
from tests.kit.properties import examples

FOUND = {
    "search_info": {
        "search_results": [
            {"index": 1, "title": "A", "url": "https://a.example/"},
            {"index": 2, "title": "", "url": "https://b.example/"},
        ]
    }
}
A, B = Page("https://a.example/", "A", 1), Page("https://b.example/", "https://b.example/", 2)


def read(*pieces: str) -> tuple[str, list[Mark]]:
    reader = MarkReader()
    examined = [*map(reader.feed, pieces), reader.flush()]
    text = "".join(each.text for each in examined)
    assert reader.position == len(text)
    assert "".join(piece for each in examined for piece, _ in each.cut()) == text
    return text, [mark for each in examined for mark in each.marks]


def numbers(text: str) -> list[int]:
    return [mark.number for mark in read(text)[1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is so[1].", [1]),
        ("是这样[ref_12]。", [12]),
        ("so[1][2] and [3]", [1, 2, 3]),
        ("[1]", [1]),
        ("[12345] [] [x] [ref_] [1 [ref_1x] [-1] 1]", []),
        ("see [1](https://a.example/), or [2]", [2]),
        ("`a[1]` but[2]", [2]),
        ("``a`[1]`` but[2]", [2]),
        ("an open ` here[1]\nand[2]", [2]),
        ("```python\na[1]\n```\nSo[2].", [2]),
        ("  ~~~\na[1]\n~~\n```\nb[3]\n~~~~\nSo[2].", [2]),
        ("```a[1]``` So[2].", [2]),
        ("```` a ``` [1] ```` So[2].", [2]),
        ("not ``` a fence[1]\n```\nin[2]", []),
        ("a ~~word[1]~~", [1]),
        ("```\nnever closed[1]", []),
    ],
)
def test_marks_are_found_but_for_those_in_code(text: str, expected: list[int]) -> None:
    assert numbers(text) == expected


PIECES = st.lists(
    st.sampled_from(
        [
            *"[]()`~\n 1",
            "[1]",
            "[ref_2]",
            "ref_",
            "```",
            "~~~",
            "\U0001f600",
            "中",
            "\ud83d",
            "\ude00",
        ]
    )
    | st.text(max_size=3),
    max_size=14,
)


@examples(300)
@given(PIECES)
@example(["[re", "f_", "1", "]"])
@example(["\ud83d", "\ude00[1]"])
def test_a_text_has_the_same_marks_however_it_is_cut(pieces: list[str]) -> None:
    whole, marks = read("".join(pieces))

    assert read(*pieces) == (whole, marks)
    for number, start, end in marks:
        assert whole[start:end] in (f"[{number:d}]", f"[ref_{number:d}]") or "0" in whole[start:end]


def test_little_waits_for_more() -> None:
    reader = MarkReader()
    for piece in ("a[", "r", "e", "f", "_", "1", "2", "3", "4"):
        assert len(reader.feed(piece).text) <= 1
    assert reader.feed("5").text == "[ref_12345"
    assert reader.feed("`" * 1000).text == "`" * 984


def test_a_text_of_marks_only_is_bounded_and_read_in_linear_time() -> None:
    assert len(numbers("[1]" * 5000)) == 1000
    begun = time.monotonic()
    for text in ("[1" * 300_000, "`" * 600_000, "[ref_" * 100_000, "~`\n" * 200_000):
        assert read(text)[0] == text
    assert time.monotonic() - begun < 20


# --- pages ----------------------------------------------------------------------------------------


def test_pages_have_the_hosts_numbers_or_those_of_their_places() -> None:
    assert pages_of(FOUND, {}) == [A, B]
    results = [{"url": "https://a.example/"}, 5, {"url": ""}, {"url": "https://b.example/"}]
    found: Any = pages_of({}, {"search_info": {"search_results": results}})
    assert [page.number for page in found] == [1, 3]


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({}, False),
        ({"tools": None, "enable_search": "true"}, False),
        ({"tools": [{"type": "function"}, 5]}, False),
        ({"enable_search": True}, True),
        ({"web_search_options": {}}, True),
        ({"tools": [{"type": "function"}, {"type": "web_search_preview"}]}, True),
    ],
    ids=str,
)
def test_which_requests_want_a_search(request_: dict[str, Any], expected: bool) -> None:
    assert is_requested(request_) is expected


def test_citations_point_at_the_marks() -> None:
    sources = Sources()
    sources.take(FOUND, {})
    text = CitedText(sources)
    pieces = ["So it", " is[1", "]. And[9] so[ref_", "2][1]"]

    found = [each for piece in pieces for each in text.feed(piece)] + text.end()

    whole = "".join(pieces)
    assert [(each.page, whole[each.start : each.end]) for each in found] == [
        *((A, "[1]"), (B, "[ref_2]"), (A, "[1]")),
    ]
    assert text.found
    assert text.length == len(whole)


def test_pages_may_come_behind_the_marks() -> None:
    sources = Sources()
    text = CitedText(sources)
    assert text.feed("So[1] and[2].") == []
    sources.take({}, FOUND)
    assert [each.page for each in text.end()] == [A, B]


def test_pages_may_grow() -> None:
    sources = Sources()
    told: list[Any] = [None, {"search_results": []}, FOUND["search_info"], FOUND["search_info"]]
    for found in told:
        sources.take({"search_info": found}, {})
    more = [{"index": 3, "title": "C", "url": "https://c.example/"}]
    sources.take({"search_info": {"search_results": more}}, {})
    assert list(sources.pages) == [1, 2, 3]
    assert [page.number for page in sources.named([3, 1, 3, 7])] == [3, 1]


def test_the_citations_that_a_host_names() -> None:
    source = {"title": "A", "url": "https://a.example/", "start_index": 0, "end_index": 2}
    odd = {"url": "https://b.example/", "start_index": "0", "end_index": True, "title": 5}
    named = [
        {"type": "url_citation", "url_citation": source},
        {"type": "url_citation", **odd},
        {"type": "url_citation", "url_citation": {"url": ""}},
        {"type": "audio_info"},
        7,
    ]
    first, second = citations.given(named)
    assert first.in_chat() == {"type": "url_citation", "url_citation": source}
    assert second.in_response() == {
        **{"type": "url_citation", "start_index": 0, "end_index": 0},
        **{"title": "https://b.example/", "url": "https://b.example/"},
    }
    assert list(citations.given("x")) == []
