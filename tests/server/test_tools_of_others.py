"""MCP servers of others, and matplotlib, used by the official packages in three dialects: what
`make clients` installs, each in its sandbox."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import anthropic
import openai
import pytest

from tests.kit import others_tools
from tests.kit.proxy import CLIENT_KEY, Proxy, start
from tests.kit.sandboxes import open_folder
from tests.kit.servers import wait_until

pytestmark = others_tools.MARKS

MODEL = "qwen3.7-plus"
LABELS = ("time", "everything", "files", "python")


class Called(NamedTuple):
    """What a client learned of a call of a tool."""

    result: str
    text: str


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder that the server of files may change."""
    with open_folder() as folder:
        folder.chmod(0o777)
        (folder / "there").write_text("what was there")
        yield folder


@pytest.fixture(scope="module")
def brought() -> Iterator[dict[str, str]]:
    """The addresses of servers that the client brings, by their transports."""
    with others_tools.listening("streamableHttp") as http, others_tools.listening("sse") as sse:
        yield {
            "http": f"http://127.0.0.1:{http}/mcp",
            "sse": f"http://127.0.0.1:{sse}/sse",
        }


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, shared: Path, brought: dict[str, str]
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("tools")
    servers = {
        "time": others_tools.time_server(),
        "everything": others_tools.everything(),
        "files": others_tools.files(shared),
    }
    python = {"command": str(others_tools.PYTHON), "read": [str(others_tools.FOLDER)]}
    tools = {name: {**entry, "trust": True} for name, entry in servers.items()}
    (folder / "tools.json").write_text(json.dumps({"mcpServers": tools, "python": python}))
    environment = {
        "QWEN_PROXY_SANDBOX": "1",
        "QWEN_PROXY_WORKERS": "1",
        "QWEN_PROXY_API_KEYS": CLIENT_KEY,
        "QWEN_PROXY_TOOLS": str(folder / "tools.json"),
        "QWEN_PROXY_TOOL_HOSTS": ",".join(urlsplit(each).netloc for each in brought.values()),
    }
    running = start(folder, environment)
    try:
        with openai.OpenAI(base_url=running.base_url, api_key=CLIENT_KEY, timeout=30) as client:
            wait_until(
                lambda: all(offers(client, label) for label in LABELS), "the tools", within_s=60
            )
        yield running
    finally:
        running.stop()


def offers(client: openai.OpenAI, label: str) -> bool:
    tool: Any = {"type": "mcp", "server_label": label, "require_approval": "never"}
    try:
        client.responses.create(model=MODEL, input="hello", tools=[tool], tool_choice="none")
    except openai.APIStatusError:
        return False
    return True


@pytest.fixture(scope="module")
def client(proxy: Proxy) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=proxy.base_url, api_key=CLIENT_KEY, max_retries=0, timeout=45
    ) as made:
        yield made


@pytest.fixture(scope="module")
def claude(proxy: Proxy) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=proxy.origin, api_key=CLIENT_KEY, max_retries=0, timeout=45
    ) as made:
        yield made


def asking(arguments: dict[str, Any]) -> str:
    """Have the sandbox's model call its tool with these arguments."""
    return f"[[sandbox: tool-args={quote(json.dumps(arguments))}]]"


def by_responses(
    client: openai.OpenAI, server: str, tool: str, arguments: dict[str, Any], *, stream: bool
) -> Called:
    given: Any = {"type": "mcp", "server_label": server, "allowed_tools": [tool]}
    asked: Any = {
        "model": MODEL,
        "input": asking(arguments),
        "tools": [{**given, "require_approval": "never"}],
    }
    if stream:
        with client.responses.stream(**asked) as events:
            kinds = {event.type for event in events}
            response: Any = events.get_final_response()
        assert kinds >= {"response.mcp_list_tools.completed", "response.mcp_call.completed"}
    else:
        response = client.responses.create(**asked)
    listed, call, _ = response.output
    assert [each.name for each in listed.tools] == [tool]
    assert (call.type, call.name, call.error) == ("mcp_call", tool, None)
    return Called(call.output, response.output_text)


def by_chat(
    client: openai.OpenAI, server: str, tool: str, arguments: dict[str, Any], *, stream: bool
) -> Called:
    asked: Any = {
        "model": MODEL,
        "messages": [{"role": "user", "content": asking(arguments)}],
        "tools": [{"type": "mcp", "server_label": server, "allowed_tools": [tool]}],
    }
    if stream:
        chunks = client.chat.completions.create(**asked, stream=True)
        text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    else:
        raw = client.chat.completions.with_raw_response.create(**asked)
        assert raw.headers["x-qwen-proxy-tools"] == f"{server}.{tool}=1"
        text = raw.parse().choices[0].message.content or ""
    return Called(text, text)


def by_messages(
    claude: anthropic.Anthropic, server: str, tool: str, arguments: dict[str, Any], *, stream: bool
) -> Called:
    toolset = {"type": "mcp_toolset", "mcp_server_name": server}
    only = {"default_config": {"enabled": False}, "configs": {tool: {"enabled": True}}}
    asked: Any = {
        "model": MODEL,
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": asking(arguments)}],
        "mcp_servers": [{"type": "url", "name": server, "url": f"qwen-proxy://{server}"}],
        "tools": [{**toolset, **only}],
        "betas": ["mcp-client-2025-11-20"],
    }
    if stream:
        with claude.beta.messages.stream(**asked) as events:
            message: Any = events.get_final_message()
    else:
        message = claude.beta.messages.create(**asked)
    use, result, said = message.content
    assert (use.type, use.name, use.server_name) == ("mcp_tool_use", tool, server)
    assert (result.type, result.is_error) == ("mcp_tool_result", False)
    return Called(result.content[0].text, said.text)


