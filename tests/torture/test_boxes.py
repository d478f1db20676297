"""A short run of the torture of two boxes."""

from __future__ import annotations

import pytest

from tests.kit.redis_server import needs_redis
from tests.torture.boxes import run

pytestmark = [pytest.mark.server, needs_redis]


def test_no_token_is_sent_by_two_boxes_and_no_login_is_lost() -> None:
    result = run(seconds=9, workers=1, wild=True)

    table = result.table()
    assert result.sent[200] > 0, table
    assert result.twice == [], table
    assert result.logins_lost <= result.named, table
    assert result.in_step, table
    assert result.secrets_logged == 0
    assert result.ours["traceback"] == 0
