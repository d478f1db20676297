"""Finds the login files and QWEN_CLI_AUTH, and detects duplicate logins among them."""

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

#: Additional logins, made by `qwen-proxy login --account NAME`, and their journals, which are kept
#: when the file is deleted.
_LOGIN_FILE: Final = re.compile(r"oauth_creds(_[a-z0-9-]{1,32})\.json")
_JOURNAL_FILE: Final = re.compile(r"journal(_[a-z0-9-]{1,32})\.json")

#: What to do about a QWEN_CLI_AUTH that is not a login.
AUTH_REMEDY: Final = "set it to the whole content of an oauth_creds.json, or unset it"


class Candidate(NamedTuple):
    """A login that was found, before it is compared with the others."""

    name: str
    login: OAuthLogin
    origin: str
    #: Fingerprint of its refresh token; empty without one.
    fp: str
    journal: Journal

    def has_left_behind(self, fp: str) -> bool:
        """Whether a refresh token is an earlier one of this login."""
        received, journal = self.journal.received, self.journal
        was_spent = fp in journal.spent or (received is not None and received.spent == fp)
        return was_spent or fp in journal.tombstones


def duplicate_of(one: Candidate, candidates: Sequence[Candidate]) -> str:
    """Which other account has this login, as the end of a sentence; empty when none has.

    A refresh token can be spent once: the second use would lose the login for both accounts. An
    older copy is even worse: sending its spent token is the very misuse that a login service
    watches for.
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
    """List qwen-code's own file first, then those of additional accounts by name.

    Includes a deleted file whose journal still exists: its login counts.
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
    """The account's name, from that of its file."""
    suffix = path.stem.removeprefix("oauth_creds_")
    return "oauth" if path.stem == "oauth_creds" else f"oauth-{suffix}"


def environment_login(settings: Settings) -> CredentialDocument | None:
    """Parse the login in QWEN_CLI_AUTH; None when it is not set.

    Raises:
        Unusable: it is not a login.
    """
    text = settings.qwen_cli_auth.strip()
    return from_environment(text) if text else None
