"""The scripts of shared logins, on a real Redis; and that the tests' fake has the same rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.credentials.shared.board import Board, BoardAway, Holder, Seen, Unsealed
from qwen_wsgi.state.redis.connection import SharedStore
from qwen_wsgi.state.redis.logins import RedisLogins
from tests.fakes.board import FakeBoard, FakeRedis
from tests.kit.redis_server import RedisServer

KEY, OTHER_KEY = "k" * 32, "o" * 32
NAME = "oauth"


@pytest.fixture
def stores(redis_server: RedisServer) -> Iterator[Callable[[str], SharedStore]]:
    made: list[SharedStore] = []

    def store(box: str) -> SharedStore:
        made.append(SharedStore(redis_server.url, box, SystemClock()))
        return made[-1]

    yield store
    for each in made:
        each.close()


@pytest.fixture(params=["fake", "redis"])
def boards(request: pytest.FixtureRequest) -> Callable[[str], Board]:
    """Makes a box's view."""
    if request.param == "fake":
        redis = FakeRedis()
        return lambda box: FakeBoard(redis, box)
    stores = request.getfixturevalue("stores")
    return lambda box: RedisLogins(stores(box), [KEY])


def look(board: Board, *, known: int = 0, fence: int = 0) -> Seen:
    return board.look(NAME, known=known, fence=fence)


def test_what_one_box_writes_the_other_reads(boards: Callable[[str], Board]) -> None:
    one, other = boards("b0"), boards("b1")
    assert look(one) == Seen(0, None, "", None, "", "", "", boxes=frozenset({"b0"}))
    assert one.names() == frozenset()

    version = one.put(NAME, b"a login", version=0, fence=0)

    seen = look(other)
    assert (seen.version, seen.content) == (version, b"a login")
    assert look(other, known=version).content is None
    assert other.names() == {NAME}


def test_a_write_over_an_unseen_version_is_refused(boards: Callable[[str], Board]) -> None:
    one, other = boards("b0"), boards("b1")
    version = one.put(NAME, b"first", version=0, fence=0)

    assert not other.put(NAME, b"late", version=0, fence=0)
    assert look(one).content == b"first"
    assert other.put(NAME, b"second", version=version, fence=0) != version


def test_one_box_gets_the_right_and_a_fence_that_grows(boards: Callable[[str], Board]) -> None:
    one, other = boards("b0"), boards("b1")
    before = look(one)

    first = one.claim(NAME, seen=before, above=0, keeps=True)
    assert first == 1
    assert not other.claim(NAME, seen=before, above=0, keeps=False)
    assert look(other).holder == Holder("b0", 1, True, 0, False)

    one.release(NAME, fence=first)
    assert look(other).holder == Holder("b0", 1, True, 0, True)
    assert other.claim(NAME, seen=look(other), above=0, keeps=False) == 2
    # As after a flush that forgot the fences.
    assert one.claim(NAME, seen=look(one), above=9, keeps=False, force=True) == 10


def test_an_older_fence_writes_nothing_and_sends_nothing(boards: Callable[[str], Board]) -> None:
    one, other = boards("b0"), boards("b1")
    old = one.claim(NAME, seen=look(one), above=0, keeps=False)
    version = one.put(NAME, b"first", version=0, fence=old)
    assert version
    assert one.mark(NAME, fence=old, spending="b0 fp")

    new = other.claim(NAME, seen=look(other), above=0, keeps=False)

    assert not one.put(NAME, b"late", version=version, fence=old)
    assert not one.mark(NAME, fence=old, spending="b0 fp")
    one.release(NAME, fence=old)
    assert look(one, fence=old).holder == Holder("b1", new, False, 0, False)
    assert other.put(NAME, b"second", version=version, fence=new)


def test_each_look_of_the_holder_is_a_sign_of_life(boards: Callable[[str], Board]) -> None:
    one, other = boards("b0"), boards("b1")
    fence = one.claim(NAME, seen=look(one), above=0, keeps=False)
    seen = look(other)

    look(one, fence=fence)

    after = look(other)
    assert after.holder is not None
    assert after.holder.beat == 1
    assert not other.claim(NAME, seen=seen, above=0, keeps=False)
    assert other.claim(NAME, seen=after, above=0, keeps=False) == fence + 1


