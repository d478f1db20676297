"""The options of `qwen-proxy keys`; imports nothing that takes long."""

from __future__ import annotations

import argparse
from typing import Any, Final, NamedTuple


class Option(NamedTuple):
    """An option with a value: the member of the key's JSON, how the value is called, and help."""

    member: str
    metavar: str
    help: str

    @property
    def flag(self) -> str:
        """As it is typed."""
        return "--" + self.member.replace("_", "-")


#: Options with a value, which is handed on as it was typed.
VALUES: Final = (
    Option("rpm", "N", "requests within 60 seconds"),
    Option("tpm", "N", "tokens within 60 seconds"),
    Option("tokens_per_day", "N", "tokens of a day"),
    Option("money_per_month", "X", "money of a month, in the currency of the price table"),
    Option("concurrency", "N", "calls at a time"),
    Option("models", "LIST", "models that it may use, with * and ?: 'qwen3*,text-embedding-v4'"),
    Option("accounts", "LIST", "accounts that it may use (qwen-proxy status names them)"),
    Option("cidr", "LIST", "networks from which it may be used: 192.168.1.0/24,fd00::/8"),
    Option("expires", "TIME", "when it ends, from now: 12h, 30d"),
    Option("tools", "LIST", "tools of the proxy that it may use"),
    Option("cache", "TIME", "keep answers for identical requests so long: 1h, or off"),
    Option("note", "TEXT", "a note for yourself"),
)
#: Options that are there or not.
FLAGS: Final = (
    ("admin", "may change keys, and see all usage, over HTTP (/admin/v1)"),
    ("metrics", "may read /metrics"),
    ("tools_always", "its chat calls get the tools of --tools without naming them"),
)

_NONE: Final = "`none` takes a limit away."


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the actions of the command, each with its options."""
    actions: Any = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, help: str, *, key: bool = True, **more: str) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = actions.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.", **more
        )
        if key:
            sub.add_argument("key", metavar="NAME", help="the key's name, or its id")
        sub.add_argument("--json", action="store_true", help="print JSON")
        return sub

    sub = add("add", "make a client key, and print it once", key=False)
    sub.add_argument("name", metavar="NAME", help="of the person or program that uses it")
    _add_values(sub, change=False)
    sub.add_argument(
        "--client",
        metavar="NAME",
        default="openai-python",
        help="print the set-up of this client (`qwen-proxy clients` lists them)",
    )
    add("list", "list all client keys, without their secrets", key=False)
    add("show", "show a client key with its limits")
    sub = add("edit", "change a client key; what is not named stays", epilog=_NONE)
    sub.add_argument("--name", metavar="NEW", help="another name")
    _add_values(sub, change=True)
    sub = add("rotate", "give a client key a new secret; its limits and usage stay")
    sub.add_argument("--grace", metavar="TIME", default="0", help="how long the old secret works")
    add("revoke", "end a client key for good")


def _add_values(sub: argparse.ArgumentParser, *, change: bool) -> None:
    for option in VALUES:
        sub.add_argument(option.flag, metavar=option.metavar, help=option.help)
    for member, help in FLAGS:
        action: Any = argparse.BooleanOptionalAction if change else "store_true"
        name = f"--{member.replace('_', '-')}"
        sub.add_argument(name, action=action, default=None, help=help)