WAYS: Any = [by_responses, by_chat, by_messages]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("server", "tool", "arguments", "told"),
    [
        ("time", "get_current_time", {"timezone": "Asia/Tokyo"}, "Asia/Tokyo"),
        ("everything", "get-sum", {"a": 20, "b": 22}, "42"),
        ("files", "read_text_file", {"path": "SHARED/there"}, "what was there"),
    ],
    ids=["time", "everything", "files"],
)
def test_a_call(
    client: openai.OpenAI,
    claude: anthropic.Anthropic,
    shared: Path,
    way: Callable[..., Called],
    server: str,
    tool: str,
    arguments: dict[str, Any],
    told: str,
    stream: bool,
) -> None:
    given = json.loads(json.dumps(arguments).replace("SHARED", str(shared)))
    sdk: Any = claude if way is by_messages else client

    called = way(sdk, server, tool, given, stream=stream)

    assert told in called.result
    assert told in called.text


def test_a_file_is_written_where_it_may_be_and_nowhere_else(
    client: openai.OpenAI, shared: Path, proxy: Proxy
) -> None:
    new = {"path": f"{shared}/new", "content": "written"}
    by_responses(client, "files", "write_file", new, stream=False)
    reads = {"type": "mcp", "server_label": "files", "allowed_tools": ["read_text_file"]}
    unasked: Any = {**reads, "require_approval": "never"}
    response = client.responses.create(
        model=MODEL,
        input=asking({"path": str(proxy.home / ".qwen")}),
        tools=[unasked],
    )

    assert (shared / "new").read_text() == "written"
    call: Any = response.output[1]
    assert (call.status, call.output) == ("failed", None)
    assert call.error.type == "mcp_tool_execution_error"


@pytest.mark.parametrize("transport", ["http", "sse"])
def test_servers_that_the_client_brings(
    client: openai.OpenAI, claude: anthropic.Anthropic, brought: dict[str, str], transport: str
) -> None:
    given = {"type": "mcp", "server_label": "mine", "server_url": brought[transport]}
    tool: Any = {**given, "allowed_tools": ["get-sum"], "require_approval": "never"}
    server: Any = {"type": "url", "name": "mine", "url": brought[transport]}
    only = {"default_config": {"enabled": False}, "configs": {"get-sum": {"enabled": True}}}
    toolset: Any = {"type": "mcp_toolset", "mcp_server_name": "mine", **only}
    asked = asking({"a": 20, "b": 22})

    response = client.responses.create(model=MODEL, input=asked, tools=[tool])
    message: Any = claude.beta.messages.create(
        model=MODEL,
        max_tokens=1000,
        messages=[{"role": "user", "content": asked}],
        mcp_servers=[server],
        tools=[toolset],
        betas=["mcp-client-2025-11-20"],
    )

    call: Any = response.output[1]
    assert (call.server_label, call.error) == ("mine", None)
    assert "42" in call.output
    assert "42" in message.content[1].content[0].text


def test_all_tools_of_a_server_can_be_offered_at_once(
    client: openai.OpenAI, claude: anthropic.Anthropic
) -> None:
    tools: Any = [
        {"type": "mcp", "server_label": label, "require_approval": "never"} for label in LABELS[:3]
    ]
    servers: Any = [
        {"type": "url", "name": label, "url": f"qwen-proxy://{label}"} for label in LABELS[:3]
    ]
    response = client.responses.create(
        model=MODEL, input="hello", tools=tools, tool_choice="none", parallel_tool_calls=True
    )
    message = claude.beta.messages.create(
        model=MODEL,
        max_tokens=100,
        messages=[{"role": "user", "content": "[[sandbox: no-tools]] hello"}],
        mcp_servers=servers,
        betas=["mcp-client-2025-04-04"],
    )

    listed: list[Any] = [each for each in response.output if each.type == "mcp_list_tools"]
    assert [each.server_label for each in listed] == list(LABELS[:3])
    assert all(tool.input_schema["type"] == "object" for each in listed for tool in each.tools)
    assert [block.type for block in message.content] == ["text"]


PLOT = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 3], [1, 4, 9])
plt.title("squares")
print("drawn")
"""


def test_a_plot_of_matplotlib_comes_back_as_a_picture(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=MODEL,
        input=asking({"code": PLOT}),
        tools=[{"type": "code_interpreter", "container": {"type": "auto"}}],
        include=["code_interpreter_call.outputs"],
    ) as stream:
        stream.until_done()
        response = stream.get_final_response()

    call = response.output[0]
    assert call.type == "code_interpreter_call"
    logs, image = call.outputs or []
    assert logs.type == "logs"
    assert logs.logs == "drawn"
    assert image.type == "image"
    head, _, data = image.url.partition(",")
    assert head == "data:image/png;base64"
    picture = base64.b64decode(data)
    assert picture.startswith(b"\x89PNG\r\n")
    assert len(picture) > 5000  # axes and a line, not an empty canvas
