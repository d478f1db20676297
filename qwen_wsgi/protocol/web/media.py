"""Pictures and videos that the web API makes: what it is asked with, and what it answers. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from qwen_wsgi.errors import BadRequest
from qwen_wsgi.protocol import sse
from qwen_wsgi.protocol.changes import Changes
from qwen_wsgi.protocol.images.request import ImageRequest
from qwen_wsgi.protocol.json_access import items, mapping, objects, text
from qwen_wsgi.protocol.media import Size, nearest_size, shape_distance
from qwen_wsgi.protocol.videos.request import VideoRequest
from qwen_wsgi.protocol.web import chat_body
from qwen_wsgi.protocol.web.errors import Reported, reported_by
from qwen_wsgi.protocol.web.pictures import (
    MOST_PICTURES,
    Picture,
    is_address,
    linked,
    picture_of,
    too_many,
)
from qwen_wsgi.protocol.web.request import refuse_long_text

PICTURE: Final = "t2i"
EDIT: Final = "image_edit"
VIDEO: Final = "t2v"

#: Shapes that the web API makes, by its words.
_SHAPES: Final = {
    Size(1, 1): "1:1",
    Size(4, 3): "4:3",
    Size(3, 4): "3:4",
    Size(16, 9): "16:9",
    Size(9, 16): "9:16",
}
#: One that stands right behind another one, because it was told twice, is one of its own.
_URL: Final = re.compile(r"https?://(?:(?!https?://)[^\s\"'<>()\[\]]){1,4096}")
_TASK: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
#: Phases whose text may be the address of what was made.
_MADE_IN: Final = frozenset({"", "answer", "image_gen", "video_gen"})
_MOST_SHOWN: Final = 300


class MediaRequest(NamedTuple):
    """A request that is ready but for the id of its chat, and the places of its pictures.

    Attributes:
        kind: `t2i`, `image_edit` or `t2v`.
        shape: such as `16:9`; "" for the web API's own choice.
        pictures: those to be uploaded.
        links: addresses of those that are not.
    """

    model: str
    kind: str
    prompt: str
    shape: str
    changed: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()
    links: tuple[str, ...] = ()

    def new_chat(self, now: float) -> dict[str, Any]:
        """The body that opens a chat, see `chat_body`."""
        return chat_body.new_chat(self.model, self.kind, now)

    def completion(
        self,
        chat_id: str,
        now: float,
        new_id: Callable[[], str],
        files: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """The body that asks for it, see `chat_body`.

        Args:
            files: the entries of its pictures, as they were uploaded.
        """
        body = chat_body.completion(
            *(chat_id, now, new_id),
            model=self.model,
            kind=self.kind,
            content=self.prompt,
            files=[*files, *map(linked, self.links)],
            features={"output_schema": "phase", "thinking_enabled": False},
            # A video is begun, and looked at later.
            stream=self.kind != VIDEO,
        )
        if self.shape:
            body["size"] = self.shape
        return body


def picture_request(request: ImageRequest, model: str, *, strict: bool = False) -> MediaRequest:
    """Render a request for pictures; each of several is asked for by itself.

    Raises:
        ApiError: 400: a picture is broken, or in strict mode the web API lacks what is asked for;
            413: a picture or the prompt is too large.
    """
    refuse_long_text(request.prompt, "prompt")
    changes = Changes(strict=strict, reason="cannot be sent to the web account ")
    for name in (*request.lost, *request.own):
        changes.lose(name, "because chat.qwen.ai has no such parameter.")
    held = dict.fromkeys(url for url in request.pictures if not is_address(url))
    if len(held) > MOST_PICTURES:
        raise too_many("image")
    size = request.size
    if isinstance(size, str):
        changes.lose("size", "because chat.qwen.ai makes shapes and no sizes.")
        size = None
    return MediaRequest(
        model,
        EDIT if request.pictures else PICTURE,
        request.prompt,
        _shape(size, changes),
        changes.entries,
        tuple(picture_of(url, "image") for url in held),
        tuple(url for url in request.pictures if is_address(url)),
    )


def video_request(request: VideoRequest, model: str, *, strict: bool = False) -> MediaRequest:
    """Render a request for a video.

    Raises:
        BadRequest: it has a picture; or in strict mode the web API lacks what is asked for.
        ApiError: 413: the prompt is too large.
    """
    if request.picture:
        raise BadRequest(
            "The web account makes videos of texts alone. Leave the picture out, or use a model of "
            "an account with an API key.",
            param="input_reference",
            code="unsupported_parameter",
        )
    if not request.prompt:
        raise BadRequest(
            "Missing required parameter: 'prompt'.",
            param="prompt",
            code="missing_required_parameter",
        )
    refuse_long_text(request.prompt, "prompt")
    changes = Changes(strict=strict, reason="cannot be sent to the web account ")
    for name in (*request.lost, *request.own):
        changes.lose(name, "because chat.qwen.ai has no such parameter.")
    if request.seconds is not None:
        changes.lose("seconds", "because chat.qwen.ai chooses the length itself.")
    if request.tier is not None:
        changes.lose("resolution", "because chat.qwen.ai chooses it itself.")
    shape = request.ratio if request.ratio in _SHAPES.values() else ""
    if request.ratio and not shape:
        changes.lose("ratio", "because chat.qwen.ai does not make this shape.")
    shape = shape or _shape(request.size, changes)
    return MediaRequest(model, VIDEO, request.prompt, shape, changes.entries)


def _shape(size: Size | None, changes: Changes) -> str:
    """The nearest shape; it is told where it is another one, because pixels are not kept."""
    if size is None:
        return ""
    nearest = nearest_size(size, _SHAPES)
    if shape_distance(nearest, size) > 0.01:
        why = "because chat.qwen.ai does not make this shape."
        changes.lose("size", why, what=_SHAPES[nearest])
    else:
        changes.note("size", _SHAPES[nearest])
    return _SHAPES[nearest]


# --- answers -------------------------------------------------------------------------------------


class Made(NamedTuple):
    """What a stream brought.

    Attributes:
        urls: of what was made, in order, each once.
        said: the host's words, where it made nothing.
    """

    urls: tuple[str, ...]
    said: str = ""
    reported: Reported | None = None


def made_in(events: bytes) -> Made:
    """What the whole stream of an answer made."""
    urls: list[str] = []
    words: list[str] = []
    for event in _events(events):
        value = None if sse.is_done(event) else sse.parse(event)
        if not isinstance(value, dict):
            continue
        if (reported := reported_by(value)) is not None:
            return Made((), "", reported)
        for choice in objects(value.get("choices")):
            delta = mapping(choice.get("delta"))
            urls += _listed(delta)
            if text(delta.get("phase")) in _MADE_IN:
                words.append(text(delta.get("content")))
    said = "".join(words)
    urls += _URL.findall(said)
    return Made(tuple(dict.fromkeys(urls)), said[:_MOST_SHOWN])


def _events(data: bytes) -> Iterator[bytes]:
    """The events of a whole stream; the last one may lack its blank line."""
    blocks = sse.EventBlocks()
    try:
        yield from sse.events(blocks.push(data))
    except sse.EventTooLarge:
        return
    yield from sse.events(blocks.rest().strip() + b"\n\n")


def made_in_chat(detail: Mapping[str, Any]) -> tuple[str, ...]:
    """What the assistant's messages of a chat name, by `GET /api/v2/chats/{id}`."""
    chat = mapping(mapping(detail.get("data")).get("chat"))
    history = mapping(mapping(chat.get("history")).get("messages"))
    urls: list[str] = []
    for message in (*objects(items(chat.get("messages"))), *objects(list(history.values()))):
        if message.get("role") != "assistant":
            continue
        urls += _listed(message)
        urls += _URL.findall(text(message.get("content")))
        for part in objects(items(message.get("content_list"))):
            urls += _listed(part)
            urls += _URL.findall(text(part.get("content")))
    return tuple(dict.fromkeys(urls))


