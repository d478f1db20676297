"""Answers that a spec replaces or changes, and the headers of all answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from email.utils import formatdate
from typing import Final

from qwen_wsgi.sandbox import errors
from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import Spec
from qwen_wsgi.sandbox.journal import Record
from qwen_wsgi.sandbox.steps import (
    FOREVER_S,
    JSON_TYPE,
    SSE_TYPE,
    Close,
    Data,
    Head,
    Pause,
    Raw,
    Step,
    encode_json,
    whole,
    whole_json,
)
from qwen_wsgi.sandbox.wire import Request
from qwen_wsgi.sandbox.world import Headers, Json, Reply, World, key_refusal, spec_for

HTML_TYPE: Final = "text/html; charset=utf-8"
_PAGE_502: Final = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n"
    b"<center><h1>502 Bad Gateway</h1></center>\r\n<hr>"
    b"<center>[sandbox] istio-envoy</center>\r\n</body>\r\n</html>\r\n"
)
_PAGE_WALL: Final = (
    b'<!doctypehtml><html lang="en"><meta charset="utf-8"><title>[sandbox] verification</title>'
    b'<meta name="aliyun_waf_aa" content="sandbox"><body><div id="captcha-element"></div>'
    b'<script src="/aliyun_waf_captcha.js"></script></body></html>'
)


#: What a route makes of a request: JSON, a refusal, the bytes of a file, an answer of its own, or
#: None for a wrong path.
Made = Json | Refusal | bytes | Iterator[Step] | None


def answered(
    world: World,
    request: Request,
    record: Record,
    make: Callable[[Spec], Made],
    *,
    texts: Sequence[str] = (),
    native: bool = False,
) -> Reply:
    """Answer a request that needs a key.

    Args:
        make: called unless the key or a spec decides.
        texts: parts of the request that may hold a spec.
        native: a refusal of the key has the native form.
    """
    spec = spec_for(world, request, record, texts)
    refusal = key_refusal(world, request)
    if refusal is not None:
        return Reply(refused(replace(refusal, form="native") if native else refusal, spec), spec)

    def steps() -> Iterator[Step]:
        if "never-began" in spec:
            return iter((Close(),))
        made = make(spec)
        if made is None:
            return whole(404, b"", None)
        if isinstance(made, Refusal):
            return refused(made, spec)
        if "lost-answer" in spec:
            return iter((Close(),))
        if isinstance(made, bytes):
            return late_or_broken(made, spec, "application/octet-stream")
        if isinstance(made, dict):
            return booked(late_or_broken(encode_json(made), spec), record, made)
        return made

    return Reply(faulty(world, spec, steps, wanted_refusal(world, spec, record.model)), spec)


def wanted_refusal(world: World, spec: Spec, model: str = "") -> Refusal | None:
    """Return the refusal that the spec selects, or None.

    Raises:
        BadSpec: the spec names an error code that does not exist.
    """
    reset_s = world.clock() + spec.number("reset-in")
    return errors.chosen(spec, model, time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(reset_s)))


def faulty(
    world: World, spec: Spec, main: Callable[[], Iterator[Step]], refusal: Refusal | None
) -> Iterator[Step]:
    """Apply what the spec selects before or instead of the main answer."""
    if "slow-headers" in spec:
        yield Pause(spec.number("slow-headers"))
    if "hang" in spec:
        yield Pause(FOREVER_S)
    canned = _canned(world, spec)
    if canned is not None:
        yield from canned
    elif refusal is not None:
        yield from refused(refusal, spec)
    else:
        yield from main()


def _canned(world: World, spec: Spec) -> Iterator[Step] | None:
    """Return the script of a behaviour that does not depend on the request, or None."""
    elsewhere = (("location", world.origin() + "/elsewhere"),)
    native = {
        "request_id": str(uuid.uuid4()),
        "code": "InternalError",
        "message": "[sandbox] error in a 200",
    }
    scripts: dict[str, Callable[[], Iterator[Step]]] = {
        "drop": lambda: iter((Close(),)),
        "reset": lambda: iter((Close(reset=True),)),
        "garbage": lambda: iter((Raw(b"\x00\xff sandbox: this is not HTTP\r\n\r\n"), Close())),
        "half-headers": lambda: iter((Raw(b"HTTP/1.1 200 OK\r\ncontent-ty"), Close())),
        "html-502": lambda: whole(502, _PAGE_502, HTML_TYPE, retry_headers(spec)),
        "html-200": lambda: whole(200, _PAGE_WALL, HTML_TYPE),
        "empty-503": lambda: whole(503, b"", None, retry_headers(spec)),
        "empty-200": lambda: whole(200, b"", None),
        "empty-404": lambda: whole(404, b"", None),
        "not-json": lambda: whole(200, b"[sandbox] {not json"),
        "json-error-200": lambda: whole_json(200, native),
        "redirect": lambda: whole(302, b"", None, elsewhere),
    }
    return next((make() for name, make in scripts.items() if name in spec), None)


def refused(refusal: Refusal, spec: Spec) -> Iterator[Step]:
    """Answer with an error body in the refusal's format."""
    body = encode_json(refusal.body())
    if refusal.form == "sse":
        return whole(refusal.status, b"data: " + body + b"\n\n", SSE_TYPE, retry_headers(spec))
    return whole(refusal.status, body, headers=retry_headers(spec))


