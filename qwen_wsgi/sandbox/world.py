"""What all routes share: their state, and how they read a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from qwen_wsgi.sandbox import errors, faults
from qwen_wsgi.sandbox.batches import Batches
from qwen_wsgi.sandbox.control import Control
from qwen_wsgi.sandbox.errors import Refusal
from qwen_wsgi.sandbox.faults import Spec
from qwen_wsgi.sandbox.files import Storage
from qwen_wsgi.sandbox.journal import Journal, Record, bearer
from qwen_wsgi.sandbox.native.media import Media
from qwen_wsgi.sandbox.oauth import ACCESS_PREFIX, OAuth
from qwen_wsgi.sandbox.steps import Step
from qwen_wsgi.sandbox.web.site import Site
from qwen_wsgi.sandbox.wire import Request

Json = dict[str, Any]
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class World:
    """The state of the sandbox."""

    clock: Callable[[], float]
    origin: Callable[[], str]
    oauth: OAuth
    control: Control
    journal: Journal
    media: Media
    storage: Storage
    batches: Batches
    web: Site


@dataclass(frozen=True, slots=True)
class Reply:
    """A script, with the selected behaviours that the player needs."""

    steps: Iterator[Step]
    spec: Spec = Spec()
    headers: Headers = ()


def spec_for(world: World, request: Request, record: Record, texts: Sequence[str]) -> Spec:
    """Merge the specs of control calls, model name, message text and header; later ones win.

    Raises:
        BadSpec: one of them is invalid.
    """
    spec = world.control.spec_for(record.route, record.model, bearer(request) or "")
    return spec.merged(faults.merged_specs([*texts, request.header("x-sandbox") or ""]))


def key_refusal(world: World, request: Request) -> Refusal | None:
    key = bearer(request)
    if key is None:
        return errors.MISSING_KEY
    if key.startswith(ACCESS_PREFIX) and not world.oauth.accepts(key):
        return errors.TOKEN_EXPIRED
    return errors.INVALID_KEY if world.control.refuses_key(key) else None


def json_object(request: Request) -> Json | None:
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def form_of(request: Request) -> dict[str, str]:
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return {}
    return dict(parse_qsl(request.body.decode("utf-8", "replace"), keep_blank_values=True))
