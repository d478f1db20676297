"""`qwen-proxy keys`: what is printed, what is written, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.cli import main
from qwen_wsgi.cli.keys import shown
from qwen_wsgi.clients import known
from qwen_wsgi.console import keys as words
from qwen_wsgi.state import key_copy
from tests.fakes.clock import NOON_S
from tests.kit.redis_server import RedisServer, needs_redis

KEY = re.compile(r"sk-qp-[0-9a-f]{48}")


class Ran:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def value(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


class Desk:
    """A user who types commands."""

    def __init__(
        self, home: Path, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch
    ) -> None:
        self.state = home / "state"
        self._capsys = capsys
        patch.setenv("QWEN_PROXY_STATE_DIR", str(self.state))
        patch.setenv("QWEN_PROXY_SANDBOX", "0")
        patch.setenv("PORT", "0")  # no server is asked
        patch.setattr("time.sleep", lambda seconds: None)

    def run(self, *words: str) -> Ran:
        status = main.main(["keys", *words])
        printed = self._capsys.readouterr()
        return Ran(status, printed.out, printed.err)


@pytest.fixture
def desk(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(home, capsys, monkeypatch)


def test_every_option_arrives(desk: Desk) -> None:
    made = desk.run(
        *("add", "anna", "--json", "--rpm", "60", "--tpm", "1000", "--tokens-per-day", "5000"),
        *("--money-per-month", "2.5", "--concurrency", "3", "--models", "qwen3*,x"),
        *("--accounts", "dashscope", "--cidr", "192.168.1.5/24,fd00::1", "--expires", "30d"),
        *("--tools", "web", "--tools-always", "--admin", "--metrics", "--note", "Anna's laptop"),
        *("--cache", "1h"),
    ).value

    assert KEY.fullmatch(made.pop("key"))
    assert made.pop("id").startswith("key_")
    assert made.pop("expires_at") - made.pop("created_at") == 30 * 86_400
    assert made == {
        "name": "anna",
        "revoked_at": None,
        "rpm": 60,
        "tpm": 1000,
        "tokens_per_day": 5000,
        "money_per_month": 2.5,
        "concurrency": 3,
        "models": ["qwen3*", "x"],
        "accounts": ["dashscope"],
        "cidr": ["192.168.1.0/24", "fd00::1/128"],
        "tools": ["web"],
        "tools_always": True,
        "admin": True,
        "metrics": True,
        "note": "Anna's laptop",
        "cache": 3600,
        "last_used_at": None,
    }


def test_a_new_key_is_printed_with_the_set_up_of_a_client(desk: Desk) -> None:
    ran = desk.run("add", "anna", "--client", "curl")

    assert ran.status == 0
    (key,) = set(KEY.findall(ran.out))
    assert f"The client key of anna:\n\n    {key}\n" in ran.out
    assert f"export QWEN_PROXY_KEY={key}" in ran.out
    assert "/v1" in ran.out and "YOUR_CLIENT_KEY" not in ran.out
    assert key not in "".join(
        file.read_bytes().decode("latin-1") for file in desk.state.rglob("*") if file.is_file()
    )


def test_the_set_up_has_a_model_that_the_key_may_use(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_PROXY_SANDBOX", "1")
    ran = desk.run("add", "anna", "--client", "openai-python", "--models", "qwen3-coder*")

    assert re.search(r'model="qwen3-coder[^"]*"', ran.out)


def test_the_default_client_is_one() -> None:
    arguments = main._parser().parse_args(["keys", "add", "anna"])

    assert arguments.client in known.CLIENTS


def test_an_unknown_client_makes_no_key(desk: Desk) -> None:
    ran = desk.run("add", "anna", "--client", "curll")

    assert (ran.status, ran.out) == (2, "")
    assert "similar names: curl" in ran.err
    assert not key_copy.exists(desk.state)


def test_a_set_up_that_cannot_be_made_does_not_hide_the_key(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_PROXY_BIND", "nonsense:port")
    ran = desk.run("add", "anna")

    assert ran.status == 0
    assert KEY.search(ran.out)
    assert "cannot be shown" in ran.out


def test_from_the_first_to_the_last(desk: Desk) -> None:
    first = desk.run("add", "anna", "--json").value
    desk.run("add", "ben", "--rpm", "5", "--models", "qwen*", "--admin", "--json")

    assert desk.run("show", "anna", "--json").value == {
        name: value for name, value in first.items() if name != "key"
    }
    listed = desk.run("list", "--json").value
    assert listed["object"] == "list"
    assert [key["name"] for key in listed["data"]] == ["anna", "ben"]

    changed = desk.run(
        *("edit", "ben", "--rpm", "none", "--models", "none", "--no-admin", "--name", "bob"),
        "--json",
    ).value
    assert (changed["name"], changed["rpm"], changed["models"], changed["admin"]) == (
        "bob",
        None,
        [],
        False,
    )
    rotated = desk.run("rotate", "anna", "--grace", "1h", "--json").value
    assert KEY.fullmatch(rotated["key"]) and rotated["key"] != first["key"]
    assert desk.run("revoke", "bob", "--json").value["revoked_at"] is not None
    (anna, bob) = key_copy.read(desk.state) or ()
    assert (len(anna.digests), bob.key.revoked_at is not None) == (2, True)


def test_what_a_person_reads(desk: Desk) -> None:
    assert "There is no client key" in desk.run("list").out
    desk.run("add", "anna", "--json", "--rpm", "60", "--expires", "30d", "--note", "a note")
    desk.run("add", "Bertholdina", "--json")
    desk.run("revoke", "Bertholdina")

    lines = desk.run("list").out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "LAST", "USED", "LIMITS"]
    assert lines[1].split()[:5] == ["anna", "valid", "for", "30", "d"]
    assert lines[1].endswith("rpm 60")
    assert re.match(r"Bertholdina  revoked \d s ago  never +none$", lines[2])
    assert lines[0].index("STATE") == lines[1].index("valid") == lines[2].index("revoked")

    details = desk.run("show", "anna").out
    assert re.search(r"^    rpm +60$", details, re.MULTILINE)
    assert re.search(r"^    note +a note$", details, re.MULTILINE)
    rotated = desk.run("rotate", "anna", "--grace", "3h").out
    assert KEY.search(rotated) and "works for 3 h more" in rotated
    assert "does not work any more" in desk.run("rotate", "anna").out
    assert "revoked" in desk.run("revoke", "anna").out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("show", "nobody"), "there is no client key 'nobody'"),
        (("edit", "nobody", "--rpm", "1"), "there is no client key"),
        (("rotate", "nobody"), "there is no client key"),
        (("revoke", "nobody"), "there is no client key"),
        (("edit", "anna"), "Nothing is to be changed"),
        (("edit", "anna", "--rpm", "many"), "'rpm' must be a whole number above 0"),
        (("edit", "anna", "--cidr", "here"), "192.168.1.0/24"),
        (("rotate", "anna", "--grace", "soon"), "'grace' must be a duration"),
        (("add", "anna"), "There is a key with the name 'anna'"),
        (("add", "local"), "other clients"),
        (("add", "x", "--expires", "yesterday"), "30d"),
    ],
    ids=str,
)
def test_what_is_wrong_ends_with_2(desk: Desk, words: tuple[str, ...], told: str) -> None:
    desk.run("add", "anna", "--json")
    ran = desk.run(*words)

    assert ran.status == 2
    assert told in ran.err
    assert not KEY.search(ran.out)


def test_a_database_that_cannot_be_used_ends_with_1(desk: Desk) -> None:
    (desk.state / "database/state.sqlite3").mkdir(parents=True)
    ran = desk.run("add", "anna")

    assert ran.status == 1
    assert "the client keys cannot be used" in ran.err


def test_an_action_is_needed(desk: Desk) -> None:
    assert desk.run().status == 2


def test_a_key_that_expires_in_words() -> None:
    from qwen_wsgi.access.client_key import ClientKey

    key = ClientKey("key_1", "a", 0, expires_at=int(NOON_S), money_per_month=2.5)

    assert words.state(key, NOON_S - 7200) == "valid for 2 h"
    assert words.state(key, NOON_S + 7200) == "expired 2 h ago"
    assert "money per month 2.5" in shown.table([key], now=NOON_S)


# --- several boxes -------------------------------------------------------------------------------


@needs_redis
def test_with_a_redis_a_key_of_one_box_is_shown_and_revoked_on_another(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r").mkdir()
    with RedisServer(tmp_path / "r") as server:
        monkeypatch.setenv("QWEN_PROXY_REDIS_URL", server.url)
        made = desk.run("add", "anna", "--json").value
        monkeypatch.setenv("QWEN_PROXY_STATE_DIR", str(tmp_path / "other"))
        assert desk.run("show", "anna", "--json").value["id"] == made["id"]

        server.kill()
        refused = desk.run("add", "bert", "--json")
        assert refused.status != 0
        assert "Redis, which has the client keys of all boxes, is away" in refused.err
        known = desk.run("list", "--json")
        assert [key["name"] for key in known.value["data"]] == ["anna"]
        assert "these are the keys that this box knows" in known.err
        revoked = desk.run("revoke", "anna", "--json")
        assert revoked.value["revoked_at"]
        assert "revoked on this box, and on the others when it is back" in revoked.err

        server.start()
        desk.run("list")
        monkeypatch.setenv("QWEN_PROXY_STATE_DIR", str(desk.state))
        assert desk.run("show", "anna", "--json").value["revoked_at"]
