"""Print the lowest versions that setup.cfg allows, as constraints for pip."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).resolve().parent.parent / "setup.cfg"


def lowest(path: Path = SETUP) -> list[str]:
    """`name == version` for each requirement, also of the developers' tools.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    parser = configparser.ConfigParser()
    parser.read(path)
    text = parser["options"]["install_requires"] + parser["options.extras_require"]["dev"]
    found = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        bound = re.match(r"([\w-]+)(?:\[[\w,-]+\])? >= ([\w.]+)", line)
        if not bound:
            raise ValueError(f"{path.name}: {line!r} has no lower bound")
        found.append(f"{bound[1]} == {bound[2]}")
    return found


if __name__ == "__main__":
    print("\n".join(lowest()))
