"""The man page, and what shells know of the command: made from its parser, kept in share/.

    python install/share.py          write share/ anew
    python install/share.py --check  say which files are not as they would be written

`make install`, wheels and the Debian package take the files; making them needs the package alone.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
# Before the imports: what is written is that of this checkout, not of an installed package.
sys.path[:0] = [str(ROOT), str(ROOT / "install")]

# ruff: noqa: E402
import generated

from qwen_wsgi.cli import main
from qwen_wsgi.clients.known import CLIENTS
from qwen_wsgi.clients.launch import LAUNCHES

DIRECTORY: Final = ROOT / "share"

_PROGRAM: Final = "qwen-proxy"
_MADE: Final = "written by install/share.py from the command's parser; do not edit"
#: Values that the parser does not list: by the command's path and the option or metavar.
_KNOWN: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("clients", "NAME"): tuple(CLIENTS),
    ("run", "NAME"): tuple(LAUNCHES),
    ("keys add", "--client"): tuple(CLIENTS),
}


class Option(NamedTuple):
    """An option.

    Attributes:
        metavar: "" if it takes no value.
        values: those that it may have, if they are known.
    """

    flags: tuple[str, ...]
    metavar: str
    values: tuple[str, ...]
    help: str


class Positional(NamedTuple):
    """An argument without a name."""

    metavar: str
    values: tuple[str, ...]
    help: str
    optional: bool


class Command(NamedTuple):
    """A command, such as `keys add`; the path of the program itself is ""."""

    path: str
    help: str
    options: tuple[Option, ...]
    positionals: tuple[Positional, ...]
    below: Mapping[str, str]
    epilog: str


def commands(parser: argparse.ArgumentParser, path: str = "") -> Iterator[Command]:
    """What a parser understands, from the top down."""
    options, positionals, below = [], [], {}
    parsers: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        help = (action.help or "").replace("%(default)s", str(action.default))
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest
        if isinstance(action, argparse._SubParsersAction):
            below = {each.dest: each.help or "" for each in action._choices_actions}
            parsers = dict(action.choices)
            continue
        names = action.option_strings or [metavar]
        known = next((found for each in names if (found := _KNOWN.get((path, each)))), ())
        values = tuple(map(str, action.choices or known))
        if action.option_strings:
            shown = "" if action.nargs == 0 else action.metavar or action.dest.upper()
            options.append(Option(tuple(action.option_strings), str(shown), values, help))
        else:
            positionals.append(Positional(metavar, values, help, action.nargs == "?"))
    yield Command(
        path,
        parser.description or "",
        tuple(options),
        tuple(positionals),
        below,
        parser.epilog or "",
    )
    for name, each in parsers.items():
        yield from commands(each, f"{path} {name}".strip())


# --- shells --------------------------------------------------------------------------------------


def _valued(all_: Iterable[Command]) -> Iterator[tuple[str, Option]]:
    """The options with a value, with the path and each of their flags: `keys add --rpm`."""
    for command in all_:
        for option in command.options:
            if option.metavar:
                for flag in option.flags:
                    yield f"{command.path} {flag}", option


def _paths(all_: Iterable[Command]) -> list[str]:
    """Where a word leads deeper: ` serve`, `keys add`."""
    return [f"{command.path} {name}" for command in all_ for name in command.below]


def _pattern(words: Iterable[str]) -> str:
    return " | ".join(f'"{word}"' for word in words)


#: What bash and zsh share: which command it is, how many words it has, which value comes next.
_WALK: Final = """\
    for word in {words}; do
        if [ -n "$value" ]; then
            value=
            continue
        fi
        case "$at $word" in
        {deeper})
            at=${{at:+$at }}$word
            count=0
            continue
            ;;
        {valued})
            value="$at $word"
            continue
            ;;
        esac
        case $word in
        -*) ;;
        *) count=$((count + 1)) ;;
        esac
    done
