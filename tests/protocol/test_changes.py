"""The changes of a request: entries for the header, refusals in strict mode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol.changes import Changes, header_token


def test_each_change_is_listed_once_and_in_order() -> None:
    changes = Changes()
    changes.note("tools", "renamed")
    changes.lose("seed", "is not known")
    changes.lose("tools", "cannot be forced", what="auto")
    changes.note("tools", "renamed")

    assert changes.entries == ("tools:renamed", "seed:dropped", "tools:auto")


def test_a_loss_is_refused_in_strict_mode() -> None:
    changes = Changes(strict=True, reason="cannot be sent as it is: qwen-plus ")
    changes.note("tools", "renamed")

    with pytest.raises(BadRequest) as caught:
        changes.lose("seed", "takes no seed")

    assert str(caught.value) == (
        "'seed' cannot be sent as it is: qwen-plus takes no seed. With QWEN_PROXY_STRICT=1 such a "
        "request is refused instead of changed."
    )
    assert (caught.value.param, caught.value.code) == ("seed", "unsupported_parameter")
    assert changes.entries == ("tools:renamed",)


def test_what_a_translation_added_may_be_lost() -> None:
    changes = Changes(strict=True, added=("enable_thinking",))

    changes.lose("enable_thinking", "cannot answer without thinking")

    assert changes.entries == ("enable_thinking:dropped",)


@pytest.mark.parametrize(
    ("word", "token"),
    [
        ("qwen/qwen3:free", "qwen/qwen3:free"),
        ("a,b\r\nc", "a_b_c"),
        ("模型", "_"),
        ("x" * 200, "x" * 100),
    ],
)
def test_a_header_token(word: str, token: str) -> None:
    assert header_token(word) == token


@given(st.text())
def test_any_word_becomes_fit_for_a_list_in_a_header(word: str) -> None:
    token = header_token(word)

    assert all("!" <= each <= "~" and each != "," for each in token)
