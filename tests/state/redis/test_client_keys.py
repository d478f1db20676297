"""Client keys of several boxes: changed anywhere, in force everywhere, and never back to life."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi.access.client_key import ClientKey, KeptKey, KeyProblem, KeysUnavailable, digest_of
from qwen_wsgi.access.key_ring import KeyRing
from qwen_wsgi.state.database.client_keys import ClientKeys
from qwen_wsgi.state.database.tables import database_in
from qwen_wsgi.state.redis import client_keys as module
from qwen_wsgi.state.redis.client_keys import Entry, SharedClientKeys, merged
from qwen_wsgi.state.redis.connection import PROBE_S, SharedStore
from tests.fakes.clock import FakeClock
from tests.kit.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


class Box:
    """A box with its database."""

    def __init__(self, directory: Path, name: str, url: str, clock: FakeClock) -> None:
        self.directory = directory / name
        self.clock = clock
        self.store = SharedStore(url, name, clock, patience_s=10.0)
        self.database = database_in(self.directory, clock)
        self.keys = SharedClientKeys(self.store, self.database, clock, self.directory)
        self.ring = KeyRing(self.keys, clock)

    def knows(self, secret: str) -> bool:
        """Whether a call with the key is served, half a second later."""
        self.clock.advance(0.5)
        held = self.ring.find(secret.encode())
        now = self.clock.now()
        return held is not None and held.key.is_valid(now) and not held.is_over(now)

    def close(self) -> None:
        self.store.close()
        self.database.close()


class Boxes:
    """Boxes with one Redis."""

    def __init__(self, directory: Path, server: RedisServer) -> None:
        self.server = server
        self.clock = FakeClock()
        self._directory = directory
        self._boxes: list[Box] = []

    def box(self, name: str) -> Box:
        made = Box(self._directory, name, self.server.url, self.clock)
        self._boxes.append(made)
        return made

    def second(self, *boxes: Box) -> None:
        """Let a second pass at some boxes, or at all."""
        self.clock.advance(PROBE_S)
        for box in boxes or self._boxes:
            box.store.look()

    def close(self) -> None:
        for box in self._boxes:
            box.close()


@pytest.fixture
def boxes(tmp_path: Path) -> Iterator[Boxes]:
    (tmp_path / "r").mkdir()
    with RedisServer(tmp_path / "r") as server:
        made = Boxes(tmp_path, server)
        yield made
        made.close()


def test_every_change_is_in_force_on_the_other_box_a_second_later(boxes: Boxes) -> None:
    one, other = boxes.box("a"), boxes.box("b")
    made = one.keys.add({"name": "anna", "rpm": 5})
    assert one.knows(made.secret)
    boxes.second()
    assert other.knows(made.secret)

    other.keys.edit("anna", {"rpm": 9})
    rotated = other.keys.rotate("anna", grace_s=0)
    assert rotated is not None
    boxes.second()
    assert not one.knows(made.secret)
    assert one.knows(rotated.secret)
    assert [key.rpm for key in one.keys.all()] == [9]

    one.keys.revoke("anna")
    boxes.second()
    assert not other.knows(rotated.secret)
    with pytest.raises(KeyProblem, match="was revoked"):
        other.keys.edit("anna", {"rpm": 1})


def test_a_name_is_taken_for_all_boxes_at_once(boxes: Boxes) -> None:
    one, other = boxes.box("a"), boxes.box("b")
    one.keys.add({"name": "anna"})

    with pytest.raises(KeyProblem, match="already"):
        other.keys.add({"name": "anna"})


def test_an_empty_redis_gets_what_the_boxes_know_and_no_revoked_key_is_valid_again(
    boxes: Boxes,
) -> None:
    one, late = boxes.box("a"), boxes.box("b")
    kept, gone = one.keys.add({"name": "kept"}), one.keys.add({"name": "gone"})
    old = one.keys.add({"name": "rotated"})
    boxes.second()
    assert late.knows(gone.secret)
    boxes.clock.advance(5)
    one.keys.revoke("gone")
    new = one.keys.rotate("rotated", grace_s=0)
    assert new is not None
    boxes.server.restart()

    boxes.second(late)  # it was away, and knows the older state; it is the first to put it back
    boxes.second(late)
    boxes.second(one)
    boxes.second(one)
    boxes.second()
    for box in (one, late):
        known = [box.knows(each.secret) for each in (kept, gone, old, new)]
        assert known == [True, False, False, True]


def test_while_redis_is_away_keys_work_and_changes_are_refused(boxes: Boxes) -> None:
    one = boxes.box("a")
    made = one.keys.add({"name": "anna"})
    boxes.server.kill()
    boxes.second()
    assert one.knows(made.secret)

    for change in (
        lambda: one.keys.add({"name": "bert"}),
        lambda: one.keys.edit("anna", {"rpm": 1}),
        lambda: one.keys.rotate("anna", grace_s=0),
    ):
        with pytest.raises(KeysUnavailable, match=r"is away .*Nothing was changed"):
            change()
    assert [key.name for key in one.keys.all()] == ["anna"]
    assert "is away" in one.keys.note
    found = one.keys.find("anna")
    assert found is not None
    assert found.rpm is None


def test_a_key_is_revoked_while_redis_is_away_and_everywhere_when_it_is_back(boxes: Boxes) -> None:
    one, other = boxes.box("a"), boxes.box("b")
    made = one.keys.add({"name": "anna"})
    boxes.second()
    boxes.server.kill()
    boxes.second()

    revoked = one.keys.revoke("anna")
    assert revoked is not None
    assert "on this box" in one.keys.note
    assert not one.knows(made.secret)
    assert other.knows(made.secret)
    boxes.server.start()
    boxes.second(other)
    boxes.second()
    boxes.second()
    assert not other.knows(made.secret)
    assert not one.knows(made.secret)


def test_a_new_box_lets_nobody_in_before_it_has_asked(boxes: Boxes) -> None:
    made = boxes.box("a").keys.add({"name": "anna"})
    boxes.server.kill()
    new = boxes.box("new")

    assert new.ring.is_closed
    assert not new.ring.is_certain
    assert not new.knows(made.secret)
    boxes.server.start()
    boxes.second()
    boxes.second()
    assert new.knows(made.secret)


def test_boxes_without_any_key_serve_this_machine_as_one_alone(boxes: Boxes) -> None:
    assert not boxes.box("a").ring.is_closed


def test_boxes_that_were_alone_before_keep_their_keys(boxes: Boxes, tmp_path: Path) -> None:
    secrets = []
    for name in ("a", "b"):
        database = database_in(tmp_path / name, boxes.clock)
        secrets.append(ClientKeys(database, boxes.clock, tmp_path / name).add({"name": "anna"}))
        database.close()
    one, other = boxes.box("a"), boxes.box("b")
    boxes.second()
    boxes.second()
    boxes.second()

    for box in (one, other):
        assert all(box.knows(each.secret) for each in secrets)
        names = sorted(key.name for key in box.keys.all())
        assert names[0] == "anna"
        assert names[1].startswith("anna-")


def test_two_boxes_that_change_at_once_do_not_undo_each_other(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = boxes.box("a"), boxes.box("b")
    one.keys.add({"name": "anna"})
    put = one.keys._put
    done: list[object] = []

    def late(*args: object) -> bytes:
        if not done:
            done.append(other.keys.add({"name": "bert"}))
        return put(*args)  # type: ignore[arg-type]  # as given

    monkeypatch.setattr(one.keys, "_put", late)
    one.keys.add({"name": "carla"})
    boxes.second()

    for box in (one, other):
        assert [key.name for key in box.keys.all()] == ["anna", "bert", "carla"]


def test_a_change_of_which_nobody_knows_whether_it_was_made_says_so(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = boxes.box("a")
    one.keys.all()
    put = module._PUT.run

    def killed(*args: object) -> object:
        put(*args)  # type: ignore[arg-type]  # as given
        raise TimeoutError

    monkeypatch.setattr(module._PUT, "run", killed)
    with pytest.raises(KeysUnavailable, match="Whether the change was made"):
        one.keys.add({"name": "anna"})


def test_an_entry_that_cannot_be_read_is_left_alone(
    boxes: Boxes, caplog: pytest.LogCaptureFixture
) -> None:
    one = boxes.box("a")
    made = one.keys.add({"name": "anna"})
    boxes.server.command("HSET", module._KEYS, "key_x", "{}")
    boxes.server.command("SET", module._NUMBER, "another")
    boxes.second()

    assert one.knows(made.secret)
    assert "cannot be read id=b'key_x'" in caplog.text


def entry(revision: int, **members: object) -> Entry:
    key = ClientKey(id="key_1", name="anna", created_at=1)
    digest = digest_of(b"x"), None
    return Entry(KeptKey(dataclasses.replace(key, **members), (digest,)), revision)  # type: ignore[arg-type]  # its members


@pytest.mark.parametrize(
    ("own", "remote", "store", "send"),
    [
        (None, entry(1), entry(1), None),
        (entry(1), None, None, entry(1)),
        (entry(1), entry(1), None, None),
        (entry(1, rpm=1), entry(2, rpm=2), entry(2, rpm=2), None),
        (entry(3, rpm=1), entry(2, rpm=2), None, entry(3, rpm=1)),
        (entry(1, revoked_at=7), entry(2), entry(2, revoked_at=7), entry(2, revoked_at=7)),
        (entry(2), entry(1, revoked_at=7), entry(2, revoked_at=7), entry(2, revoked_at=7)),
        (entry(1, rpm=1), entry(1, rpm=2), entry(1, rpm=2), None),
    ],
)
def test_how_two_states_of_a_key_are_brought_together(
    own: Entry | None, remote: Entry | None, store: Entry | None, send: Entry | None
) -> None:
    def alone(found: Entry | None) -> dict[str, Entry]:
        return {} if found is None else {"key_1": found}

    assert merged(alone(own), alone(remote)) == (alone(store), alone(send))
