"""Texts of JSON objects as careless writers make them."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
NAMES = st.text(max_size=8) | st.sampled_from(["model", "stream", "messages", "a", "b", 'q"', "\\"])
SPACE = st.text(alphabet=" \t\n\r", max_size=3)


@st.composite
def object_texts(draw: st.DrawFn) -> tuple[str, list[tuple[str, str, Any]]]:
    """JSON text of an object as a careless writer makes it, and its members in order.

    Names may repeat; white space, escapes and the text of numbers are anything that is legal.
    """
    members = []
    for name in draw(st.lists(NAMES, max_size=6)):
        value = draw(VALUES)
        key_text = json.dumps(name, ensure_ascii=draw(st.booleans()))
        value_text = json.dumps(
            value,
            ensure_ascii=draw(st.booleans()),
            indent=draw(st.sampled_from([None, 1])),
        )
        if isinstance(value, float) and draw(st.booleans()):
            value_text = value_text.replace("e", "E")
        members.append((key_text, value_text, value))
    spaced = [
        draw(SPACE) + key + draw(SPACE) + ":" + draw(SPACE) + value + draw(SPACE)
        for key, value, _ in members
    ]
    text = draw(SPACE) + "{" + (",".join(spaced) or draw(SPACE)) + "}" + draw(SPACE)
    return text, members
