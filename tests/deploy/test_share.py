"""The man page and the completions say what the parser says, and shells understand them."""

from __future__ import annotations

import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kit.servers import REPO

pytestmark = pytest.mark.once

SCRIPT: dict[str, Any] = runpy.run_path(str(REPO / "install/share.py"))
SHARE = REPO / "share"

#: What is typed, some of what is offered, and what is not.
TYPED: list[tuple[str, set[str], set[str]]] = [
    ("", {"serve", "clients", "keys"}, {"add", "--json"}),
    ("cl", {"clients"}, {"serve"}),
    ("--", {"--version", "--help"}, {"--json"}),
    ("clients ", {"codex", "curl"}, {"serve"}),
    ("clients codex --w", {"--write", "--with-key"}, {"--undo"}),
    ("run ", {"codex", "aider"}, {"curl"}),
    ("keys ", {"add", "revoke"}, {"serve"}),
    ("keys add me --c", {"--client", "--cidr", "--cache"}, {"--json"}),
    ("keys add --client co", {"codex", "continue"}, {"curl", "--client"}),
    ("usage --by d", {"day"}, {"hour"}),
    ("state ", {"backup", "restore", "check"}, set()),
    ("creds --account x re", {"refresh"}, {"status"}),
]


def needed(program: str) -> str:
    """A shell; the test is skipped where it is not installed."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_files_are_as_they_would_be_written() -> None:
    assert SCRIPT["generated"].outdated(SHARE, SCRIPT["texts"]()) == [], (
        "run: python install/share.py"
    )


def test_every_command_and_option_is_in_the_man_page() -> None:
    page = (SHARE / "man/man1/qwen-proxy.1").read_text().replace("\\-", "-")
    for command in SCRIPT["commands"](SCRIPT["main"]._parser()):
        assert not command.path or f"qwen-proxy {command.path}\\fR" in page
        for option in command.options:
            assert all(flag in page for flag in option.flags), (command.path, option.flags)


def test_the_man_page_is_roff_without_a_warning(tmp_path: Path) -> None:
    page = str(SHARE / "man/man1/qwen-proxy.1")
    done = subprocess.run(
        [needed("groff"), "-man", "-Tutf8", "-ww", "-z", page],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_bash_completes(tmp_path: Path) -> None:
    lines = [f"source {SHARE}/bash-completion/completions/qwen-proxy", "compopt() { :; }"]
    for typed, _, _ in TYPED:
        words = ["qwen-proxy", *typed.split(" ")]
        shown = " ".join(f"'{word}'" for word in words)
        lines.append(f"COMP_WORDS=({shown}); COMP_CWORD={len(words) - 1}; COMPREPLY=()")
        lines.append('_qwen_proxy; echo "${COMPREPLY[*]}"')
    check(run(needed("bash"), "--norc", "-uc", "\n".join(lines), cwd=tmp_path))


def test_zsh_completes(tmp_path: Path) -> None:
    body = (SHARE / "zsh/site-functions/_qwen-proxy").read_text()
    assert body.startswith("#compdef qwen-proxy\n")
    lines = ["_describe() { local each; for each in $found; do", "    each=${each%%:*}"]
    lines += ['    [[ $each == $PREFIX* ]] && print -n -- "$each "', "done; print }"]
    lines += ["compdef() { : }", body.replace('_qwen_proxy "$@"\n', "")]
    for typed, _, _ in TYPED:
        words = ["qwen-proxy", *typed.split(" ")]
        shown = " ".join(f"'{word}'" for word in words)
        lines.append(f"words=({shown}); CURRENT={len(words)}; PREFIX='{words[-1]}'; _qwen_proxy")
    check(run(needed("zsh"), "-fc", "\n".join(lines), cwd=tmp_path))


def test_fish_completes(tmp_path: Path) -> None:
    file = SHARE / "fish/vendor_completions.d/qwen-proxy.fish"
    lines = [f"source {file}"]
    for typed, _, _ in TYPED:
        lines.append(f"echo (complete -C 'qwen-proxy {typed}' | string replace -r '\\t.*' '')")
    check(run(needed("fish"), "--no-config", "-c", "\n".join(lines), cwd=tmp_path))


def check(printed: str) -> None:
    """Each line of what a shell printed belongs to what was typed."""
    for line, (typed, offered, others) in zip(printed.splitlines(), TYPED, strict=True):
        words = set(line.split())
        assert offered <= words, (typed, words)
        assert not others & words, (typed, words)
