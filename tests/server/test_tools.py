"""Tools that the server runs, used by the official packages in three dialects: a real runner, real
sandboxes, and an MCP server over stdio."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anthropic
import openai
import pytest

from tests.kit import mcp_http
from tests.kit.mcp_http import TOKEN, McpHttp
from tests.kit.processes import REPOSITORY, tree
from tests.kit.proxy import CLIENT_KEY, Proxy, start
from tests.kit.sandboxes import open_folder, processes_with, without_sandbox
from tests.kit.servers import wait_until

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(bool(without_sandbox()), reason=without_sandbox()),
]

MODEL = "qwen3.7-plus"
SUN = "weather says: sun over Bonn"
WEATHER: Any = {"type": "mcp", "server_label": "forecast", "require_approval": "never"}
CODE: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
SERVERS: Any = [{"type": "url", "name": "forecast", "url": "qwen-proxy://forecast"}]
TOOLSET: Any = {"type": "mcp_toolset", "mcp_server_name": "forecast"}
#: Seconds to sleep, which name what runs for this file among all processes.
MARK = f"30.{os.getpid():07d}"


@pytest.fixture(scope="module")
def brought() -> Iterator[McpHttp]:
    """A server of tools that the client brings."""
    with mcp_http.serving() as server:
        yield server


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, brought: McpHttp) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("tools")
    with open_folder() as shown:
        (shown / "mcp_server.py").write_bytes((REPOSITORY / "tests/kit/mcp_server.py").read_bytes())
        server = {
            "command": "/usr/bin/python3",
            "args": [f"{shown}/mcp_server.py", "weather"],
            "read": [str(shown)],
            "trust": True,
        }
        file = folder / "tools.json"
        named = {"mcpServers": {"forecast": server}, "python": {}}
        file.write_text(json.dumps(named))
        environment = {
            "QWEN_PROXY_SANDBOX": "1",
            "QWEN_PROXY_WORKERS": "2",
            "QWEN_PROXY_API_KEYS": CLIENT_KEY,
            "QWEN_PROXY_TOOLS": str(file),
            "QWEN_PROXY_TOOL_HOSTS": f"127.0.0.1:{brought.server_port}",
            "LOG_LEVEL": "DEBUG",
        }
        running = start(folder, environment)
        try:
            with openai.OpenAI(base_url=running.base_url, api_key=CLIENT_KEY, timeout=30) as client:
                wait_until(lambda: offers(client), "the tools")
            yield running
        finally:
            running.stop()


def offers(client: openai.OpenAI) -> bool:
    try:
        client.responses.create(model=MODEL, input="hello", tools=[WEATHER, CODE])
    except openai.APIStatusError:
        return False
    return True


@pytest.fixture
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=45
    ) as made:
        yield made


@pytest.fixture
def claude(proxy: Proxy) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=proxy.origin, api_key=CLIENT_KEY, max_retries=0, timeout=45
    ) as made:
        yield made


def asking(**arguments: Any) -> str:
    """Have the sandbox's model call its tool with these arguments."""
    return f"[[sandbox: tool-args={quote(json.dumps(arguments))}]]"


def running(code: str) -> str:
    return asking(code=code)


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input=asking(city="Bonn"), tools=[WEATHER])

    kinds = [each.type for each in response.output]
    assert kinds == ["mcp_list_tools", "mcp_call", "message"]
    call = response.output[1]
    assert call.type == "mcp_call"
    assert (call.output, call.error) == (SUN, None)
    assert SUN in response.output_text


def test_a_streamed_response(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=MODEL,
        input=running("print(6 * 7)"),
        tools=[CODE],
        include=["code_interpreter_call.outputs"],
    ) as stream:
        kinds = [event.type for event in stream]
        response = stream.get_final_response()

    assert "response.code_interpreter_call.completed" in kinds
    call = response.output[0]
    assert call.type == "code_interpreter_call"
    assert [each.logs for each in call.outputs or [] if each.type == "logs"] == ["42"]


