"""What `qwen-proxy keys` does. It writes to the database, whether or not a server runs: workers see
the change within a second."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

from qwen_wsgi.access.client_key import (
    ClientKey,
    KeyProblem,
    KeysUnavailable,
    NewKey,
    changes_of,
    seconds_of,
    value_of,
)
from qwen_wsgi.cli.keys import options, shown
from qwen_wsgi.cli.keys.store import opened
from qwen_wsgi.clock import Clock, SystemClock
from qwen_wsgi.console import keys as words
from qwen_wsgi.errors import CannotStartYet, SettingsError
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.database.client_keys import ClientKeys

#: Makes the text with the set-up of a client for a new key. Raises SettingsError.
Recipe = Callable[[NewKey], str]


def run(
    settings: Settings,
    arguments: argparse.Namespace,
    *,
    recipe: Recipe,
    out: TextIO,
    clock: Clock | None = None,
) -> int:
    """Do what was asked for; the exit status.

    Args:
        recipe: the set-up of a client, for a new key.

    Raises:
        SettingsError: there is no such key, or a value is wrong.
        CannotStartYet: the database cannot be used now.
    """
    clock = clock or SystemClock()
    try:
        with opened(settings, clock) as (_, store):
            _ACTIONS[arguments.action](_Run(store, arguments, clock, recipe, out))
            if store.note:
                print(store.note, file=sys.stderr)
    except KeyProblem as problem:
        raise SettingsError(str(problem)) from None
    except KeysUnavailable as error:
        raise CannotStartYet(f"the client keys cannot be used: {error}") from None
    return 0


class _Run:
    """One call of the command."""

    def __init__(
        self,
        store: ClientKeys,
        arguments: argparse.Namespace,
        clock: Clock,
        recipe: Recipe,
        out: TextIO,
    ) -> None:
        self._store = store
        self._arguments = arguments
        self._clock = clock
        self._recipe = recipe
        self._out = out

    def add(self) -> None:
        """Make a key, and print it with the set-up of a client."""
        made = self._store.add(self._changes({"name": self._arguments.name}))
        if self._print_json({**made.key.json(), "key": made.secret}):
            return
        self._print_secret(made)
        self._out.write("It is shown this once. A running server knows it within a second.\n\n")
        self._out.flush()  # to find the models for the set-up may take a while
        try:
            self._out.write(self._recipe(made))
        except SettingsError as error:
            self._out.write(f"The set-up of a client cannot be shown: {error}\n")

    def list(self) -> None:
        """Print all keys."""
        keys = self._store.all()
        rows = [key.json() for key in keys]
        if not self._print_json({"object": "list", "data": rows}):
            self._out.write(shown.table(keys, now=self._clock.now()))

    def show(self) -> None:
        """Print one key."""
        self._tell(self._found(self._store.find(self._arguments.key)))

    def edit(self) -> None:
        """Change a key, and print it."""
        new = self._arguments.name
        changes = self._changes({} if new is None else {"name": new})
        if not changes:
            raise KeyProblem("Nothing is to be changed: name an option, such as --rpm 60.")
        self._tell(self._found(self._store.edit(self._arguments.key, changes)))

    def rotate(self) -> None:
        """Give a key a new secret, and print it."""
        grace_s = seconds_of(self._arguments.grace, "grace", zero=True)
        made = self._store.rotate(self._arguments.key, grace_s=grace_s)
        if made is None:
            raise self._missing()
        if self._print_json({**made.key.json(), "key": made.secret}):
            return
        self._print_secret(made)
        old = f"works for {words.span(grace_s)} more" if grace_s else "does not work any more"
        self._out.write(f"It is shown this once. The old one {old}.\n")

    def revoke(self) -> None:
        """End a key, and print it."""
        self._tell(self._found(self._store.revoke(self._arguments.key)))

    def _changes(self, named: Mapping[str, Any]) -> dict[str, Any]:
        typed = vars(self._arguments)
        body = dict(named)
        for option in options.VALUES:
            if (text := typed[option.member]) is not None:
                body[option.member] = value_of(option.member, text)
        for member, _ in options.FLAGS:
            if typed[member] is not None:
                body[member] = typed[member]
        return changes_of(body, now=self._clock.now())

    def _found(self, key: ClientKey | None) -> ClientKey:
        if key is None:
            raise self._missing()
        return key

    def _missing(self) -> KeyProblem:
        wanted = self._arguments.key
        return KeyProblem(f"there is no client key {wanted!r}; `qwen-proxy keys list` lists all")

    def _tell(self, key: ClientKey) -> None:
        if not self._print_json(key.json()):
            self._out.write(shown.details(key, now=self._clock.now()))

    def _print_secret(self, made: NewKey) -> None:
        self._out.write(f"The client key of {made.key.name}:\n\n    {made.secret}\n\n")

    def _print_json(self, value: Mapping[str, Any]) -> bool:
        if self._arguments.json:
            self._out.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        return bool(self._arguments.json)


_ACTIONS: Final[Mapping[str, Callable[[_Run], None]]] = {
    "add": _Run.add,
    "list": _Run.list,
    "show": _Run.show,
    "edit": _Run.edit,
    "rotate": _Run.rotate,
    "revoke": _Run.revoke,
}
