"""Whatever happens to boxes and to Redis, in whatever order: no two boxes spend one token, and when
all is well again they all have the same login, which nobody has spent."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, note
from hypothesis import strategies as st

from tests.fakes.board import FakeRedis
from tests.fakes.clock import FakeClock
from tests.kit.properties import examples
from tests.kit.shared_boxes import LoginService, SharingBox

BOXES = st.integers(0, 2)
EVENTS = st.one_of(
    st.tuples(st.just("look"), BOXES),
    st.tuples(st.just("renew"), BOXES),
    st.tuples(st.just("begin"), BOXES),
    st.tuples(st.just("end"), BOXES),
    st.tuples(st.just("die"), BOXES),
    st.tuples(st.just("cut"), BOXES),
    st.tuples(st.just("join"), BOXES),
    st.tuples(st.just("stop"), BOXES),
    st.tuples(st.just("log in"), BOXES),
    st.tuples(st.just("flush"), st.just(0)),
    st.tuples(st.just("save"), st.just(0)),
    st.tuples(st.just("restore"), st.just(0)),
    st.tuples(st.just("pass"), st.sampled_from([3, 6, 13, 100])),
    st.tuples(st.just("all look for"), st.sampled_from([15, 120])),
)


class Boxes:
    """Three boxes: the first one has qwen-code's file, and the third one too if `two_files`."""

    def __init__(self, directory: Path, *, files: int) -> None:
        self.clock = FakeClock()
        self.redis = FakeRedis()
        self.service = LoginService(self.clock)
        self.boxes = [
            SharingBox(f"b{i}", directory / str(i), self.redis, self.clock, own_file=i < files)
            for i in range(3)
        ]
        self.boxes[0].log_in(self.service.issue())
        #: Tokens that were sent by a process that was killed before it had the answer.
        self.lost: set[str] = set()

    def do(self, event: tuple[str, int]) -> None:
        name, number = event
        box = self.boxes[number % 3]
        if name == "look":
            box.look()
        elif name in ("renew", "begin"):
            if box.open is None:
                box.begin(self.service)
            if name == "renew" and box.open is not None:
                box.end()
        elif name == "end" and box.open is not None:
            box.end()
        elif name == "die":
            if box.open is not None:
                self.lost.add(box.open[0].refresh_token)
            box.die()
        elif name in ("cut", "join"):
            box.board.away = "no route" if name == "cut" else ""
        elif name == "stop" and box.open is None:
            box.shared.release()
        elif name == "log in":
            box.log_in(self.service.issue())
        elif name == "save":
            self.redis.save()
        elif name == "restore":
            self.redis.restore()
        elif name == "flush":
            self.redis.flush()
        elif name == "pass":
            self.clock.advance(number)
        elif name == "all look for":
            self.all_look(number)

    def all_look(self, seconds: float) -> None:
        for _ in range(int(seconds / 5)):
            for box in self.boxes:
                box.look()
            self.clock.advance(5)

    def heal(self) -> None:
        for box in self.boxes:
            box.board.away = ""
            if box.open is not None:
                box.end()
        self.all_look(30)


def check(boxes: Boxes) -> None:
    """No token was sent by two boxes; twice by the same one only after a crash that lost the
    answer."""
    assert all(len(boxes) == 1 for boxes in boxes.service.senders.values())
    twice = {token for token, times in boxes.service.sent.items() if times > 1}
    assert twice <= boxes.lost


@given(st.lists(EVENTS, max_size=40), st.integers(0, 2))
@examples(40)
def test_no_token_is_spent_by_two(events: list[tuple[str, int]], files: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        boxes = Boxes(Path(directory), files=files)
        boxes.all_look(30)
        for event in events:
            boxes.do(event)
            check(boxes)
        boxes.heal()

        check(boxes)
        tokens = {box.token for box in boxes.boxes}
        note(f"{tokens} {boxes.service.sent}")
        assert len(tokens) == 1
        (token,) = tokens
        assert boxes.service.sent[token] == 0 or token in boxes.lost
