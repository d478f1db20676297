"""Alibaba's object storage (OSS): where an object goes, and how a request for it is signed. Pure.

Signature version 4 with a temporary login (STS), as OSS documents it ("Include a V4 signature in
the Authorization header").
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlsplit

from qwen_wsgi.protocol.json_access import mapping, text

_ALGORITHM: Final = "OSS4-HMAC-SHA256"
#: The body is not hashed for the signature: TLS protects it.
_UNSIGNED: Final = "UNSIGNED-PAYLOAD"
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}")
_WORD: Final = re.compile(r"[!-~]{1,8192}")
_MOST_PATH: Final = 1024


class BadPlace(ValueError):
    """An answer names no place that can be used; the text says what it lacks."""


@dataclass(frozen=True)
class Place:
    """Where one object may be put, and the temporary login for that.

    Attributes:
        url: that the object is put to.
        file_url: that the object has for those who read it.
    """

    url: str
    bucket: str
    path: str
    region: str
    file_id: str
    file_url: str
    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    token: str = field(repr=False)

    def headers(self, content_type: str, now: float) -> dict[str, str]:
        """The headers of the request that puts the object, signed. `now`: seconds since 1970."""
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        signed = {
            "content-type": content_type,
            "x-oss-content-sha256": _UNSIGNED,
            "x-oss-date": moment,
            "x-oss-security-token": self.token,
        }
        lines = "".join(f"{name}:{value}\n" for name, value in sorted(signed.items()))
        resource = quote(f"/{self.bucket}/{self.path}", safe="/-._~")
        request = "\n".join(("PUT", resource, "", lines, "", _UNSIGNED))
        scope = f"{moment[:8]}/{self.region}/oss/aliyun_v4_request"
        to_sign = "\n".join(
            (_ALGORITHM, moment, scope, hashlib.sha256(request.encode()).hexdigest())
        )
        key = ("aliyun_v4" + self.secret).encode()
        for part in scope.split("/"):
            key = _hmac(key, part)
        signature = _hmac(key, to_sign).hex()
        authorization = f"{_ALGORITHM} Credential={self.key_id}/{scope},Signature={signature}"
        return {**signed, "Authorization": authorization}


def place_of(answer: dict[str, Any]) -> Place:
    """The place that the web API gives for a file: flat, or below `data`.

    Raises:
        BadPlace: it lacks what is needed, or that cannot go into a request.
    """
    told = mapping(answer.get("data")) or answer
    bucket, region = _checked(told, "bucketname", _BUCKET), _checked(told, "region", _REGION)
    path = text(told.get("file_path"))
    if not path or len(path) > _MOST_PATH or not path.isprintable() or ".." in path:
        raise BadPlace("file_path")
    path = path.lstrip("/")
    endpoint = text(told.get("endpoint")) or f"{region}.aliyuncs.com"
    return Place(
        url=_url(endpoint, bucket, path),
        bucket=bucket,
        path=path,
        region=region.removeprefix("oss-"),
        file_id=_checked(told, "file_id", _WORD),
        file_url=_checked(told, "file_url", _WORD),
        key_id=_checked(told, "access_key_id", _WORD),
        secret=_checked(told, "access_key_secret", _WORD),
        token=_checked(told, "security_token", _WORD),
    )


def _url(endpoint: str, bucket: str, path: str) -> str:
    """As Alibaba's own SDK: the bucket is the first label of the host, and of an IP address the
    first part of the path."""
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    except ValueError:
        raise BadPlace("endpoint") from None
    if not parts.hostname or parts.path.strip("/") or parts.query:
        raise BadPlace("endpoint")
    quoted = quote(path, safe="/-._~")
    if _is_ip_address(parts.hostname):
        return f"{parts.scheme}://{parts.netloc}/{bucket}/{quoted}"
    return f"{parts.scheme}://{bucket}.{parts.netloc}/{quoted}"


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _checked(told: dict[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = text(told.get(name))
    if not form.fullmatch(value):
        raise BadPlace(name)
    return value


def _hmac(key: bytes, message: str) -> bytes:
    return hmac.new(key, message.encode(), hashlib.sha256).digest()
