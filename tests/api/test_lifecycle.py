"""The request id of a call."""

from __future__ import annotations

import re

import pytest

from qwen_wsgi.api.lifecycle import request_id_of


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ("req-1", True),
        ("A.b_c:d/e+f=g@h", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ("a\nb", False),
        ("a\n", False),
        ('a"b', False),
        ("é", False),
        ("<script>", False),
    ],
)
def test_a_sane_request_id_is_taken_over(offered: str, taken: bool) -> None:
    assert (request_id_of({"HTTP_X_REQUEST_ID": offered}) == offered) is taken
    assert re.fullmatch("req_[0-9a-f]{32}", request_id_of({}))
    assert taken or re.fullmatch("req_[0-9a-f]{32}", request_id_of({"HTTP_X_REQUEST_ID": offered}))
