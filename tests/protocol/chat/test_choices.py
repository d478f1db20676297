"""Several completions become one with several choices."""

from __future__ import annotations

from typing import Any

from qwen_wsgi.protocol.chat.choices import combined


def completion(text: str, **usage: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": f"id-{text}",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        **({"usage": usage} if usage else {}),
    }


def test_choices_are_numbered_and_usage_is_summed() -> None:
    first = completion("a", prompt_tokens=5, completion_tokens=1, prompt_tokens_details=None)
    second = completion("b", prompt_tokens=5, prompt_tokens_details={"cached_tokens": 4})
    third = completion("c", prompt_tokens=5, prompt_tokens_details={"cached_tokens": 2})

    whole = combined([first, second, third])

    assert whole["id"] == "id-a"
    assert [(c["index"], c["message"]["content"]) for c in whole["choices"]] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
    ]
    assert whole["usage"] == {
        "prompt_tokens": 15,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 6},
    }
    assert first["choices"][0]["index"] == 0


def test_unknown_usage_stays_unknown() -> None:
    assert "usage" not in combined([completion("a"), completion("b")])
