"""Two accounts behind a running server: who answers when one of them does not."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen_wsgi.sandbox import Sandbox
from qwen_wsgi.upstream.routing.cooldown import BREAKS_AT
from tests.kit.proxy import Proxy, start
from tests.kit.raw_client import Exchange
from tests.kit.secrets import secret

pytestmark = pytest.mark.server

FIRST_KEY, SECOND_KEY = secret("first"), secret("second")


class Town:
    """A proxy with two workers in front of two upstreams, accounts `dashscope` and `upstream`."""

    def __init__(self, proxy: Proxy, preferred: Sandbox, other: Sandbox) -> None:
        self.proxy = proxy
        self.preferred = preferred
        self.other = other

    def ask(self, *, fresh: bool = True, **members: Any) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON (or text) of one call on a connection of its own."""
        headers = {"x-qwen-account": members.pop("pin")} if "pin" in members else {}
        body = {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "hi"}], **members}
        with Exchange(self.proxy.port, body, headers=headers, timeout_s=30) as exchange:
            status, told = exchange.head()
            data = exchange.body()
        return status, told, data.decode() if members.get("stream") else json.loads(data)

    def asked(self) -> tuple[int, int]:
        """How many calls each of the upstreams got."""
        self.preferred.settle()
        self.other.settle()
        return len(self.preferred.chats), len(self.other.chats)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Sandbox() as preferred, Sandbox() as other:
        proxy = start(
            tmp_path_factory.mktemp("failover"),
            {
                "QWEN_UPSTREAM_BASE_URL": preferred.base_url,
                "QWEN_UPSTREAM_API_KEY": FIRST_KEY,
                "DASHSCOPE_BASE_URL": other.base_url,
                "DASHSCOPE_API_KEY": SECOND_KEY,
                "QWEN_PROXY_WORKERS": "2",
                "QWEN_PROXY_RETRY_BUDGET": "4",
                "QWEN_PROXY_MODEL_ALIASES": "gpt-4o=dashscope:qwen3.7-plus",
                "QWEN_PROXY_IDLE_TIMEOUT": "2",
                "QWEN_PROXY_FIRST_BYTE_TIMEOUT": "2",
            },
        )
        yield Town(proxy, preferred, other)
        proxy.stop()


@pytest.fixture
def town(running: Town) -> Town:
    running.asked()
    for sandbox in (running.preferred, running.other):
        sandbox.reset()
    running.proxy.forget_troubles()
    return running


def test_the_preferred_account_answers_and_says_so(town: Town) -> None:
    status, headers, _ = town.ask()
    assert status == 200
    assert (headers["x-qwen-proxy-account"], headers["x-qwen-proxy-attempts"]) == ("upstream", "1")
    assert (
        {"queue", "connect", "total", "first"}
        >= {part.split(";")[0].strip() for part in headers["server-timing"].split(",")}
        >= {"queue", "connect", "total"}
    )
    assert town.asked() == (1, 0)


@pytest.mark.parametrize(
    ("fault", "stream"),
    [
        *itertools.product(("throttle", "status=500", "html-502", "reset", "hang"), (False, True)),
        *itertools.product(
            ("empty-stream", "throttle-in-stream=0", "error-finish, text="), (True,)
        ),
    ],
)
def test_what_the_other_may_answer_goes_there_unseen(town: Town, fault: str, stream: bool) -> None:
    town.preferred.control(faults={"chat": fault})
    status, headers, told = town.ask(stream=stream)
    assert status == 200
    assert headers["x-qwen-proxy-account"] == "dashscope"
    # A kept connection that is reset may have been given up: first a new one is tried.
    attempts = ("2", "3") if fault == "reset" else ("2",)
    assert headers["x-qwen-proxy-attempts"] in attempts
    assert "[sandbox]" in str(told)


def test_a_throttled_account_is_left_alone_by_all_workers(town: Town) -> None:
    town.preferred.control(faults={"chat": "throttle, retry-after=30"})
    for _ in range(12):
        assert town.ask()[0] == 200
    assert town.asked() == (1, 12)
    town.preferred.control(faults={"chat": ""})
    another = town.ask(model="qwen3.6-plus", prompt_cache_key="another talk")
    assert another[1]["x-qwen-proxy-account"] == "upstream", "another model has another limit"


