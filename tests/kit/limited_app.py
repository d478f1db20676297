"""The application with limits for its clients, which are in the variable TEST_LIMITS.

A JSON object: `{"<client key>": {"rpm": 100}}`, the members of `access.limits.Limits`.

TEST_PATIENCE is how long a question to Redis may take: a busy machine is no Redis that is away.
"""

from __future__ import annotations

import json
from pathlib import Path

from flask import Flask

from qwen_wsgi import settings as settings_module
from qwen_wsgi.access.guard import Client, Guard
from qwen_wsgi.access.limits import Limits
from qwen_wsgi.app import create_app
from qwen_wsgi.services import build_services
from qwen_wsgi.state.redis.connection import PATIENCE_S


def make() -> Flask:
    """As `create_app` does, with limits."""
    settings = settings_module.load()
    guard = Guard(settings)
    limits = {
        guard.identify({"HTTP_AUTHORIZATION": f"Bearer {key}"}).id: Limits(**members)
        for key, members in json.loads(settings.environ["TEST_LIMITS"]).items()
    }

    def limits_of(client: Client) -> Limits | None:
        return limits.get(client.id)

    services = build_services(settings, state_dir=Path(settings.state_dir), limits_of=limits_of)
    if services.shared_store is not None:
        services.shared_store.patience_s = float(settings.environ.get("TEST_PATIENCE", PATIENCE_S))
    return create_app(services=services)


application = make()
