"""How values are packed for Redis."""

from __future__ import annotations

import zlib

import pytest

from qwen_wsgi.state.database.responses import LARGEST
from qwen_wsgi.state.redis.sealing import Seal
from qwen_wsgi.state.redis.values import Packer, Unreadable
from tests.kit.secrets import secret

ONE, TWO = secret("state-key-one"), secret("state-key-two")
LONG = b"a long text " * 20_000


@pytest.mark.parametrize("value", [b"", b"a", LONG], ids=len)
@pytest.mark.parametrize("keys", [(), (ONE,)], ids=["plain", "sealed"])
def test_a_value_comes_back(value: bytes, keys: tuple[str, ...]) -> None:
    packer = Packer(Seal(keys) if keys else None)
    packed = packer.pack("name", value)

    assert packer.unpack("name", packed) == value
    assert len(packed) < len(value) / 10 or len(value) < 100


def test_what_was_put_before_there_was_a_key_is_read() -> None:
    packed = Packer(None).pack("name", b"text")
    assert Packer(Seal([ONE])).unpack("name", packed) == b"text"


def test_the_key_before_is_read() -> None:
    packed = Packer(Seal([ONE])).pack("name", b"text")
    assert Packer(Seal([TWO, ONE])).unpack("name", packed) == b"text"


SEALED = Packer(Seal([ONE])).pack("name", b"text")


@pytest.mark.parametrize(
    ("packer", "name", "packed", "why"),
    [
        (Packer(None), "name", SEALED, "has no QWEN_PROXY_STATE_KEY"),
        (Packer(Seal([TWO])), "name", SEALED, "another QWEN_PROXY_STATE_KEY"),
        (Packer(Seal([ONE])), "other", SEALED, "or is damaged"),
        (Packer(Seal([ONE])), "name", SEALED[:-3], "or is damaged"),
        (Packer(None), "name", b"2abc", "newer version"),
        (Packer(None), "name", b"", "newer version"),
        (Packer(None), "name", b"0abc", "damaged"),
        (Packer(None), "name", b"0" + zlib.compress(bytes(2 * LARGEST + 1)), "larger"),
    ],
    ids=range(8),
)
def test_what_cannot_be_read_says_why(packer: Packer, name: str, packed: bytes, why: str) -> None:
    with pytest.raises(Unreadable, match=why):
        packer.unpack(name, packed)
