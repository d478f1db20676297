"""Dispatches requests to routes, and answers all of them but those of the login."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from qwen_wsgi.sandbox import chat, errors, faults, files, login, params, search, stream, tokenizer
from qwen_wsgi.sandbox.completions import complete
from qwen_wsgi.sandbox.console import own_route
from qwen_wsgi.sandbox.embeddings import embed
from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import BadSpec, Spec
from qwen_wsgi.sandbox.journal import Record
from qwen_wsgi.sandbox.models import model_entry, model_list
from qwen_wsgi.sandbox.native import asr, rerank
from qwen_wsgi.sandbox.native import routes as native
from qwen_wsgi.sandbox.replies import (
    answered,
    booked,
    faulty,
    late_or_broken,
    refused,
    then,
    vendor_headers,
    wanted_refusal,
    without_length,
)
from qwen_wsgi.sandbox.steps import Close, Pause, Step, encode_json, gzipped, whole
from qwen_wsgi.sandbox.web import routes as web
from qwen_wsgi.sandbox.wire import Request
from qwen_wsgi.sandbox.world import Json, Reply, World, json_object, key_refusal, spec_for

# Batch Chat has a host of its own; here it is told apart by its path.
BATCH_CHAT: Final = "/batch/compatible-mode/v1/chat/completions"
_PREFIXES: Final = ("/compatible-mode/v1/", "/v1/")


def route_of(request: Request) -> str:
    """Return the name of a request's route: one of `ROUTES`, or control, page, or unknown."""
    path = request.path
    if path.startswith("/_sandbox/"):
        return "control"
    if path in ("/", "/authorize"):
        return "page"
    fixed = {
        "/api/v1/oauth2/device/code": "device",
        "/api/v1/oauth2/token": "token",
        "/api/v1/tokenizer": "tokenizer",
        "/compatible-api/v1/reranks": "reranks",
        BATCH_CHAT: "batch-chat",
    }
    if path in fixed and request.method == "POST":
        return fixed[path]
    if (found := web.route_of(request.method, path)) is not None:
        return found
    if (found := native.route_of(request.method, path)) is not None:
        return found
    for prefix in _PREFIXES:
        if path.startswith(prefix):
            return _api_route(request.method, path[len(prefix) :])
    return "unknown"


def _api_route(method: str, rest: str) -> str:
    if method == "POST" and rest in ("chat/completions", "completions", "embeddings"):
        return rest.removesuffix("/completions")
    if method == "GET" and (rest == "models" or rest.startswith("models/")):
        return "models"
    for name in ("files", "batches"):
        if rest == name or rest.startswith(name + "/"):
            return name
    return "unknown"


def respond(world: World, request: Request, record: Record | None) -> Reply:
    """Answer a request. `record` is None for the sandbox's own routes."""
    if record is None:
        return Reply(own_route(world, request))
    handlers = {
        "chat": _chat,
        # An ordinary call that may wait (`slow-headers`) and has not every model.
        "batch-chat": _chat,
        "completions": _completions,
        "embeddings": _embeddings,
        "multimodal-embeddings": native.multimodal_embeddings,
        "reranks": _reranks,
        "native-rerank": native.text_rerank,
        "models": _models,
        "device": login.device,
        "token": login.token,
        "tokenizer": _tokenizer,
        "generation": native.generation,
        "synthesizer": native.synthesizer,
        "image-task": native.image_task,
        "video-task": native.video_task,
        "file-task": native.file_task,
        "uploads": native.uploads,
        "storage": native.storage,
        "tasks": native.tasks,
        "results": native.results,
        "files": _files,
        "batches": _batches,
        **dict.fromkeys(web.ROUTES, web.respond),
    }
    handler = handlers.get(record.route)
    if handler is None:
        # The real service answers a wrong path with an empty body.
        return Reply(whole(404, b"", None), headers=vendor_headers(record))
    try:
        reply = handler(world, request, record)
    except BadSpec as error:
        refusal = Refusal(400, "sandbox_bad_spec", f"[sandbox] {error}", "invalid_request_error")
        reply = Reply(refused(refusal, Spec()))
    record.spec = str(reply.spec)
    steps = reply.steps
    if "close" in reply.spec:
        steps = without_length(steps)
    if "gzip" in reply.spec:
        steps = gzipped(steps)
    if "close-silently" in reply.spec:
        steps = then(steps, Close(silent=True))
    return replace(reply, steps=steps, headers=vendor_headers(record))


def _chat(world: World, request: Request, record: Record) -> Reply:
    body = json_object(request)
    model = str(body.get("model", "")) if body else ""
    record.model = model
    record.stream = body is not None and body.get("stream") is True
    texts = [faults.spec_in_model(model), faults.spec_in_text(chat.last_user_text(body or {}))]
    spec = spec_for(world, request, record, texts)
    errors.in_stream(spec)  # raises BadSpec now, while a 400 is still possible
    queued_s = _queue_time(request, spec)
    refusal = key_refusal(world, request)
    if refusal is not None:
        return Reply(refused(refusal, spec), spec)

    def steps() -> Iterator[Step]:
        if queued_s is not None:
            yield Pause(queued_s)
        yield from _chat_answer(world, record, body, spec)

    wanted = wanted_refusal(world, spec, model) if queued_s is None else None
    return Reply(_counted(world, record, faulty(world, spec, steps, wanted)), spec)


