"""`qwen-proxy usage`."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.accounting.books import journal_in
from qwen_wsgi.accounting.usage import COLUMNS
from qwen_wsgi.cli.stored import usage
from qwen_wsgi.state.database.calls import CallRow, line_of
from tests.fakes.clock import NOON_S, FakeClock
from tests.fakes.upstream import settings_of
from tests.kit.call_rows import DAY, call
from tests.kit.servers import REPO

NOTHING: dict[str, Any] = dict.fromkeys(
    (
        *("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"),
        *("money_micro", "saved_micro", "currency"),
    )
)


def note(directory: Path, *rows: CallRow) -> None:
    """As a server leaves them."""
    with closing(journal_in(directory, FakeClock())) as writer:
        for row in rows:
            writer.append(line_of(row))


def run(directory: Path, status: int = 0, **options: Any) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    given = {"by": "client", "since": "30d", "until": "now", "json_output": False}
    settings = settings_of(
        QWEN_PROXY_STATE_DIR=str(directory), **options.pop("environ", {"HOME": "/nonexistent"})
    )
    ended = usage.run(
        settings,
        **{**given, "csv_output": False, **options},
        out=out,
        err=err,
        clock=FakeClock(),
    )
    assert ended == status, err.getvalue()
    return out.getvalue(), err.getvalue()


def test_a_table_a_total_and_the_cache_receipt(tmp_path: Path) -> None:
    note(
        tmp_path,
        call(input_tokens=1_000_000, cached_tokens=250_000, money_micro=1_600_000, saved_micro=0),
        call(saved_micro=400_000),
        call(**NOTHING, model="qwen3.8-flash", outcome="refused"),
        call(model="qwen3.7-plus", money_micro=None, saved_micro=None, currency=None),
        call(**NOTHING, outcome="client_gone", unknown_usage=1),
    )

    said, _ = run(tmp_path, by="model")

    head, _, titles, *rows = said.splitlines()
    assert head.startswith("Calls from 20")
    assert head.endswith("by model")
    assert titles.split() == [
        *("model", "calls", "refused", "failed", "input", "cached", "output", "reasoning"),
        *("unknown", "hits", "money", "saved"),
    ]
    assert len({len(line) for line in (titles, *rows[:4])}) == 1
    assert rows[0].split()[:9] == [
        *("qwen3.8-max", "3", "0", "0", "1,000,100", "250,040", "20", "8", "1")
    ]
    assert rows[1].split()[-2:] == ["–", "–"]
    assert rows[2].split()[:3] == ["qwen3.8-flash", "0", "1"]
    assert rows[3].split()[:3] == ["total", "4", "1"]
    assert "Cache receipt: 250,080 of 1,000,200 input tokens (25%) were read from a cache." in said
    assert "It saved 0.4000 USD: 1.60 USD by list prices instead of 2.00 USD." in said
    assert "Of 1 calls it is unknown what they used" in said
    assert "QWEN_PROXY_PRICES" in said


def test_a_cache_that_has_cost_more_than_it_saved(tmp_path: Path) -> None:
    note(tmp_path, call(money_micro=2_500_000, saved_micro=-500_000))

    said, _ = run(tmp_path)

    assert "It cost 0.5000 USD: 2.50 USD by list prices instead of 2.00 USD." in said
    assert "total" not in said


def test_two_currencies_have_no_total(tmp_path: Path) -> None:
    note(tmp_path, call(), call(currency="CNY"))

    said, _ = run(tmp_path)

    total = next(line for line in said.splitlines() if line.startswith("total"))
    assert total.split()[-2:] == ["–", "–"]
    assert total.split()[1] == "2"


def test_json(tmp_path: Path) -> None:
    note(tmp_path, call(at=NOON_S - 8 * DAY), call(at=NOON_S - DAY), call())

    found = json.loads(run(tmp_path, json_output=True, since="7d")[0])

    assert list(found) == ["since", "until", "by", "rows"]
    assert (found["since"], found["until"], found["by"]) == (
        int(NOON_S - 7 * DAY),
        int(NOON_S + 1),
        "client",
    )
    (row,) = found["rows"]
    assert tuple(row) == COLUMNS
    assert (row["calls"], row["money"], row["saved_by_cache"]) == (2, 0.0004, 0.0001)


def test_csv_whose_names_are_no_formulas(tmp_path: Path) -> None:
    note(tmp_path, call(), call(model='=cmd|"x"!A1'), call(model="-"), call(model="a,b\n"))
    note(tmp_path, call(model=" =1"))

    found = list(csv.DictReader(io.StringIO(run(tmp_path, csv_output=True, by="model")[0])))

    assert tuple(found[0]) == COLUMNS
    assert sorted(row["key"] for row in found) == [
        "' =1",
        '\'=cmd|"x"!A1',
        "-",
        "a,b\n",
        "qwen3.8-max",
    ]
    assert found[0]["money"] == "0.0002"


def test_names_of_a_terminal_s_own(tmp_path: Path) -> None:
    note(tmp_path, call(model="\x1b[31mred"), call(model="x" * 90), call(model=""))

    said, _ = run(tmp_path, by="model")

    assert "\x1b" not in said
    assert "'\\x1b[31mred'" in said
    assert "x" * 47 + "…" in said
    assert "\n–  " in said


def test_nothing_and_no_files(tmp_path: Path) -> None:
    assert run(tmp_path)[0].endswith("by client: none.\n")
    assert json.loads(run(tmp_path, json_output=True)[0])["rows"] == []
    assert not (tmp_path / "database").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"since": "soon"}, "qwen-proxy: --since must be a time such as 7d"),
        ({"until": "soon"}, "qwen-proxy: --until must be a time such as 7d"),
        ({"since": "1d", "until": "2d"}, "qwen-proxy: --since must be before until"),
    ],
)
def test_a_question_that_is_none(tmp_path: Path, options: dict[str, str], said: str) -> None:
    assert run(tmp_path, 2, **options)[1].startswith(said)


def test_where_no_record_is_kept_or_can_be_read(tmp_path: Path) -> None:
    environ = {"QWEN_PROXY_LEDGER_DAYS": "0"}
    assert "QWEN_PROXY_LEDGER_DAYS=0" in run(tmp_path, 1, environ=environ)[1]
    note(tmp_path, call())
    (tmp_path / "database").write_text("no directory")
    assert "cannot be used" in run(tmp_path, 1)[1]


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwen_wsgi.cli", "usage", *arguments],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(REPO),
            "QWEN_PROXY_STATE_DIR": str(home / "state"),
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_command(tmp_path: Path) -> None:
    note(tmp_path / "state", call(at=NOON_S))
    said = command(tmp_path, "--since", "2026-11-19", "--until", "2026-11-21", "--json")
    assert (said.returncode, said.stderr) == (0, "")
    assert [row["calls"] for row in json.loads(said.stdout)["rows"]] == [1]
    wrong = command(tmp_path, "--json", "--csv")
    assert (wrong.returncode, "not allowed with" in wrong.stderr) == (2, True)
    assert command(tmp_path, "--by", "colour").returncode == 2
