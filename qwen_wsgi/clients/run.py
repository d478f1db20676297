"""`qwen-proxy run`: starts a client with this server; none of its files is changed."""

from __future__ import annotations

import getpass
import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final, TextIO

from qwen_wsgi.clients import command, trust
from qwen_wsgi.clients.launch import LAUNCHES, Launch
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings

#: qwen-code's settings of the whole machine.
QWEN_CODES_SETTINGS: Final = Path("/etc/qwen-code/settings.json")


def run(
    settings: Settings,
    name: str,
    arguments: Sequence[str],
    *,
    url: str,
    model: str,
    models: Callable[[], tuple[Iterable[Mapping[str, Any]], Iterable[str]]],
    environ: Mapping[str, str],
    err: TextIO,
    ask: Callable[[str], str] = getpass.getpass,
    authority: Path = command.OWN_AUTHORITY,
    machine: Path = QWEN_CODES_SETTINGS,
) -> int:
    """Start a client, and wait for its end.

    Args:
        arguments: the user's own, for the client.
        url, model, models: as those of `command.show`.
        environ: the caller's environment, which the client gets.
        ask: asks a person for the client key.
        machine: qwen-code's settings of the whole machine, if there are any.

    Returns:
        Its exit status; 128 and the signal's number if a signal ended it, as a shell has it.

    Raises:
        SettingsError: it cannot be started so.
    """
    client = command.known(name)
    if name not in LAUNCHES:
        raise SettingsError(
            f"{name} cannot be started so, only {', '.join(LAUNCHES)}; "
            f"`qwen-proxy clients {name}` shows its set-up"
        )
    target, _ = command.prepared(
        settings,
        client,
        url=url,
        model=model,
        models=models,
        lan=command.lan_address,
        authority=authority,
    )
    launch = LAUNCHES[name](target, _settings_in(machine))
    if shutil.which(launch.program, path=environ.get("PATH")) is None:
        raise SettingsError(
            f"{client.title} is not installed: there is no {launch.program} in PATH"
        )
    key = command.key_of(settings, target.origin, environ, ask)
    given = {name: value for name, value in environ.items() if name not in launch.unset}
    given.update(launch.environment, **dict.fromkeys(launch.keys, key))
    variable = trust.variable(name)
    if target.origin.startswith("https:") and variable and authority.exists():
        given.setdefault(variable, str(authority))
    print(f"{client.title} with {target.model} of {target.origin}", file=err, flush=True)
    with _files(launch) as paths:
        return _wait([launch.program, *launch.arguments, *arguments], {**given, **paths})


def _settings_in(file: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from None
    return value if isinstance(value, dict) else {}


@contextmanager
def _files(launch: Launch) -> Iterator[dict[str, str]]:
    """Make the files of a launch; the variables with their paths."""
    if not launch.files:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="qwen-proxy-") as directory:
        paths = {}
        for variable, (name, text) in launch.files.items():
            path = Path(directory, name)
            path.write_text(text)
            paths[variable] = str(path)
        yield paths


def _wait(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a program in this terminal. Ctrl-C is for it alone; TERM and HUP are passed on."""
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    def leave(number: int, frame: FrameType | None) -> None:
        """The terminal sends it to the child as well."""

    handlers = {signal.SIGINT: leave, signal.SIGQUIT: leave}
    handlers |= {signal.SIGTERM: pass_on, signal.SIGHUP: pass_on}
    # Handlers, not SIG_IGN: the child would inherit that.
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        children.append(subprocess.Popen(words, env=environ))
        status = children[0].wait()
    except OSError as error:
        raise SettingsError(f"{words[0]} cannot be started: {error.strerror}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
