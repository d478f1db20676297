"""The server itself: models, health, state, metrics, and its pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qwen_wsgi.accounting.exposition import OPENMETRICS, TEXT
from qwen_wsgi.api.openapi.json_schema import (
    Schema,
    answer,
    array,
    either,
    flag,
    integer,
    mapping,
    maybe,
    number,
    ref,
    request,
    text,
)
from qwen_wsgi.api.openapi.operations import JSON, Access, Answer, Operation, Query

HTML: Final = "text/html"
_STATUS: Final = text("`ok`, `degraded`, `no_usable_account`, `draining`, …")

_ANTHROPIC_MODEL: Final = answer(
    {
        "type": text("", "model"),
        "id": text(),
        "display_name": text(),
        "created_at": text("RFC 3339."),
        "lifecycle": text("", "active"),
        "max_input_tokens": maybe(integer()),
        "max_tokens": maybe(integer()),
    }
)

SCHEMAS: Final[Mapping[str, Schema]] = {
    "anthropic_model": _ANTHROPIC_MODEL,
    "anthropic_models": answer(
        {
            "data": array(ref("anthropic_model")),
            "has_more": flag(),
            "first_id": maybe(text()),
            "last_id": maybe(text()),
        }
    ),
    "anthropic_error": answer(
        {
            "type": text("", "error"),
            "error": answer(
                {"type": text(), "message": text(), "details": mapping()}, optional=("details",)
            ),
            "request_id": text(),
        }
    ),
    "health": answer(
        {
            "status": _STATUS,
            "ready": flag("Calls can be served."),
            "cause": text(),
            "version": text(),
            "sandbox": flag("The built-in fake upstream answers."),
            "uptime_s": number(),
            "in_flight": integer(),
            "websockets": integer(),
            "accounts": array(
                answer(
                    {
                        "name": text(),
                        "kind": text(),
                        "state": text(),
                        "ability": text(),
                        "cause": text(),
                        "left_alone_s": number(),
                        "remedy": text(),
                        "sharing": text(),
                        "models": array(
                            answer({"model": text(), "left_alone_s": number(), "cause": text()}),
                            "Those that are left alone.",
                        ),
                        "plan": mapping(),
                    },
                    optional=(
                        *("ability", "cause", "left_alone_s", "remedy", "sharing"),
                        *("models", "plan"),
                    ),
                )
            ),
            "redis": answer(
                {"state": text("", "ok", "away"), "version": text(), "away_s": number()},
                optional=("version", "away_s"),
            ),
        },
        # Callers from elsewhere without a key are told the first two.
        optional=(
            *("cause", "version", "sandbox", "uptime_s", "in_flight", "websockets"),
            *("accounts", "redis"),
        ),
    ),
    "live": answer({"status": text("", "ok")}),
    "ready": answer({"status": _STATUS, "cause": text()}, optional=("cause",)),
    "status": answer(
        {
            "version": text(),
            "uid": integer("The user that the server runs as."),
            "workers": integer(),
            "in_flight": integer(),
            "calls": integer("That have ended."),
            "accounts": array(ref("account")),
            "problems": array(text()),
            "notes": array(text()),
        }
    ),
    "index": answer(
        {"name": text(), "version": text(), "what": text(), "endpoints": array(text())}
    ),
}

_MODELS_TAG: Final = "Models"
_SERVER_TAG: Final = "The server"


def _health(path: str, summary: str, schema: str) -> Operation:
    return Operation(
        "GET",
        path,
        _SERVER_TAG,
        summary,
        (
            Answer("Calls can be served.", {JSON: ref(schema)}),
            Answer(
                "They cannot: no account is usable, or it stops.", {JSON: ref(schema)}, status=503
            ),
        ),
        access=Access.OPEN,
    )


OPERATIONS: Final = (
    Operation(
        "GET",
        "/v1/models",
        _MODELS_TAG,
        "The models that the caller may use",
        (Answer("The list.", {JSON: either(ref("models.list"), ref("anthropic_models"))}),),
        description="Clients of Anthropic's API get its form, with `limit`, `after_id` and "
        "`before_id`.",
        query=(
            Query("refresh", text("`1`: ask the hosts now.")),
            Query("client_version", text("Of Codex, which gets `models` in its own form, too.")),
            Query("limit", integer("Of Anthropic's form.")),
            Query("after_id", text("Of Anthropic's form.")),
            Query("before_id", text("Of Anthropic's form.")),
        ),
        errors=(400,),
    ),
    Operation(
        "GET",
        "/v1/models/{id}",
        _MODELS_TAG,
        "A model",
        (Answer("The model.", {JSON: either(ref("models.model"), ref("anthropic_model"))}),),
        errors=(404,),
    ),
    _health("/health", "How the server and its accounts are", "health"),
    Operation(
        "GET",
        "/health/live",
        _SERVER_TAG,
        "Whether the worker runs",
        (Answer("It does.", {JSON: ref("live")}),),
        access=Access.OPEN,
    ),
    _health("/health/ready", "Whether calls should be sent here", "ready"),
    Operation(
        "GET",
        "/status",
        _SERVER_TAG,
        "What the server knows of its accounts",
        (Answer("For programs on its own machine.", {JSON: ref("status")}),),
    ),
    Operation(
        "GET",
        "/metrics",
        _SERVER_TAG,
        "The metrics of all workers",
        (
            Answer(
                "For Prometheus.",
                {kind.partition(";")[0]: text() for kind in (TEXT, OPENMETRICS)},
            ),
        ),
        access=Access.METRICS,
    ),
    Operation(
        "GET",
        "/",
        _SERVER_TAG,
        "What this is",
        (Answer("The endpoints; for browsers a page.", {JSON: ref("index"), HTML: None}),),
        description="The page has the state, and how clients are set up with this address. For "
        "this machine it has accounts and models, too.",
        access=Access.OPEN,
    ),
    Operation(
        "POST",
        "/",
        _SERVER_TAG,
        "The page for the holder of a key",
        (
            Answer("With the accounts and the models of the key.", {HTML: None}),
            Answer("The page, which says why the key is refused.", {HTML: None}, status=401),
            Answer(
                "The same; or an error, for a page of another site.",
                {HTML: None, JSON: ref("error.envelope")},
                status=403,
            ),
        ),
        body={
            "application/x-www-form-urlencoded": request(
                {"key": text("The client key, which is not kept.")}
            )
        },
        needs_body=False,
        decodes=False,
        errors=(503,),
        access=Access.OPEN,
    ),
    Operation(
        "GET",
        "/docs",
        _SERVER_TAG,
        "This description, to read",
        (Answer("A page.", {HTML: None}),),
        access=Access.OPEN,
    ),
    Operation(
        "GET",
        "/pages/{name}",
        _SERVER_TAG,
        "Style and script of the pages",
        (Answer("The file.", {"text/css": None, "text/javascript": None}),),
        errors=(404,),
        access=Access.OPEN,
    ),
    *(
        Operation(
            "GET",
            path,
            _SERVER_TAG,
            "This description",
            (Answer("OpenAPI 3.1.", {JSON: mapping()}),),
            access=Access.OPEN,
        )
        for path in ("/openapi.json", "/qwen.json")
    ),
)
