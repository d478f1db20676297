"""Which addresses are accepted, and how they are written."""

from __future__ import annotations

import pytest

from qwen_wsgi import net


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("portal.qwen.ai", "https://portal.qwen.ai/v1"),
        ("  portal.qwen.ai\n", "https://portal.qwen.ai/v1"),
        ("portal.qwen.ai/", "https://portal.qwen.ai/v1"),
        ("https://portal.qwen.ai", "https://portal.qwen.ai/v1"),
        ("https://portal.qwen.ai/v1", "https://portal.qwen.ai/v1"),
        ("https://portal.qwen.ai/v1//", "https://portal.qwen.ai/v1"),
        ("HTTPS://Portal.Qwen.AI/v1", "https://portal.qwen.ai/v1"),
        (
            "dashscope.aliyuncs.com/compatible-mode",
            "https://dashscope.aliyuncs.com/compatible-mode/v1",
        ),
        ("host:8443/x", "https://host:8443/x/v1"),
        ("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1"),
        ("http://127.3.2.1:9", "http://127.3.2.1:9/v1"),
        ("http://localhost:9", "http://localhost:9/v1"),
        ("http://[::1]:9", "http://[::1]:9/v1"),
        ("http://[::ffff:127.0.0.1]:9", "http://[::ffff:127.0.0.1]:9/v1"),
        ("https://[2001:db8::1]", "https://[2001:db8::1]/v1"),
        ("my_host.local", "https://my_host.local/v1"),
    ],
)
def test_a_resource_url_becomes_a_base_url(raw: str, expected: str) -> None:
    assert net.from_resource_url(raw) == expected


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("http://portal.qwen.ai", "plain http"),
        ("http://127.0.0.1.evil.example/v1", "plain http"),
        ("http://localhost.evil.example", "plain http"),
        ("http://evil.localhost", "plain http"),
        ("http://localhost.", "plain http"),
        ("http://10.0.0.1", "plain http"),
        ("ftp://portal.qwen.ai", "http"),
        ("file:///etc/passwd", "http"),
        ("https://", "host"),
        ("https://user:pass@portal.qwen.ai", "user name or password"),
        ("https://portal.qwen.ai/?key=1", "? or #"),
        ("portal.qwen.ai#x", "? or #"),
        ("portal qwen.ai", "characters"),
        ("portal.qwen.ai\r\nHost: evil", "characters"),
        ("pörtal.qwen.ai", "characters"),
        ("host:port", "host or port"),
        ("https://[::1", "host or port"),
        ("https://$REGION.example.test", "placeholder"),
        ("https://{WorkspaceId}.cn-beijing.maas.aliyuncs.com", "placeholder"),
    ],
)
def test_a_dangerous_resource_url_is_refused(raw: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("?", r"\?")) as caught:
        net.from_resource_url(raw)

    assert "pass@" not in str(caught.value)


def test_an_operators_base_url_may_be_plain_http_and_gets_no_v1() -> None:
    assert net.base_url("http://10.0.0.5:8000/api/") == "http://10.0.0.5:8000/api"
