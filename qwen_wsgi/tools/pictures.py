"""The tool `image_generation`: pictures that a chat model has made, by a model for pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from qwen_wsgi.access.permit import Permit
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.encoder import Outcome, ServerCall
from qwen_wsgi.protocol.images import answer as answers
from qwen_wsgi.protocol.images.models import image_model
from qwen_wsgi.protocol.responses.server_tools.image_tool import ImageOffer, ImageTool, Picture
from qwen_wsgi.upstream.pictures import Pictures
from qwen_wsgi.upstream.routing.router import Router

#: Pictures of one answer. Each is billed, and takes up to 30 s; a user who wants more can ask.
MOST_PICTURES: Final = 4


class PictureTool:
    """Makes the pictures of one answer.

    Args:
        tool: as the client has described it.
        headers: of the client, for the upstream.
        permit: what the call may use.
        max_bytes: of one picture.
        most: pictures that the client allows, or None.
    """

    unit = "pictures"
    at_a_time = 1  # hosts allow few

    def __init__(
        self,
        pictures: Pictures,
        router: Router,
        tool: ImageTool,
        *,
        headers: Mapping[str, str],
        permit: Permit,
        max_bytes: int,
        most: int | None,
    ) -> None:
        self.most = MOST_PICTURES if most is None else min(most, MOST_PICTURES)
        self._pictures = pictures
        self._router = router
        self._tool = tool
        self._headers = headers
        self._permit = permit
        self._max_bytes = max_bytes

    def run(self, call: ServerCall, record: CallRecord) -> Outcome:
        """Make a picture and fetch it. Raises as `TurnTool.run`."""
        request = self._tool.request_of(call.work())
        plan = self._router.plan(
            request.model,
            permit=self._permit,
            capability=Capability.IMAGE_EDIT if request.pictures else Capability.IMAGE,
        )
        if most := image_model(plan.routes[0].model).inputs:
            request = replace(request, pictures=request.pictures[-most:])
        answer = self._pictures.make(request, plan, self._headers, record, strict=False)
        found = [each.value for each in answer.answers]
        made = [picture for value in found for picture in answers.pictures_of(value)]
        if not made:
            raise answers.failure_of(found)
        content = self._pictures.fetch(made[0].url, answer.route, max_bytes=self._max_bytes)
        return Outcome(
            Picture(
                data=base64.b64encode(content).decode("ascii"),
                prompt=made[0].revised_prompt or request.prompt,
                action="edit" if request.pictures else "generate",
            )
        )


def offer_of(router: Router, wanted: str, default: str, *, permit: Permit) -> ImageOffer | None:
    """The model for pictures: the one that the tool names, else the operator's; None if no account
    has either, or the key may use neither.

    Args:
        wanted: by the tool, or "".
        default: the operator's, or "".
    """
    for name in dict.fromkeys((wanted, default)):
        if not name:
            continue
        makes = _has(router, name, Capability.IMAGE, permit)
        edits = _has(router, name, Capability.IMAGE_EDIT, permit)
        if makes or edits:
            return ImageOffer(name, makes, edits, instead=bool(wanted) and name != wanted)
    return None


def _has(router: Router, model: str, capability: Capability, permit: Permit) -> bool:
    try:
        router.plan(model, capability=capability, permit=permit)
    except ApiError:
        return False
    return True
