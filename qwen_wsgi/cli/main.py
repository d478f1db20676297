"""The command line: `qwen-proxy serve | login | status | doctor | models | clients | …`."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import math
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qwen_wsgi import __version__, text
from qwen_wsgi import settings as settings_module
from qwen_wsgi.cli import interrupts
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings

if TYPE_CHECKING:
    from qwen_wsgi.services import Services

#: Exit status for what the operator has to correct; systemd does not restart on it.
EXIT_CONFIGURATION: Final = 2


#: glibc gives large blocks back to the system at once, and every body of a megabyte then costs a
#: thousand page faults. With these the worker keeps some: 0.5 to 0.9 ms less per megabyte.
_ALLOCATOR: Final = {
    "MALLOC_MMAP_THRESHOLD_": "16777216",
    "MALLOC_TRIM_THRESHOLD_": "33554432",
    "MALLOC_TOP_PAD_": "4194304",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the value is the exit status."""
    try:
        try:
            return _run(argv)
        finally:
            if sys.stdout is not None:
                # Not when Python exits, which would complain of a closed pipe.
                sys.stdout.flush()
    except BrokenPipeError:
        # `qwen-proxy models | head`: nobody reads on.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: Sequence[str] | None) -> int:
    arguments = _parser().parse_args(argv)
    # Until logs are configured, what goes wrong is told by the command's one line and not twice.
    logging.getLogger("qwen_wsgi").addHandler(logging.NullHandler())
    command: Callable[[Settings, argparse.Namespace], int] = arguments.command
    try:
        with interrupts.repeated():
            return command(settings_module.load(), arguments)
    except SettingsError as error:
        print(f"qwen-proxy: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen-proxy",
        description="Qwen models for every OpenAI or Anthropic client on your LAN.",
    )
    parser.add_argument("--version", action="version", version=f"qwen-proxy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, command: Callable[[Settings, argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        return sub

    add("serve", serve, "start the server (gunicorn) with the settings of the environment")
    for name, command, help in (
        ("status", status, "show every account, where it comes from and its state"),
        ("models", models, "list the models of all accounts, asking the hosts now"),
        ("settings", show_settings, "list every setting with its value"),
    ):
        add(name, command, help).add_argument("--json", action="store_true", help="for programs")
    sub = add("doctor", doctor, "find what is wrong here, and say what to do")
    sub.add_argument("--account", metavar="NAME", help="one account only; the default is each")
    sub.add_argument("--no-calls", action="store_true", help="contact no upstream")
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = add("clients", clients, "list the clients, or print what one needs to use this server")
    sub.add_argument("name", nargs="?", metavar="NAME", help="the client; without it, the list")
    sub.add_argument("--url", default="", help="the server's address; the default is the settings'")
    sub.add_argument("--model", default="", help="the model; the default is one that suits")
    sub.add_argument("--json", action="store_true", help="for programs")
    sub = add("login", log_in, "log in to Qwen with a browser on any device")
    sub.add_argument("--account", metavar="NAME", help="a further login beside qwen-code's own")
    sub.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    sub.add_argument("--browser", action="store_true", help="open the page on this machine")
    sub = add("creds", credentials, "look after the logins: status, refresh, forget")
    sub.add_argument("action", choices=("status", "refresh", "forget"))
    sub.add_argument("--account", metavar="NAME", help="one login only; the default is each")
    sub.add_argument("--json", action="store_true", help="for programs")
    return parser


def serve(settings: Settings, arguments: argparse.Namespace) -> int:
    """Check what can be checked, then become gunicorn."""
    Discovery(settings, SystemClock()).check()
    check_bind(settings)
    home = server_files()
    # The interpreter's own gunicorn, so that no other one on PATH is taken.
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "-c",
        str(home / "gunicorn.conf.py"),
        "--chdir",
        str(home),
        "wsgi:application",
    ]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, {**_ALLOCATOR, **settings.environ})


