"""GET /v1/models and GET /v1/models/{id}, in the form of OpenAI, Anthropic or Codex."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.api.dialects import generation
from qwen_wsgi.capabilities import is_chat_model
from qwen_wsgi.errors import NotFound
from qwen_wsgi.protocol.messages import models as anthropic
from qwen_wsgi.protocol.responses import catalogue
from qwen_wsgi.upstream.routing.model_names import ANTHROPIC
from qwen_wsgi.upstream.routing.model_profiles import effort_levels

blueprint = Blueprint("models", __name__)
blueprint.before_request(lifecycle.check_caller)


@blueprint.get("/v1/models")
def list_models() -> Response:
    """All models of all accounts that the client's key may use; `?refresh=1` asks the hosts now.

    A client of Anthropic's API also gets each chat model as `anthropic/<id>`; Codex, which sends
    its `client_version`, gets the chat models in its own form as `models`.
    """
    refresh = request.args.get("refresh", "") not in ("", "0", "false")
    call = lifecycle.live()
    data = call.services.catalogue.models(refresh=refresh, permit=generation.permit_of(call))
    if lifecycle.live().is_anthropic:
        data += [_in_namespace(entry) for entry in data if _is_offered(entry)]
        return http.json_value(anthropic.page(data, request.args))
    body = {"object": "list", "data": data}
    if "client_version" in request.args:
        chat = (entry for entry in data if is_chat_model(entry["id"]) and "alias_of" not in entry)
        body["models"] = catalogue.models(chat, effort_levels)
    return http.json_value(body)


@blueprint.get("/v1/models/<path:id>")
def get_model(id: str) -> Response:
    """One model; ids may hold slashes, plain or as %2F."""
    call = lifecycle.live()
    models = call.services.catalogue.models(permit=generation.permit_of(call))
    entries = {entry["id"]: entry for entry in models}
    entry = entries.get(id)
    if entry is None and (found := entries.get(id.removeprefix(ANTHROPIC))) is not None:
        entry = _in_namespace(found)
    if entry is None:
        raise NotFound(
            f"The model '{id}' does not exist",
            param="model",
            code="model_not_found",
        )
    shown: Any = anthropic.model(entry) if lifecycle.live().is_anthropic else entry
    return http.json_value(shown)


def _is_offered(entry: dict[str, Any]) -> bool:
    """Whether a client's choice of models needs the entry in Anthropic's namespace: once each."""
    id = entry["id"]
    return is_chat_model(id) and not id.startswith(ANTHROPIC) and "alias_of" not in entry


def _in_namespace(entry: dict[str, Any]) -> dict[str, Any]:
    """A model by its id in Anthropic's namespace, with its own name to be shown."""
    name = entry.get("name")
    return {**entry, "id": ANTHROPIC + entry["id"], "name": name or entry["id"]}
