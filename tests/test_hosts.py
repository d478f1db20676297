"""Hosts are told apart by name."""

from __future__ import annotations

import pytest

from qwen_wsgi.capabilities import may_have
from qwen_wsgi.hosts import (
    Family,
    batch_chat_url,
    family_of,
    named_family,
    openai_base_url,
)
from qwen_wsgi.net import is_loopback


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://dashscope.aliyuncs.com/compatible-mode/v1", Family.DASHSCOPE),
        ("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", Family.DASHSCOPE),
        ("https://dashscope-us.aliyuncs.com/compatible-mode/v1", Family.DASHSCOPE),
        ("https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1", Family.DASHSCOPE),
        ("https://batch.dashscope.aliyuncs.com/compatible-mode/v1", Family.DASHSCOPE),
        ("https://DASHSCOPE.Aliyuncs.com:443/v1", Family.DASHSCOPE),
        ("https://ws-1.cn-beijing.maas.aliyuncs.com/compatible-mode/v1", Family.DASHSCOPE),
        ("https://trial.eu-central-1.maas.aliyuncs.com/compatible-mode/v1", Family.DASHSCOPE),
        ("https://x.routify.alibaba-inc.com/v1", Family.DASHSCOPE),
        ("https://coding.dashscope.aliyuncs.com/v1", Family.CODING_PLAN),
        ("https://coding-intl.dashscope.aliyuncs.com/v1", Family.CODING_PLAN),
        ("https://token-plan.cn-beijing.maas.aliyuncs.com/compatible-mode/v1", Family.TOKEN_PLAN),
        ("https://token-plan.ap-southeast-1.maas.aliyuncs.com/v1", Family.TOKEN_PLAN),
        ("https://maas.qwencloudapi.com/compatible-mode/v1", Family.DASHSCOPE),
        ("https://maas.qianwenaiapi.com/compatible-mode/v1", Family.DASHSCOPE),
        ("https://ws-1.ap-southeast-1.maas.qwencloudapi.com/v1", Family.DASHSCOPE),
        ("https://token-plan.maas.qwencloudapi.com/compatible-mode/v1", Family.TOKEN_PLAN),
        ("https://token-plan.maas.qianwenaiapi.com/compatible-mode/v1", Family.TOKEN_PLAN),
        ("https://coding.maas.qwencloudapi.com/v1", Family.CODING_PLAN),
        *(
            (f"https://llm-1.{region}.maas.aliyuncs.com/compatible-mode/v1", Family.DASHSCOPE)
            for region in (
                "ap-southeast-1",
                "ap-northeast-1",
                "eu-central-1",
                "us-east-1",
                "cn-hongkong",
            )
        ),
        ("https://portal.qwen.ai/v1", Family.PORTAL),
        ("https://api.openai.com/v1", Family.OTHER),
        ("http://127.0.0.1:8000/v1", Family.OTHER),
        ("http://[::1]:8000/v1", Family.OTHER),
        ("https://chat.qwen.ai/api", Family.OTHER),
        ("https://aliyuncs.com/v1", Family.OTHER),
        ("https://oss-cn-hangzhou.aliyuncs.com/v1", Family.OTHER),
        # Look-alikes of other people.
        ("https://dashscope.aliyuncs.com.evil.example/v1", Family.OTHER),
        ("https://evildashscope.aliyuncs.com.example/v1", Family.OTHER),
        ("https://notdashscope.aliyuncs.com/v1", Family.OTHER),
        ("https://evil.example/dashscope.aliyuncs.com", Family.OTHER),
        ("https://dashscope.aliyuncs.com@evil.example/v1", Family.OTHER),
        ("https://coding.evil.example/v1", Family.OTHER),
        ("https://token-plan.maas.aliyuncs.com.evil.example/v1", Family.OTHER),
        ("https://portal.qwen.ai.evil.example/v1", Family.OTHER),
        ("https://maas.qwencloudapi.com.evil.example/v1", Family.OTHER),
        ("https://evilmaas.qwencloudapi.com/v1", Family.OTHER),
        ("https://www.qwencloudapi.com/v1", Family.OTHER),
        ("", Family.OTHER),
    ],
)
def test_the_family_of_a_base_url(url: str, expected: Family) -> None:
    assert family_of(url) is expected


