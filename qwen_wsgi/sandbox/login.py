"""The login routes: device codes, tokens, and failures before and after a token's rotation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from qwen_wsgi.sandbox.faults import Spec
from qwen_wsgi.sandbox.journal import Record
from qwen_wsgi.sandbox.oauth import DEVICE_GRANT
from qwen_wsgi.sandbox.replies import faulty, retry_headers, wanted_refusal
from qwen_wsgi.sandbox.steps import Close, Pause, Step, whole_json
from qwen_wsgi.sandbox.wire import Request
from qwen_wsgi.sandbox.world import Json, Reply, World, form_of, spec_for


def device(world: World, request: Request, record: Record) -> Reply:
    spec = spec_for(world, request, record, [])

    def steps() -> Iterator[Step]:
        status, body = world.oauth.start_device(form_of(request))
        return whole_json(status, body)

    return Reply(_oauth_faulty(world, spec, steps), spec)


def token(world: World, request: Request, record: Record) -> Reply:
    spec = spec_for(world, request, record, [])
    form = form_of(request)
    if form.get("grant_type") == "refresh_token":
        return Reply(_refresh(world, form, spec), spec)

    def steps() -> Iterator[Step]:
        if form.get("grant_type") != DEVICE_GRANT:
            return whole_json(
                400, {"error": "unsupported_grant_type", "error_description": "unknown grant"}
            )
        status, body = world.oauth.poll_device(form)
        return whole_json(status, _shaped(body, spec) if "access_token" in body else body)

    return Reply(_oauth_faulty(world, spec, steps), spec)


def _refresh(world: World, form: dict[str, str], spec: Spec) -> Iterator[Step]:
    """Return the script of a refresh, with a failure before or after the token is spent."""
    late = "after-rotation" in spec

    def rotate() -> Iterator[Step]:
        if "slow-before" in spec:
            yield Pause(spec.number("slow-before"))
        status, body = world.oauth.refresh(form)
        if status != 200:
            yield from whole_json(status, body)
            return
        if "slow-after" in spec:
            yield Pause(spec.number("slow-after"))
        if "cut-after-rotation" in spec:
            yield Close()
            return
        if "no-refresh-token" in spec:
            world.oauth.keep_alive(form.get("refresh_token", ""))
        answer = whole_json(200, _shaped(body, spec), (("cache-control", "no-store"),))
        yield from _oauth_faulty(world, spec, lambda: answer) if late else answer

    return rotate() if late else _oauth_faulty(world, spec, rotate)


def _oauth_faulty(world: World, spec: Spec, main: Callable[[], Iterator[Step]]) -> Iterator[Step]:
    """Like `faulty`, but a failure that is given by its status has the OAuth error format."""
    if not {"token-error", "status"}.intersection(spec.items):
        return faulty(world, spec, main, wanted_refusal(world, spec))
    status = spec.count("status", 400)
    words = {400: "invalid_request", 401: "invalid_client", 429: "rate_limit_exceeded"}
    word = spec.text("token-error", words.get(status, "server_error"))
    text = spec.text("message", "Invalid refresh token or client_id" if status == 400 else word)
    body = {"error": word, "error_description": text}
    return faulty(world, spec, lambda: whole_json(status, body, retry_headers(spec)), None)


def _shaped(body: Json, spec: Spec) -> Json:
    """Change a token answer as the spec says."""
    shaped = dict(body)
    for name, key in (
        ("no-refresh-token", "refresh_token"),
        ("no-resource-url", "resource_url"),
        ("no-access-token", "access_token"),
    ):
        if name in spec:
            shaped.pop(key, None)
    if "resource-url" in spec:
        shaped["resource_url"] = spec.text("resource-url")
    wanted = spec.text("expires-in")
    if wanted == "missing":
        shaped.pop("expires_in", None)
    elif wanted:
        fixed: Json = {"zero": 0, "null": None, "string": str(body.get("expires_in"))}
        shaped["expires_in"] = fixed[wanted] if wanted in fixed else _number_or_text(wanted)
    return shaped


def _number_or_text(text: str) -> float | str:
    try:
        return int(text)
    except ValueError:
        return text
