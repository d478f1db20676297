"""The files that workers share."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from qwen_wsgi.state.shared_memory import map_shared


@pytest.mark.parametrize("left", [0, 1, 4095])
def test_a_file_that_was_cut_begins_anew(tmp_path: Path, left: int) -> None:
    """Mapped as it is, a look beyond its end would kill the worker."""
    first = map_shared(tmp_path, "board", version="1", size=8192, boot_id="b")
    first[8000] = 7
    (file,) = tmp_path.glob("board-*")
    with file.open("r+b") as opened:
        opened.truncate(left)

    again = map_shared(tmp_path, "board", version="1", size=8192, boot_id="b")

    assert isinstance(again, mmap.mmap)
    assert again[8000] == 0
    again[8191] = 1
    assert map_shared(tmp_path, "board", version="1", size=8192, boot_id="b")[8191] == 1
