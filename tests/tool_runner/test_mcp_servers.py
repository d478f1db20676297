"""MCP servers of others, over each transport: those that `make clients` installs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen_wsgi.tools.runner import ServerTool, ToolResult
from qwen_wsgi.tools.runner_client import RunnerClient
from tests.kit import others_tools
from tests.kit.runners import Runner, running
from tests.kit.sandboxes import open_folder

pytestmark = others_tools.MARKS


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """A folder that the server of files may change."""
    with open_folder() as folder:
        folder.chmod(0o777)
        (folder / "there").write_text("before")
        yield folder


@pytest.fixture(scope="module")
def runner(shared: Path) -> Iterator[Runner]:
    with others_tools.listening("streamableHttp") as http, others_tools.listening("sse") as sse:
        tools = {
            "mcpServers": {
                "time": others_tools.time_server(),
                "stdio": others_tools.everything(),
                "files": {**others_tools.files(shared), "excludeTools": ["move_file"]},
                "http": {"httpUrl": f"http://127.0.0.1:{http}/mcp"},
                "sse": {
                    "url": f"http://127.0.0.1:{sse}/sse",
                    "includeTools": ["echo", "get-sum"],
                },
            }
        }
        with running(tools) as one:
            end_s = time.monotonic() + 40
            while one.client().troubles() and time.monotonic() < end_s:
                time.sleep(0.2)
            yield one


def call(client: RunnerClient, name: str, seconds: float = 20, **arguments: object) -> ToolResult:
    server, tool = name.split(".")
    return client.call(ServerTool(server, tool, "", {}, False), arguments, seconds=seconds)


def test_all_answer(runner: Runner) -> None:
    client = runner.client()

    assert client.troubles() == {}
    assert set(client.check().values()) == {""}
    offered = {f"{each.server}.{each.name}" for each in client.offered()}
    assert {"time.get_current_time", "files.write_file", "http.echo"} <= offered
    assert {each for each in offered if each.startswith("sse.")} == {"sse.echo", "sse.get-sum"}
    assert "files.move_file" not in offered


@pytest.mark.parametrize("server", ["stdio", "http", "sse"])
def test_each_transport_carries_a_call_and_its_errors(runner: Runner, server: str) -> None:
    client = runner.client()

    assert call(client, f"{server}.echo", message="hä").text == "Echo: hä"
    wrong = call(client, f"{server}.get-sum", a="one")
    assert wrong.is_error
    assert "number" in wrong.text


def test_the_time_of_a_place(runner: Runner) -> None:
    result = call(runner.client(), "time.get_current_time", timezone="Asia/Tokyo")

    assert json.loads(result.text)["timezone"] == "Asia/Tokyo"


@pytest.mark.parametrize("server", ["stdio", "http"])
def test_pictures_and_structured_content(runner: Runner, server: str) -> None:
    client = runner.client()

    (image,) = call(client, f"{server}.get-tiny-image").images
    assert image.data.startswith(b"\x89PNG")
    result = call(client, f"{server}.get-structured-content", location="New York")
    assert isinstance(result.structured, dict)
    assert "temperature" in result.structured


def test_a_server_sees_no_environment_but_its_own(runner: Runner) -> None:
    seen = json.loads(call(runner.client(), "stdio.get-env").text)

    assert seen.keys() <= {"PATH", "HOME", "TMPDIR", "LANG", "PWD"}


def test_files_are_read_and_written_where_they_may_be(runner: Runner, shared: Path) -> None:
    client = runner.client()

    assert call(client, "files.read_text_file", path=f"{shared}/there").text.startswith("before")
    assert not call(client, "files.write_file", path=f"{shared}/new", content="n").is_error
    assert (shared / "new").read_text() == "n"
    assert call(client, "files.read_text_file", path=str(runner.tools_file)).is_error


@pytest.mark.parametrize("server", ["stdio", "http"])
def test_a_call_that_takes_too_long_is_given_up_and_the_next_one_works(
    runner: Runner, server: str
) -> None:
    client = runner.client()

    late = call(client, f"{server}.trigger-long-running-operation", 0.5, duration=30, steps=3)

    assert late.is_error
    assert "0.5 seconds" in late.text
    assert call(client, f"{server}.echo", message="x").text == "Echo: x"