"""


def bash(all_: list[Command]) -> str:
    """The completion of bash."""
    lines = [f"# Completion of {_PROGRAM} for bash; {_MADE}.", "_qwen_proxy() {"]
    lines.append("    local current=${COMP_WORDS[COMP_CWORD]} at= value= count=0 word words=")
    lines.append(_walk(all_, '"${COMP_WORDS[@]:1:COMP_CWORD-1}"'))
    lines.append('    case "$value" in')
    for flag, option in _valued(all_):
        if option.values or option.metavar == "FILE":
            lines.append(f'    "{flag}") {_bash_values(option.metavar, option.values)} ;;')
    lines += ['    "")', "        case $current in", "        -*)", '            case "$at" in']
    for command in all_:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        lines.append(f"            \"{command.path}\") words='{flags}' ;;")
    lines += [
        "            esac",
        "            ;;",
        "        *)",
        '            case "$at $count" in',
    ]
    for command in all_:
        for number, (metavar, values) in enumerate(_arguments(command)):
            lines.append(
                f'            "{command.path} {number}") {_bash_values(metavar, values)} ;;'
            )
    lines += ["            esac", "            ;;", "        esac", "        ;;", "    esac"]
    lines.append('    COMPREPLY+=($(compgen -W "$words" -- "$current"))')
    lines += ["}", f"complete -o bashdefault -F _qwen_proxy {_PROGRAM}", ""]
    return "\n".join(lines)


def _bash_values(metavar: str, values: tuple[str, ...]) -> str:
    if metavar == "FILE":
        return "compopt -o default"
    return f"words='{' '.join(values)}'" if values else ":"


def zsh(all_: list[Command]) -> str:
    """The completion of zsh."""
    lines = [f"#compdef {_PROGRAM}", f"# Completion of {_PROGRAM} for zsh; {_MADE}."]
    lines += ["_qwen_proxy() {", "    local at= value= count=0 word", "    local -a found"]
    lines.append(_walk(all_, '"${(@)words[2,CURRENT-1]}"'))
    lines.append('    case "$value" in')
    for flag, option in _valued(all_):
        if option.values or option.metavar == "FILE":
            lines.append(f'    "{flag}") {_zsh_values(option.metavar, option.values)} ;;')
    lines += ['    "")', "        if [[ $PREFIX == -* ]]; then", '            case "$at" in']
    for command in all_:
        rows = " ".join(
            _zsh_row(flag, option.help) for option in command.options for flag in option.flags
        )
        lines.append(f'            "{command.path}") found=({rows}) ;;')
    lines += ["            esac", "        else", '            case "$at $count" in']
    for command in all_:
        if command.below:
            rows = " ".join(_zsh_row(name, help) for name, help in command.below.items())
            lines.append(f'            "{command.path} 0") found=({rows}) ;;')
            continue
        for number, (metavar, values) in enumerate(_arguments(command)):
            lines.append(
                f'            "{command.path} {number}") {_zsh_values(metavar, values)} ;;'
            )
    lines += ["            esac", "        fi", "        ;;", "    esac"]
    lines += [f"    _describe {_PROGRAM} found", "}", '_qwen_proxy "$@"', ""]
    return "\n".join(lines)


def _zsh_values(metavar: str, values: tuple[str, ...]) -> str:
    if metavar == "FILE":
        return "_files; return"
    return f"found=({' '.join(values)})" if values else ":"


def _zsh_row(word: str, help: str) -> str:
    text = f"{word}:{help}".replace("'", "'\\''")
    return f"'{text}'"


def fish(all_: list[Command]) -> str:
    """The completion of fish."""
    lines = [f"# Completion of {_PROGRAM} for fish; {_MADE}.", "function __qwen_proxy_at"]
    lines += ["    set -l at", "    set -l words (commandline -opc)", "    for word in $words[2..]"]
    lines += ['        switch "$at $word"']
    deeper = " ".join(f"'{path}'" for path in _paths(all_))
    lines.append(f"            case {deeper}")
    lines += ['                set at (string trim "$at $word")', "        end", "    end"]
    lines += ['    test "$at" = "$argv[1]"', "end", f"complete -c {_PROGRAM} -f"]
    for command in all_:
        head = f"complete -c {_PROGRAM} -n '__qwen_proxy_at \"{command.path}\"'"
        lines += [f"{head} -a {name} -d {_fish(help)}" for name, help in command.below.items()]
        for positional in command.positionals:
            if positional.metavar == "FILE":
                lines.append(f"{head} -F")
            elif positional.values:
                lines.append(f"{head} -a '{' '.join(positional.values)}'")
        for option in command.options:
            flags = " ".join(
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
                for flag in option.flags
            )
            value = ""
            if option.metavar:
                value = " -r -F" if option.metavar == "FILE" else " -x"
                value += f" -a '{' '.join(option.values)}'" if option.values else ""
            lines.append(f"{head} {flags}{value} -d {_fish(option.help)}")
    return "\n".join([*lines, ""])


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _walk(all_: list[Command], words: str) -> str:
    valued = _pattern(flag for flag, _ in _valued(all_))
    return _WALK.format(words=words, deeper=_pattern(_paths(all_)), valued=valued).rstrip("\n")


def _arguments(command: Command) -> list[tuple[str, tuple[str, ...]]]:
    """What may stand at each place: a metavar, and values if they are known."""
    found = [(each.metavar, each.values) for each in command.positionals]
    return [("COMMAND", tuple(command.below)), *found] if command.below else found


# --- the man page --------------------------------------------------------------------------------


def man(all_: list[Command]) -> str:
    """The page in roff, section 1."""
    top, *others = all_
    lines = [
        f'.\\" {_MADE[0].upper()}{_MADE[1:]}.',
        '.TH QWEN\\-PROXY 1 "" "qwen\\-proxy" "User Commands"',
        ".SH NAME",
        f"qwen\\-proxy \\- {_roff(top.help.rstrip('.'))}",
        ".SH SYNOPSIS",
        ".B qwen\\-proxy",
        "[\\fB\\-\\-version\\fR] [\\fB\\-\\-help\\fR] \\fICOMMAND\\fR ...",
        ".SH DESCRIPTION",
        _roff(
            "qwen-proxy turns a Qwen Code login, or API keys, into a server for clients of the "
            "APIs of OpenAI and Anthropic. `qwen-proxy serve` starts it; the other commands look "
            "after it. Installed as a service, `sudo qwen-proxy COMMAND` runs it as the service."
        ),
        ".PP",
        _roff(top.epilog),
        ".SH COMMANDS",
    ]
    for command in others:
        lines += _man_command(command)
    lines += [
        ".SH EXIT STATUS",
        *_tagged("0", "It was done."),
        *_tagged("1", "It failed, and may work later; systemd starts the server again."),
        *_tagged("2", "Something has to be corrected first; the message says what."),
        _roff("run passes on the exit status of the client."),
        ".SH ENVIRONMENT",
        _roff(
            "Every setting is a variable; `qwen-proxy settings` lists them with their values, and "
            "docs/settings.md explains them. QWEN_PROXY_KEY is the client key that clients use."
        ),
        ".SH FILES",
        *_tagged("/etc/qwen-proxy/qwen-proxy.env", "The settings of the service."),
        *_tagged("/var/lib/qwen-proxy", "The state of the service."),
        *_tagged("~/.local/state/qwen-proxy", "The state of a server that a user starts."),
        *_tagged("~/.qwen", "The login and the settings of qwen-code, which the server uses."),
        ".SH SEE ALSO",
        ".BR systemctl (1),",
        ".BR journalctl (1)",
        "",
    ]
    return "\n".join(lines)


def _man_command(command: Command) -> list[str]:
    words = [f"\\fB{_roff(f'{_PROGRAM} {command.path}')}\\fR"]
    words += [f"[\\fI{_roff('OPTIONS')}\\fR]"] if command.options[1:] else []
    if command.below:
        words.append("\\fIACTION\\fR")
    for each in command.positionals:
        shown = f"\\fI{_roff(each.metavar)}\\fR"
        if each.values and each.metavar.islower():
            shown = "|".join(f"\\fB{_roff(value)}\\fR" for value in each.values)
        words.append(f"[{shown}]" if each.optional else shown)
    if command.path == "run":
        words.append("[\\fB\\-\\-\\fR \\fIARGUMENTS OF THE CLIENT\\fR]")
    lines = [f".SS {_roff(command.path)}", " ".join(words), ".PP", _roff(_sentence(command.help))]
    for positional in command.positionals:
        if positional.help:
            lines += _tagged(positional.metavar, positional.help, font="I")
    for option in command.options:
        if "--help" in option.flags:
            continue
        flags = ", ".join(f"\\fB{_roff(flag)}\\fR" for flag in option.flags)
        value = f" \\fI{_roff(option.metavar)}\\fR" if option.metavar else ""
        lines += [".TP", flags + value, _roff(_sentence(option.help))]
    return lines + ([".PP", _roff(command.epilog)] if command.epilog else [])


def _tagged(tag: str, text: str, font: str = "B") -> list[str]:
    return [".TP", f"\\f{font}{_roff(tag)}\\fR", _roff(_sentence(text))]


def _sentence(text: str) -> str:
    whole = text[:1].upper() + text[1:]
    return whole if whole.endswith((".", ":")) or not whole else f"{whole}."


def _roff(text: str) -> str:
    """A text with nothing in it that roff understands; what is in ` ` becomes bold."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    plain = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", plain)
    return f"\\&{plain}" if plain[:1] in (".", "'") else plain


#: Where each file belongs, below PREFIX/share, and what writes it.
FILES: Final[Mapping[str, Callable[[list[Command]], str]]] = {
    "man/man1/qwen-proxy.1": man,
    "bash-completion/completions/qwen-proxy": bash,
    "zsh/site-functions/_qwen-proxy": zsh,
    "fish/vendor_completions.d/qwen-proxy.fish": fish,
}


def texts() -> dict[str, str]:
    """All files, by their places."""
    all_ = list(commands(main._parser()))
    return {place: write(all_) for place, write in FILES.items()}


if __name__ == "__main__":
    generated.run(DIRECTORY, texts, again="python install/share.py", usage=__doc__)