def test_the_right_is_handed_to_the_box_that_asks(boards: Callable[[str], Board]) -> None:
    one, other = boards("b0"), boards("b1")
    fence = one.claim(NAME, seen=look(one), above=0, keeps=False)

    other.look(NAME, known=0, fence=0, asks=True)
    assert look(one, fence=fence).asks == "b1"
    one.release(NAME, fence=fence, to="b1")

    seen = look(other)
    assert (seen.holder, seen.asks) == (Holder("b1", fence + 1, False, 0, False), "")
    assert other.claim(NAME, seen=seen, above=0, keeps=True) == fence + 2


def test_what_is_wanted_is_told_until_it_is_there(boards: Callable[[str], Board]) -> None:
    one, other = boards("b0"), boards("b1")

    other.look(NAME, known=0, fence=0, wanted="fp")
    assert look(one).wanted == "fp"
    version = one.put(NAME, b"new", version=0, fence=0)

    assert version
    assert look(one).wanted == ""


def test_what_is_being_spent_is_known_until_a_person_takes_over(
    boards: Callable[[str], Board],
) -> None:
    one, other = boards("b0"), boards("b1")
    fence = one.claim(NAME, seen=look(one), above=0, keeps=False)
    assert one.mark(NAME, fence=fence, spending="b0 fp")
    assert look(other).spending == "b0 fp"

    assert other.claim(NAME, seen=look(other), above=0, keeps=False, force=True)

    assert look(other).spending == ""


def test_a_right_that_was_given_up_sends_nothing(boards: Callable[[str], Board]) -> None:
    one = boards("b0")
    fence = one.claim(NAME, seen=look(one), above=0, keeps=True)
    one.release(NAME, fence=fence)

    assert not one.mark(NAME, fence=fence, spending="b0 fp")


def test_redis_sees_no_token(stores: Callable[[str], SharedStore]) -> None:
    store = stores("b0")
    RedisLogins(store, [KEY]).put(NAME, b"refresh-0123456789", version=0, fence=0)

    everything = store.run(lambda redis: [redis.hgetall(key) for key in redis.keys("*login:*")])

    assert b"0123456789" not in repr(everything).encode()


def test_a_record_of_another_key_is_told_and_stays(
    stores: Callable[[str], SharedStore],
) -> None:
    one, other = RedisLogins(stores("b0"), [KEY]), RedisLogins(stores("b1"), [OTHER_KEY])
    version = one.put(NAME, b"a login", version=0, fence=0)

    seen = look(other)

    assert seen.content is None
    assert "sealed with another QWEN_PROXY_STATE_KEY" in seen.problem
    assert "sealed with another QWEN_PROXY_STATE_KEY" in look(other, known=version).problem
    with pytest.raises(Unsealed):
        other.put(NAME, b"mine", version=seen.version, fence=0)
    assert look(one).content == b"a login"


def test_a_new_key_comes_into_use_box_by_box(stores: Callable[[str], SharedStore]) -> None:
    old, new = RedisLogins(stores("b0"), [KEY]), RedisLogins(stores("b1"), [OTHER_KEY, KEY])
    version = old.put(NAME, b"first", version=0, fence=0)
    assert look(new).content == b"first"

    assert new.put(NAME, b"second", version=version, fence=0)

    assert look(new).content == b"second"
    assert "another" in look(old).problem
    assert look(RedisLogins(stores("b0"), [OTHER_KEY])).content == b"second"


def test_a_record_that_somebody_changed_is_told(stores: Callable[[str], SharedStore]) -> None:
    store = stores("b0")
    board = RedisLogins(store, [KEY])
    board.put(NAME, b"a login", version=0, fence=0)
    store.run(
        lambda redis: [redis.hset(key, "record", b"1 x y z") for key in redis.keys("*login:*")]
    )

    assert "cannot be read" in look(board).problem or "another" in look(board).problem


def test_no_answer_is_told_as_such() -> None:
    store = SharedStore("unix:///nowhere/redis.sock", "b0", SystemClock())
    board = RedisLogins(store, [KEY])

    with pytest.raises(BoardAway):
        look(board)
    with pytest.raises(BoardAway):
        board.names()
    assert board.away
    store.close()
