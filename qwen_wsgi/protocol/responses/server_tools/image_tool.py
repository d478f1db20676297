"""OpenAI's built-in tool `image_generation` as a function for the model, and what its calls mean.

The chat model sees a function with a prompt; the proxy makes the picture (`tools.pictures`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import json_access, validation
from qwen_wsgi.protocol.changes import Changes, header_token
from qwen_wsgi.protocol.images.request import ImageRequest
from qwen_wsgi.protocol.images.request import parse_request as parse_image
from qwen_wsgi.protocol.json_object import JsonObject
from qwen_wsgi.protocol.media import Size, size_of

NAME: Final = "image_generation"
#: The type of the items.
CALL: Final = "image_generation_call"

_ACTIONS: Final = ("auto", "generate", "edit")
#: OpenAI's sizes. The model may choose among them; the nearest one that can be made is made.
_SIZES: Final = ("1024x1024", "1536x1024", "1024x1536")
#: Members of the tool that are no parameters of the picture.
_OWN: Final = frozenset({"type", "model", "action", "partial_images", "input_image_mask"})
#: Members of a request for pictures that the tool does not have.
_NOT_HERE: Final = frozenset(
    {"prompt", "n", "stream", "mask", "response_format", "image", "image[]", "images"}
    | {"input_image", "images[]"}
)

_ABOUT: Final = (
    "Makes a picture and shows it to the user. Use it when the user wants a picture; each call "
    "makes one. You do not see the picture: do not describe details that the prompt does not have."
)
_ABOUT_EDITING: Final = (
    " With action 'edit' it changes the latest picture or pictures of the conversation, the user's "
    "or those made before; the prompt then says what is to be changed."
)


class ImageOffer(NamedTuple):
    """A model that can make the pictures.

    Attributes:
        instead: the tool named another one, which no account has.
    """

    model: str
    makes: bool
    edits: bool
    instead: bool = False


class ImageWork(NamedTuple):
    """What a call of the model asks for.

    Attributes:
        arguments: as the model wrote them.
        pictures: URLs of the latest pictures of the conversation.
    """

    arguments: str
    pictures: tuple[str, ...]


class Picture(NamedTuple):
    """A picture that was made.

    Attributes:
        data: PNG, in base64.
        prompt: what it was made from in the end.
        action: `generate` or `edit`.
    """

    data: str
    prompt: str
    action: str


@dataclass(frozen=True)
class ImageTool:
    """The tool of one request.

    Attributes:
        template: the request for a picture but for prompt and pictures.
        action: what the client allows.
        pictures: URLs of the latest pictures of the conversation before this response.
    """

    offer: ImageOffer
    template: ImageRequest
    action: str
    pictures: tuple[str, ...] = ()

    def function(self, name: str) -> dict[str, Any]:
        """The function for the model, as chat has it."""
        about = _ABOUT
        properties: dict[str, Any] = {
            "prompt": {"type": "string", "description": "The picture, in detail."}
        }
        if self.template.size is None:
            properties["size"] = {
                "type": "string",
                "enum": list(_SIZES),
                "description": "Width and height in pixels. Leave it out if any will do.",
            }
        if self._chooses:
            about += _ABOUT_EDITING
            properties["action"] = {"type": "string", "enum": ["generate", "edit"]}
        parameters = {"type": "object", "properties": properties, "required": ["prompt"]}
        function = {"name": name, "description": about, "parameters": parameters}
        return {"type": "function", "function": function}

    @property
    def _chooses(self) -> bool:
        """Whether the chat model decides between a new picture and a changed one."""
        return self.action == "auto" and self.offer.makes and self.offer.edits

    def request_of(self, work: ImageWork) -> ImageRequest:
        """The request for a picture that a call is.

        Raises:
            BadRequest: its arguments are none, or there is no picture that it could change. The
                text is for the model.
        """
        try:
            given = json_access.mapping(json.loads(work.arguments))
        except (ValueError, RecursionError):
            given = {}
        prompt = given.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise BadRequest("The arguments must be a JSON object with a text 'prompt'.")
        if self._chooses:
            edits = given.get("action") == "edit"
        else:
            edits = self.action == "edit" or not self.offer.makes
        if edits and not work.pictures:
            raise BadRequest("The conversation has no picture that could be changed.")
        size: Size | str | None = self.template.size or size_of(given.get("size"))
        pictures = work.pictures if edits else ()
        return replace(self.template, prompt=prompt, pictures=pictures, size=size)


def requested(body: JsonObject) -> dict[str, Any] | None:
    """The tool in a request's own tools, for whoever knows the models; None without it."""
    if "tools" not in body:
        return None
    for tool in json_access.objects(body["tools"]):
        if tool.get("type") == NAME:
            return tool
    return None


