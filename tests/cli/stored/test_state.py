"""`qwen-proxy state`: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.cli import main
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.state.database.in_use import hold
from qwen_wsgi.state.database.responses import ResponseStore
from qwen_wsgi.state.database.sqlite import FILE
from qwen_wsgi.state.database.tables import DIRECTORY, database_in, prepare
from tests.kit.processes import REPOSITORY


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWEN_PROXY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


@pytest.fixture
def run(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `state` with some words; its status, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        status = main.main(["state", *words])
        return status, *capsys.readouterr()

    return run


def put(state_dir: Path, id: str) -> None:
    with closing(database_in(state_dir, SystemClock())) as database:
        store = ResponseStore(database, SystemClock(), ttl_s=1000, max_bytes=2**26)
        assert store.put("me", {"id": id, "output": ["x" * 200_000]}, [], None)


def test_a_copy_and_its_way_back(run: Any, state_dir: Path) -> None:
    put(state_dir, "r1")
    copy = state_dir.parent / "copy"

    assert run("backup", "copy") == (
        0,
        f"{copy} has a copy of {state_dir}/database (0.4 MB).\n",
        "",
    )
    status, out, err = run("backup", "copy")
    assert (status, out) == (1, "")
    assert err == f"qwen-proxy: {copy} is there already. Choose another name, or use --force.\n"
    assert run("backup", "copy", "--force")[0] == 0

    status, out, err = run("restore", "copy")
    assert (status, err) == (0, "")
    assert out.startswith(f"{copy} is the server's database now (0.4 MB). Start the server.\n")
    (replaced,) = (state_dir / DIRECTORY).glob("*.replaced-*")
    assert f"What was there before is kept in {replaced}: only there is" in out


def test_without_a_database_to_replace(run: Any, state_dir: Path) -> None:
    put(state_dir, "r1")
    run("backup", "copy")
    (state_dir / DIRECTORY / FILE).unlink()

    _, out, _ = run("restore", "copy")

    assert "before" not in out


def test_the_same_for_programs(run: Any, state_dir: Path) -> None:
    put(state_dir, "r1")
    copy = state_dir.parent / "copy"

    made = json.loads(run("backup", "copy", "--json")[1])
    done = json.loads(run("restore", "copy", "--json")[1])
    status, out, err = run("restore", "none", "--json")

    assert made == {"file": str(copy), "bytes": copy.stat().st_size}
    replaced = str(next((state_dir / DIRECTORY).glob("*.replaced-*")))
    assert done == {**made, "replaced": replaced, "keys": 0}
    assert (status, json.loads(out), err) == (
        1,
        {"error": f"There is no file {copy.with_name('none')}."},
        "",
    )


def test_while_a_server_runs_nothing_is_restored(run: Any, state_dir: Path) -> None:
    put(state_dir, "r1")
    run("backup", "copy")
    server = hold(state_dir)
    status, out, err = run("restore", "copy")
    os.close(server)

    assert (status, out) == (1, "")
    assert err.startswith(f"qwen-proxy: A server uses {state_dir} now. Stop it first")


@pytest.mark.parametrize("words", [("backup",), ("restore",), ("check", "copy")], ids=" ".join)
def test_a_file_is_missing_or_too_much(run: Any, words: tuple[str, ...]) -> None:
    status, out, err = run(*words)

    assert (status, out) == (2, "")
    assert "see `" in err and "--help`" in err


def test_a_check(run: Any, state_dir: Path) -> None:
    put(state_dir, "r1")
    status, out, err = run("check")

    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"{state_dir}/database/{FILE}"
    assert "no server uses it" in out
    assert "  responses: version 1\n" in out
    assert "responses 1," in out
    assert out.endswith("Nothing is wrong.\n")


def test_a_check_before_the_first_start(run: Any) -> None:
    status, out, _ = run("check")

    assert status == 0
    assert "note: There is no database yet" in out


def test_a_check_that_finds_damage(run: Any, state_dir: Path) -> None:
    prepare(state_dir, SystemClock())
    (state_dir / DIRECTORY / FILE).write_bytes(b"garbage" * 3000)

    status, out, _ = run("check")
    found = json.loads(run("check", "--json")[1])

    assert status == 1
    assert "WRONG: " in out and "Nothing is wrong" not in out
    assert found["exists"] and len(found["problems"]) == 1
    assert set(found) == {
        "file",
        "exists",
        "in_use",
        "bytes",
        "log_bytes",
        "free_bytes",
        "features",
        "rows",
        "problems",
        "notes",
    }


def test_a_full_disk_leaves_no_half_copy(state_dir: Path) -> None:
    put(state_dir, "r1")
    done = subprocess.run(
        ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh"]
        + [sys.executable, "-m", "qwen_wsgi.cli", "state", "backup", "copy"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=state_dir.parent,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert "Check whether its disk is full" in done.stderr or "Free some space" in done.stderr
    assert list(state_dir.parent.glob("*copy*")) == []
