"""A copy of a login that is older than its renewals must never be spent."""

from __future__ import annotations

import json
import time
from pathlib import Path

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.files.journal import MAX_SPENT, Journal, parse, render
from qwen_wsgi.credentials.oauth_login import OAuthLogin
from qwen_wsgi.credentials.refresh.attempt import Outcome
from qwen_wsgi.credentials.sources.discovery import Discovery
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.settings import load


def logins(home: Path, sandbox: Sandbox, **environment: str) -> dict[str, OAuthLogin]:
    """The logins as a new process sees them."""
    settings = load(
        {
            "HOME": str(home),
            "QWEN_OAUTH_BASE_URL": sandbox.origin,
            "QWEN_PROXY_STATE_DIR": str(home / "state"),
            **environment,
        }
    )
    found = Discovery(settings, SystemClock()).accounts()
    return {each.name: each.credential for each in found if isinstance(each.credential, OAuthLogin)}


def write_login(home: Path, sandbox: Sandbox) -> str:
    issued = sandbox.issue()
    text = json.dumps(
        {
            "access_token": issued["access_token"],
            "token_type": "Bearer",
            "refresh_token": issued["refresh_token"],
            "resource_url": sandbox.origin,
            "expiry_date": int((time.time() + 3600) * 1000),
        }
    )
    (home / ".qwen").mkdir()
    (home / ".qwen/oauth_creds.json").write_text(text)
    return text


def renew_often(home: Path, sandbox: Sandbox, times: int) -> None:
    for _ in range(times):
        login = logins(home, sandbox)["oauth"]
        held = login.store.snapshot().newest.login
        assert held is not None
        journal = login.store.snapshot().journal
        # The pause between two forced renewals is not what is tested here.
        if journal.forced is not None:
            path = login.store.paths.journal
            told = json.loads(path.read_text())
            path.write_text(json.dumps({**told, "forced": None}))
        attempt = logins(home, sandbox)["oauth"].refresher.attempt(rejected=held.access_token)
        assert attempt.outcome is Outcome.OK, attempt


def reuses(sandbox: Sandbox) -> int:
    count: int = sandbox.state()["oauth"]["refresh_reuses"]
    return count


def test_a_restored_backup_of_many_renewals_ago_is_not_spent(tmp_path: Path) -> None:
    with Sandbox() as sandbox:
        backup = write_login(tmp_path, sandbox)
        renew_often(tmp_path, sandbox, 3)
        newest = (tmp_path / ".qwen/oauth_creds.json").read_text()
        (tmp_path / ".qwen/oauth_creds.json").write_text(backup)

        login = logins(tmp_path, sandbox)["oauth"]
        assert login.current().value == json.loads(newest)["access_token"]
        login.maintain()
        deadline = time.monotonic() + 5
        path = tmp_path / ".qwen/oauth_creds.json"
        while path.read_text() == backup and time.monotonic() < deadline:
            time.sleep(0.02)

        assert json.loads(path.read_text())["access_token"] == json.loads(newest)["access_token"]
        assert reuses(sandbox) == 0


def test_a_copy_in_the_environment_of_many_renewals_ago_is_left_out(tmp_path: Path) -> None:
    with Sandbox() as sandbox:
        copy = write_login(tmp_path, sandbox)
        renew_often(tmp_path, sandbox, 3)

        assert list(logins(tmp_path, sandbox, QWEN_CLI_AUTH=copy)) == ["oauth"]
        assert reuses(sandbox) == 0


def test_only_the_latest_spent_tokens_are_remembered() -> None:
    journal = Journal()
    for number in range(MAX_SPENT + 5):
        journal = journal.with_spent(f"fp{number}", number)

    assert len(journal.spent) == MAX_SPENT
    assert "fp4" not in journal.spent and "fp5" in journal.spent
    assert parse(render(journal)).spent == journal.spent