def parse_tool(
    given: Mapping[str, Any], path: str, offer: ImageOffer, changes: Changes
) -> ImageTool:
    """Read the tool's parameters.

    Raises:
        BadRequest: one is invalid, or asks for what no model has: a mask.
    """
    if given.get("input_image_mask") is not None:
        raise validation.unsupported(
            path + "input_image_mask",
            "Masks are not supported: no document says that a model of Qwen takes one. Say in the "
            "prompt what is to be changed.",
        )
    action = validation.text(given, "action", path) or "auto"
    if action not in _ACTIONS:
        raise validation.bad_value(path + "action", action, _ACTIONS)
    if not (offer.edits if action == "edit" else offer.makes or action == "auto"):
        raise validation.unsupported(
            path + "action", f"The model `{offer.model}` cannot '{action}' pictures."
        )
    if offer.instead:
        _lose(changes, f"is made by {offer.model}", f"model:{header_token(offer.model)}")
    if given.get("partial_images"):
        _lose(changes, "has no partial pictures", "partial_images-dropped")
    members = {name: value for name, value in given.items() if name not in _OWN | _NOT_HERE}
    template = parse_image({**members, "model": offer.model, "prompt": "-"})
    for name in (*template.lost, *(name for name in given if name in _NOT_HERE)):
        _lose(changes, f"takes no '{header_token(name)}'", f"{header_token(name)}-dropped")
    return ImageTool(offer, replace(template, count=1, lost=()), action)


def _lose(changes: Changes, why: str, what: str) -> None:
    changes.lose("tools", f"of type '{NAME}': it {why}", what=f"{NAME}-{what}")


def pictures_of(items: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """URLs of the latest pictures among items: those of one message or output, or one that was
    made."""
    latest: tuple[str, ...] = ()
    for item in items:
        if item.get("type") == CALL:
            if isinstance(data := item.get("result"), str) and data:
                latest = (data_url(data),)
            continue
        for name in ("content", "output"):
            found = [
                url
                for part in json_access.objects(item.get(name))
                if part.get("type") == "input_image"
                and isinstance(url := part.get("image_url"), str)
            ]
            if found:
                latest = tuple(found)
    return latest


def data_url(data: str) -> str:
    """A picture that was made as a URL. Some clients send it back as one."""
    return data if data.startswith("data:") else f"data:image/png;base64,{data}"


# --- for the model --------------------------------------------------------------------------------


def arguments_of(item: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of an earlier call: its prompt, as far as it is known."""
    prompt = item.get("revised_prompt")
    return {"prompt": prompt} if isinstance(prompt, str) and prompt else {}


def told_of(item: Mapping[str, Any]) -> str:
    """What the model is told of a call: not the picture itself, which would be megabytes of
    base64 that it cannot read."""
    if item.get("status") != "failed":
        return "The picture was made, and the user sees it. Do not repeat it as a link."
    message = json_access.mapping(item.get("error")).get("message")
    why = message if isinstance(message, str) else "the reason is not known."
    return f"The picture was not made: {why}"
