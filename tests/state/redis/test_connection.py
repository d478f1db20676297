"""The connection to Redis: bounded in time, left alone while it is away, told when it is back."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.state.redis.connection import (
    PATIENCE_S,
    PROBE_S,
    Lua,
    SharedStore,
    SharedStoreAway,
    box_id,
)
from tests.fakes.clock import FakeClock
from tests.kit.certificates import self_signed
from tests.kit.privileges import as_ordinary_user
from tests.kit.redis_server import RedisServer, needs_redis
from tests.kit.servers import REPO

pytestmark = needs_redis


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(redis_server: RedisServer, clock: FakeClock) -> Iterator[SharedStore]:
    made = SharedStore(redis_server.url, "box-1", clock, patience_s=10.0)
    yield made
    made.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may harm."""
    with RedisServer(tmp_path) as server:
        yield server


def store_of(server: RedisServer, clock: FakeClock) -> SharedStore:
    """One that is patient: the machine may be busy."""
    return SharedStore(server.url, "box-1", clock, patience_s=10.0)


def ping(client: Any) -> Any:
    return client.ping()


def test_work_gets_a_client_and_its_answers_are_bytes(store: SharedStore) -> None:
    store.run(lambda client: client.set("a", "ä"))

    assert store.run(lambda client: client.get("a")) == "ä".encode()
    assert not store.away
    assert store.since is None


def test_a_script_is_sent_whole_only_when_redis_does_not_know_it(
    store: SharedStore, redis_server: RedisServer
) -> None:
    script = Lua("return {KEYS[1], ARGV[1]}")
    for _ in range(2):
        assert store.run(lambda client: script.run(client, ["k"], [7])) == [b"k", b"7"]

    redis_server.command("SCRIPT", "FLUSH")
    assert store.run(lambda client: script.run(client, ["k"], [8])) == [b"k", b"8"]
    assert not store.away


