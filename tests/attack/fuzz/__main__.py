"""Searches with atheris for bytes of which something does not hold.

    python -m tests.attack.fuzz TARGET [--seconds 600] [--corpus DIRECTORY]

atheris is no requirement of the tests: install it into an environment of its own, beside the
package (`pip install atheris -e .`). It watches which branches the bytes reach and varies those
that reach new ones. The first finding ends the search and is written to the current directory as
`crash-…`; put it into `tests/corpus/fuzz/TARGET/`, where `test_targets.py` takes it up, and mend
what it found.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

FINDINGS = Path(__file__).parents[2] / "corpus" / "fuzz"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.fuzz")
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, help="keeps what was found worth varying")
    asked = parser.parse_args()
    # Not installed where the tests run, so that it cannot be imported by name.
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["qwen_wsgi", "wsproto"]):
        targets = importlib.import_module("tests.attack.fuzz.targets")
    if asked.target not in targets.TARGETS:
        parser.error(f"the targets are {', '.join(targets.TARGETS)}")
    logging.disable()
    directory = asked.corpus or Path(tempfile.mkdtemp(prefix="qwen-proxy-fuzz-"))
    directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(asked.target)):
        (directory / f"seed-{number}").write_bytes(seed)
    found = FINDINGS / asked.target
    known = [str(found)] if found.is_dir() else []
    options = ["-max_len=2048", "-timeout=10", f"-max_total_time={asked.seconds}"]
    atheris.Setup([sys.argv[0], *options, str(directory), *known], targets.TARGETS[asked.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
