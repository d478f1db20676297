"""Files that are stored for a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pytest

from qwen_wsgi.errors import ApiError
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.http.download import Downloads
from qwen_wsgi.upstream.tasks.uploads import Uploads
from tests.fakes.upstream import account_of

POLICY: dict[str, Any] = {
    "policy": "p",
    "signature": "s",
    "upload_dir": "dir/1",
    "upload_host": "https://bucket.oss-cn-beijing.aliyuncs.com",
    "max_file_size_mb": 1,
    "oss_access_key_id": "id",
    "x_oss_object_acl": "private",
    "x_oss_forbid_overwrite": True,
}
FINE = {**POLICY, "x_oss_forbid_overwrite": "true"}


class Storage:
    """In the place of the client and of the downloads: notes what it is asked for."""

    def __init__(self, policy: Any, status: int = 200) -> None:
        self.path = ""
        self.sent = b""
        self._policy = policy
        self._status = status

    def get_json(self, account: object, path: str) -> dict[str, Any]:
        self.path = path
        return {"data": self._policy}

    def send(
        self, url: object, base_url: str, pieces: Sequence[bytes], headers: Mapping[str, str]
    ) -> int:
        self.sent = b"".join(pieces)
        return self._status


def put(storage: Storage, data: bytes = b"RIFF") -> str:
    uploads = Uploads(cast("UpstreamClient", storage), cast("Downloads", storage))
    return uploads.put(account_of("a"), "m/1 2", "sound.wav", "audio/wav", data)


def test_the_file_is_the_last_field_of_the_form() -> None:
    storage = Storage(FINE)
    url = put(storage)

    assert storage.path == "/api/v1/uploads?action=getPolicy&model=m%2F1%202"
    assert url.startswith("oss://dir/1/")
    assert url.endswith("/sound.wav")
    head, _, rest = storage.sent.partition(b'name="file"; filename="sound.wav"')
    assert url.removeprefix("oss://").encode() in head
    assert rest.startswith(b"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n--")
    assert head.count(b"Content-Disposition") == 8


@pytest.mark.parametrize(
    "policy",
    [
        None,
        {},
        POLICY,
        {**FINE, "policy": "a\r\nb"},
        {**FINE, "policy": "a" * 20_000},
        {**FINE, "upload_dir": ["a"]},
    ],
)
def test_a_policy_that_cannot_be_used(policy: Any) -> None:
    storage = Storage(policy)
    with pytest.raises(ApiError) as raised:
        put(storage)

    assert raised.value.code == "upstream_bad_answer"
    assert storage.sent == b""


def test_a_file_that_is_too_large_and_a_storage_that_refuses() -> None:
    with pytest.raises(ApiError, match="larger than the 1 MB"):
        put(Storage(FINE), bytes(1024 * 1024 + 1))
    with pytest.raises(ApiError, match="HTTP 403"):
        put(Storage(FINE, 403))
