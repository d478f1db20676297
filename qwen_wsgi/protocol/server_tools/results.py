"""A call of a tool of the proxy: what is to be done, and what the model is told of the result."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.encoder import Outcome
from qwen_wsgi.protocol.json_access import mapping, read
from qwen_wsgi.protocol.server_tools.offer import OfferedTool

#: `ServerCall.tool` of all tools that the runner has.
RUNNER: Final = "runner"

#: Before the result of a tool that failed, so that the model does not take it for an answer.
FAILED: Final = "The tool failed: "

#: What the model is told of a call that the user must approve first, and did not.
NOT_APPROVED: Final = "[The user has not approved this call, so it did not run.]"


class Image(Protocol):
    """A picture that a tool has made."""

    @property
    def media_type(self) -> str: ...
    @property
    def data(self) -> bytes: ...


class Result(Protocol):
    """What a tool answered; `tools.runner.ToolResult` is one."""

    @property
    def text(self) -> str: ...
    @property
    def is_error(self) -> bool: ...
    @property
    def images(self) -> Sequence[Image]: ...
    @property
    def structured(self) -> object: ...


class ToolWork(NamedTuple):
    """What a call of the model asks for.

    Attributes:
        arguments: as the model wrote them.
        container: of the tool that runs Python, or None.
    """

    tool: OfferedTool
    arguments: str
    container: str | None = None


class Told(NamedTuple):
    """How a call ended, in words.

    Attributes:
        error: it failed: by the tool, or by us.
        structured: as of `Result`.
    """

    text: str
    error: bool
    images: Sequence[Image] = ()
    structured: object = None


def told_of(outcome: Outcome) -> Told:
    """How a call ended. Pictures are named: they go to the client, where it can take them."""
    if outcome.failure is not None:
        return Told(outcome.failure.message, error=True)
    result: Result = outcome.value
    return Told(result.text, result.is_error, tuple(result.images), result.structured)


def for_model(told: Told) -> str:
    """What the model reads."""
    text = FAILED + told.text if told.error else told.text
    text += pictures_note(len(told.images))
    return text or "[The tool returned nothing.]"


def pictures_note(count: int) -> str:
    """What the model reads of pictures that a tool has made."""
    return f"\n[{count} picture{'s' * (count > 1)}, which the user sees]" if count else ""


def data_url(image: Image) -> str:
    """A picture as a URL."""
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode('ascii')}"


def arguments_in(text: str) -> dict[str, Any]:
    """The arguments of a call; anything but an object is `{}`."""
    return mapping(read(text.encode("utf-8", "replace")))


def code_in(arguments: str) -> str:
    """The code of a call of the tool that runs Python."""
    given = arguments_in(arguments)
    code = given.get("code")
    if isinstance(code, str):
        return code
    texts = [value for value in given.values() if isinstance(value, str)]
    return texts[0] if texts else arguments


def limit_text(error: ApiError) -> str:
    """The text for the client of an answer that a limit has ended."""
    return f"\n\n[{error.message}]"