def test_one_that_is_gone_is_left_alone_until_a_second_has_passed(
    own: RedisServer, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(own, clock)
    store.run(ping)
    own.kill()
    told: list[bool] = []
    store.subscribe(lambda: told.append(store.away))
    with pytest.raises(SharedStoreAway):
        store.run(ping)
    assert (store.away, store.since) == (True, clock.now())

    own.start()
    with pytest.raises(SharedStoreAway):
        store.run(ping)
    assert told == []

    clock.advance(PROBE_S)
    assert store.run(ping)
    assert told == [False]
    assert (store.away, store.reason) == (False, "")
    texts = [record.getMessage() for record in caplog.records]
    assert [text.partition("(")[0] for text in texts if "away" in text] == ["Redis is away "]
    assert any(text.startswith("Redis is back after 1 s") for text in texts)
    store.close()


def test_one_that_does_not_answer_costs_one_call_a_quarter_of_a_second_and_the_next_nothing(
    own: RedisServer, clock: FakeClock
) -> None:
    store = SharedStore(own.url, "box-1", clock)
    store.run(ping)
    own.send(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(SharedStoreAway, match="no answer within 250 ms"):
        store.run(ping)
    assert PATIENCE_S - 0.01 <= time.monotonic() - began < PATIENCE_S + 1.0

    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(SharedStoreAway):
            store.run(ping)
    assert time.monotonic() - began < 0.1
    own.send(signal.SIGCONT)
    store.close()


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_a_redis_behind_tls_is_used_if_its_certificate_is_trusted_and_has_its_name(
    clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, others = (self_signed(tmp_path / f"{n}.pem", "DNS:localhost") for n in ("ours", "others"))
    with RedisServer(tmp_path, certificate=ours, password="of-redis") as server:
        store = store_of(server, clock)
        assert store.run(ping) is True
        store.close()
        for url in (
            server.url.replace(str(ours), str(others)),
            server.url.replace("localhost", "127.0.0.1"),
        ):
            store = SharedStore(url, "box-1", clock, patience_s=10.0)
            with pytest.raises(SharedStoreAway):
                store.run(ping)
            store.close()
    assert "certificate verify failed" in caplog.text
    assert "of-redis" not in caplog.text


def test_whoever_listens_is_told_that_the_data_are_lost(
    store: SharedStore, redis_server: RedisServer
) -> None:
    told: list[str] = []
    store.subscribe(lambda: told.append("again"))
    store.look()
    store.look()
    assert told == []

    redis_server.command("FLUSHALL")
    store.look()
    store.look()
    assert told == ["again"]


def test_a_restart_that_no_call_noticed_is_told_as_well(own: RedisServer, clock: FakeClock) -> None:
    store = store_of(own, clock)
    told: list[str] = []
    store.subscribe(lambda: told.append("again"))
    store.look()
    own.restart()

    store.look()  # the connections that Redis has closed are replaced
    store.look()
    if store.away:
        clock.advance(PROBE_S)
        store.look()
    assert told == ["again"]
    assert store.version.startswith(("6.", "7.", "8."))
    store.close()


def test_the_beats_go_on_when_one_of_them_fails(
    store: SharedStore, caplog: pytest.LogCaptureFixture
) -> None:
    beats: list[str] = []

    def failing() -> None:
        raise ValueError("a fault")

    store.each_second(failing)
    store.each_second(lambda: beats.append("beat"))
    with caplog.at_level(logging.ERROR):
        store.look()
    assert beats == ["beat"]
    assert "could not be looked after" in caplog.text
    caplog.clear()


def test_nothing_beats_while_it_is_away(clock: FakeClock, tmp_path: Path) -> None:
    store = SharedStore(f"unix://{tmp_path}/nobody.sock", "box-1", clock)
    beats: list[str] = []
    store.each_second(lambda: beats.append("beat"))
    store.look()
    store.look()
    assert beats == []
    assert store.away
    store.close()


def test_a_wrong_password_is_a_redis_that_is_away_and_is_not_in_the_log(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with RedisServer(tmp_path, password="a-right-one") as server:
        right = store_of(server, clock)
        assert right.run(ping)
        right.close()
        server.password, wrong = "a-wrong-one", None
        wrong = store_of(server, clock)
        with pytest.raises(SharedStoreAway):
            wrong.run(ping)
        wrong.close()
    assert "a-wrong-one" not in caplog.text
    assert "unix://****@" in caplog.text


def test_a_redis_that_takes_no_writes_does_not_come_back(
    store: SharedStore, redis_server: RedisServer, clock: FakeClock
) -> None:
    redis_server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(SharedStoreAway):
            store.run(lambda client: client.set("a", "b"))
        clock.advance(PROBE_S)
        store.look()
        assert store.away
    finally:
        redis_server.command("CONFIG", "SET", "maxmemory", "0")
    store.look()
    assert not store.away


def test_a_box_keeps_its_name(tmp_path: Path) -> None:
    first = box_id(tmp_path / "state")
    assert box_id(tmp_path / "state") == first
    assert box_id(tmp_path / "other") != first
    assert box_id(None) != box_id(None)

    (tmp_path / "state/box.id").write_text("half")
    assert len(box_id(tmp_path / "state")) == len(first)


def test_a_box_that_cannot_keep_its_name_has_one_for_now(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with as_ordinary_user(tmp_path):
        assert box_id(closed / "state")
        assert list(closed.iterdir()) == []


def test_greenlets_share_the_connections_and_none_waits_longer_than_it_may(
    own: RedisServer,
) -> None:
    """In a process of its own: gevent's patching is for good. 200 at once; then a loop that is busy
    for longer than the patience; then a Redis that stands still."""
    program = f"""
from gevent import monkey; monkey.patch_all()
import fcntl, gevent, os, signal, termios, time
from qwen_wsgi.clock import SystemClock
from qwen_wsgi.greenlets import within
from qwen_wsgi.state.redis.connection import SharedStore, SharedStoreAway
store = SharedStore({own.url!r}, "box", SystemClock(), within=within, patience_s=10.0)
def one():
    return store.run(lambda client: client.incr("n"))
jobs = [gevent.spawn(one) for _ in range(200)]
gevent.joinall(jobs, raise_error=True)
assert sorted(job.value for job in jobs) == list(range(1, 201))
store.patience_s = 0.25
redis = {own._process.pid if own._process else 0}
def any_bytes(which):     # at any socket of this process
    for number in os.listdir("/proc/self/fd"):
        try: count = fcntl.ioctl(int(number), which, b"\\0" * 4)
        except OSError: continue
        if int.from_bytes(count, "little"): return True
    return False
os.kill(redis, signal.SIGSTOP)
job = gevent.spawn(one)
while not any_bytes(termios.TIOCOUTQ): gevent.sleep(0.001)
os.kill(redis, signal.SIGCONT)     # it has been asked, and nobody looks at its answer
block = monkey.get_original("time", "sleep")
began = time.monotonic()
while time.monotonic() < began + 0.3 or not any_bytes(termios.FIONREAD):
    assert time.monotonic() < began + 20
    block(0.01)
job.join(); assert job.value == 201, (job.value, job.exception)
os.kill(redis, signal.SIGSTOP)
began = time.monotonic()
def failing():
    try: one()
    except SharedStoreAway: return time.monotonic() - began
jobs = [gevent.spawn(failing) for _ in range(50)]
gevent.joinall(jobs, raise_error=True)
assert max(job.value for job in jobs) < 3.0, [job.value for job in jobs]
os.kill(redis, signal.SIGCONT)
store.start()
end = time.monotonic() + 5
while store.away and time.monotonic() < end: gevent.sleep(0.02)
assert not store.away
assert one() > 201
store.close()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
