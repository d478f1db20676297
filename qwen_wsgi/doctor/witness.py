"""What only root can see, handed over to a doctor that runs as the service's user.

`sudo qwen-proxy doctor` gives up root's rights before it looks at accounts and calls upstreams.
Before that it reads the unit's environment files, and lets nginx test its configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

#: The variable that names the open file with the observations.
VARIABLE: Final = "_QWEN_PROXY_ROOT_SAW"

_MAX_BYTES: Final = 4 * 1024 * 1024


class Witness(NamedTuple):
    """Root's observations.

    Attributes:
        files: the texts of files by their paths; one that does not exist is "".
        nginx_test: exit status and output of `nginx -t`; None if there is no nginx.
    """

    files: Mapping[str, str]
    nginx_test: tuple[int, str] | None


def read_files(paths: Iterable[Path]) -> dict[str, str]:
    """The texts of those files that can be read."""
    found = {}
    for path in paths:
        try:
            found[str(path)] = path.read_text(errors="replace")
        except FileNotFoundError:
            found[str(path)] = ""
        except OSError:
            continue
    return found


def hand_over(witness: Witness) -> dict[str, str]:
    """Put the observations into a file without a name, for the program that this process becomes.

    Returns:
        The variable for that program's environment.
    """
    file = os.memfd_create("qwen-proxy-root-saw", 0)  # kept open by exec
    with open(file, "wb", closefd=False) as out:
        out.write(json.dumps(witness).encode())
    return {VARIABLE: str(file)}


def received(environ: Mapping[str, str]) -> Witness | None:
    """What was handed over to this process; None if nothing was."""
    number = environ.get(VARIABLE, "")
    if not number.isdigit():
        return None
    with suppress(OSError, ValueError, TypeError):
        files, test = json.loads(os.pread(int(number), _MAX_BYTES, 0))
        return Witness(files, None if test is None else (int(test[0]), str(test[1])))
    return None
