"""A copy of the client keys beside the database: `client-keys.json`, with digests, not secrets.

It is written with every change, before the change counts. That it exists means that there were
keys: a server whose database was lost or damaged then gets them from here, and serves nobody
without a key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from qwen_wsgi import whole_files
from qwen_wsgi.access.client_key import ClientKey, KeptKey, of_json

FILE: Final = "client-keys.json"

_VERSION: Final = 1
#: The most keys that there can be have a tenth of it.
_MOST_BYTES: Final = 64 * 1024 * 1024


class CopyDamaged(ValueError):
    """The file is not what was written."""


def write(directory: Path, keys: Iterable[KeptKey]) -> None:
    """Replace the copy, durably.

    Raises:
        OSError: it cannot be written.
    """
    content = json.dumps({"version": _VERSION, "keys": list(map(entry_of, keys))}, indent=1)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    whole_files.replace(directory / FILE, f"{content}\n".encode())


def read(directory: Path) -> tuple[KeptKey, ...] | None:
    """The keys in the copy; None if there is none.

    Raises:
        OSError: it cannot be read.
        CopyDamaged: it is not what was written.
    """
    try:
        with (directory / FILE).open("rb") as file:
            content = file.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return tuple(map(kept_of, json.loads(content)["keys"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CopyDamaged(f"{directory / FILE} is damaged ({type(error).__name__})") from None


def exists(directory: Path | None) -> bool:
    """Whether there were keys. Where that cannot be seen, there may have been."""
    if directory is None:
        return False
    try:
        (directory / FILE).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def keys_in(directory: Path) -> tuple[ClientKey, ...]:
    """The keys for commands that only look, without opening the database; () if the copy is missing
    or cannot be read."""
    try:
        found = read(directory) or ()
    except (OSError, CopyDamaged):
        return ()
    return tuple(kept.key for kept in found)


def entry_of(kept: KeptKey) -> dict[str, Any]:
    """A key as JSON, with its digests."""
    digests = [{"sha256": digest.hex(), "until": until} for digest, until in kept.digests]
    return {**kept.key.json(), "digests": digests}


def kept_of(entry: dict[str, Any]) -> KeptKey:
    """A key from `entry_of`. Raises ValueError, TypeError, KeyError."""
    digests = [(bytes.fromhex(each["sha256"]), each["until"]) for each in entry["digests"]]
    if any(len(digest) != 32 for digest, _ in digests):
        raise ValueError("no digest")
    return KeptKey(of_json(entry), tuple(digests))
