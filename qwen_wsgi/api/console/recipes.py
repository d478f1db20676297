"""`/console/clients`: the set-up of every client that is known, with this server's address."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flask import Response, request

from qwen_wsgi.api import lifecycle
from qwen_wsgi.api.console import page
from qwen_wsgi.clients import command
from qwen_wsgi.clients.known import CLIENTS
from qwen_wsgi.clients.recipe import Recipe, is_model_name, origin_of
from qwen_wsgi.console import browser

blueprint = page.blueprint("clients")


@blueprint.get("/console/clients")
def clients() -> Response:
    """The recipes. Their key is a variable; no secret is in them."""
    url, model = (request.args.get(name, "").strip() for name in ("url", "model"))
    problems = []
    if url and not _is_origin(url):
        problems.append(f"'{url[:100]}' is not an address like http://192.168.1.5:8080.")
        url = ""
    if model and not is_model_name(model):
        problems.append(f"'{model[:100]}' is not the name of a model.")
        model = ""
    return page.render(
        "clients", title="Clients", problems=problems, **of_this_server(url=url, model=model)
    )


def of_this_server(
    *,
    url: str = "",
    model: str = "",
    allows: Callable[[str], bool] = lambda name: True,
    secret: str = "",
) -> dict[str, Any]:
    """What the templates of recipes need.

    Args:
        url: the server's address; "" takes the one that the browser has.
        model: "" chooses one that suits each client.
        allows: whether a key may use a model.
        secret: of a key that was made just now; "" leaves a word in its place.
    """
    call = lifecycle.live()
    settings = call.services.settings
    address = origin_of(url) if url else settings.public_url or browser.own_origin(call.environ)
    entries = [
        each
        for each in call.services.catalogue.models()
        if allows(each.get("alias_of", each["id"]))
    ]
    made = [
        (client, *command.made(settings, client, address, entries, model=model))
        for client in CLIENTS.values()
    ]
    return {
        "address": address,
        "model": model,
        "models": sorted({str(each["id"]) for each in entries if is_model_name(str(each["id"]))}),
        "recipes": [
            (client, target, _with_key(recipe, secret) if secret else recipe)
            for client, target, recipe in made
        ],
    }


def _with_key(recipe: Recipe, secret: str) -> Recipe:
    """The recipe with a key in the place of the word that stands for one."""
    return replace(
        recipe,
        snippets=tuple(
            replace(each, text=each.text.replace("YOUR_CLIENT_KEY", secret))
            for each in recipe.snippets
        ),
    )


def _is_origin(url: str) -> bool:
    try:
        origin_of(url)
    except ValueError:
        return False
    return True
