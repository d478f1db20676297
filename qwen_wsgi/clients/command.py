"""`qwen-proxy clients`: finds the server's address and models, and prints a recipe."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TextIO
from urllib.parse import urlsplit

from qwen_wsgi import net
from qwen_wsgi.clients import trust
from qwen_wsgi.clients.known import CLIENTS, nearest, target_for
from qwen_wsgi.clients.recipe import (
    KEY_VARIABLE,
    Client,
    Target,
    as_json,
    as_text,
    is_model_name,
    origin_of,
)
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.net import is_loopback
from qwen_wsgi.settings import Settings
from qwen_wsgi.state import key_copy

#: An address for documentation (RFC 5737): the route to it is the route out of this machine.
_OUTSIDE: Final = ("192.0.2.1", 9)

#: The certificate of the authority that `make install TLS=internal` makes.
OWN_AUTHORITY: Final = Path("/etc/qwen-proxy/tls/ca.crt")

#: Where a person can be asked, whatever standard input is.
_TERMINAL: Final = "/dev/tty"

#: What a server without client keys gets, which takes any word.
_NO_KEY: Final = "none"

_NO_KEYS: Final = (
    "There are no client keys: neither in the environment of this command, nor of `qwen-proxy "
    "keys`. A server without client keys serves only programs on its own machine."
)


def lan_address() -> str:
    """This machine's address in the LAN, or "" without one; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_OUTSIDE)
        except OSError:
            return ""
        host: str = probe.getsockname()[0]
        return host


def show_list(*, json_output: bool, out: TextIO) -> None:
    """Print every client: its name, dialect and title."""
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


def known(name: str) -> Client:
    """The client of this name.

    Raises:
        SettingsError: there is none.
    """
    client = CLIENTS.get(name)
    if client is None:
        near = ", ".join(nearest(name))
        hint = f"similar names: {near}" if near else "`qwen-proxy clients` lists all"
        raise SettingsError(f"there is no recipe for {name!r}; {hint}")
    return client


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
    authority: Path = OWN_AUTHORITY,
) -> None:
    """Print the recipe for one client.

    Args:
        url: the server's address; "" takes it from the settings.
        model: the model's name; "" chooses one that suits the client.
        models: returns the catalogue's entries, and notes about them.
        lan: returns this machine's address in the LAN, or "".
        authority: the certificate of this machine's own authority, if it exists.

    Raises:
        SettingsError: there is no such client, or `url` or `model` is invalid.
    """
    client = known(name)
    target, notes = prepared(
        settings, client, url=url, model=model, models=models, lan=lan, authority=authority
    )
    recipe = client.recipe(target)
    recipe = replace(recipe, notes=(*recipe.notes, *notes))
    if json_output:
        out.write(json.dumps(as_json(client, target, recipe), indent=2) + "\n")
    else:
        out.write(as_text(client, target, recipe))


def prepared(
    settings: Settings,
    client: Client,
    *,
    url: str,
    model: str,
    models: Callable[[], tuple[Iterable[Mapping[str, Any]], Iterable[str]]],
    lan: Callable[[], str],
    authority: Path,
) -> tuple[Target, tuple[str, ...]]:
    """What a client connects to, and notes about it; the arguments are those of `show`.

    Raises:
        SettingsError: `url` or `model` is invalid.
    """
    if model and not is_model_name(model):
        raise SettingsError(f"{model!r} is not the name of a model; `qwen-proxy models` lists them")
    address, notes = origin(settings, url, lan)
    if not _has_keys(settings) and not is_loopback(urlsplit(address).hostname or ""):
        notes += (_NO_KEYS,)
    if address.startswith("https:") and authority.exists():
        notes += (trust.note(client.name, str(authority)),)
    entries, more = models()
    target = target_for(client, address, entries, model=model, default=settings.openai_model)
    return target, (*notes, *more)


def key_of(
    settings: Settings, origin: str, environ: Mapping[str, str], ask: Callable[[str], str]
) -> str:
    """The client key: of the environment, or by a person where there is one.

    Raises:
        SettingsError: there is nobody to ask, and the server wants a key.
    """
    if key := environ.get(KEY_VARIABLE):
        return key
    if not wants_key(settings, origin):
        return _NO_KEY
    try:
        with open(_TERMINAL):
            pass
    except OSError:
        raise SettingsError(f"set {KEY_VARIABLE} to your client key") from None
    return ask(f"Your client key ({KEY_VARIABLE}): ") or _NO_KEY


def wants_key(settings: Settings, origin: str) -> bool:
    """Whether the server of these settings wants a client key; of others nobody knows."""
    return _has_keys(settings) or not is_loopback(urlsplit(origin).hostname or "")


def _has_keys(settings: Settings) -> bool:
    return bool(settings.all_client_keys) or key_copy.exists(Path(settings.state_dir))


def origin(
    settings: Settings, url: str, lan: Callable[[], str] = lan_address
) -> tuple[str, tuple[str, ...]]:
    """The address for clients, and notes about it.

    Raises:
        SettingsError: `url`, or the address to listen on, is invalid.
    """
    if not url and settings.public_url:
        return settings.public_url, ()
    try:
        if url:
            return origin_of(url), ()
        where = net.parse(settings.bind_address)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if where.path:
        return f"http://{lan() or 'localhost'}", (
            "The server listens on a unix socket; the address is that of the web server in front "
            "of it. If clients use another address, pass --url.",
        )
    if where.here == where.host:
        return f"http://{where}", ()
    found = lan()
    if not found:
        return f"http://{where._replace(host=where.here)}", (
            "The server listens on every address, but this machine's address in the LAN is "
            "unknown; pass --url for clients on other machines.",
        )
    return f"http://{where._replace(host=found)}", (
        f"The server listens on every address; {found} is this machine's in the LAN. Programs on "
        f"this machine may use {where.here}.",
    )
