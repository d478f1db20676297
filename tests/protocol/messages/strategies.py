"""Answers of upstreams, good ones and junk, as Hypothesis draws them."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from tests.kit.messages_sdk import Chunk, call, chunk, usage

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def answers(draw: st.DrawFn) -> list[Chunk]:
    """Thinking, text and tool calls, cut into deltas, the fragments of calls mixed at will."""
    chunks = [chunk({"reasoning_content": text}) for text in draw(st.lists(TEXTS, max_size=4))]
    chunks += [chunk({"content": text}) for text in draw(st.lists(TEXTS, max_size=4))]
    wholes = draw(st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2), max_size=3))
    rest = []
    for index, value in enumerate(wholes):
        text = json.dumps(value)
        at = draw(st.integers(0, len(text) - 1))
        rest.append([call(index, "", f"call_{index}", f"tool_{index}")])
        rest[-1] += [call(index, text[:at]), call(index, text[at:])]
    while any(rest):
        queue = draw(st.sampled_from([queue for queue in rest if queue]))
        chunks.append(queue.pop(0))
    finish = "tool_calls" if wholes else draw(st.sampled_from(["stop", "length"]))
    return [*chunks, chunk({}, finish), usage()]


#: Members that mean something in a chunk.
NAMES = (
    *("choices", "delta", "index", "content", "reasoning_content", "reasoning", "refusal"),
    *("tool_calls", "function", "name", "arguments", "id", "finish_reason", "stop_reason"),
    *("usage", "prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens"),
    *("error", "message", "code", "type"),
)

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(allow_nan=False) | st.text('a{}"'),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
