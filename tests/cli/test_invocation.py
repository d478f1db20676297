"""What a reader is told to type, and what the options of `serve` set."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

from qwen_wsgi import env_file
from qwen_wsgi.cli import invocation
from qwen_wsgi.settings import load, with_command


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment with the command in it."""
    for name in ("python", "qwen-proxy"):
        program = tmp_path / "check out/.venv/bin" / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return tmp_path / "check out/.venv"


def words(venv: Path, argv0: str, *, directory: str = "/", path: str = "/usr/bin") -> str:
    return invocation.command_words(
        argv0,
        executable=str(venv / "bin/python"),
        prefix=str(venv),
        environ={"PATH": path},
        directory=directory,
    )


def test_in_the_checkout_it_is_the_way_to_the_script(venv: Path) -> None:
    """`make run` calls the module."""
    here = str(venv.parent)

    assert words(venv, "/x/qwen_wsgi/cli/__main__.py", directory=here) == ".venv/bin/qwen-proxy"
    assert words(venv, ".venv/bin/qwen-proxy", directory=here) != "qwen-proxy"


def test_from_elsewhere_it_is_the_whole_path_quoted_for_a_shell(venv: Path) -> None:
    assert words(venv, str(venv / "bin/qwen-proxy")) == f"'{venv}/bin/qwen-proxy'"


def test_on_the_path_it_is_the_name(venv: Path) -> None:
    path = f"/usr/bin:{venv / 'bin'}"

    assert words(venv, str(venv / "bin/qwen-proxy"), path=path) == "qwen-proxy"
    assert words(venv, "/x/cli/__main__.py", path=path) == "qwen-proxy"


def test_without_a_script_it_is_the_module(venv: Path) -> None:
    (venv / "bin/qwen-proxy").unlink()

    assert words(venv, "/x/cli/__main__.py").endswith("/.venv/bin/python' -m qwen_wsgi.cli")


def test_of_an_installed_service_it_is_called_through_sudo(venv: Path) -> None:
    (venv / invocation.INSTALLED_MARK).touch()

    assert words(venv, str(venv / "bin/qwen-proxy")) == "sudo qwen-proxy"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Run `qwen-proxy login`, then `qwen-proxy`.", "Run `X login`, then `X`."),
        ("qwen-proxy: no `qwen-proxyish` word", "qwen-proxy: no `qwen-proxyish` word"),
    ],
)
def test_commands_in_texts_become_those_that_can_be_typed(text: str, shown: str) -> None:
    assert with_command(text, "X") == shown


def test_a_command_with_a_backslash_is_taken_as_it_is() -> None:
    assert with_command("`qwen-proxy login`", r"a\1") == r"`a\1 login`"


@pytest.mark.parametrize(
    ("options", "address", "workers"),
    [
        ({}, "unix:/x", 3),
        ({"host": "0.0.0.0"}, "0.0.0.0:5", 3),
        ({"port": "6"}, "127.0.0.2:6", 3),
        ({"host": "::1", "port": "6", "workers": "4"}, "[::1]:6", 4),
        ({"workers": "1"}, "unix:/x", 1),
    ],
    ids=str,
)
def test_options_win_over_the_environment(
    options: dict[str, str], address: str, workers: int
) -> None:
    environ = {
        "QWEN_PROXY_BIND": "unix:/x",
        "QWEN_PROXY_HOST": "127.0.0.2",
        "PORT": "5",
        "QWEN_PROXY_WORKERS": "3",
    }
    with_options = invocation.with_options(environ, argparse.Namespace(**options))
    settings = load(env_file.layered(with_options))

    assert (settings.bind_address, settings.workers) == (address, workers)


def test_the_settings_know_the_command() -> None:
    assert load({}).command == "qwen-proxy"
    assert load({"_QWEN_PROXY_COMMAND": ".venv/bin/qwen-proxy"}).command == ".venv/bin/qwen-proxy"


def test_the_interpreter_of_the_tests_has_the_command_beside_it() -> None:
    shown = invocation.command_words(
        "/x/__main__.py",
        executable=sys.executable,
        prefix="/nowhere",
        environ={"PATH": ""},
        directory="/",
    )

    assert shown.endswith(("bin/qwen-proxy", "-m qwen_wsgi.cli"))
    assert os.path.isabs(shown.strip("'").split(" ")[0])