def status(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print every account; 0 if one is usable, else 1."""
    services = _services(settings)
    accounts = services.book.accounts()
    problems = services.discovery.problems()
    if arguments.json:
        rows = [text.account_row(account) for account in accounts]
        print(json.dumps({"accounts": rows, "problems": list(problems)}, indent=2))
    else:
        print(text.accounts_text(accounts, problems))
    usable = ("fresh", "stale", "expiring")
    return 0 if any(a.credential.status().state.value in usable for a in accounts) else 1


def models(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print the models; which lists are live is told on standard error."""
    services = _services(settings)
    found: dict[str, dict[str, Any]] = {}
    for account in services.book.accounts():
        listing = services.catalogue.listing(account, max_age_s=0)
        found |= {id: entry for id, entry in listing.models.items() if id not in found}
        source = "live list" if listing.live else f"no live list ({listing.error})"
        print(f"{account.name}: {len(listing.models)} models, {source}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"object": "list", "data": list(found.values())}, indent=2))
    else:
        print("\n".join(found))
    services.close()
    return 0


def doctor(settings: Settings, arguments: argparse.Namespace) -> int:
    """Examine the installation; 0 if nothing fails, else 1."""
    from qwen_wsgi.doctor import run
    from qwen_wsgi.services import SandboxHost

    sandbox = SandboxHost()
    try:
        return run.run(
            settings,
            account=arguments.account,
            calls=not arguments.no_calls,
            json_output=arguments.json,
            start_sandbox=sandbox.base_url,
            out=sys.stdout,
        )
    finally:
        sandbox.close()


def clients(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print the list of clients, or the recipe for one of them."""
    from qwen_wsgi.clients import command

    if arguments.name is None:
        command.show_list(json_output=arguments.json, out=sys.stdout)
        return 0
    command.show(
        settings,
        arguments.name,
        url=arguments.url,
        model=arguments.model,
        models=lambda: _models_to_offer(settings),
        json_output=arguments.json,
        out=sys.stdout,
    )
    return 0


def _models_to_offer(settings: Settings) -> tuple[list[dict[str, Any]], list[str]]:
    """The catalogue, and why it may not be what the hosts serve."""
    try:
        services = _services(settings)
    except SettingsError as error:
        return [], [f"No account can be read ({error}), so nobody was asked for models."]
    try:
        accounts = services.book.accounts()
        entries = services.catalogue.models()
        notes = [
            f"{account.name} did not list its models ({listing.error})"
            for account in accounts
            if (listing := services.catalogue.listing(account, max_age_s=math.inf)).error
        ]
    finally:
        services.close()
    if not accounts:
        notes.append("No account was found, so nobody was asked for models: `qwen-proxy status`.")
    return entries, notes


def log_in(settings: Settings, arguments: argparse.Namespace) -> int:
    """Log in; see `qwen_wsgi.cli.login` for the exit statuses."""
    from qwen_wsgi.cli import login

    return login.run(
        settings,
        account=arguments.account,
        json_output=arguments.json,
        browser=arguments.browser,
        out=sys.stdout,
        err=sys.stderr,
    )


def credentials(settings: Settings, arguments: argparse.Namespace) -> int:
    """Look after the logins; 0 if the chosen ones are well, else 1."""
    from qwen_wsgi.cli import creds

    return creds.run(
        settings,
        arguments.action,
        account=arguments.account,
        json_output=arguments.json,
        out=sys.stdout,
    )


def show_settings(settings: Settings, arguments: argparse.Namespace) -> int:
    """Print the table of settings."""
    rows = settings_module.describe(settings)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        unit = f" {row['unit']}" if row["unit"] else ""
        print(f"{row['name']} = {row['value']}{unit if row['value'] != '–' else ''}")
        default = "" if row["default"] == "–" else f" Default: {row['default']}{unit}."
        print(f"    {row['description']}{default}")
    return 0


def check_bind(settings: Settings) -> None:
    """Say in one line what gunicorn would say in twelve, after five tries.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    address = settings.bind_address
    if address.startswith("unix:"):
        directory = Path(address.removeprefix("unix:")).parent
        if not os.access(directory, os.W_OK):
            raise SettingsError(
                f"cannot create the socket {address}: {directory} is missing or not writable; "
                "create it, or change QWEN_PROXY_BIND"
            )
        return
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, proto, _, where = found[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot listen on {address}: {_bind_reason(error)}") from None


def _bind_reason(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return "another program listens there already; stop it, or choose another PORT"
    if number == errno.EACCES:
        return "ports below 1024 need privileges; choose another PORT and let nginx listen there"
    if number == errno.EADDRNOTAVAIL:
        return "this machine has no such address; correct HOST"
    return f"{error}; correct HOST, PORT or QWEN_PROXY_BIND"


def server_files() -> Path:
    """The directory of `gunicorn.conf.py` and `wsgi.py`: the checkout, or the installed data.

    Raises:
        SettingsError: they are in neither place.
    """
    places = (Path(__file__).resolve().parents[2], Path(sys.prefix) / "share/qwen-proxy")
    for place in places:
        if (place / "gunicorn.conf.py").is_file() and (place / "wsgi.py").is_file():
            return place
    raise SettingsError(
        f"gunicorn.conf.py and wsgi.py are missing from {places[1]}; install the package again"
    )


def _services(settings: Settings) -> Services:
    # Imported late: `serve` replaces the process and needs none of it.
    from qwen_wsgi.services import build_services, configure_logs

    services = build_services(settings)
    services.discovery.check()
    configure_logs(settings)
    return services