NAMED = {
    "gateway.example": Family.DASHSCOPE,
    "*.example": Family.TOKEN_PLAN,
    "*.mine.example": Family.OTHER,
}


@pytest.mark.parametrize(
    "model",
    ["qwen9-max", "qwq-64b", "qvq-max", "deepseek-v5", "glm-6", "kimi-k9", "MiniMax-M9"]
    + ["text-embedding-v9", "coder-model"],
)
def test_a_host_of_alibabas_may_have_a_model_that_no_list_names(model: str) -> None:
    assert may_have(Family.TOKEN_PLAN, model)
    assert not may_have(Family.OTHER, model)


@pytest.mark.parametrize("model", ["gpt-5", "claude-9", "llama-9", "flux-9", "wan9", ""])
def test_but_none_of_other_vendors_and_none_that_cannot_be_called(model: str) -> None:
    assert not may_have(Family.DASHSCOPE, model)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("Gateway.Example:8443", Family.DASHSCOPE),
        ("other.example", Family.TOKEN_PLAN),
        ("a.b.example", Family.TOKEN_PLAN),
        ("a.mine.example", Family.OTHER),
        ("example", None),
        ("gateway.example.org", None),
        ("dashscope.aliyuncs.com", None),
    ],
)
def test_the_operator_names_the_family_of_a_host(host: str, expected: Family | None) -> None:
    assert named_family(f"https://{host}/v1", NAMED) is expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://maas.qwencloudapi.com", "https://maas.qwencloudapi.com/compatible-mode/v1"),
        (
            "https://dashscope-intl.aliyuncs.com/api/v1/",
            "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        ),
        (
            "https://token-plan.maas.qianwenaiapi.com/apps/anthropic",
            "https://token-plan.maas.qianwenaiapi.com/compatible-mode/v1",
        ),
        (
            "https://coding.dashscope.aliyuncs.com/apps/anthropic",
            "https://coding.dashscope.aliyuncs.com/v1",
        ),
        ("https://dashscope.aliyuncs.com/v9", "https://dashscope.aliyuncs.com/v9"),
        ("https://gateway.example/api/v1", "https://gateway.example/api/v1"),
        ("https://x.alibaba-inc.com", "https://x.alibaba-inc.com"),
        ("https://[::1", "https://[::1"),
    ],
)
def test_a_base_url_of_another_protocol_at_alibabas_hosts(url: str, expected: str) -> None:
    assert openai_base_url(url) == expected


def test_every_host_but_a_strange_one_is_a_qwen_host() -> None:
    assert {each for each in Family if not each.is_qwen} == {Family.OTHER}


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost",
        "localhost.",
        "app.localhost",
        "127.0.0.1",
        "127.8.9.1",
        "::1",
        "[::1]",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
    ],
)
def test_names_and_addresses_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "unix",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "192.168.1.1",
        "128.0.0.1",
        "::ffff:10.0.0.1",
        "::2",
        "fe80::1",
        "localhost.example",
        "notlocalhost",
        "127.0.0.1.example",
        "127.0.0.1:80",
        "2130706433",
        "0x7f.1",
        "127.1",
        "127.0.0.01",
        "evil.example",
    ],
)
def test_other_hosts_are_not_this_machine(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("base_url", "has_it"),
    [
        ("https://dashscope.aliyuncs.com/compatible-mode/v1", True),
        ("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", False),
        ("https://coding.dashscope.aliyuncs.com/v1", False),
        ("https://dashscope.aliyuncs.com.evil.example/v1", False),
        ("http://127.0.0.1:8000/v1", False),
    ],
)
def test_batch_chat_takes_the_keys_of_one_host(base_url: str, has_it: bool) -> None:
    """A key must not go to a host of another region or plan."""
    url = batch_chat_url(base_url)

    assert url == ("https://batch.dashscope.aliyuncs.com/compatible-mode/v1" if has_it else "")