def test_an_approval(client: openai.OpenAI) -> None:
    asked: Any = {**WEATHER, "require_approval": "always"}
    first = client.responses.create(model=MODEL, input=asking(city="Bonn"), tools=[asked])
    request = first.output[-1]
    assert request.type == "mcp_approval_request"

    answer: Any = {
        "type": "mcp_approval_response",
        "approval_request_id": request.id,
        "approve": True,
    }
    second = client.responses.create(
        model=MODEL, input=[answer], previous_response_id=first.id, tools=[asked]
    )

    call = next(each for each in second.output if each.type == "mcp_call")
    assert call.output == SUN


def test_a_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": asking(city="Bonn")}]
    tools: Any = [{"type": "mcp", "server_label": "forecast"}]
    whole = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=messages, tools=tools
    )
    streamed = client.chat.completions.create(
        model=MODEL, messages=messages, tools=tools, stream=True
    )

    assert whole.headers["x-qwen-proxy-tools"] == "forecast.weather=1"
    assert SUN in (whole.parse().choices[0].message.content or "")
    text = "".join(each.choices[0].delta.content or "" for each in streamed if each.choices)
    assert SUN in text


def test_a_message_whole_and_streamed(claude: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": asking(city="Bonn")}],
        "mcp_servers": SERVERS,
        "tools": [TOOLSET],
        "betas": ["mcp-client-2025-11-20"],
    }
    whole = claude.beta.messages.create(**asked)
    with claude.beta.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()

    for message in (whole, streamed):
        kinds = [block.type for block in message.content]
        assert kinds == ["mcp_tool_use", "mcp_tool_result", "text"]
        said: Any = message.content[-1]
        assert said.type == "text"
        assert SUN in said.text


def secrets_told(proxy: Proxy) -> list[str]:
    """Where the token of the client is that only its server was to get."""
    found = [path for path in proxy.home.parent.rglob("*") if path.is_file()]
    return [str(path) for path in found if b"of-a-client-4711" in path.read_bytes()]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_server_that_the_client_brings(
    proxy: Proxy,
    brought: McpHttp,
    client: openai.OpenAI,
    claude: anthropic.Anthropic,
    stream: bool,
) -> None:
    said: Any = [{"role": "user", "content": asking(city="Bonn")}]
    mine: Any = {
        "type": "mcp",
        "server_label": "mine",
        "server_url": brought.url("/closed?key=of-a-client-4711"),
        "authorization": TOKEN,
        "require_approval": "never",
    }
    brought.heard.clear()
    if stream:
        with client.responses.stream(model=MODEL, input=said, tools=[mine]) as events:
            events.until_done()
            response: Any = events.get_final_response()
        chunks = client.chat.completions.create(
            model=MODEL, messages=said, tools=[mine], stream=True
        )
        text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    else:
        response = client.responses.create(model=MODEL, input=said, tools=[mine])
        answer = client.chat.completions.create(model=MODEL, messages=said, tools=[mine])
        text = answer.choices[0].message.content or ""
    asked: Any = {
        "model": MODEL,
        "max_tokens": 1000,
        "messages": said,
        "mcp_servers": [
            {
                "type": "url",
                "name": "mine",
                "url": brought.url("/closed"),
                "authorization_token": TOKEN.removeprefix("Bearer "),
            }
        ],
        "tools": [{"type": "mcp_toolset", "mcp_server_name": "mine"}],
        "betas": ["mcp-client-2025-11-20"],
    }
    if stream:
        with claude.beta.messages.stream(**asked) as messages:
            message: Any = messages.get_final_message()
    else:
        message = claude.beta.messages.create(**asked)

    assert [each.type for each in response.output] == ["mcp_list_tools", "mcp_call", "message"]
    assert response.output[1].output == SUN
    assert SUN in text
    assert [each.type for each in message.content][:2] == ["mcp_tool_use", "mcp_tool_result"]
    assert {headers["Authorization"] for _, _, headers in brought.heard} == {TOKEN}
    assert secrets_told(proxy) == []


