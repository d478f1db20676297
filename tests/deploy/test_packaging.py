"""setup.cfg names all that the server needs, not only what the developers' tools bring along."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.kit.servers import CONF, REPO

#: Loads everything that `qwen-proxy serve` and its workers load, then tells the modules.
LOAD = """
import json, sys
before = set(sys.modules)
sys.argv = ["gunicorn", "--check-config", "-c", sys.argv[1], "--chdir", sys.argv[2], "wsgi"]
from gunicorn.app.wsgiapp import run
try:
    run()
except SystemExit as end:
    assert not end.code, end.code
import qwen_wsgi.cli
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


#: msgspec knows its types, too, where somebody has installed it.
TAKEN_WHERE_IT_IS = ("typing_extensions",)


def closure(requirements: list[str]) -> set[str]:
    """The distributions that pip installs for these requirements, as installed here."""
    found: set[str] = set()
    todo = [(Requirement(text), {""}) for text in requirements]
    seen: set[str] = set()
    while todo:
        requirement, extras = todo.pop()
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras
        ):
            continue
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        found.add(canonicalize_name(requirement.name))
        below = metadata.distribution(requirement.name).requires or []
        todo += [(Requirement(text), {"", *requirement.extras}) for text in below]
    return found


def test_every_module_of_the_server_comes_from_a_requirement(tmp_path: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read(REPO / "setup.cfg")
    lines = parser["options"]["install_requires"].splitlines()
    required = closure([line for line in lines if line and not line.startswith("#")])
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(CONF), str(REPO)],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PYTHONPATH": str(REPO),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    owners = metadata.packages_distributions()
    unnamed = {
        module: owners[module]
        for module in json.loads(done.stdout)
        if module in owners
        and module not in ("qwen_wsgi", *TAKEN_WHERE_IT_IS)
        and not {canonicalize_name(name) for name in owners[module]} & required
    }
    assert unnamed == {}
