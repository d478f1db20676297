"""The command line: `qwen-proxy serve | login | status | doctor | usage | clients | keys | …`.

Only the parser and the dispatch. Each command imports what it needs itself, so that `--help`,
`--version` and `settings` start fast.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TextIO

from qwen_wsgi import __version__, env_file, logs
from qwen_wsgi import settings as settings_module
from qwen_wsgi.cli import interrupts, invocation
from qwen_wsgi.cli.keys import options as keys_options
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
        status = _run(argv)
    except SystemExit as end:  # argparse's way out
        status = end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:
        status = 0
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)
    return status


def _flush(stream: TextIO | None) -> None:
    """Write what is left. The reader of a pipe may have gone, as in `qwen-proxy models | head`:
    then nobody wants it, and Python must not complain of it at its exit."""
    if stream is None:
        return
    try:
        stream.flush()
    except BrokenPipeError:
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if words[:1] == ["run"] and "--" in words else len(words)
    arguments = parser.parse_args(words[:end])
    arguments.behind = words[end + 1 :]
    if arguments.command is None:
        parser.print_help()
        return 0
    environ = invocation.with_options(settings_module.environment(), arguments)
    environ.setdefault(settings_module.COMMAND, _command_words(environ))
    # Until logs are configured, the command's own line reports a failure, not the log as well.
    logging.getLogger("qwen_wsgi").addHandler(logging.NullHandler())
    command: Command = arguments.command
    try:
        with interrupts.repeated():
            environ = env_file.layered(environ)
            return command(settings_module.load(environ), arguments)
    except (SettingsError, CannotStartYet) as error:
        _complain(str(error), environ, serving=command is _serve)
        return EXIT_CONFIGURATION if isinstance(error, SettingsError) else EXIT_NOT_YET
    except KeyboardInterrupt:
        return 130


def _command_words(environ: Mapping[str, str]) -> str:
    try:
        directory = os.getcwd()
    except OSError:  # it was removed
        directory = "/"
    return invocation.command_words(
        sys.argv[0],
        executable=sys.executable,
        prefix=sys.prefix,
        environ=environ,
        directory=directory,
    )


def _complain(
    problem: str, environ: Mapping[str, str], *, serving: bool, level: int = logging.ERROR
) -> None:
    """Say why a command cannot go on: in a line for a person; for a server, in its log's form."""
    words = environ[settings_module.COMMAND]
    shown = settings_module.with_command(f"qwen-proxy: {problem}", words)
    if serving and environ.get("QWEN_PROXY_LOG_FORMAT", "").strip() == "json":
        shown = json.dumps(
            {"level": logging.getLevelName(level), "event": problem}, ensure_ascii=False
        )
    elif serving and logs.is_journal(environ, sys.stderr):
        shown = logs.in_journal(shown, level)
    print(shown, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen-proxy",
        description="Qwen models for every OpenAI or Anthropic client on your LAN.",
        epilog="Settings are environment variables: `qwen-proxy settings` lists them. "
        "`qwen-proxy COMMAND --help` shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"qwen-proxy {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    def add(name: str, command: Command, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        return sub

    sub = add("serve", _serve, "start the server; its options win over the settings")
    sub.add_argument("--host", metavar="ADDRESS", help="address to listen on (QWEN_PROXY_HOST)")
    sub.add_argument("--port", metavar="PORT", help="port to listen on (QWEN_PROXY_PORT)")
    sub.add_argument("--workers", metavar="N", help="worker processes (QWEN_PROXY_WORKERS)")
    sub.add_argument(
        "--reload", action="store_true", help="for developers: restart workers when code changes"
    )
    for name, command, help in (
        ("status", _status, "show every account: where it is from, and whether it works"),
        ("models", _models, "list the models of all accounts; their hosts are asked for them now"),
        ("settings", _settings, "list every setting: its value, its default, what it is for"),
    ):
        add(name, command, help).add_argument("--json", action="store_true", help="print JSON")
    add(
        "healthcheck",
        _healthcheck,
        "exit with 0 if the running server can serve calls, else with 1",
    )
    sub = add("doctor", _doctor, "check this installation, and say what is wrong and what to do")
    sub.add_argument("--account", metavar="NAME", help="check one account; default: all")
    sub.add_argument("--no-calls", action="store_true", help="contact no upstream")
    sub.add_argument("--problems", action="store_true", help="print only what is wrong")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = add("usage", _usage, "show what was used: calls, tokens, money, and what caches saved")
    sub.add_argument(
        "--by",
        choices=("client", "model", "account", "endpoint", "day", "hour"),
        default="client",
        help="what calls are summed up by (default: client)",
    )
    times = "7d (ago), 2026-11-01, 2026-11-01T12:30, today, month"
    sub.add_argument("--since", metavar="TIME", default="30d", help=f"{times} (default: 30d)")
    sub.add_argument(
        "--until", metavar="TIME", default="now", help="the same; a date is in it (default: now)"
    )
    sub.add_argument(
        "--plans",
        action="store_true",
        help="how much of the windows of Coding and Token Plans is used, and when they end",
    )
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--csv", action="store_true", help="print a table for spreadsheets")
    sub = add("calls", _calls, "show the calls in flight of the running server, or cancel one")
    sub.add_argument("action", nargs="?", choices=("list", "cancel"), default="list")
    sub.add_argument("id", nargs="?", metavar="ID", help="the id of the call to be cancelled")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = add("clients", _clients, "list the clients that are known, or print the set-up of one")
    sub.add_argument("name", nargs="?", metavar="NAME", help="the client; default: list all")
    sub.add_argument("--url", default="", help="the server's address; default: from the settings")
    sub.add_argument("--model", default="", help="the model; default: one that suits the client")
    change = sub.add_mutually_exclusive_group()
    change.add_argument(
        "--write",
        action="store_true",
        help="write it into the client's own file; codex, claude-code, opencode, aider, continue",
    )
    change.add_argument("--undo", action="store_true", help="take back what --write has written")
    sub.add_argument(
        "--with-key",
        action="store_true",
        help="--write writes the client key, too, which otherwise stays in the environment",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = add("run", _run_client, "start a client with this server; its own files stay as they are")
    sub.add_argument(
        "name", metavar="NAME", help="codex, claude-code, opencode, qwen-code or aider"
    )
    sub.add_argument("--url", default="", help="the server's address; default: from the settings")
    sub.add_argument("--model", default="", help="the model; default: one that suits the client")
    # Of argparse's own, REMAINDER would take our options behind the name.
    sub.usage = "qwen-proxy run [-h] [--url URL] [--model MODEL] NAME [-- ARGUMENTS OF THE CLIENT]"
    sub = add(
        "login",
        _login,
        "log in to Qwen with a browser on any device (most accounts need an API key instead)",
    )
    sub.add_argument("--account", metavar="NAME", help="an additional login beside qwen-code's own")
    sub.add_argument("--json", action="store_true", help="print one JSON object per line")
    sub.add_argument("--browser", action="store_true", help="open the page on this machine")
    sub = add("creds", _creds, "look after the logins: status, refresh, forget, take-over")
    sub.add_argument("action", choices=("status", "refresh", "forget", "take-over"))
    sub.add_argument("--account", metavar="NAME", help="one login; default: all")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = add("record", _record, "record the next calls of a client key, with their bodies")
    sub.add_argument("--key", metavar="NAME", help="the key's name, or `local` without keys")
    sub.add_argument("--calls", metavar="N", type=int, default=5, help="how many; default: 5")
    sub.add_argument(
        "--minutes", metavar="N", type=float, default=10, help="for how long; default: 10"
    )
    sub.add_argument("--list", action="store_true", help="show what was ordered and recorded")
    sub.add_argument("--stop", action="store_true", help="record nothing any more")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = add("replay", _replay, "send a recorded call to the running server, and print its answer")
    sub.add_argument("file", metavar="FILE", help="a recording")
    sub.add_argument("--account", default="", metavar="NAME", help="ask this account alone")
    sub = add("state", _state, "look after what is stored: back it up, restore it, check it")
    sub.add_argument("action", choices=("backup", "restore", "check"))
    sub.add_argument("file", nargs="?", metavar="FILE", help="the copy, for backup and restore")
    sub.add_argument("--force", action="store_true", help="overwrite a copy that is there already")
    sub.add_argument(
        "--keep-keys", action="store_true", help="a restore leaves the client keys as they are now"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub = add("tools", _tools, "the tools that the server runs: list, call or check them")
    sub.add_argument("action", nargs="?", choices=("list", "call", "check"), default="list")
    sub.add_argument("tool", nargs="?", metavar="SERVER.TOOL", help="the tool, for call")
    sub.add_argument("arguments", nargs="?", metavar="JSON", help="its arguments (default: {})")
    sub.add_argument("--json", action="store_true", help="print JSON")
    keys_options.add_to(add("keys", _keys, "make, show, change and revoke client keys"))
    return parser


def _serve(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import serve

    def tell(note: str) -> None:
        _complain(note, settings.environ, serving=True, level=logging.WARNING)

    serve.serve(settings, reload=arguments.reload, tell=tell)


def _status(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import accounts

    return accounts.status(settings, json_output=arguments.json)


def _healthcheck(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import running

    answer = running.ask(settings, "/health/ready")
    if answer.value is None:
        print(f"qwen-proxy: {answer.server}: {answer.why}", file=sys.stderr)
        return 1
    print(f"{answer.server}: {answer.value.get('status')}")
    return 0


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
        problems_only=arguments.problems,
        json_output=arguments.json,
        out=sys.stdout,
    )


def _usage(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli.stored import plans, usage

    if arguments.plans:
        if arguments.csv:
            print(
                "qwen-proxy: usage --plans is a table or --json, and has no --csv", file=sys.stderr
            )
            return 2
        return plans.run(settings, json_output=arguments.json, out=sys.stdout, err=sys.stderr)
    return usage.run(
        settings,
        by=arguments.by,
        since=arguments.since,
        until=arguments.until,
        json_output=arguments.json,
        csv_output=arguments.csv,
        out=sys.stdout,
        err=sys.stderr,
    )


def _calls(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import calls

    return calls.run(
        settings,
        arguments.action,
        arguments.id,
        json_output=arguments.json,
        out=sys.stdout,
        err=sys.stderr,
    )


def _tools(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli.tools import command

    return command.run(
        settings,
        arguments.action,
        arguments.tool,
        arguments.arguments,
        json_output=arguments.json,
        out=sys.stdout,
        err=sys.stderr,
    )


def _clients(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.clients import command

    if arguments.name is None and (arguments.write or arguments.undo):
        raise SettingsError("name the client: `qwen-proxy clients codex --write`")
    if arguments.with_key and not arguments.write:
        raise SettingsError("--with-key belongs to --write")
    if arguments.name is None:
        command.show_list(json_output=arguments.json, out=sys.stdout)
        return 0
    from qwen_wsgi.cli import accounts

    if arguments.write or arguments.undo:
        from qwen_wsgi.clients.files import command as files

        return files.run(
            settings,
            arguments.name,
            undo=arguments.undo,
            with_key=arguments.with_key,
            url=arguments.url,
            model=arguments.model,
            models=lambda: accounts.models_to_offer(settings),
            environ=settings_module.environment(),
            json_output=arguments.json,
            out=sys.stdout,
            question=input if sys.stdin.isatty() and sys.stdout.isatty() else None,
        )
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


def _run_client(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import accounts
    from qwen_wsgi.clients import run

    return run.run(
        settings,
        arguments.name,
        arguments.behind,
        url=arguments.url,
        model=arguments.model,
        models=lambda: accounts.models_to_offer(settings),
        environ=settings_module.environment(),
        err=sys.stderr,
    )


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


def _keys(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli.keys import command

    def recipe(made: Any) -> str:
        from qwen_wsgi.cli.keys.recipe import recipe

        return recipe(settings, arguments.client, made)

    if arguments.action == "add":
        from qwen_wsgi.clients import command as clients

        clients.known(arguments.client)  # before there is a key
    return command.run(settings, arguments, recipe=recipe, out=sys.stdout)


def _creds(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli import creds

    return creds.run(
        settings,
        arguments.action,
        account=arguments.account,
        json_output=arguments.json,
        out=sys.stdout,
    )


def _record(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli.stored import recordings

    return recordings.record(
        settings,
        key=arguments.key,
        calls=arguments.calls,
        minutes=arguments.minutes,
        listing=arguments.list,
        stop=arguments.stop,
        json_output=arguments.json,
        out=sys.stdout,
        err=sys.stderr,
    )


def _replay(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli.stored import recordings

    return recordings.replay(
        settings,
        arguments.file,
        account=arguments.account,
        out=sys.stdout.buffer,
        err=sys.stderr,
    )


def _state(settings: Settings, arguments: argparse.Namespace) -> int:
    from qwen_wsgi.cli.stored import state

    return state.run(
        settings,
        arguments.action,
        arguments.file,
        force=arguments.force,
        keep_keys=arguments.keep_keys,
        json_output=arguments.json,
        out=sys.stdout,
        err=sys.stderr,
    )
