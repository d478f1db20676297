"""The copy of the client keys: whole or as it was, and never taken for absent in doubt."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen_wsgi.access.client_key import ClientKey, KeptKey
from qwen_wsgi.state import key_copy

KEPT = KeptKey(ClientKey("key_1", "anna", 0, models=("q*",)), ((b"d" * 32, None), (b"e" * 32, 7)))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    state = tmp_path / "not" / "there"
    assert key_copy.read(state) is None
    assert not key_copy.exists(state)

    key_copy.write(state, [KEPT])

    assert key_copy.read(state) == (KEPT,)
    assert key_copy.exists(state)
    assert key_copy.keys_in(state) == (KEPT.key,)
    assert state.stat().st_mode & 0o777 == 0o700


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / key_copy.FILE / "in the way").mkdir(parents=True)

    with pytest.raises(OSError, match="irectory"):
        key_copy.write(state, [KEPT])

    assert [file.name for file in state.iterdir()] == [key_copy.FILE]
    assert key_copy.keys_in(state) == ()


def test_where_nobody_can_look_there_may_have_been_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: Path) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, "lstat", closed)

    assert key_copy.exists(tmp_path)
    assert not key_copy.exists(None)
