"""The sandbox that people use keeps no prompt and serves no web page of another site."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.services import SandboxHost

PROMPT = "a prompt that nobody else shall read"
BODY = json.dumps({"model": "qwen3.7-plus", "messages": [{"role": "user", "content": PROMPT}]})


@pytest.fixture
def built_in() -> Iterator[SandboxHost]:
    host = SandboxHost()
    yield host
    host.close()


def ask(url: str, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, str]:
    """The status and the body of an answer; `_` in names stands for `-`."""
    address = url.split("/")[2]
    connection = http.client.HTTPConnection(address, timeout=10)
    method = "POST" if path.startswith("/v1") else "GET"
    connection.putrequest(method, path, skip_host=True)
    headers = {"Host": address, "Authorization": "Bearer x", **headers}
    body = BODY.encode() if method == "POST" else b""
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    status, text = answer.status, answer.read().decode()
    connection.close()
    return status, text


def test_the_built_in_sandbox_keeps_no_prompt(built_in: SandboxHost) -> None:
    url = built_in.base_url()
    assert ask(url)[0] == 200

    status, state = ask(url, "/_sandbox/state")

    assert status == 200
    assert json.loads(state)["requests"] == {"chat": 1}
    assert PROMPT not in state


def test_the_sandbox_of_tests_keeps_them() -> None:
    with Sandbox() as sandbox:
        assert ask(sandbox.base_url)[0] == 200
        assert PROMPT in ask(sandbox.base_url, "/_sandbox/state")[1]
        assert ask(sandbox.base_url, Host="evil.example")[0] == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/_sandbox/state", "/"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil@127.0.0.1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
    ids=str,
)
def test_pages_of_other_sites_are_refused(
    path: str, headers: dict[str, str], built_in: SandboxHost
) -> None:
    status, text = ask(built_in.base_url(), path, **headers)

    assert status == 403
    assert "[sandbox]" in text


@pytest.mark.parametrize("host", ["localhost:{port}", "LOCALHOST", "127.0.0.1:", "[::1]:{port}"])
def test_names_of_this_machine_are_served(host: str, built_in: SandboxHost) -> None:
    url = built_in.base_url()
    named = host.format(port=url.split("/")[2].split(":")[1])

    assert ask(url, "/", Host=named)[0] == 200
    assert ask(url, "/_sandbox/state", Host=named, Origin=f"http://{named}")[0] == 200
