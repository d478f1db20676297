"""The form of an upload, cut anywhere: the file is the same, and nothing is held."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.api.files.form import UploadForm
from qwen_wsgi.errors import BadRequest
from tests.kit.properties import examples

TYPE = "multipart/form-data; boundary=b-b"


def part(disposition: str, content: bytes) -> bytes:
    return b"--b-b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (
        disposition.encode(),
        content,
    )


def read(pieces: list[bytes]) -> tuple[bytes, UploadForm]:
    form = UploadForm(TYPE, iter([piece for piece in pieces if piece]))
    form.begin()
    return b"".join(form.file_pieces()), form


#: Contents that look like parts of the form.
_contents = st.lists(
    st.sampled_from([b"--b-", b"--b-b", b"-", b"\r\n", b"\n", b"\r", b"x", b"--b-b--", b"\0"])
).map(b"".join)


@examples(300)
@given(
    _contents.filter(lambda text: b"\n--b-b" not in b"\n" + text and b"\r--b-b" not in text),
    st.data(),
)
def test_the_file_is_the_same_however_the_form_is_cut(content: bytes, data: st.DataObject) -> None:
    body = part('name="purpose"', b"batch") + part('name="file"; filename="a"', content)
    body += part('name="expires"', b"-") + b"--b-b--\r\n"
    places = data.draw(st.lists(st.integers(0, len(body)), max_size=5).map(sorted))

    got, form = read([body[a:b] for a, b in pairwise([0, *places, len(body)])])

    assert got == content
    assert form.fields == {"purpose": "batch", "expires": "-"}
    assert form.filename == "a"


def test_each_cut_in_two_gives_the_same_file() -> None:
    """Werkzeug's decoder alone adds a byte where the end mark is cut behind its first dash."""
    body = part('name="file"; filename="a"', b"DATA-") + b"--b-b--\r\n"

    assert {read([body[:cut], body[cut:]])[0] for cut in range(len(body))} == {b"DATA-"}


def test_a_file_passes_while_it_comes() -> None:
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        yield part('name="file"; filename="a"', b"")[:-2]
        for _ in range(1000):
            taken += 1
            yield b"x" * 1000
        yield b"\r\n--b-b--\r\n"

    form = UploadForm(TYPE, pieces())
    form.begin()
    for count, piece in enumerate(form.file_pieces(), 1):
        assert len(piece) <= 1010
        assert taken <= count + 1


@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "multipart/mixed; boundary=b", "multipart/form-data; boundary=" + "b" * 201],
)
def test_what_is_no_form_is_refused(content_type: str) -> None:
    with pytest.raises(BadRequest, match="multipart/form-data"):
        UploadForm(content_type, iter([]))


def test_a_form_is_bounded() -> None:
    for body in (
        [b"p" * 65_536] * 4,
        [b"--b-b\r\nA: " + b"x" * 65_536, *[b"x" * 65_536] * 3],
        [part('name="a"', b"")] * 40,
        [part('name="a"', b"x" * 40_000)] * 2,
    ):
        with pytest.raises(BadRequest) as told:
            read([*body, b"--b-b--"])
        assert told.value.code == "request_too_large"


def test_what_fails_while_the_body_is_read_is_told() -> None:
    def pieces() -> Iterator[bytes]:
        yield part('name="file"; filename="a"', b"x")[:-2]
        raise BadRequest("cut")

    form = UploadForm(TYPE, pieces())
    form.begin()
    with pytest.raises(BadRequest, match="cut"):
        list(form.file_pieces())