def test_servers_of_clients_that_cannot_be_used_say_what_to_do(
    client: openai.OpenAI, claude: anthropic.Anthropic, brought: McpHttp
) -> None:
    def refused(url: str) -> openai.APIStatusError:
        tool: Any = {"type": "mcp", "server_label": "mine", "server_url": url}
        with pytest.raises(openai.APIStatusError) as caught:
            client.responses.create(model=MODEL, input="hello", tools=[tool])
        return caught.value

    closed = refused(brought.url("/closed"))
    assert (closed.status_code, closed.code) == (424, "tool_server_failed")
    assert "127.0.0.1 answers with HTTP 401" in closed.message
    elsewhere = refused("http://127.0.0.1:9/mcp")
    assert (elsewhere.status_code, elsewhere.code) == (400, "tool_host_not_allowed")
    assert "QWEN_PROXY_TOOL_HOSTS" in elsewhere.message
    server: Any = {"type": "url", "name": "mine", "url": "https://mcp.example/"}
    with pytest.raises(anthropic.BadRequestError, match="QWEN_PROXY_TOOL_HOSTS"):
        claude.beta.messages.create(
            model=MODEL,
            max_tokens=100,
            messages=[{"role": "user", "content": "hello"}],
            mcp_servers=[server],
            betas=["mcp-client-2025-04-04"],
        )


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def test_fifty_at_once(proxy: Proxy, client: openai.OpenAI) -> None:
    def answered(number: int) -> str:
        response = client.responses.create(
            model=MODEL, input=running(f"print({number} * 1000 + 1)"), tools=[CODE]
        )
        return response.output_text

    with ThreadPoolExecutor(50) as pool:
        texts = list(pool.map(answered, range(50)))

    assert [number for number in range(50) if f"{number * 1000 + 1}" not in texts[number]] == []
    assert [pid for pid in tree(proxy.process.pid) if is_zombie(pid)] == []


def runner_of(proxy: Proxy) -> int:
    for each in tree(proxy.process.pid):
        if b"qwen_wsgi.tool_runner" in Path(f"/proc/{each}/cmdline").read_bytes():
            return each
    raise AssertionError("no runner")


def in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, found


SLOW = f"import subprocess; subprocess.run(['sleep', '{MARK}'])"


def test_a_client_that_leaves_ends_its_tool(proxy: Proxy) -> None:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=3
    ) as impatient:
        thread, found = in_background(
            lambda: impatient.responses.create(model=MODEL, input=running(SLOW), tools=[CODE])
        )
        wait_until(lambda: bool(processes_with(MARK)), "the interpreter")
        thread.join(20)

    assert isinstance(found[0], openai.APITimeoutError)
    wait_until(lambda: not processes_with(MARK), "the end of the interpreter")


def test_a_runner_that_is_killed_is_a_tools_error_and_the_next_call_works(
    proxy: Proxy, client: openai.OpenAI
) -> None:
    thread, found = in_background(
        lambda: client.responses.create(model=MODEL, input=running(SLOW), tools=[CODE])
    )
    wait_until(lambda: bool(processes_with(MARK)), "the interpreter")
    time.sleep(0.2)

    os.kill(runner_of(proxy), signal.SIGKILL)
    thread.join(30)

    # Told to the model, which answered; or to the client, where no tool could run any more.
    assert isinstance(found[0], openai.APIStatusError) or found[0].status == "completed"
    wait_until(lambda: not processes_with(MARK), "the end of the interpreter")
    wait_until(lambda: offers(client), "the next runner")
    response = client.responses.create(model=MODEL, input=running("print(7)"), tools=[CODE])
    assert "7" in response.output_text
