"""The output item of a picture while it is made."""

from __future__ import annotations

from typing import Any, Final

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.answer_text import AnswerSize
from qwen_wsgi.protocol.encoder import Outcome
from qwen_wsgi.protocol.responses.events import Events
from qwen_wsgi.protocol.responses.output import COMPLETED, IN_PROGRESS, ProxyCall
from qwen_wsgi.protocol.responses.server_tools import image_tool
from qwen_wsgi.protocol.responses.server_tools.image_tool import Picture
from qwen_wsgi.protocol.responses.tools import Tool

FAILED: Final = "failed"
_EVENT: Final = "response.image_generation_call"


class ImageCall(ProxyCall):
    """A call of the tool `image_generation`: the client sees the picture, not the function."""

    def __init__(
        self, events: Events, size: AnswerSize, id: str, index: int, *, call_id: str, tool: Tool
    ) -> None:
        super().__init__(events, size, id, index, call_id=call_id, tool=tool)
        self._shown: dict[str, Any] = {"result": None}

    @property
    def arguments(self) -> str:
        """As the model wrote them."""
        return str(self._arguments)

    @property
    def data(self) -> str:
        """The picture in base64; "" if there is none."""
        return self._shown["result"] or ""

    def begin(self) -> bytes:
        return super().begin() + self._event("in_progress")

    def grow(self, arguments: str) -> bytes:
        """Add to the arguments, which the client does not see."""
        self._arguments.add(arguments)
        return b""

    def running(self) -> bytes:
        return self._event("generating")

    def settle(self, outcome: Outcome) -> bytes:
        if outcome.failure is not None:
            return self.fail(outcome.failure)
        return self.complete(outcome.value)

    def complete(self, picture: Picture) -> bytes:
        """Render the picture, if it still fits into the answer."""
        if not self._size.has_room(len(picture.data)):
            return self.fail(
                ApiError(
                    "The picture was made, but the answer would be too large with it.",
                    code="upstream_too_large",
                )
            )
        self._size.add(len(picture.data))
        self._shown = {
            "result": picture.data,
            "action": picture.action,
            "background": "opaque",
            "output_format": "png",
            "revised_prompt": picture.prompt,
        }
        return self.finish(COMPLETED)

    def fail(self, error: ApiError) -> bytes:
        """Render that there is no picture, and why."""
        self._shown["error"] = error.body()["error"]
        return self.finish(FAILED)

    def _event(self, what: str) -> bytes:
        return self._events.render(f"{_EVENT}.{what}", **self._places)

    def _last(self, status: str) -> bytes:
        return self._event("completed") if status == COMPLETED else b""

    def _render(self, status: str) -> dict[str, Any]:
        if status not in (IN_PROGRESS, COMPLETED):
            status = FAILED
        return {"id": self._id, "type": image_tool.CALL, "status": status, **self._shown}
