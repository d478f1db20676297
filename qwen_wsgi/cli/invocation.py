"""How this command was called: what to type to call it again, and what its options set."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from qwen_wsgi import env_file

#: In an environment made by `make install`: there the command is called through sudo.
INSTALLED_MARK: Final = "qwen-proxy-installed"

_NAME: Final = "qwen-proxy"


def command_words(
    argv0: str, *, executable: str, prefix: str, environ: Mapping[str, str], directory: str
) -> str:
    """What a person types, standing where this process was started, to call this program.

    Args:
        argv0: how it was called.
        executable: the Python interpreter.
        prefix: of its virtual environment.
        directory: where the process was started.
    """
    if (Path(prefix) / INSTALLED_MARK).exists():
        return f"sudo {_NAME}"
    script = Path(argv0)
    if script.name != _NAME:  # `python -m qwen_wsgi.cli`
        script = Path(executable).parent / _NAME
    if not script.is_file():
        return f"{shlex.quote(executable)} -m qwen_wsgi.cli"
    found = shutil.which(_NAME, path=environ.get("PATH", ""))
    if found is not None and os.path.samefile(found, script):
        return _NAME
    absolute = os.path.abspath(script)
    near = directory != "/" and absolute.startswith(directory + "/")
    return shlex.quote(os.path.relpath(absolute, directory) if near else absolute)


def with_options(environ: Mapping[str, str], arguments: argparse.Namespace) -> dict[str, str]:
    """The environment with a note of the options of `serve`, which win over its variables."""
    found: dict[str, str] = {}
    host, port = getattr(arguments, "host", None), getattr(arguments, "port", None)
    if host is not None or port is not None:
        found["QWEN_PROXY_BIND"] = ""
    for name, value in (
        ("QWEN_PROXY_HOST", host),
        ("QWEN_PROXY_PORT", port),
        ("QWEN_PROXY_WORKERS", getattr(arguments, "workers", None)),
    ):
        if value is not None:
            found[name] = value
    return env_file.with_options(environ, found) if found else dict(environ)
