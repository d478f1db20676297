"""Answers the web API's routes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import parse_qs

from qwen_wsgi.sandbox import faults, stream
from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import Spec
from qwen_wsgi.sandbox.journal import Record, bearer
from qwen_wsgi.sandbox.replies import faulty, refused
from qwen_wsgi.sandbox.steps import Step, whole_json
from qwen_wsgi.sandbox.web import media, storage
from qwen_wsgi.sandbox.wire import Request
from qwen_wsgi.sandbox.world import Json, Reply, World, json_object, spec_for

ROUTES: Final = (
    "web-auth",
    "web-models",
    "web-chats",
    "web-chat",
    "web-tasks",
    "web-upload",
    "web-object",
)
#: The firewall's limit, in characters of the message's text.
_MOST_CHARACTERS: Final = 128 * 1024
_MODELS: Final = {
    "qwen3-max": (True, ["t2t", "search", "deep_research", "t2i", "image_edit", "t2v"]),
    "qwen3-vl-plus": (True, ["t2t"]),
    "qwen3-coder-plus": (False, ["t2t", "t2i"]),
}
_CHALLENGE: Final = {
    "ret": ["FAIL_SYS_USER_VALIDATE", "RGV587_ERROR::SM::[sandbox] try again later"],
    "data": {"url": "https://sandbox.invalid/_____tmd_____/punish?action=captcha"},
}
_ERRORS: Final[dict[str, Json]] = {
    "limited": {"code": "RateLimited", "details": "[sandbox] the daily limit", "num": 3},
    "unauthorized": {"code": "unauthorized", "details": "[sandbox] need_login"},
    "internal": {"code": "Bad_Request", "details": "[sandbox] internal error"},
    "refused": {"code": "RequestValidationError", "details": "[sandbox] not so"},
}


def route_of(method: str, path: str) -> str | None:
    """The name of a route of the web API; None for another path."""
    if path == "/api/v1/auths/" and method == "GET":
        return "web-auth"
    if path in ("/api/models", "/api/v2/models") and method == "GET":
        return "web-models"
    if path == "/api/v2/chat/completions" and method == "POST":
        return "web-chat"
    if path == "/api/v2/files/getstsToken" and method == "POST":
        return "web-upload"
    if path.startswith(f"/{storage.BUCKET}/") and method == "PUT":
        return "web-object"
    if path.startswith("/api/v1/tasks/status/") and method == "GET":
        return "web-tasks"
    if path == "/api/v2/chats" or path.startswith("/api/v2/chats/"):
        return "web-chats"
    return None


def respond(world: World, request: Request, record: Record) -> Reply:
    """Answer a request of the web API. Most failures come with status 200."""
    if record.route == "web-object":
        return storage.put(world, request, record)
    body = json_object(request) or {}
    said = _text_of(body)
    record.model = str(body.get("model", ""))
    record.stream = record.route == "web-chat"
    spec = spec_for(world, request, record, [faults.spec_in_text(said)])
    user = world.web.user_of(bearer(request))
    wanted = spec.text("web")

    def steps() -> Iterator[Step]:
        if wanted == "challenge" or len(said) > _MOST_CHARACTERS:
            return whole_json(200, _CHALLENGE)
        if wanted in _ERRORS:
            return whole_json(200, _failed(_ERRORS[wanted]))
        if user is None:
            return whole_json(401, _failed(_ERRORS["unauthorized"]))
        if record.route == "web-upload":
            place = storage.place(world, user, body)
            if place is None:
                return whole_json(200, _failed(_ERRORS["refused"]))
            return whole_json(200, {"success": True, "data": place})
        if record.route == "web-tasks":
            found = media.task(world, user, request.path.rpartition("/")[2])
            return whole_json(200, _failed(_ERRORS["refused"]) if found is None else found)
        handlers = {"web-auth": _auth, "web-models": _models, "web-chats": _chats}
        if record.route == "web-chat":
            return _completion(world, request, user, body, said, spec)
        return handlers[record.route](world, request, user)

    return Reply(faulty(world, spec, steps, None), spec)


def _failed(data: Json) -> Json:
    return {"success": False, "request_id": str(uuid.uuid4()), "data": data}


def _auth(world: World, request: Request, user: str) -> Iterator[Step]:
    token = world.web.token(world.web.renewed_for or user, world.web.renewed_s)
    return whole_json(
        200,
        {
            "id": user,
            "name": f"{user} [sandbox]",
            "email": f"{user}@sandbox.invalid",
            "token": token,
            "expires_at": int(world.clock()) + 30 * 86400,
        },
    )


def _models(world: World, request: Request, user: str) -> Iterator[Step]:
    data = [
        {
            "id": id,
            "name": id.title(),
            "info": {
                "meta": {
                    "abilities": {"thinking": thinks, "vision": "-vl-" in id},
                    "chat_type": kinds,
                    "max_context_length": 131072,
                    "description": "[sandbox]",
                }
            },
        }
        for id, (thinks, kinds) in _MODELS.items()
    ]
    if request.path == "/api/models":
        return whole_json(200, {"data": data})
    return whole_json(200, {"success": True, "data": {"data": data}})


def _chats(world: World, request: Request, user: str) -> Iterator[Step]:
    rest = request.path.removeprefix("/api/v2/chats").strip("/")
    if request.method == "POST" and rest == "new":
        return whole_json(200, {"success": True, "data": {"id": world.web.open(user)}})
    if request.method == "GET" and world.web.owns(user, rest):
        return whole_json(200, media.detail(world, rest))
    if request.method == "DELETE" and not rest:
        world.web.delete_all(user)
        return whole_json(200, {"success": True, "data": {"status": True}})
    if request.method == "DELETE" and world.web.delete(user, rest):
        return whole_json(200, {"success": True, "data": {"status": True}})
    missing = Refusal(404, "Not_Found", "[sandbox] no such chat")
    return refused(missing, Spec())


def _message(body: Json) -> Json:
    messages = body.get("messages")
    message = messages[0] if isinstance(messages, list) and messages else {}
    return message if isinstance(message, dict) else {}


def _text_of(body: Json) -> str:
    content = _message(body).get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _completion(
    world: World, request: Request, user: str, body: Json, said: str, spec: Spec
) -> Iterator[Step]:
    chat = parse_qs(request.query).get("chat_id", [""])[0]
    if not world.web.owns(user, chat) or body.get("chat_id") != chat:
        return whole_json(200, _failed(_ERRORS["refused"]))
    kind = _message(body).get("chat_type")
    if kind == media.VIDEO:
        if body.get("stream") is not False:
            return whole_json(200, _failed(_ERRORS["refused"]))
        return whole_json(200, media.begin_video(world, user, said, spec))
    if not all(body.get(name) is True for name in ("stream", "incremental_output")):
        return whole_json(200, _failed(_ERRORS["refused"]))
    if not _files_are_known(world, user, body):
        return whole_json(200, _failed(_ERRORS["refused"]))
    if kind in media.PICTURES:
        made = media.pictures(world, body, said, spec, chat)
    else:
        made = _events(body, said, spec, chat)
    events = (json.dumps(each, ensure_ascii=False) for each in made)
    return stream.script(events, spec, world.control.knobs.interval_s)


def _files_are_known(world: World, user: str, body: Json) -> bool:
    """Whether the files of a message were uploaded by its user, or are elsewhere."""
    files = _message(body).get("files")
    return all(
        isinstance(each, dict) and storage.url_is_known(world, user, each.get("url"))
        for each in (files if isinstance(files, list) else [])
    )


def _events(body: Json, said: str, spec: Spec, chat: str) -> Iterator[Json]:
    response, wanted = str(uuid.uuid4()), spec.text("web")
    yield {
        "response.created": {
            "chat_id": chat,
            "parent_id": str(uuid.uuid4()),
            "response_id": response,
        }
    }
    messages = body["messages"]
    if len(messages) != 1 or wanted == "no-text":
        return  # several messages get an empty answer
    config = messages[0].get("feature_config", {})
    phased = config.get("output_schema") == "phase"
    tokens = {"input_tokens": 1 + len(said) // 4, "output_tokens": 0, "total_tokens": 0}

    def event(phase: str, content: str, status: str = "typing", **more: Any) -> Json:
        tokens["output_tokens"] += 1 if content else 0
        tokens["total_tokens"] = tokens["input_tokens"] + tokens["output_tokens"]
        delta = {"role": "assistant", "content": content, "status": status, **more}
        if wanted == "no-status":
            del delta["status"]
        if phased:
            delta["phase"] = phase
        return {"choices": [{"delta": delta}], "usage": dict(tokens), "response_id": response}

    if config.get("thinking_enabled"):
        yield event("think", "[sandbox] thinking about it")
        yield event("think", "", "finished")
    if wanted == "think-only":
        return
    if messages[0].get("chat_type") == "search":
        found = [{"title": "A page", "url": "https://sandbox.invalid/page", "snippet": "…"}]
        extra = {"web_search_info": found}
        yield event("web_search", "", "finished", name="web_search", extra=extra)
    answer = spec.text("text")
    for word in (answer or f"[sandbox] You said: {faults.without_magic(said)}").split(" "):
        yield event("answer", word + " ")
    if wanted == "error-event":
        yield {"error": _ERRORS["internal"]}
        return
    if wanted not in ("no-end", "no-status"):
        yield event("answer", "", "finished")
