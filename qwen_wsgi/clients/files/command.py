"""`qwen-proxy clients NAME --write` and `--undo`."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from qwen_wsgi.clients import command
from qwen_wsgi.clients.files import changes
from qwen_wsgi.clients.files.writing import Files, Terminal, refuse_root
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings


def run(
    settings: Settings,
    name: str,
    *,
    undo: bool,
    with_key: bool,
    url: str,
    model: str,
    models: Callable[[], tuple[Iterable[Mapping[str, Any]], Iterable[str]]],
    environ: Mapping[str, str],
    json_output: bool,
    out: TextIO,
    question: Callable[[str], str] | None,
    ask_key: Callable[[str], str] = getpass.getpass,
    lan: Callable[[], str] = command.lan_address,
    authority: Path = command.OWN_AUTHORITY,
) -> int:
    """Write a client's set-up into its own files, or take that back.

    Args:
        with_key: the files get the client key itself.
        url, model, models, lan, authority: as those of `command.show`.
        question: asks a person in a terminal, None where there is nobody.
        ask_key: asks for the client key.

    Returns:
        The exit status: 1 if the person said no.

    Raises:
        SettingsError: it cannot be done; nothing, or what the error says, was changed.
    """
    client = command.known(name)
    refuse_root(settings.home)
    directory, ask = Path(settings.state_dir), None if json_output else question
    if undo:
        return Files(directory, name, Terminal(out, json_output, ask)).undo()
    files_of = changes.set_up_of(name)
    target, notes = command.prepared(
        settings, client, url=url, model=model, models=models, lan=lan, authority=authority
    )
    key = command.key_of(settings, target.origin, environ, ask_key) if with_key else ""
    if key and not changes.is_plain_key(key):
        raise SettingsError("this client key has characters that cannot be written into a file")
    set_up = files_of(target, changes.Place(settings.home, environ), key)
    terminal = Terminal(out, json_output, ask, secrets=(key,) if key else ())
    return Files(directory, name, terminal).write(set_up, private=bool(key), notes=notes)
