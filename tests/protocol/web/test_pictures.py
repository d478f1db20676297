"""Pictures that a request holds itself."""

from __future__ import annotations

import base64

import pytest

from qwen_wsgi.errors import ApiError
from qwen_wsgi.protocol.web.oss import place_of
from qwen_wsgi.protocol.web.pictures import MOST_BYTES, entry_of, picture_of
from tests.kit.web_tokens import PLACE

PNG = b"\x89PNG\r\n\x1a\nrest"


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_the_type_is_what_the_bytes_say() -> None:
    picture = picture_of(data_url(PNG, "image/jpeg;charset=x"), "messages")

    assert (picture.content_type, picture.data) == ("image/png", PNG)
    assert picture.wanted_place == {
        "filename": picture.name,
        "filesize": len(PNG),
        "filetype": "image",
    }
    assert picture.name.endswith(".png")


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("data:image/png,plain", 400, "invalid_image_format"),
        ("data:image/png;base64,%%%", 400, "invalid_image_format"),
        ("data:image/png;base64,", 400, "invalid_image_format"),
        (data_url(b"<svg/>", "image/svg+xml"), 400, "invalid_image_format"),
        ("file:///etc/passwd", 400, "invalid_image_format"),
        ("", 400, "invalid_image_format"),
        ("data:image/png;base64," + "A" * (MOST_BYTES * 4 // 3 + 8), 413, "image_too_large"),
    ],
    ids=["plain", "broken", "empty", "svg", "file", "none", "large"],
)
def test_what_is_no_picture_is_refused(url: str, status: int, code: str) -> None:
    with pytest.raises(ApiError) as raised:
        picture_of(url, "messages")

    assert (raised.value.status, raised.value.code) == (status, code)


def test_a_message_names_it_by_its_place() -> None:
    entry = entry_of(picture_of(data_url(PNG), "image"), place_of(PLACE), 12.5, lambda: "new")

    assert (entry["id"], entry["url"], entry["size"]) == ("file-1", PLACE["file_url"], len(PNG))
    assert (entry["type"], entry["status"]) == ("image", "uploaded")
    assert entry["file"]["meta"]["content_type"] == "image/png"
