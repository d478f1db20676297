"""A short run of the torture."""

from __future__ import annotations

import pytest

from tests.torture.run import run

pytestmark = pytest.mark.server


def test_nothing_of_ours_is_refused_for_reuse_and_no_login_is_lost_by_us() -> None:
    result = run(seconds=6, workers=3, clis=3)

    table = result.table()
    assert result.sent["us", "ok"] + result.sent["cli", "ok"] > 0, table
    assert result.reused == 0, table
    assert len(result.lost) == result.explained, table
    assert result.secrets_logged == 0
    assert result.clis["invalid-file"] == 0, table
    assert result.ours["traceback"] == 0


def test_killed_workers_cost_no_login_but_in_the_one_window() -> None:
    result = run(seconds=5, workers=3, clis=2, kill=True)

    table = result.table()
    assert result.killed > 0, table
    assert len(result.lost) == result.explained, table
    assert result.secrets_logged == 0
