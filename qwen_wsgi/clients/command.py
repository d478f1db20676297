"""`qwen-proxy clients`: finds out address and models, and prints a recipe."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TextIO
from urllib.parse import urlsplit

from qwen_wsgi import net
from qwen_wsgi.clients.known import CLIENTS, nearest, target_for
from qwen_wsgi.clients.recipe import as_json, as_text, is_model_name, origin_of
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.net import is_loopback
from qwen_wsgi.settings import Settings

#: An address that nobody has (RFC 5737): the way to it is the way out of this machine.
_NOWHERE: Final = ("192.0.2.1", 9)

_NO_KEYS: Final = (
    "No client keys are set here. A server without QWEN_PROXY_API_KEYS answers programs on its own "
    "machine only."
)


def lan_address() -> str:
    """This machine's own address on the way out of it, "" without one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_NOWHERE)
        except OSError:
            return ""
        host: str = probe.getsockname()[0]
        return host


def show_list(*, json_output: bool, out: TextIO) -> None:
    """Print every client: its name, what it speaks, what it is."""
    if json_output:
        rows = [
            {"name": client.name, "speaks": client.speaks, "title": client.title}
            for client in CLIENTS.values()
        ]
        out.write(json.dumps(rows, indent=2) + "\n")
        return
    width = max(map(len, CLIENTS))
    for client in CLIENTS.values():
        out.write(f"{client.name:<{width}}  {client.speaks:<9}  {client.title}\n")


def show(
    settings: Settings,
    name: str,
    *,
    url: str,
    model: str,
    models: Callable[[], tuple[Iterable[Mapping[str, Any]], Iterable[str]]],
    json_output: bool,
    out: TextIO,
    lan: Callable[[], str] = lan_address,
) -> None:
    """Print the recipe for one client.

    Args:
        url: the server's address, "" for what the settings say.
        model: the model's name, "" for one that suits.
        models: asks the catalogue: its entries, and what is to be noted about them.
        lan: finds this machine's address in the LAN, or "".

    Raises:
        SettingsError: there is no such client, or `url` or `model` cannot be used.
    """
    client = CLIENTS.get(name)
    if client is None:
        near = ", ".join(nearest(name)) or "`qwen-proxy clients` lists them"
        raise SettingsError(f"no recipe for {name!r}; there is: {near}")
    if model and not is_model_name(model):
        raise SettingsError(f"{model!r} is no model's name; `qwen-proxy models` lists them")
    origin, notes = _origin(settings, url, lan)
    if not settings.all_client_keys and not is_loopback(urlsplit(origin).hostname or ""):
        notes += (_NO_KEYS,)
    entries, more = models()
    target = target_for(client, origin, entries, model=model, default=settings.openai_model)
    recipe = client.recipe(target)
    recipe = replace(recipe, notes=(*recipe.notes, *notes, *more))
    if json_output:
        out.write(json.dumps(as_json(client, target, recipe), indent=2) + "\n")
    else:
        out.write(as_text(client, target, recipe))


def _origin(settings: Settings, url: str, lan: Callable[[], str]) -> tuple[str, tuple[str, ...]]:
    """The address for clients, and what is to be said about it.

    Raises:
        SettingsError: `url`, or the address to listen on, is none.
    """
    try:
        if url:
            return origin_of(url), ()
        where = net.parse(settings.bind_address)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if where.path:
        return f"http://{lan() or 'localhost'}", (
            "The server listens on a unix socket; the address is that of the web server in front "
            "of it. If clients know it by another, give --url.",
        )
    if where.here == where.host:
        return f"http://{where}", ()
    found = lan()
    if not found:
        return f"http://{where._replace(host=where.here)}", (
            "The server listens on every address, but none of this machine's in a LAN was found; "
            "give --url for clients on other machines.",
        )
    return f"http://{where._replace(host=found)}", (
        f"The server listens on every address; {found} is this machine's in the LAN. Programs on "
        f"this machine may use {where.here}.",
    )
