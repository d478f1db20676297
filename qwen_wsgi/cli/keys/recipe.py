"""The set-up of a client with a new key in it, as `qwen-proxy clients` prints it without one."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from typing import Any, Final

from qwen_wsgi.access.client_key import NewKey
from qwen_wsgi.cli import accounts
from qwen_wsgi.clients import command
from qwen_wsgi.settings import Settings

#: A running server has seen a new key by then (`access.key_ring.LOOK_S`).
_SEEN_S: Final = 0.3


def recipe(settings: Settings, client: str, made: NewKey) -> str:
    """The text; the models are asked for with the key itself.

    Raises:
        SettingsError: there is no such client, or the server's address is invalid.
    """
    time.sleep(_SEEN_S)
    keyed = replace(settings, client_keys=(made.secret, *settings.client_keys))

    def models() -> tuple[list[dict[str, Any]], list[str]]:
        found, notes = accounts.models_to_offer(keyed)
        allows = made.key.allows_model  # a running server has left out the others already
        return [each for each in found if allows(each.get("alias_of", each["id"]))], notes

    out = io.StringIO()
    command.show(keyed, client, url="", model="", models=models, json_output=False, out=out)
    return out.getvalue().replace("YOUR_CLIENT_KEY", made.secret)
