"""doctor's look at the tools that the server runs."""

from __future__ import annotations

import json
from pathlib import Path

from qwen_wsgi import settings
from qwen_wsgi.doctor import tools
from qwen_wsgi.doctor.findings import Finding, Level


def found(folder: Path, document: object, *, calls: bool = True) -> list[Finding]:
    file = folder / "tools.json"
    file.write_text(json.dumps(document))
    environ = {
        "QWEN_PROXY_TOOLS": str(file),
        "QWEN_PROXY_STATE_DIR": str(folder / "state"),
        "HOME": str(folder),
    }
    return list(tools.check(settings.load(environ), calls=calls))


def test_each_server_is_looked_at(tmp_path: Path) -> None:
    document = {"fetch": {}, "mcpServers": {"clock": {"from": "qwen-code"}}}

    by = {each.subject: each for each in found(tmp_path, document)}

    assert (by["fetch"].level, by["fetch"].what) == (Level.OK, "answers, and offers 1 tool")
    assert by["clock"].level is Level.FAIL
    assert "settings.json cannot be read" in by["clock"].what


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    (one,) = found(tmp_path, {"pyton": {}})

    assert one.level is Level.FAIL
    assert "did you mean" in one.what


def test_nothing_is_started_without_calls(tmp_path: Path) -> None:
    (one,) = found(tmp_path, {"fetch": {}}, calls=False)

    assert one.level is Level.SKIPPED


def test_without_tools_nothing_is_said() -> None:
    assert list(tools.check(settings.load({}), calls=True)) == []