def _listed(holder: Mapping[str, Any]) -> Iterator[str]:
    """The pictures in `extra.image_list` of a delta or a message."""
    for each in objects(items(mapping(holder.get("extra")).get("image_list"))):
        url = text(each.get("image"))
        if _URL.fullmatch(url):
            yield url


def task_of(answer: Mapping[str, Any]) -> str:
    """The id of the task that makes a video; "" if there is none that can be used."""
    data = mapping(answer.get("data"))
    for message in objects(items(data.get("messages"))):
        id = text(mapping(mapping(message.get("extra")).get("wanx")).get("task_id"))
        if _TASK.fullmatch(id):
            return id
    names = ("task_id", "taskId", "id", "response_id", "message_id")
    found = (text(holder.get(name)) for name in names for holder in (data, answer))
    return next((id for id in found if _TASK.fullmatch(id)), "")


#: Words for the state of a task, as Model Studio has them.
_STATES: Final = {
    "success": "SUCCEEDED",
    "succeeded": "SUCCEEDED",
    "completed": "SUCCEEDED",
    "failed": "FAILED",
    "error": "FAILED",
    "canceled": "CANCELED",
    "cancelled": "CANCELED",
    "pending": "PENDING",
    "queued": "PENDING",
    "unknown": "UNKNOWN",
}


def task_state(answer: Mapping[str, Any], id: str) -> dict[str, Any]:
    """The state of a task as Model Studio's native API tells it: `{"output": {…}}`; what has no
    known word goes on."""
    told = mapping(answer.get("data")) or answer
    word = text(told.get("task_status")) or text(told.get("status"))
    status = _STATES.get(word.lower(), "RUNNING")
    output: dict[str, Any] = {"task_id": id, "task_status": status}
    if status == "SUCCEEDED":
        output["video_url"] = next(iter(_URL.findall(text(told.get("content")))), "")
    elif status == "FAILED":
        words = (text(told.get(name)) for name in ("message", "details", "error", "content"))
        output["code"] = text(told.get("code"))
        output["message"] = next(filter(None, words), "")[:_MOST_SHOWN]
    return {"output": output}
