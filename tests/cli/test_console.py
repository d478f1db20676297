"""`qwen-proxy console`: the link that it prints."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from qwen_wsgi.cli.keys import console_link
from qwen_wsgi.errors import CannotStartYet, SettingsError
from qwen_wsgi.state.database.console_sessions import ConsoleSessions
from qwen_wsgi.state.database.tables import database_in
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import settings_of
from tests.kit.processes import free_port


def made(
    state_dir: Path, url: str = "", *, as_json: bool = False, **environ: object
) -> tuple[str, str]:
    """What the command prints: its output, and its notes."""
    out, err = io.StringIO(), io.StringIO()
    settings = settings_of(
        **{"QWEN_PROXY_STATE_DIR": str(state_dir), "PORT": free_port(), **environ}
    )
    assert console_link.run(settings, url=url, json_output=as_json, out=out, err=err) == 0
    return out.getvalue(), err.getvalue()


def test_a_link_works_once(tmp_path: Path) -> None:
    told, notes = made(tmp_path, PORT=8099)
    origin, _, secret = told.split("\n")[2].strip().partition("/console/link#")

    assert origin == "http://127.0.0.1:8099"
    assert "does not answer now" in notes
    database = database_in(tmp_path, FakeClock())
    sessions = ConsoleSessions(database, FakeClock())
    outcomes = [sessions.spend_link(secret) for _ in range(2)]
    database.close()
    assert outcomes == ["spent", "used"]


def test_only_a_digest_is_kept(tmp_path: Path) -> None:
    secret = made(tmp_path)[0].split("#")[1].split()[0]

    files = [path for path in (tmp_path / "database").iterdir()]
    assert files
    assert not any(secret.encode() in path.read_bytes() for path in files)


def test_the_address_is_the_one_that_was_named(tmp_path: Path) -> None:
    told, notes = made(tmp_path, "https://qwen.lan/", as_json=True)
    value = json.loads(told)

    assert value["url"].startswith("https://qwen.lan/console/link#")
    assert value["expires_in_s"] == 300
    assert "keys add NAME --admin" in notes
    assert "--admin" not in made(tmp_path, "https://qwen.lan", QWEN_PROXY_ADMIN_KEYS="k" * 20)[1]
    with pytest.raises(SettingsError, match="not an address"):
        made(tmp_path, "qwen.lan")


def test_a_database_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "database").write_text("no directory")

    with pytest.raises(CannotStartYet, match="no link can be made"):
        made(tmp_path)
