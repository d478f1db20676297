"""`/console/keys`: the client keys, with what was used of their limits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from flask import Response, request

from qwen_wsgi.access.client_key import (
    ClientKey,
    KeyProblem,
    KeysUnavailable,
    NameTaken,
    NewKey,
    seconds_of,
)
from qwen_wsgi.access.guard import Client
from qwen_wsgi.api import lifecycle
from qwen_wsgi.api.console import page, recipes
from qwen_wsgi.console import keys as words
from qwen_wsgi.errors import NotFound
from qwen_wsgi.state.database.client_keys import ClientKeys

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Keys on one page of the list: more would make it larger than a page may be.
_ON_A_PAGE: Final = 50

#: What was done, by a word in the address.
_DONE: Final = {
    "changed": "The key was changed. All workers know it within a second.",
    "revoked": "The key was revoked. It does not work any more within a second.",
}

blueprint = page.blueprint("keys")


@blueprint.get("/console/keys")
def list_keys() -> Response:
    """The list, and the form for a new key."""
    return _list({})


@blueprint.post("/console/keys")
def add() -> Response:
    """Make a key; the page has its secret, this once."""
    form = page.form()
    try:
        made = _do(lambda store: store.add(_changes(form)))
    except KeyProblem as problem:
        return _list(form, problem)
    _log("made", made.key)
    return _told_once(made, "This is the new key. It is shown this once: copy it now.")


@blueprint.get("/console/keys/<id>")
def show(id: str) -> Response:
    """One key, and the forms that change it."""
    key = _found(_do(lambda store: store.find(id)))
    return _key(key, words.fields_of(key))


@blueprint.post("/console/keys/<id>")
def change(id: str) -> Response:
    """Change a key."""
    key, form = _found(_do(lambda store: store.find(id))), page.form()
    try:
        changed = _found(_do(lambda store: store.edit(key.id, _changes(form))))
    except KeyProblem as problem:
        return _key(key, form, problem)
    _log("changed", changed)
    return page.redirect("/console/keys?done=changed")


@blueprint.post("/console/keys/<id>/rotate")
def rotate(id: str) -> Response:
    """Give a key another secret; the page has it, this once."""
    key, form = _found(_do(lambda store: store.find(id))), page.form()
    try:
        grace_s = seconds_of(form.get("grace", "").strip() or 0, "grace", zero=True)
        made = _found(_do(lambda store: store.rotate(key.id, grace_s=grace_s)))
    except KeyProblem as problem:
        return _key(key, words.fields_of(key), problem)
    _log("rotated", made.key)
    old = f"goes on working for {words.span(grace_s)}" if grace_s else "does not work any more"
    return _told_once(
        made, f"This is the new secret. It is shown this once: copy it now. The old one {old}."
    )


@blueprint.post("/console/keys/<id>/revoke")
def revoke(id: str) -> Response:
    """End a key for good."""
    key = _found(_do(lambda store: store.revoke(id)))
    _log("revoked", key)
    return page.redirect("/console/keys?done=revoked")


# --- pages ---------------------------------------------------------------------------------------


def _list(form: Mapping[str, str], problem: KeyProblem | None = None) -> Response:
    services = lifecycle.live().services
    now = services.clock.now()
    ordered = words.in_order(_do(ClientKeys.all), now)
    pages = max(1, -(-len(ordered) // _ON_A_PAGE))
    number = min(pages, max(1, request.args.get("page", 1, type=int)))
    here = ordered[(number - 1) * _ON_A_PAGE : number * _ON_A_PAGE]
    return page.render(
        "keys",
        title="Keys",
        status=_status_of(problem),
        keys=[words.shown(key, _rooms(key, now), now=now) for key in here],
        total=len(ordered),
        number=number,
        last=pages,
        done="" if problem else _DONE.get(request.args.get("done", ""), ""),
        of_environment=len(services.settings.all_client_keys),
        **_form(form, problem),
    )


def _key(key: ClientKey, form: Mapping[str, str], problem: KeyProblem | None = None) -> Response:
    now = lifecycle.live().services.clock.now()
    return page.render(
        "key",
        title=f"Key {key.name}",
        status=_status_of(problem),
        key=words.shown(key, _rooms(key, now), now=now),
        own=page.signed_in().session.person.client_id == key.id,
        **_form(form, problem),
    )


def _told_once(made: NewKey, told: str) -> Response:
    return page.render(
        "key_made",
        title=f"Key {made.key.name}",
        told=told,
        secret=made.secret,
        **recipes.of_this_server(allows=made.key.allows_model, secret=made.secret),
    )


def _form(form: Mapping[str, str], problem: KeyProblem | None) -> dict[str, Any]:
    """What the form's template needs."""
    return {
        "form": form,
        "limits": words.LIMITS,
        "rights": words.RIGHTS,
        "flags": words.FLAGS,
        "problem": "" if problem is None else str(problem),
        "wrong": "" if problem is None else problem.param.replace("expires_at", "expires"),
    }


def _status_of(problem: KeyProblem | None) -> int:
    if problem is None:
        return 200
    return 409 if isinstance(problem, NameTaken) else 400


# --- the keys ------------------------------------------------------------------------------------


def _rooms(key: ClientKey, now: float) -> Mapping[str, Any]:
    """What is left of its limits; nothing of a key that has ended."""
    if not key.is_valid(now):
        return {}
    return lifecycle.live().services.budgets.remaining(Client(key.id, key.name, key))


def _changes(form: Mapping[str, str]) -> dict[str, Any]:
    return words.changes_in(form, now=lifecycle.live().services.clock.now())


def _do(work: Callable[[ClientKeys], T]) -> T:
    """Do something with the keys.

    Raises:
        KeyProblem: a value is wrong.
        KeysUnavailable: they cannot be used now.
    """
    services = lifecycle.live().services
    try:
        return work(services.client_keys)
    except KeysUnavailable as error:
        raise KeysUnavailable(
            f"The client keys cannot be read or changed now. {error}", passing=error.passing
        ) from error
    finally:
        services.key_ring.look_again()  # the next call may be one with the new key


def _found(found: T | None) -> T:
    if found is None:
        raise NotFound("There is no such key.", code="key_not_found")
    return found


def _log(what: str, key: ClientKey) -> None:
    who = page.signed_in().session.person.client
    log.info("console: %s has %s the client key %s (%s)", who, what, key.name, key.id)
