"""`qwen-proxy doctor` as a process: on a good machine, and on machines that are not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwen_wsgi.doctor.dependencies import CONSTRAINTS, pinned
from qwen_wsgi.sandbox import Sandbox
from tests.fakes.raw_server import RawServer, whole
from tests.kit.processes import free_port
from tests.kit.proxy import Proxy, start
from tests.kit.secrets import core, secret

REPO = Path(__file__).resolve().parents[2]
KEY = secret("doctor-good")
BROKEN_KEY = secret("doctor-broken")
CLIENT_KEY = secret("doctor-lan")

LEVELS = ("ok", "note", "warn", "fail", "skipped")


class Ended(NamedTuple):
    """How the command ended."""

    status: int
    out: str
    err: str

    @property
    def findings(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(self.out)["findings"]
        return found

    def of(self, check: str, subject: str = "") -> list[dict[str, str]]:
        return [
            each
            for each in self.findings
            if each["check"] == check and subject in ("", each["subject"])
        ]


def as_pinned(home: Path, **others: str) -> Path:
    """A directory that tells, before all others, that the dependencies are as new as pinned: those
    of the tests may be older."""
    directory = home.parent / "told-versions"
    for name, version in {**pinned(CONSTRAINTS.read_text()), **others}.items():
        told = directory / f"{name.replace('-', '_')}-{version}.dist-info/METADATA"
        if not list(directory.glob(f"{name.replace('-', '_')}-*")):
            told.parent.mkdir(parents=True)
            told.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return directory


def environ_of(home: Path, **environ: Any) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join((str(as_pinned(home)), str(REPO))),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Whatever this machine has on port 8080 is not to be found.
        "PORT": str(free_port()),
        # Nobody listens there: a test that renews logins names the sandbox.
        "QWEN_OAUTH_BASE_URL": "http://127.0.0.1:9",
        **{name: str(value) for name, value in environ.items()},
    }


def doctor(home: Path, *arguments: str, **environ: Any) -> Ended:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "qwen_wsgi.cli", "doctor", *arguments],
        env=environ_of(home, **environ),
        capture_output=True,
        text=True,
        timeout=50,
    )
    for value in (KEY, BROKEN_KEY, CLIENT_KEY, *tokens(home)):
        assert core(value) not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return Ended(done.returncode, done.stdout, done.stderr)


def tokens(home: Path) -> list[str]:
    found = []
    for path in (home / ".qwen").glob("oauth_creds*.json"):
        content = json.loads(path.read_text())
        found += [content["access_token"], content["refresh_token"]]
    return found


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def proxy(tmp_path: Path, home: Path, sandbox: Sandbox) -> Iterator[Proxy]:
    """A running proxy, with the settings that `good` has."""
    running = start(tmp_path, good(sandbox))
    yield running
    running.stop()


def good(sandbox: Sandbox) -> dict[str, str]:
    return {
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": KEY,
        "QWEN_PROXY_API_KEYS": CLIENT_KEY,
    }


def log_in(home: Path, sandbox: Sandbox, *, left_s: float = 21_600) -> Path:
    answer = sandbox.issue()
    path = home / ".qwen/oauth_creds.json"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "access_token": answer["access_token"],
                "token_type": "Bearer",
                "refresh_token": answer["refresh_token"],
                "resource_url": sandbox.origin,
                "expiry_date": int((time.time() + left_s) * 1000),
            }
        )
    )
    path.chmod(0o600)
    return path


@pytest.mark.server
def test_a_good_machine(home: Path, sandbox: Sandbox, proxy: Proxy) -> None:
    status, out, err = doctor(home, PORT=proxy.port, **good(sandbox))

    assert (status, err) == (0, "")
    assert "  ok       dashscope: qwen-flash answered in " in out
    assert f"  ok       127.0.0.1:{proxy.port}: version " in out
    assert "  fail" not in out
    assert "  warn" not in out
    assert out.splitlines()[-1].endswith("No problem was found in what was checked.")
    (chat,) = (each for each in sandbox.settle() if each.route == "chat")
    assert json.loads(chat.body or b"")["max_tokens"] == 1


@pytest.mark.server
def test_the_same_for_programs(home: Path, sandbox: Sandbox, proxy: Proxy) -> None:
    ended = doctor(home, "--json", PORT=proxy.port, **good(sandbox))

    assert (ended.status, ended.err) == (0, "")
    groups = list(dict.fromkeys(each["check"] for each in ended.findings))
    assert groups == [
        "settings",
        "files",
        "locks",
        "network",
        "accounts",
        "models",
        "clock",
        "dependencies",
        "terms",
        "server",
        "systemd",
        "nginx",
    ]
    for each in ended.findings:
        assert each.keys() == {"check", "subject", "level", "what", "remedy"}
        assert each["level"] in LEVELS
        assert each["what"]
        assert each["remedy"] or each["level"] not in ("warn", "fail")
    assert sum(json.loads(ended.out)["counts"].values()) == len(ended.findings)


@pytest.mark.server
def test_an_outdated_dependency_is_named_and_fails_nothing(
    home: Path, sandbox: Sandbox, proxy: Proxy
) -> None:
    as_pinned(home, urllib3="2.0.7")

    status, out, _ = doctor(home, PORT=proxy.port, **good(sandbox))

    assert status == 0
    assert "  warn     dependencies, versions: older than" in out
    assert "known flaws: urllib3 2.0.7 (now " in out
    assert "to do: In the checkout: sudo make install" in out


def test_a_broken_key_fails_with_what_to_do(home: Path, sandbox: Sandbox) -> None:
    sandbox.control(invalid_keys=[BROKEN_KEY])

    status, out, _ = doctor(
        home,
        QWEN_UPSTREAM_BASE_URL=sandbox.base_url,
        QWEN_UPSTREAM_API_KEY=KEY,
        DASHSCOPE_BASE_URL=sandbox.base_url,
        DASHSCOPE_API_KEY=BROKEN_KEY,
    )

    assert status == 1
    line = next(line for line in out.splitlines() if "the key is not accepted" in line)
    remedy = out.splitlines()[out.splitlines().index(line) + 1]
    assert line.startswith("  fail     accounts, dashscope: ")
    assert remedy.startswith("           to do: Check the key")
    assert "  ok       upstream: qwen-flash answered" in out


def test_one_account_only(home: Path, sandbox: Sandbox) -> None:
    keys = {
        "QWEN_UPSTREAM_BASE_URL": sandbox.base_url,
        "QWEN_UPSTREAM_API_KEY": KEY,
        "DASHSCOPE_BASE_URL": sandbox.base_url,
        "DASHSCOPE_API_KEY": BROKEN_KEY,
    }

    one = doctor(home, "--json", "--account", "upstream", **keys)
    nobody = doctor(home, "--account", "nope", **keys)

    assert {each["subject"] for each in one.of("accounts")} == {"upstream"}
    assert len(sandbox.chats) == 1
    assert (nobody.status, nobody.out) == (2, "")
    assert nobody.err == (
        "qwen-proxy: there is no account 'nope'; the accounts are: upstream, dashscope\n"
    )


def test_without_calls_nobody_is_contacted(home: Path) -> None:
    with RawServer(whole(b"{}")) as server:
        ended = doctor(home, "--json", "--no-calls", QWEN_UPSTREAM_BASE_URL=server.url)

        assert server.connections == 0
    skipped = {each["check"] for each in ended.findings if "--no-calls" in each["what"]}
    assert skipped == {"network", "accounts", "models"}


def test_the_sandbox_alone_is_fine_and_said(home: Path) -> None:
    ended = doctor(home, "--json", QWEN_PROXY_SANDBOX="1")

    levels = [each["level"] for each in ended.of("accounts", "sandbox")]
    assert levels == ["note", "ok"]
    assert [each["level"] for each in ended.of("settings", "QWEN_PROXY_SANDBOX")] == ["note"]


def test_without_any_account(home: Path) -> None:
    ended = doctor(home, "--json")

    (found,) = ended.of("accounts")
    assert (ended.status, found["level"]) == (1, "fail")
    assert "DASHSCOPE_API_KEY" in found["remedy"]


def test_nobody_serves(home: Path, sandbox: Sandbox) -> None:
    ended = doctor(home, "--json", PORT=9, **good(sandbox))

    (found,) = ended.of("server", "127.0.0.1:9")
    assert (ended.status, found["level"]) == (1, "fail")
    assert "no server listens" in found["what"]


def test_a_login_that_works(home: Path, sandbox: Sandbox) -> None:
    log_in(home, sandbox)

    ended = doctor(home, "--json", QWEN_OAUTH_BASE_URL=sandbox.origin)

    assert [each["level"] for each in ended.of("accounts")] == ["ok", "ok"]
    assert [each["level"] for each in ended.of("locks")] == ["ok", "ok"]
    assert {each["level"] for each in ended.of("files")} <= {"ok", "note"}


def test_a_login_of_the_closed_tier(home: Path, sandbox: Sandbox) -> None:
    log_in(home, sandbox)
    sandbox.control(closed_tier=True)

    ended = doctor(home, "--json", QWEN_OAUTH_BASE_URL=sandbox.origin)

    found = ended.of("accounts", "oauth")[0]
    assert (ended.status, found["level"]) == (1, "fail")
    assert "2026-04-15" in found["what"]
    assert "DASHSCOPE_API_KEY" in found["remedy"]


def test_an_expired_login_is_renewed_by_the_call(home: Path, sandbox: Sandbox) -> None:
    path = log_in(home, sandbox, left_s=-60)
    before = path.read_text()

    looked = doctor(home, "--json", "--no-calls", QWEN_OAUTH_BASE_URL=sandbox.origin)
    assert path.read_text() == before
    called = doctor(home, "--json", QWEN_OAUTH_BASE_URL=sandbox.origin)

    assert looked.of("accounts", "oauth")[0]["level"] == "warn"
    assert [each["level"] for each in called.of("accounts")] == ["ok", "ok"]


def test_a_stop_in_the_middle_of_a_renewal_loses_no_login(home: Path, sandbox: Sandbox) -> None:
    path = log_in(home, sandbox, left_s=-60)
    old = json.loads(path.read_text())["refresh_token"]
    sandbox.control(faults={"token": "slow-after=1.5"})
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_wsgi.cli", "doctor"],
        env=environ_of(home, QWEN_OAUTH_BASE_URL=sandbox.origin),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert sandbox.wait_until(lambda: any(each.route == "token" for each in sandbox.requests), 20)

    process.send_signal(signal.SIGTERM)

    assert process.wait(20) == 130
    assert json.loads(path.read_text())["refresh_token"] != old


def test_a_plan_with_several_client_keys(home: Path, sandbox: Sandbox) -> None:
    ended = doctor(
        home,
        "--json",
        BAILIAN_CODING_PLAN_API_KEY=KEY,
        BAILIAN_CODING_PLAN_BASE_URL=sandbox.base_url,
        QWEN_PROXY_API_KEYS=f"{CLIENT_KEY},{BROKEN_KEY}",
    )

    (found,) = ended.of("terms", "coding-plan")
    assert (found["level"], "2 client keys" in found["what"]) == ("warn", True)


def test_a_broken_settings_file_is_a_finding_and_not_the_end(home: Path, sandbox: Sandbox) -> None:
    (home / ".qwen").mkdir()
    (home / ".qwen/settings.json").write_text('{"env": {"KEY": "' + KEY + '"')

    ended = doctor(home, "--json", **good(sandbox))

    assert ended.status == 1
    assert [each["level"] for each in ended.of("settings", "account sources")] == ["fail"]
    assert ended.of("accounts", "dashscope")[-1]["level"] == "ok"


def test_a_setting_that_cannot_be_read_is_status_2(home: Path) -> None:
    status, out, err = doctor(home, PORT="http")

    assert (status, out) == (2, "")
    assert err.startswith("qwen-proxy: bad setting: PORT='http'")


def test_a_wrong_command_line_is_status_2(home: Path) -> None:
    assert doctor(home, "--nonsense").status == 2


def test_a_key_that_an_upstream_quotes_is_not_shown(home: Path) -> None:
    models = whole(json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
    refusal = {"error": {"message": f"Your key {KEY} is no good", "code": "x"}}
    refused = whole(json.dumps(refusal).encode(), "401 No")
    with RawServer(models, refused) as server:
        ended = doctor(home, "--json", QWEN_UPSTREAM_BASE_URL=server.url, QWEN_UPSTREAM_API_KEY=KEY)
        assert any(request.startswith(b"POST") for request in server.requests)

    assert ended.status == 1
    told, none_usable = [each for each in ended.of("accounts") if each["level"] == "fail"]
    assert "none of them is usable" in none_usable["what"]
    assert "is no good" in told["what"] + told["remedy"], told
    assert "…0000" in ended.out
