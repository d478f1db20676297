"""The same stack with nothing of ours: Flask, gunicorn's gevent worker, and requests' adapter.

It knows no keys, limits, accounts, faults or records, so it is no gateway. What it costs tells what
this machine makes of the stack at this hour, which a goal in milliseconds does not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import requests
from flask import Flask, Response, request
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

from benchmarks.servers import BARE_UPSTREAM, UPSTREAM_KEY

#: As our own relay reads.
_READ_BYTES: Final = 16 * 1024

app: Final = Flask(__name__)
_adapter: Final = HTTPAdapter(pool_connections=1, pool_maxsize=2000)


@app.post("/v1/chat/completions")
def chat() -> Response:
    """Hand on the request, and what comes back, one write per read."""
    body = request.environ["wsgi.input"].read(int(request.environ["CONTENT_LENGTH"]))
    asked = requests.PreparedRequest()
    asked.method, asked.body = "POST", body
    asked.url = os.environ[BARE_UPSTREAM] + "/chat/completions"
    asked.headers = CaseInsensitiveDict(
        {
            "Authorization": f"Bearer {UPSTREAM_KEY}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
    )
    asked.hooks = {}
    answer = _adapter.send(asked, stream=True, timeout=(10, 600))
    return Response(_pieces(answer), content_type=answer.headers["content-type"])


def _pieces(answer: requests.Response) -> Iterator[bytes]:
    try:
        while piece := answer.raw.read1(_READ_BYTES):
            yield piece
    finally:
        answer.close()
