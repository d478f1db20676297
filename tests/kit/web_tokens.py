"""Compressed tokens of tests."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any


def gzipped(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def compressed(value: Any) -> str:
    return gzipped(json.dumps(value).encode())


def jwt(**claims: Any) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part(claims)}.c2lnbmF0dXJl"
