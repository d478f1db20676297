"""The WSGI application: settings → services → Flask."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from flask import Flask

from qwen_wsgi import settings as settings_module
from qwen_wsgi.api import errors, health, lifecycle, metrics, models, status
from qwen_wsgi.api.admin import accounts as admin_accounts
from qwen_wsgi.api.admin import calls as admin_calls
from qwen_wsgi.api.admin import keys as admin_keys
from qwen_wsgi.api.admin import usage
from qwen_wsgi.api.dialects import (
    background,
    chat,
    completions,
    embeddings,
    messages,
    responses,
)
from qwen_wsgi.api.files import batches, files
from qwen_wsgi.api.flask_app import Application
from qwen_wsgi.api.media import images, rerank, speech, transcriptions, videos
from qwen_wsgi.api.openapi import route as openapi
from qwen_wsgi.api.web import chats as web_chats
from qwen_wsgi.api.web import tokens as web_tokens
from qwen_wsgi.api.websocket import route as websocket
from qwen_wsgi.services import Services, build_services, configure_logs
from qwen_wsgi.settings import Settings

#: The routes that are called most.
_STRAIGHT: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
)


def create_app(settings: Settings | None = None, *, services: Services | None = None) -> Flask:
    """Build the WSGI application.

    Args:
        settings: None reads the environment.
        services: None builds them from the settings.

    Raises:
        SettingsError: a setting is bad.
    """
    if services is None:
        settings = settings or settings_module.load()
        services = build_services(settings, state_dir=Path(settings.state_dir))
    configure_logs(services.settings)
    app = Application("qwen_wsgi", static_folder=None)
    app.extensions["qwen_wsgi"] = services
    app.before_request(partial(lifecycle.begin, services))
    app.after_request(lifecycle.finish_response)
    app.teardown_request(lifecycle.end)
    for module in (
        chat,
        completions,
        responses,
        websocket,
        messages,
        models,
        embeddings,
        images,
        videos,
        transcriptions,
        speech,
        rerank,
        files,
        batches,
        health,
        metrics,
        status,
        admin_keys,
        admin_accounts,
        admin_calls,
        usage,
        web_tokens,
        web_chats,
        openapi,
    ):
        app.register_blueprint(module.blueprint)
    errors.register(app)
    app.go_straight("POST", _STRAIGHT)
    # Before the first call: whether keys are needed at all must be known by then.
    services.key_ring.look()
    if services.database.directory is not None:
        services.database.close()  # until it is used: this application may serve nobody
    services.background.work = background.worker(services, responses.make)
    return app