def test_a_model_that_no_list_names_is_asked_for_on_the_chance_and_a_refusal_is_remembered(
    town: Town,
) -> None:
    status, headers, _ = town.ask(model="deepseek-v4-pro-0813")
    assert (status, headers["x-qwen-proxy-account"]) == (200, "dashscope")
    assert town.asked() == (0, 1), "the other server is none of Alibaba's: its list is believed"

    town.other.control(faults={"chat": "model-not-found"})
    for _ in range(4):
        status, _, told = town.ask(model="qwen9-max")
        assert (status, told["error"]["code"]) == (404, "model_not_found")
    assert town.asked() == (0, 2), "one of the four"


def test_a_fault_of_the_request_is_told_at_once(town: Town) -> None:
    town.preferred.control(faults={"chat": "context-length"})
    status, headers, told = town.ask()
    assert (status, told["error"]["code"]) == (400, "context_length_exceeded")
    assert headers["x-qwen-proxy-attempts"] == "1"
    assert town.asked() == (1, 0)


def test_after_the_first_byte_nothing_is_tried_again(town: Town) -> None:
    town.preferred.control(faults={"chat": "cut-after=3"})
    with Exchange(
        town.proxy.port,
        {"model": "qwen3.7-plus", "stream": True, "messages": [{"role": "user", "content": "hi"}]},
    ) as exchange:
        received = exchange.read_to_end()
    assert b"upstream_broken" in received and b"[DONE]" not in received
    assert town.asked() == (1, 0)


@pytest.mark.parametrize(
    ("fault", "next_one"),
    [("throttle-in-stream=3", "dashscope"), ("cut-after=3", "upstream")],
)
def test_what_is_said_in_the_middle_of_an_answer_counts_for_the_next_call(
    town: Town, fault: str, next_one: str
) -> None:
    """That an account is throttled; not that a server went down and cut all its streams."""
    town.preferred.control(faults={"chat": fault})
    asked = {
        "model": "qwen3.7-plus",
        "stream": True,
        "messages": [{"role": "user", "content": "hi"}],
    }
    for _ in range(BREAKS_AT if next_one == "upstream" else 1):
        with Exchange(town.proxy.port, asked) as exchange:
            received = exchange.read_to_end()
        assert b"[sandbox]" in received and b"[DONE]" not in received
        assert b'"error"' in received
    town.preferred.control(faults={"chat": ""})
    assert town.ask()[1]["x-qwen-proxy-account"] == next_one


