"""The login's page: a code that readers read, and words for every end."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import segno

from qwen_wsgi.console import login_words, qr
from qwen_wsgi.credentials.oauth import device_flow
from qwen_wsgi.credentials.phone_login import DONE, LOST, STARTING, STOPPED, WAITING

URL = "https://chat.qwen.ai/authorize?user_code=ABCD-EFGH&client=qwen-code"


def test_the_code_is_that_of_the_address_on_a_light_ground() -> None:
    root = ElementTree.fromstring(qr.svg_of(URL))
    ground, code = list(root)
    size = len(segno.make(URL, error="m", micro=False).matrix)
    assert root.get("viewBox") == f"0 0 {size + 8} {size + 8}"
    assert ground.get("fill") == "#fff"
    assert ground.get("d") == f"M0 0h{size + 8}v{size + 8}h-{size + 8}z"
    assert code.get("stroke") == "#000"
    assert modules(code.get("d") or "") == sum(
        sum(row) for row in segno.make(URL, error="m", micro=False).matrix
    )


def modules(path: str) -> int:
    """The dark modules that a path draws."""
    return sum(int(length) for length in re.findall(r"h(\d+)", path))


def test_an_address_without_room_has_no_code() -> None:
    assert qr.svg_of("x" * 5000) == ""


def test_every_state_has_its_own_words() -> None:
    failures = [each.event for each in vars(device_flow).values() if hasattr(each, "event")]
    states = {STARTING, WAITING, DONE, STOPPED, LOST, *failures}
    assert len(states) == 11
    assert len({login_words.words_of(state).title for state in states}) == len(states)
    assert login_words.words_of("new").title == "The login has ended"


def test_the_time_that_is_left() -> None:
    assert [login_words.time_left(1000, now) for now in (100, 940.4, 1000, 2000)] == (
        ["15:00", "1:00", "0:00", "0:00"]
    )
