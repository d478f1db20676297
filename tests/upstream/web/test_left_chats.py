"""Chats that a killed worker has left, and those that could not be deleted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_wsgi.credentials.web import holder_account
from qwen_wsgi.protocol.web.token import WebToken
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.web.chats import WebChats
from qwen_wsgi.upstream.web.left_chats import LeftChats
from qwen_wsgi.upstream.web.site import WebSite
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import settings_of

DEAD = """
import sys
from pathlib import Path
from qwen_wsgi.upstream.web.left_chats import LeftChats
LeftChats(Path(sys.argv[1])).note(sys.argv[2], sys.argv[3])
"""


def left_by_a_dead_process(directory: Path, login: str, chat: str) -> None:
    subprocess.run([sys.executable, "-c", DEAD, str(directory), login, chat], check=True)


def test_those_of_a_living_worker_are_its_own(tmp_path: Path) -> None:
    left = LeftChats(tmp_path)
    left.note("ann", "chat-1")
    assert left.take("ann") == []

    left.forget("ann", "chat-1")
    left.forget("ann", "chat-1")
    assert list((tmp_path / "ann").iterdir()) == []


def test_those_of_a_dead_worker_are_taken_once_and_by_their_login_alone(tmp_path: Path) -> None:
    left_by_a_dead_process(tmp_path, "ann", "chat-1")
    left = LeftChats(tmp_path)

    assert left.take("bob") == []
    assert left.take("ann") == ["chat-1"]
    assert left.take("ann") == []


@pytest.mark.parametrize("content", ["", "x", "a/b/c/d", "a/b/1", "\udcff"])
def test_a_file_that_is_damaged_is_of_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / "ann").mkdir()
    path = tmp_path / "ann" / "chat-1"
    path.write_bytes(content.encode(errors="surrogateescape"))
    os.utime(path, (time.time() - 9, time.time() - 9))

    assert LeftChats(tmp_path).take("ann") == ["chat-1"]


def test_what_is_old_is_swept(tmp_path: Path) -> None:
    left = LeftChats(tmp_path)
    left.note("ann", "old")
    left.note("bob", "new")
    month = time.time() - 31 * 86400
    os.utime(tmp_path / "ann" / "old", (month, month))
    left.sweep()

    assert [each.name for each in tmp_path.iterdir()] == ["bob"]
    LeftChats(tmp_path / "missing").sweep()
    LeftChats(None).sweep()


def test_the_next_call_of_a_login_deletes_what_was_left(tmp_path: Path) -> None:
    settings, clock = settings_of(), FakeClock()
    transport = Transport(settings)
    with Sandbox() as sandbox:
        token = WebToken(sandbox.web.token("ann"))
        account, login = holder_account(token, sandbox.origin), token.digest
        site = WebSite(settings, transport, clock)
        first = WebChats(site, LeftChats(tmp_path))
        lost = first.open(account, {}, {}).id
        left_by_a_dead_process(tmp_path, login, lost)  # as if its worker had been killed
        sandbox.control(faults={"web-chats": "web=refused"})
        refused = sandbox.web.open("ann")
        LeftChats(tmp_path).note(login, refused)
        first._delete_soon(account, refused, {})
        sandbox.control(clear_faults=True)
        path = tmp_path / login / refused
        os.utime(path, (time.time() - 9, time.time() - 9))

        WebChats(site, LeftChats(tmp_path)).open(account, {}, {}).delete()
        sandbox.settle()
        assert set(sandbox.web.deleted) >= {lost, refused}
        assert not sandbox.web.chats
        assert list((tmp_path / login).iterdir()) == []
    transport.close()