def _queue_time(request: Request, spec: Spec) -> float | None:
    """Return how long a burst is queued instead of refused, or None.

    DashScope queues it if X-DashScope-Wait-Timeout allows that many seconds.
    """
    if "burst" not in spec:
        return None
    try:
        allowed_s = float(request.header("x-dashscope-wait-timeout") or 0)
    except ValueError:
        return None
    return spec.number("burst") if allowed_s >= spec.number("burst") else None


def _counted(world: World, record: Record, steps: Iterator[Step]) -> Iterator[Step]:
    """Count a chat as open while it is answered, and refuse it if too many are open."""
    most = world.control.knobs.max_concurrent
    running = world.journal.begin_chat(record)
    try:
        if most is not None and running > most:
            text = "concurrency allocated quota exceeded"
            yield from refused(Refusal(429, "insufficient_quota", text), Spec())
        else:
            yield from steps
    finally:
        world.journal.end_chat(record)


def _chat_answer(world: World, record: Record, body: Json | None, spec: Spec) -> Iterator[Step]:
    if body is None:
        return refused(errors.BAD_BODY, spec)
    refusal = _chat_refusal(world, body, spec)
    if refusal is not None:
        return refused(refusal, spec)
    if asr.has(str(body.get("model"))) and "text" not in spec:
        spec = spec.merged(Spec({"text": asr.TEXT}))
    made = chat.answer(body, spec, now_s=world.clock())
    streamed = record.stream and "non-stream-json" not in spec
    if streamed or "stream-anyway" in spec:
        chunks = chat.chunks(made, spec, include_usage=chat.wants_usage(body))
        events = stream.payloads(_booked(chunks, record), spec)
        return stream.script(events, spec, world.control.knobs.interval_s)
    whole = chat.completion(made, spec)
    return booked(late_or_broken(encode_json(whole), spec), record, whole)


def _booked(chunks: Iterator[Json], record: Record) -> Iterator[Json]:
    """Note the usage of a chunk once the next one is wanted: then it was sent."""
    for chunk in chunks:
        yield chunk
        record.usage = chunk.get("usage") or record.usage


def _chat_refusal(world: World, body: Json, spec: Spec) -> Refusal | None:
    if "strict-portal" in spec and (refusal := params.portal_refusal(body)) is not None:
        return refusal
    if "text-only" in spec and (refusal := params.media_refusal(body)) is not None:
        return refusal
    if (refusal := search.refusal_for(body, spec)) is not None:
        return refusal
    if "lax" not in spec and (refusal := params.refusal_for(body)) is not None:
        return refusal
    base = str(body.get("model")).partition("/sandbox/")[0]
    if asr.has(base) and (refusal := asr.chat_refusal(body)) is not None:
        return refusal
    knobs = world.control.knobs
    if knobs.strict_models and base not in knobs.models and not base.startswith("sandbox/"):
        return errors.chosen(Spec({"model-not-found": ""}), base)
    return None


def _completions(world: World, request: Request, record: Record) -> Reply:
    return _whole(world, request, record, lambda body: complete(body, now_s=world.clock()))


def _embeddings(world: World, request: Request, record: Record) -> Reply:
    return _whole(world, request, record, embed)


def _reranks(world: World, request: Request, record: Record) -> Reply:
    return _whole(world, request, record, rerank.compatible)


def _tokenizer(world: World, request: Request, record: Record) -> Reply:
    return _whole(world, request, record, tokenizer.count)


def _whole(
    world: World, request: Request, record: Record, make: Callable[[Json], Json | Refusal]
) -> Reply:
    """Answer a route that does not stream."""
    body = json_object(request)
    record.model = str(body.get("model", "")) if body else ""

    def made(spec: Spec) -> Json | Refusal:
        return errors.BAD_BODY if body is None else make(body)

    return answered(world, request, record, made, texts=[faults.spec_in_model(record.model)])


def _files(world: World, request: Request, record: Record) -> Reply:
    _, _, rest = request.path.partition("/files")
    id, _, below = rest.lstrip("/").partition("/")

    def make(spec: Spec) -> Json | Refusal | bytes | None:
        storage = world.storage
        if not id:
            if request.method == "POST":
                return files.upload(storage, request)
            return files.listing(storage, request) if request.method == "GET" else None
        found = storage.get(id)
        if found is None:
            return files.missing(id)
        if request.method == "DELETE":
            storage.remove(id)
            return {"object": "file", "deleted": True, "id": id}
        if request.method == "GET":
            return found.content if below == "content" else found.as_json()
        return None

    return answered(world, request, record, make)


def _batches(world: World, request: Request, record: Record) -> Reply:
    _, _, rest = request.path.partition("/batches")
    id, _, below = rest.lstrip("/").partition("/")

    def make(spec: Spec) -> Json | Refusal | None:
        batches, method = world.batches, request.method
        if not id and method == "POST":
            return batches.create(json_object(request))
        if below == "cancel" and method == "POST":
            return batches.cancel(id)
        if method != "GET" or below:
            return None
        return batches.look(id) if id else batches.listing()

    return answered(world, request, record, make)


def _models(world: World, request: Request, record: Record) -> Reply:
    known = world.control.knobs.models
    _, found, identity = request.path.partition("/models/")

    def make(spec: Spec) -> Json | Refusal:
        if not found:
            return model_list(known)
        if identity in known:
            return model_entry(identity)
        return errors.chosen(Spec({"model-not-found": ""}), identity) or errors.BAD_BODY

    return answered(world, request, record, make)