def test_when_both_are_throttled_the_client_is_told_until_when(town: Town) -> None:
    for sandbox in (town.preferred, town.other):
        sandbox.control(faults={"chat": "throttle, retry-after=20"})
    status, headers, told = town.ask()
    assert (status, told["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(headers["retry-after"]) <= 60
    status, headers, told = town.ask()
    assert (status, told["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(headers["retry-after"]) <= 20
    assert town.asked() == (1, 1), "a storm of retries reaches nobody"


def test_a_short_throttle_is_waited_for(town: Town) -> None:
    for sandbox in (town.preferred, town.other):
        sandbox.control(faults={"chat": "throttle, retry-after=1"})
    begun = time.monotonic()
    healed = threading.Timer(0.7, lambda: town.preferred.control(faults={"chat": ""}))
    healed.start()
    assert town.ask()[0] == 200
    assert 0.9 < time.monotonic() - begun < 4.5
    healed.join()


def test_a_pinned_account_answers_alone(town: Town) -> None:
    assert town.ask(pin="dashscope")[1]["x-qwen-proxy-account"] == "dashscope"
    assert town.ask(model="dashscope:qwen3.7-plus")[1]["x-qwen-proxy-account"] == "dashscope"
    town.other.control(faults={"chat": "throttle, retry-after=30"})
    status, headers, _ = town.ask(pin="dashscope")
    assert (status, headers.get("x-should-retry", "")) == (429, "")
    status, _, told = town.ask(pin="nobody")
    assert (status, told["error"]["code"]) == (400, "account_not_found")
    assert town.asked()[0] == 0


def test_a_conversation_stays_where_it_is_cached(town: Town) -> None:
    town.preferred.control(faults={"chat": "throttle, retry-after=1"})
    talk: dict[str, Any] = {"prompt_cache_key": "talk-1"}
    assert town.ask(**talk)[1]["x-qwen-proxy-account"] == "dashscope"
    town.preferred.control(faults={"chat": ""})
    time.sleep(1.2)
    for _ in range(4):
        assert town.ask(**talk)[1]["x-qwen-proxy-account"] == "dashscope"
    assert town.ask(prompt_cache_key="talk-2")[1]["x-qwen-proxy-account"] == "upstream"


@pytest.mark.parametrize("stream", [False, True])
def test_an_alias_answers_by_the_name_that_was_asked(town: Town, stream: bool) -> None:
    with openai.OpenAI(base_url=town.proxy.base_url, api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "hi"}]
        if stream:
            chunks = list(
                client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
            )
            assert {chunk.model for chunk in chunks} == {"gpt-4o"}
        else:
            raw = client.chat.completions.with_raw_response.create(
                model="gpt-4o", messages=messages
            )
            assert raw.headers["x-qwen-proxy-changed"].startswith("model:qwen3.7-plus")
            assert raw.parse().model == "gpt-4o"
    assert json.loads(town.other.chats[-1].body or b"")["model"] == "qwen3.7-plus"


def test_what_was_changed_is_named(town: Town) -> None:
    status, headers, _ = town.ask(
        model="dashscope:qwen3.7-plus",
        temperature=2,
        frequency_penalty=1,
        messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    )
    assert status == 200
    changed = headers["x-qwen-proxy-changed"]
    for field in ("temperature", "frequency_penalty", "messages"):
        assert f"{field}:" in changed
    town.asked()
    sent = json.loads(town.other.chats[-1].body or b"")
    assert sent["temperature"] < 2 and "frequency_penalty" not in sent
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("stream", [False, True])
def test_several_choices_of_a_model_that_gives_one(town: Town, stream: bool) -> None:
    with openai.OpenAI(base_url=town.proxy.base_url, api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "hi"}]
        model = "dashscope:qwen3.7-plus"
        if stream:
            chunks = list(
                client.chat.completions.create(model=model, messages=messages, n=3, stream=True)
            )
            seen = {choice.index for chunk in chunks for choice in chunk.choices}
        else:
            whole = client.chat.completions.create(model=model, messages=messages, n=3)
            assert whole.usage is not None and whole.usage.completion_tokens > 0
            seen = {choice.index for choice in whole.choices}
    assert seen == {0, 1, 2}
    assert town.asked() == (0, 3)


def test_old_functions_get_an_old_answer(town: Town) -> None:
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    asked: Any = {
        "model": "dashscope:qwen3.7-plus",
        "messages": [{"role": "user", "content": "[[sandbox: tools=1]] hi"}],
        "functions": [function],
    }
    with openai.OpenAI(base_url=town.proxy.base_url, api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**asked).choices[0]
        chunks = list(client.chat.completions.create(**asked, stream=True))
    assert whole.finish_reason == "function_call"
    assert whole.message.function_call is not None
    calls = [each.choices[0].delta.function_call for each in chunks if each.choices]
    names = [each.name for each in calls if each and each.name]
    assert [whole.message.function_call.name] == names == ["weather"]
    assert "function_call" in {each.choices[0].finish_reason for each in chunks if each.choices}


def test_strict_refuses_what_it_would_have_to_change(tmp_path: Path, sandbox: Sandbox) -> None:
    proxy = start(
        tmp_path,
        {
            "DASHSCOPE_BASE_URL": sandbox.base_url,
            "DASHSCOPE_API_KEY": SECOND_KEY,
            "QWEN_PROXY_STRICT": "1",
        },
    )
    try:
        body = {"model": "qwen3.7-plus", "messages": [{"role": "user", "content": "hi"}]}
        with Exchange(proxy.port, {**body, "logit_bias": {"1": 1}}) as exchange:
            status, _ = exchange.head()
            error = json.loads(exchange.body())["error"]
        assert (status, error["param"]) == (400, "logit_bias")
        with Exchange(proxy.port, body) as exchange:
            assert exchange.head()[0] == 200
    finally:
        proxy.stop()
