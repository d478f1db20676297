"""GET /v1/models and GET /v1/models/{id}, in OpenAI's form or Anthropic's."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from qwen_wsgi.api import http, lifecycle
from qwen_wsgi.errors import NotFound
from qwen_wsgi.protocol.messages import models as anthropic

blueprint = Blueprint("models", __name__)
blueprint.before_request(lifecycle.check_caller)


@blueprint.get("/v1/models")
def list_models() -> Response:
    """All models of all accounts; `?refresh=1` asks the hosts now."""
    refresh = request.args.get("refresh", "") not in ("", "0", "false")
    data = lifecycle.live().services.catalogue.models(refresh=refresh)
    if lifecycle.live().is_anthropic:
        return http.json_value(anthropic.page(data, request.args))
    return http.json_value({"object": "list", "data": data})


@blueprint.get("/v1/models/<path:id>")
def get_model(id: str) -> Response:
    """One model; ids may hold slashes, plain or as %2F."""
    for entry in lifecycle.live().services.catalogue.models():
        if entry["id"] == id:
            found: Any = anthropic.model(entry) if lifecycle.live().is_anthropic else entry
            return http.json_value(found)
    raise NotFound(
        f"The model '{id}' does not exist",
        param="model",
        code="model_not_found",
    )
