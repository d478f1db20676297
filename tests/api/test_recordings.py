"""Calls that are recorded: those that were ordered, and nothing of any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.app import create_app
from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.services import build_services
from qwen_wsgi.state.recordings import Recordings, read
from tests.api.apps import UPSTREAM_KEY, running
from tests.fakes.clock import FakeClock
from tests.fakes.upstream import settings_of
from tests.kit.secrets import core, secret

KEY, OTHER_KEY = secret("recorded-client"), secret("other-client")
MODEL = "qwen3-coder-plus"
HELLO = {"model": MODEL, "messages": [{"role": "user", "content": "remember this"}]}


class World:
    """The application with a state directory, and the command beside it."""

    def __init__(self, sandbox: Sandbox, directory: Path, keys: str) -> None:
        settings = settings_of(
            DASHSCOPE_BASE_URL=sandbox.base_url,
            DASHSCOPE_API_KEY=UPSTREAM_KEY,
            QWEN_PROXY_API_KEYS=keys,
            LOG_LEVEL="ERROR",
        )
        clock = FakeClock()
        self.directory = directory
        self.services = build_services(settings, clock, state_dir=directory)
        self.command = Recordings(directory / "recordings", clock)
        self.client = create_app(services=self.services).test_client()

    def post(self, body: Any, key: str = KEY, path: str = "/v1/chat/completions") -> Any:
        headers = {"Authorization": f"Bearer {key}", "X-Api-Key": key, "User-Agent": "a test"}
        return self.client.post(path, json=body, headers=headers)

    def recorded(self) -> list[dict[str, Any]]:
        found = [read(path) for path in self.command.files()]
        assert None not in found
        return [each for each in found if each is not None]


@contextmanager
def world_of(
    sandbox: Sandbox, directory: Path, keys: str = f"{KEY},{OTHER_KEY}"
) -> Iterator[World]:
    world = World(sandbox, directory, keys)
    try:
        yield world
    finally:
        world.services.close()


@pytest.fixture
def world(sandbox: Sandbox, tmp_path: Path) -> Iterator[World]:
    with world_of(sandbox, tmp_path / "state") as made:
        yield made


def test_without_an_order_nothing_is_written(world: World) -> None:
    for _ in range(3):
        assert world.post(HELLO).status_code == 200

    stored = [path for path in world.directory.rglob("*") if path.is_file()]
    assert not any(b"remember this" in path.read_bytes() for path in stored)
    assert not (world.directory / "recordings").exists()


def test_the_next_calls_of_that_key_are_recorded(world: World) -> None:
    world.command.order("env-1", 2, 10)
    answers = [
        world.post({**HELLO, "user": str(n)}, key)
        for n, key in enumerate((KEY, OTHER_KEY, KEY, KEY))
    ]
    first, second = world.recorded()

    assert [each["request"]["body"]["user"] for each in (first, second)] == ["0", "2"]
    assert first["request"]["body"] == {**HELLO, "user": "0"}
    assert (first["request"]["method"], first["request"]["path"]) == (
        "POST",
        "/v1/chat/completions",
    )
    assert first["request"]["headers"]["user-agent"] == "a test"
    assert not {"authorization", "x-api-key", "cookie"} & first["request"]["headers"].keys()
    assert first["response"]["status"] == 200
    assert json.loads(first["response"]["body"]) == answers[0].json
    assert first["call"]["account"] == "dashscope"
    assert first["call"]["outcome"] == "complete"
    text = "".join(path.read_text() for path in world.command.files())
    assert core(KEY) not in text and core(UPSTREAM_KEY) not in text


def test_a_stream_is_recorded_as_it_was_sent(world: World) -> None:
    world.command.order("env-1", 1, 10)
    answer = world.post({**HELLO, "stream": True})
    sent = answer.data.decode()
    answer.close()
    (recording,) = world.recorded()

    assert recording["response"]["body"] == sent
    assert recording["response"]["whole"] is True
    assert sent.endswith("data: [DONE]\n\n")


def test_a_refusal_is_recorded(world: World) -> None:
    world.command.order("env-1", 1, 10)
    answer = world.post({"model": MODEL, "messages": "none"})
    (recording,) = world.recorded()

    assert (answer.status_code, recording["response"]["status"]) == (400, 400)
    assert recording["call"]["outcome"] == "refused"


def test_the_caller_without_keys_is_local(sandbox: Sandbox, tmp_path: Path) -> None:
    with world_of(sandbox, tmp_path, keys="") as world:
        world.command.order("local", 1, 10)
        world.client.post("/v1/messages", json={**HELLO, "max_tokens": 9})
        (recording,) = world.recorded()

    assert recording["request"]["path"] == "/v1/messages"


def test_a_key_in_a_prompt_is_masked(world: World) -> None:
    world.command.order("env-1", 1, 10)
    world.post({**HELLO, "messages": [{"role": "user", "content": f"my key is {OTHER_KEY}"}]})
    (recording,) = world.recorded()

    told = recording["request"]["body"]["messages"][0]["content"]
    assert told.startswith("my key is ")
    assert core(OTHER_KEY) not in told


def test_every_secret_of_the_settings_is_masked() -> None:
    state, upstream = secret("state"), secret("up")
    with running(
        QWEN_UPSTREAM_BASE_URL="http://127.0.0.1:9/v1",
        QWEN_UPSTREAM_API_KEY=upstream,
        QWEN_PROXY_STATE_KEY=state,
    ) as app:
        masked = app.services.redact(f"{state} {upstream}")

    assert core(state) not in masked and core(upstream) not in masked


def test_what_only_a_server_of_tools_is_to_get_is_not_recorded(world: World) -> None:
    server = {"type": "url", "name": "mine", "url": "https://mcp.example/"}
    asked = {**HELLO, "max_tokens": 10, "mcp_servers": [{**server, "authorization_token": "abc4"}]}
    world.command.order("env-1", 1, 10)
    world.post(asked, path="/v1/messages")
    (recording,) = world.recorded()

    assert recording["request"]["body"]["mcp_servers"] == [{**server, "url": "https://mcp.example"}]
