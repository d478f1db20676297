"""A short run of the soak."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.kit.log_files import note_log_file
from tests.soak.clients import Ending, Pace
from tests.soak.run import Plan, soak

pytestmark = pytest.mark.server


@pytest.mark.timeout(150)
def test_every_call_ends_as_it_should_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    chosen = Plan(
        seconds=4,
        streams=40,
        workers=2,
        pace=Pace(
            chunks=(4, 25),
            pause_s=(0.02, 0.2),
            longest_s=1.0,
            deadline_s=45.0,
            long_chars=600_000,
        ),
        rounds=(0.4, 0.6),
        settings={
            "QWEN_PROXY_RETRY_BUDGET": "1.5",
            "QWEN_PROXY_FIRST_BYTE_TIMEOUT": "1.2",
            "QWEN_PROXY_IDLE_TIMEOUT": "1.2",
            "QWEN_PROXY_KEEPALIVE_INTERVAL": "0.5",
        },
        # Machines that run tests are busy, and a short run has hardly warmed up.
        memory_kb=20 * 1024,
        ready_s=10.0,
        seed=1,
    )

    directory = tmp_path / "soak"
    directory.mkdir()
    note_log_file(directory / "home" / "log")

    result = asyncio.run(soak(chosen, directory))

    assert not result.complaints(), "\n".join([result.table(), *result.complaints()])
    tally = result.tally
    assert tally.of(Ending.COMPLETE) > 0.2 * tally.total, result.table()
    assert all(tally.of(ending) for ending in (Ending.STATUS, Ending.EVENT, Ending.ABORTED))
