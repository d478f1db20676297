"""Puts a client's file where a model can fetch it: Model Studio's temporary storage.

The file lives there for 48 hours, for one model and one account (the vendor's page "Upload a local
file to get a temporary URL"). The call that names its URL needs `RESOLVE`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import BadRequest, Failure, Scope, UpstreamError
from qwen_wsgi.protocol import json_access
from qwen_wsgi.upstream.client import UpstreamClient
from qwen_wsgi.upstream.http.download import Downloads
from qwen_wsgi.upstream.routing.accounts import base_url_of

#: Headers of a call with the URL of such a file.
RESOLVE: Final[Mapping[str, str]] = {"X-DashScope-OssResourceResolve": "enable"}

#: Fields of the form that stores a file, and the members of a policy that they are.
_FIELDS: Final = (
    ("OSSAccessKeyId", "oss_access_key_id"),
    ("Signature", "signature"),
    ("policy", "policy"),
    ("x-oss-object-acl", "x_oss_object_acl"),
    ("x-oss-forbid-overwrite", "x_oss_forbid_overwrite"),
)
_MOST_CHARACTERS: Final = 16_384

#: Nothing was begun, so the same request may be sent again, here or to another account. It says
#: nothing of the account and its host, for other calls.
_FAILED: Final = Failure("storage", Scope.REQUEST, retry=True, elsewhere=True)


class Uploads:
    """Stores files. Shared by all greenlets of a worker; keeps nothing."""

    def __init__(self, client: UpstreamClient, downloads: Downloads) -> None:
        self._client = client
        self._downloads = downloads

    def put(self, account: Account, model: str, name: str, content_type: str, data: bytes) -> str:
        """Store a file for a model; its `oss://` URL.

        Args:
            name: of the file; only its end matters, such as `sound.wav`.

        Raises:
            BadRequest: the file is larger than the upstream takes.
            ApiError: the upstream did not take it.
        """
        path = f"/api/v1/uploads?action=getPolicy&model={quote(model, safe='')}"
        policy = json_access.mapping(self._client.get_json(account, path).get("data"))
        most = json_access.integer(policy.get("max_file_size_mb"))
        if most is not None and len(data) > most * 1024 * 1024:
            raise BadRequest(
                f"The file is larger than the {most} MB that the upstream takes.",
                code="request_too_large",
            )
        key = f"{_text(policy, 'upload_dir').strip('/')}/{secrets.token_hex(8)}/{name}"
        fields = [(field, _text(policy, member)) for field, member in _FIELDS]
        fields += [("key", key), ("success_action_status", "200")]
        boundary = secrets.token_hex(16)
        pieces = [
            _head(fields, boundary, name, content_type),
            data,
            f"\r\n--{boundary}--\r\n".encode(),
        ]
        try:
            status = self._downloads.send(
                policy.get("upload_host"),
                base_url_of(account),
                pieces,
                {"Content-Type": f"multipart/form-data; boundary={boundary}"},
            )
        except UpstreamError as error:
            if error.failure is not None:
                error.failure = _FAILED  # of the storage, which is another host than the API's
            raise
        if status != 200:
            raise UpstreamError(
                f"The upstream's storage answered HTTP {status} to the file.",
                code="upstream_upload_failed",
                failure=_FAILED,
            )
        return f"oss://{key}"


def _text(policy: Mapping[str, Any], name: str) -> str:
    """A member of a policy, fit for a form: one line, of a length that headers may have.

    Raises:
        UpstreamError: it is not there, or is no such text.
    """
    value = policy.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        value = ""
    value = str(value)
    if not value or len(value) > _MOST_CHARACTERS or not value.isprintable():
        raise UpstreamError(
            f"The upstream's answer to a request for storage has no usable '{name}'.",
            code="upstream_bad_answer",
        )
    return value


def _head(fields: list[tuple[str, str]], boundary: str, name: str, content_type: str) -> bytes:
    """All of the form before the file's bytes; the file has to be the last field."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in fields
    ]
    parts.append(
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        f"Content-Type: {content_type}\r\n\r\n"
    )
    return "".join(parts).encode()
