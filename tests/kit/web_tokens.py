"""Compressed tokens of tests, and a place for an upload."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

#: As the web API gives it.
PLACE: dict[str, Any] = {
    "bucketname": "bucket-1",
    "region": "oss-ap-southeast-1",
    "endpoint": "oss-accelerate.aliyuncs.com",
    "file_path": "user 1/a+b/äpicture.png",
    "file_id": "file-1",
    "file_url": "https://cdn.example/x",
    "access_key_id": "key-id",
    "access_key_secret": "key-secret",
    "security_token": "sts-token",
}


def gzipped(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def compressed(value: Any) -> str:
    return gzipped(json.dumps(value).encode())


def jwt(**claims: Any) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part(claims)}.c2lnbmF0dXJl"
