"""Model Studio's native routes: what is made at once, tasks, and files, made or given."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Final
from urllib.parse import parse_qs

from qwen_wsgi.sandbox import errors, faults, stream
from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import Spec
from qwen_wsgi.sandbox.journal import Record
from qwen_wsgi.sandbox.native import asr, images, multimodal, rerank, speech, videos
from qwen_wsgi.sandbox.native.media import File
from qwen_wsgi.sandbox.replies import answered, faulty, wanted_refusal
from qwen_wsgi.sandbox.steps import FOREVER_S, Close, Data, Head, Pause, Step, encode_json, whole
from qwen_wsgi.sandbox.wire import Request
from qwen_wsgi.sandbox.world import Headers, Json, Reply, World, json_object, spec_for

_SERVICES: Final = "/api/v1/services/"
_AIGC: Final = _SERVICES + "aigc/"
_POSTS: Final = {
    _SERVICES + "rerank/text-rerank/text-rerank": "native-rerank",
    _SERVICES + "embeddings/multimodal-embedding/multimodal-embedding": "multimodal-embeddings",
    _AIGC + "multimodal-generation/generation": "generation",
    _AIGC + "text2image/image-synthesis": "image-task",
    _AIGC + "image2image/image-synthesis": "image-task",
    _AIGC + "image-generation/generation": "image-task",
    _AIGC + "video-generation/video-synthesis": "video-task",
    _AIGC + "image2video/video-synthesis": "video-task",
    _SERVICES + "audio/tts/SpeechSynthesizer": "synthesizer",
    _SERVICES + "audio/asr/transcription": "file-task",
    "/_storage": "storage",
}
_TASKS: Final = "/api/v1/tasks"
#: Polls of a task until it is done.
_LOOKS: Final = 2
_PIECE_BYTES: Final = 64 * 1024


def route_of(method: str, path: str) -> str | None:
    """The name of a native route, or None."""
    if method == "POST" and path in _POSTS:
        return _POSTS[path]
    if path.rstrip("/") == _TASKS or path.startswith(_TASKS + "/"):
        return "tasks"
    if method == "GET" and path == "/api/v1/uploads":
        return "uploads"
    if method == "GET" and path.startswith("/_results/"):
        return "results"
    return None


def text_rerank(world: World, request: Request, record: Record) -> Reply:
    """Documents by how well they answer a query."""
    return _at_once(world, request, record, rerank.native)


def multimodal_embeddings(world: World, request: Request, record: Record) -> Reply:
    """Vectors of texts, pictures and videos."""
    return _at_once(world, request, record, multimodal.embed)


def _at_once(
    world: World, request: Request, record: Record, make: Callable[[Json], Json | Refusal]
) -> Reply:
    """Answer a route that works synchronously only."""

    def made(body: Json, spec: Spec) -> Json | Refusal:
        if (request.header("x-dashscope-async") or "").lower() == "enable":
            return errors.NOT_ASYNCHRONOUS
        return make(body)

    return _whole(world, request, record, made)


def generation(world: World, request: Request, record: Record) -> Reply:
    """What is made at once."""

    def make(body: Json, spec: Spec) -> Json | Refusal | Iterator[Step]:
        if request.header("x-dashscope-async"):
            return errors.NOT_ASYNCHRONOUS
        if speech.has(record.model):
            return _spoken(world, request, record, speech.generate(body), spec)
        if asr.is_native(record.model):
            return _heard(world, request, record, asr.generate(body, spec), spec)
        if images.has(record.model):
            return _made(images.generate(body, spec, _keep_picture(world, spec)))
        return Refusal(404, "ModelNotFound", f"Model not exist: {record.model}", form="native")

    return _whole(world, request, record, make)


def synthesizer(world: World, request: Request, record: Record) -> Reply:
    """Speech of the models that have a route of their own."""

    def make(body: Json, spec: Spec) -> Json | Refusal | Iterator[Step]:
        return _spoken(world, request, record, speech.synthesize(body), spec)

    return _whole(world, request, record, make)


def _spoken(
    world: World,
    request: Request,
    record: Record,
    made: tuple[bytes, str, int] | Refusal,
    spec: Spec,
) -> Json | Refusal | Iterator[Step]:
    if isinstance(made, Refusal):
        return made

    def keep(name: str, kind: str, data: bytes) -> str:
        return world.media.url(world.media.keep(name, kind, data), spec.text("result-host"))

    if (request.header("x-dashscope-sse") or "").lower() != "enable":
        return _made(speech.answer(*made, keep))
    record.stream = True
    told = speech.events(*made, keep, pieces="no-pieces" not in spec)
    payloads = (encode_json(_made(event)).decode() for event in told)
    return stream.script(payloads, spec, world.control.knobs.interval_s)


def _heard(
    world: World, request: Request, record: Record, made: Json | Refusal, spec: Spec
) -> Json | Refusal | Iterator[Step]:
    if isinstance(made, Refusal):
        return made
    if (request.header("x-dashscope-sse") or "").lower() != "enable":
        return _made(made)
    record.stream = True
    payloads = (encode_json(_made(event)).decode() for event in asr.events(made))
    return stream.script(payloads, spec, world.control.knobs.interval_s)


def file_task(world: World, request: Request, record: Record) -> Reply:
    """Begin a task that transcribes a file."""

    def make(body: Json, spec: Spec) -> Json | Refusal:
        resolve = request.header("x-dashscope-ossresourceresolve")
        made = asr.transcribe(body, spec, world.media.stored.get, resolve)
        if isinstance(made, Refusal):
            return made
        data = encode_json(made.get("document", {}))
        path = world.media.keep("transcript.json", "application/json", data)
        url = world.media.url(path, spec.text("result-host"))
        told = {"output": asr.output_of(made, url), "usage": {"seconds": 4}}
        return begun(world, request, record, spec, told)

    return _whole(world, request, record, make)


def uploads(world: World, request: Request, record: Record) -> Reply:
    """Allow a file to be stored for a model."""
    query = {name: values[-1] for name, values in parse_qs(request.query).items()}
    record.model = query.get("model", "")

    def make(spec: Spec) -> Json | Refusal:
        if query.get("action") != "getPolicy" or not record.model:
            text = "action=getPolicy and model are required"
            return Refusal(400, "InvalidParameter", text, form="native")
        host = spec.text("result-host") or world.media.origin
        made = asr.policy(record.model, f"dashscope-instant/{uuid.uuid4().hex}", host + "/_storage")
        return _made(made)

    return answered(world, request, record, make, native=True)


def storage(world: World, request: Request, record: Record) -> Reply:
    """Store a file of a form, as OSS does: the file has to be its last field."""
    spec = spec_for(world, request, record, [])
    fields = asr.form_fields(request.header("content-type") or "", request.body)
    given = dict(fields)
    signed = given.get("Signature", b"").decode("utf-8", "replace")
    fine = (
        bool(fields)
        and fields[-1][0] == "file"
        and given.get("policy") == b"sandbox-policy"
        and given.get("OSSAccessKeyId") == b"sandbox-id"
        and given.get("success_action_status") == b"200"
        and signed.startswith("sandbox-signature-")
    )

    def steps() -> Iterator[Step]:
        if not fine:
            return whole(403, b"<Error><Code>AccessDenied</Code></Error>", "application/xml")
        model = signed.removeprefix("sandbox-signature-")
        world.media.stored["oss://" + given["key"].decode()] = (model, given["file"])
        return whole(200, b"", None)

    return Reply(faulty(world, spec, steps, wanted_refusal(world, spec)), spec)


def image_task(world: World, request: Request, record: Record) -> Reply:
    """Begin a task that makes pictures."""
    old = not request.path.endswith("/generation")

    def make(body: Json, spec: Spec) -> Json | Refusal:
        made = images.generate(body, spec, _keep_picture(world, spec), choices=not old)
        return made if isinstance(made, Refusal) else begun(world, request, record, spec, made)

    return _whole(world, request, record, make)


def video_task(world: World, request: Request, record: Record) -> Reply:
    """Begin a task that makes a video."""

    def make(body: Json, spec: Spec) -> Json | Refusal:
        made = videos.generate(body, request.path, partial(_keep_video, world, spec))
        return made if isinstance(made, Refusal) else begun(world, request, record, spec, made)

    return _whole(world, request, record, make)


def begun(world: World, request: Request, record: Record, spec: Spec, made: Json) -> Json | Refusal:
    """The answer to a request that begins a task, whose output and usage are `made`."""
    if not request.header("x-dashscope-async"):
        return _forbidden("current user api does not support synchronous calls.")
    task = world.media.start(
        record.model,
        lambda: {**made["output"], "_usage": made["usage"]},
        key_ends=record.key_ends,
        looks=spec.count("task-looks", _LOOKS),
        ending=spec.text("task-ends", "SUCCEEDED"),
        failure=spec.text("task-error", "InternalError.Algo"),
        waits=spec.count("task-waits"),
    )
    return _made({"output": {"task_id": task.id, "task_status": "PENDING"}})


def tasks(world: World, request: Request, record: Record) -> Reply:
    """Tell of one task, cancel one, or list them."""
    return answered(
        world, request, record, lambda spec: _task_answer(world, request, spec), native=True
    )


def _task_answer(world: World, request: Request, spec: Spec) -> Json | Refusal:
    media, id = world.media, request.path.removeprefix(_TASKS).strip("/")
    if not id:
        return _made(_listed(world, request))
    if request.method == "POST" and id.endswith("/cancel"):
        if media.cancel(id.removesuffix("/cancel")):
            return _made({})
        text = "Failed to cancel the task, please confirm if the task is in PENDING status."
        return Refusal(400, "UnsupportedOperation", text, form="native")
    output = media.look(id)
    usage = output.pop("_usage", None)
    return _made({"output": output, **({"usage": usage} if usage else {})})


def _listed(world: World, request: Request) -> Json:
    query = {name: values[-1] for name, values in parse_qs(request.query).items()}
    found = world.media.listed(
        query.get("model_name", ""), query.get("start_time", ""), query.get("end_time", "")
    )
    size, number = int(query.get("page_size", "10")), int(query.get("page_no", "1"))
    return {
        "data": found[(number - 1) * size : number * size],
        "total": len(found),
        "total_page": -(-len(found) // size),
        "page_no": number,
        "page_size": size,
    }


# --- files ---------------------------------------------------------------------------------------


def results(world: World, request: Request, record: Record) -> Reply:
    """A file that was made, or a part of it; with no key, by whoever has its URL."""
    spec = spec_for(world, request, record, [])
    file = world.media.file(request.path)

    def steps() -> Iterator[Step]:
        if file is None:
            return whole(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
        return _file(file, request.header("range"), spec)

    return Reply(faulty(world, spec, steps, wanted_refusal(world, spec)), spec)


def _file(file: File, wanted: str | None, spec: Spec) -> Iterator[Step]:
    begin, end = 0, file.size
    status = 200
    headers: Headers = (("accept-ranges", "bytes"), ("etag", '"sandbox"'))
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if match:
        begin = int(match[1])
        end = min(file.size, int(match[2]) + 1) if match[2] else file.size
        if begin >= end:
            yield from whole(416, b"", None, (("content-range", f"bytes */{file.size}"),))
            return
        status = 206
        headers += (("content-range", f"bytes {begin}-{end - 1}/{file.size}"),)
    kind = spec.text("content-type", file.content_type)
    yield Head(status, kind, None if "no-length" in spec else end - begin, headers=headers)
    if "trickle" in spec:
        for place in range(begin, end):
            yield Data(_bytes(file, place, place + 1))
            yield Pause(spec.number("trickle"))
        return
    stop = begin + (end - begin) // 2 if {"cut-after", "stall-after"} & set(spec.items) else end
    for place in range(begin, stop, _PIECE_BYTES):
        yield Data(_bytes(file, place, min(stop, place + _PIECE_BYTES)))
    if "stall-after" in spec:
        yield Pause(FOREVER_S)
    elif stop < end:
        yield Close()


def _bytes(file: File, begin: int, end: int) -> bytes:
    if len(file.data) == file.size:
        return file.data[begin:end]
    return bytes(end - begin)


def _keep_picture(world: World, spec: Spec) -> images.Keep:
    def keep(text: str, width: int, height: int) -> str:
        size = spec.count("result-bytes") or None
        path = world.media.keep("picture.png", "image/png", images.png(text, width, height), size)
        return world.media.url(path, spec.text("result-host"))

    return keep


def _keep_video(world: World, spec: Spec, text: str) -> str:
    size = spec.count("result-bytes") or None
    path = world.media.keep("video.mp4", "video/mp4", videos.mp4(text), size)
    return world.media.url(path, spec.text("result-host"))


# --- shared --------------------------------------------------------------------------------------


def _whole(
    world: World,
    request: Request,
    record: Record,
    make: Callable[[Json, Spec], Json | Refusal | Iterator[Step]],
) -> Reply:
    """Answer a route with a JSON body and a whole JSON answer, in the native form."""
    body = json_object(request)
    record.model = str(body.get("model", "")).partition("/sandbox/")[0] if body else ""
    if body is not None:
        asked = str(body.get("model", ""))
        body = {**body, "model": record.model}
    else:
        asked = ""

    def made(spec: Spec) -> Json | Refusal | Iterator[Step]:
        return replace(errors.BAD_BODY, form="native") if body is None else make(body, spec)

    texts = [faults.spec_in_model(asked), faults.spec_in_text(_text_of(body))]
    return answered(world, request, record, made, texts=texts, native=True)


def _text_of(value: object) -> str:
    """All texts of a request's input, in which specs may be."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return " ".join(_text_of(each) for name, each in value.items() if name != "image")
    if isinstance(value, list):
        return " ".join(map(_text_of, value))
    return ""


def _made(value: Json | Refusal) -> Json | Refusal:
    if isinstance(value, Refusal):
        return value
    return {"request_id": str(uuid.uuid4()), **value}


def _forbidden(message: str) -> Refusal:
    return Refusal(403, "AccessDenied", message, form="native")
