"""What callers may ask of any credential."""

from __future__ import annotations

import errno

import pytest

from qwen_wsgi.credentials.credential import Ability, StaticKey, TokenState
from qwen_wsgi.credentials.files.durable import WriteProblem
from qwen_wsgi.upstream.routing.accounts import SandboxKey
from tests.fakes.clock import FakeClock
from tests.kit.login_world import login_of
from tests.kit.privileges import as_ordinary_user
from tests.kit.qwen_home import Home


@pytest.mark.parametrize(
    ("state", "usable"),
    [
        (TokenState.FRESH, True),
        (TokenState.STALE, True),
        (TokenState.EXPIRING, True),
        (TokenState.EXPIRED, False),
        (TokenState.MISSING, False),
    ],
)
def test_a_token_is_usable_until_it_expires(state: TokenState, usable: bool) -> None:
    assert state.is_usable is usable


def test_only_a_login_can_be_renewed(home: Home, clock: FakeClock) -> None:
    assert login_of(home, clock).renewable
    assert not StaticKey("sk-0123456789abcdef", "https://example.test/v1").renewable
    assert not SandboxKey(lambda: "http://127.0.0.1:1/v1").renewable


def test_whether_the_files_can_be_written_is_found_out_without_an_attempt(
    home: Home, clock: FakeClock
) -> None:
    home.write(".qwen/oauth_creds.json", {})
    login = login_of(home, clock)
    assert (login.refresher.check_writable(), login.refresher.read_only) == (None, None)

    with as_ordinary_user(home.qwen):
        home.qwen.chmod(0o500)
        try:
            problem = login.refresher.check_writable()
        finally:
            home.qwen.chmod(0o700)

    assert problem == WriteProblem(errno.EACCES, f"{home.qwen.name}: no permission to write")
    assert problem is not None and not problem.is_disk_full
    assert login.refresher.read_only == problem
    assert login.refresher.ability(login.store.snapshot()) is Ability.NO_REFRESH_TOKEN


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_known_by_its_number_and_not_by_its_text(number: int) -> None:
    assert WriteProblem.of(OSError(number, "in any language")).is_disk_full
    assert not WriteProblem(errno.EROFS, "No space left on device").is_disk_full
