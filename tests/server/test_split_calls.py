"""Calls for several choices, which Qwen's hosts are asked for one by one."""

from __future__ import annotations

import json

import pytest

from qwen_wsgi.sandbox import Sandbox
from tests.kit.proxy import CLIENT_KEY, Proxy
from tests.kit.raw_client import Exchange, chat

pytestmark = pytest.mark.server


@pytest.mark.parametrize(("spec", "status"), [("chunks=3", 200), ("status=400", 400)])
@pytest.mark.parametrize("stream", [False, True])
def test_who_was_asked_is_told_however_it_ends(
    proxy: Proxy, sandbox: Sandbox, spec: str, status: int, stream: bool
) -> None:
    name = f"split-{status}-{stream}"
    body = chat(f"[[sandbox: {spec}]]", n=2, stream=stream)
    with Exchange(proxy.port, body, key=CLIENT_KEY, headers={"X-Request-Id": name}) as exchange:
        told, headers = exchange.head()
        data = exchange.body()

    assert told == status
    assert headers["x-qwen-proxy-account"] == "dashscope"
    assert headers["x-qwen-proxy-attempts"] == "2"
    if status == 200:
        sandbox.settle()
        assert len(sandbox.chats) == 2
    else:
        assert json.loads(data)["error"]["message"]
    line = proxy.wait_for_call(name)
    assert (line["account"], line["attempts"]) == ("dashscope", 2)
