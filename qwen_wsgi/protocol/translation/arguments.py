"""Makes the arguments of a tool call a JSON object, whatever a model or client made of them."""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.protocol.json_access import read
from qwen_wsgi.protocol.json_object import compact

#: The member that holds arguments which are not a JSON object. The model reads this name.
UNPARSED: Final = "arguments_that_are_no_json_object"

#: How often JSON may be inside a JSON string: clients that render twice are known, not thrice.
_MOST_LAYERS: Final = 3


def as_object_text(given: Any) -> str:
    """Render arguments as the text of a JSON object.

    Hosts refuse all other arguments, so one such call would end a conversation. An object stays as
    it is, also inside a JSON string; none at all become `{}`; anything else is kept as a text in
    `UNPARSED`, so that the model sees what it wrote.

    Raises:
        RecursionError: the value is nested too deep to be rendered.
    """
    if isinstance(given, dict):
        return compact(given)
    text = given if isinstance(given, str) else "" if given is None else compact(given)
    inner = text
    for _ in range(_MOST_LAYERS):
        if not inner.strip():
            return "{}"
        value = _parsed(inner)
        if isinstance(value, dict):
            return inner
        if not isinstance(value, str):
            break
        inner = value
    return compact({UNPARSED: text})


def is_object_text(text: str) -> bool:
    """Whether a text is a JSON object."""
    return isinstance(_parsed(text), dict)


def _parsed(text: str) -> Any:
    """The JSON value of a text; None if it is none."""
    return read(text.encode("utf-8", "surrogatepass"))
