"""A short attack."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack.clients import ATTACKS
from tests.attack.run import Plan, attack

pytestmark = pytest.mark.server


@pytest.mark.timeout(180)
def test_hostile_clients_and_upstreams_leave_nothing_behind_and_hold_up_nobody(
    tmp_path: Path,
) -> None:
    result = attack(Plan(seconds=8, attackers=5, growth_kb=256 * 1024), tmp_path)

    assert not result.complaints(), "\n".join([result.table(), *result.complaints()])
    assert {each.__name__ for each in ATTACKS} == set(result.attacks), result.table()
    assert result.bystander["asked"] > 20, result.table()
