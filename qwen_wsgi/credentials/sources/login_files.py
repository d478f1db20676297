"""Which logins this machine has by their files and variable, and which of them are the same one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from qwen_wsgi.credentials.files.document import CredentialDocument
from qwen_wsgi.credentials.files.journal import Journal
from qwen_wsgi.credentials.files.login_store import LoginPaths, from_environment
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.settings import Settings

#: Further logins beside qwen-code's one, made by `qwen-proxy login --account NAME`, and their
#: journals, which outlive the file.
_LOGIN_FILE: Final = re.compile(r"oauth_creds(_[a-z0-9-]{1,32})\.json")
_JOURNAL_FILE: Final = re.compile(r"journal(_[a-z0-9-]{1,32})\.json")

#: What to do about a QWEN_CLI_AUTH that is no login.
AUTH_REMEDY: Final = "set it to the whole content of an oauth_creds.json, or unset it"


class Candidate(NamedTuple):
    """A login that was found, before it is compared with the others."""

    name: str
    login: OAuthLogin
    origin: str
    #: Of its refresh token; empty without one.
    fp: str
    journal: Journal

    def has_left_behind(self, fp: str) -> bool:
        """Whether a refresh token is one that this login once had."""
        received, journal = self.journal.received, self.journal
        was_spent = fp in journal.spent or (received is not None and received.spent == fp)
        return was_spent or fp in journal.tombstones


def duplicate_of(one: Candidate, candidates: Sequence[Candidate]) -> str:
    """Whose login this is as well, as the end of a sentence; empty when it is nobody else's.

    One refresh token can be spent once: whoever is second would lose the login for both. A copy
    that was left behind by a refresh is worse than equal: to send its token is the very misuse
    that a login service looks for.
    """
    before = True
    for other in candidates if one.fp else ():
        if other is one:
            before = False
        elif other.fp == one.fp:
            if before:
                return f"the same login as the account {other.name}"
        elif other.has_left_behind(one.fp) and not one.has_left_behind(other.fp):
            return f"an older copy of the login of the account {other.name}"
    return ""


def login_files(qwen_home: Path) -> list[Path]:
    """qwen-code's own file first, then those of further accounts by name.

    A file that was taken away from a login that we renewed is among them: its journal counts.
    """
    names = {
        f"oauth_creds{match[1]}.json"
        for directory, pattern in (
            (qwen_home, _LOGIN_FILE),
            (LoginPaths.beside(qwen_home / "oauth_creds.json").journal.parent, _JOURNAL_FILE),
        )
        for match in map(pattern.fullmatch, _names(directory))
        if match is not None
    }
    return [qwen_home / "oauth_creds.json", *(qwen_home / name for name in sorted(names))]


def _names(directory: Path) -> list[str]:
    with suppress(OSError):
        return os.listdir(directory)
    return []


def login_name(path: Path) -> str:
    """The account's name, by that of its file."""
    suffix = path.stem.removeprefix("oauth_creds_")
    return "oauth" if path.stem == "oauth_creds" else f"oauth-{suffix}"


def environment_login(settings: Settings) -> CredentialDocument | None:
    """The login in QWEN_CLI_AUTH, if it is set.

    Raises:
        Unusable: it is set to something else.
    """
    text = settings.qwen_cli_auth.strip()
    return from_environment(text) if text else None
