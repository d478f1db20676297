"""The command line: `qwen-proxy serve | login | status | doctor | models | clients | …`.

Only the parser and the dispatch. Each command imports what it needs itself, so that `--help`,
`--version` and `settings` start fast.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from qwen_wsgi import __version__
from qwen_wsgi import settings as settings_module
from qwen_wsgi.cli import interrupts
from qwen_wsgi.errors import CannotStartYet, SettingsError
from qwen_wsgi.settings import Settings

#: Exit status for what the operator must correct; systemd does not restart on it.
EXIT_CONFIGURATION: Final = 2
#: Exit status for what may pass by itself; systemd restarts.
EXIT_NOT_YET: Final = 1

Command = Callable[[Settings, argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                # Here and not at exit, where Python would complain of a closed pipe.
                sys.stdout.flush()
    except BrokenPipeError:
        # `qwen-proxy models | head`: the reader has gone.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    # Until logs are configured, the command's own line reports a failure, not the log as well.
    logging.getLogger("qwen_wsgi").addHandler(logging.NullHandler())
    command: Command = arguments.command
    try:
        with interrupts.repeated():
            return command(settings_module.load(), arguments)
    except (SettingsError, CannotStartYet) as error:
        print(f"qwen-proxy: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION if isinstance(error, SettingsError) else EXIT_NOT_YET
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen-proxy",
        description="Qwen models for every OpenAI or Anthropic client on your LAN.",
    )
    parser.add_argument("--version", action="version", version=f"qwen-proxy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        return sub

    add("serve", _serve, "start the server (gunicorn) with the settings of the environment")
    for name, command, help in (
        ("status", _status, "show every account with its source and state"),
        ("models", _models, "list the models of all accounts, as their hosts list them now"),
        ("settings", _settings, "list every setting with its value"),
    ):
        add(name, command, help).add_argument("--json", action="store_true", help="print JSON")
    sub = add("doctor", _doctor, "check this installation, and say how to fix what is wrong")
    sub.add_argument("--account", metavar="NAME", help="check one account; default: all")
    sub.add_argument("--no-calls", action="store_true", help="contact no upstream")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = add("clients", _clients, "list known clients, or print the setup for one of them")
    sub.add_argument("name", nargs="?", metavar="NAME", help="the client; default: list all")
    sub.add_argument("--url", default="", help="the server's address; default: from the settings")
    sub.add_argument("--model", default="", help="the model; default: one that suits the client")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = add("login", _login, "log in to Qwen with a browser on any device")
    sub.add_argument("--account", metavar="NAME", help="an additional login beside qwen-code's own")
    sub.add_argument("--json", action="store_true", help="print one JSON object per line")
    sub.add_argument("--browser", action="store_true", help="open the page on this machine")
    sub = add("creds", _creds, "manage the logins: status, refresh, forget")
    sub.add_argument("action", choices=("status", "refresh", "forget"))
    sub.add_argument("--account", metavar="NAME", help="one login; default: all")
    sub.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _serve(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import serve

    serve.serve(settings)


def _status(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import accounts

    return accounts.status(settings, json_output=arguments.json)


def _models(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import accounts

    return accounts.models(settings, json_output=arguments.json)


def _settings(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import settings as command

    return command.show(settings, json_output=arguments.json)


def _doctor(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.doctor import run

    return run.run(
        settings,
        account=arguments.account,
        calls=not arguments.no_calls,
        json_output=arguments.json,
        out=sys.stdout,
    )


def _clients(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.clients import command

    if arguments.name is None:
        command.show_list(json_output=arguments.json, out=sys.stdout)
        return 0
    from qwen_wsgi.cli import accounts

    command.show(
        settings,
        arguments.name,
        url=arguments.url,
        model=arguments.model,
        models=lambda: accounts.models_to_offer(settings),
        json_output=arguments.json,
        out=sys.stdout,
    )
    return 0


def _login(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import login

    return login.run(
        settings,
        account=arguments.account,
        json_output=arguments.json,
        browser=arguments.browser,
        out=sys.stdout,
        err=sys.stderr,
    )


def _creds(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import creds

    return creds.run(
        settings,
        arguments.action,
        account=arguments.account,
        json_output=arguments.json,
        out=sys.stdout,
    )