def retry_headers(spec: Spec) -> Headers:
    if "retry-after-date" in spec:
        return (
            ("retry-after", formatdate(time.time() + spec.number("retry-after-date"), usegmt=True)),
        )
    return (("retry-after", f"{spec.number('retry-after'):g}"),) if "retry-after" in spec else ()


def without_length(steps: Iterator[Step]) -> Iterator[Step]:
    for step in steps:
        yield replace(step, length=None, until_close=True) if isinstance(step, Head) else step


def then(steps: Iterator[Step], last: Step) -> Iterator[Step]:
    yield from steps
    yield last


def booked(steps: Iterator[Step], record: Record, answer: Json) -> Iterator[Step]:
    """Note the usage of a whole answer once it was sent."""
    yield from steps
    usage = answer.get("usage")
    record.usage = usage if isinstance(usage, dict) else None


def late_or_broken(body: bytes, spec: Spec, content_type: str = JSON_TYPE) -> Iterator[Step]:
    """Answer with a whole body, with the delays and faults that also apply to one."""
    yield Head(200, content_type, len(body))
    if spec.number("slow-first"):
        yield Pause(spec.number("slow-first"))
    broken = {"cut-after", "cut-mid-event", "reset-after", "stall-after"}.intersection(spec.items)
    if not broken:
        yield Data(body)
        return
    half = len(body) // 2
    yield Data(body[:half])
    if "stall-after" in broken:
        yield Pause(spec.number("stall-for", FOREVER_S))
        yield Data(body[half:])
    else:
        yield Close(reset="reset-after" in broken)


def vendor_headers(record: Record) -> Headers:
    """Return the headers that the real gateway sends, and the number of the request."""
    now_ms = int(time.time() * 1000)
    return (
        ("vary", "Origin,Access-Control-Request-Method,Access-Control-Request-Headers"),
        ("x-request-id", str(uuid.uuid4())),
        ("x-dashscope-call-gateway", "true"),
        ("x-dashscope-finished", "false" if record.stream else "true"),
        ("x-dashscope-timeout", "180"),
        ("req-arrive-time", str(now_ms)),
        ("resp-start-time", str(now_ms)),
        ("req-cost-time", "0"),
        ("x-envoy-upstream-service-time", "0"),
        ("set-cookie", f"acw_tc={uuid.uuid4().hex};path=/;HttpOnly;Max-Age=1800"),
        ("server", "istio-envoy"),
        ("x-sandbox-request", str(record.seq)),
    )
