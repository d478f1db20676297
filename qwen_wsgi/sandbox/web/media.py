"""Pictures and videos of the web API: what its chats answer, and the tasks of videos."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Final

from qwen_wsgi.sandbox.faults import Spec, without_magic
from qwen_wsgi.sandbox.native.images import png
from qwen_wsgi.sandbox.native.videos import mp4
from qwen_wsgi.sandbox.web.site import Task
from qwen_wsgi.sandbox.world import Json, World

PICTURES: Final = ("t2i", "image_edit")
VIDEO: Final = "t2v"
_SIDES: Final = {
    "1:1": (1024, 1024),
    "4:3": (1024, 768),
    "3:4": (768, 1024),
    "16:9": (1280, 720),
    "9:16": (720, 1280),
}


def pictures(world: World, body: Json, said: str, spec: Spec, chat: str) -> Iterator[Json]:
    """The events of a chat that makes one picture."""
    wanted = spec.text("web")
    yield {"response.created": {"chat_id": chat, "response_id": str(uuid.uuid4())}}
    if wanted == "no-picture":
        yield _event("answer", "[sandbox] I cannot draw that.", "finished")
        return
    sides = _SIDES.get(str(body.get("size", "1:1")), (1024, 1024))
    drawn = f"{without_magic(said)} {len(body['messages'][0].get('files', []))} {uuid.uuid4()}"
    path = world.media.keep("picture.png", "image/png", png(drawn, *sides))
    url = world.media.url(path)
    if wanted == "late-picture":  # in the chat's history alone
        world.web.history[chat] = url
        return
    if wanted == "listed-picture":
        yield _event("image_gen", "", "typing", extra={"image_list": [{"image": url}]})
    else:
        yield _event("image_gen", url, "typing")
    yield _event("image_gen", "", "finished")


def detail(world: World, chat: str) -> Json:
    """A chat with its history."""
    content = world.web.history.get(chat, "")
    messages = {
        "m1": {"role": "user", "content": "https://sandbox.invalid/of-the-user.png"},
        "m2": {"role": "assistant", "content": content},
    }
    return {"success": True, "data": {"id": chat, "chat": {"history": {"messages": messages}}}}


def begin_video(world: World, user: str, said: str, spec: Spec) -> Json:
    """Begin a video; the answer that names its task."""
    id = str(uuid.uuid4())
    world.web.tasks[id] = Task(user, without_magic(said), spec.text("web") == "failing-video")
    if spec.text("web") == "no-task":
        return {"success": True, "data": {"messages": []}}
    message = {"role": "assistant", "extra": {"wanx": {"task_id": id}}}
    return {"success": True, "data": {"messages": [message]}}


def task(world: World, user: str, id: str) -> Json | None:
    """How far a video is; None if the user has none of this id."""
    found = world.web.tasks.get(id)
    if found is None or found.user != user:
        return None
    found.looks -= 1
    if found.looks > 0:
        return {"task_status": "running", "content": ""}
    if found.fails:
        return {"task_status": "failed", "message": "[sandbox] the video was not made"}
    path = world.media.keep("video.mp4", "video/mp4", mp4(found.prompt))
    return {"task_status": "success", "content": world.media.url(path)}


def _event(phase: str, content: str, status: str, **more: Any) -> Json:
    delta = {"role": "assistant", "content": content, "phase": phase, "status": status, **more}
    return {"choices": [{"delta": delta}], "response_id": "sandbox"}
