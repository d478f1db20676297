"""Which URLs of results are fetched."""

from __future__ import annotations

import pytest

from qwen_wsgi.upstream.http.result_urls import RefusedURL, checked, is_public

ACCOUNT = "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"
OSS = "dashscope-result-sgp.oss-ap-southeast-1.aliyuncs.com"


@pytest.mark.parametrize(
    ("url", "fetched"),
    [
        (f"https://{OSS}/1/a.png?Expires=1&Signature=x%2B", None),
        (f"http://{OSS}/a.png?b", f"https://{OSS}/a.png?b"),
        (f"http://{OSS}:80/a.png", f"https://{OSS}/a.png"),
        (f"https://{OSS}:8443/a.png", None),
        ("https://dashscope-intl.aliyuncs.com/file", None),
        ("https://cdn.example/a", None),
        ("https://x.b.example/a", None),
        (f"HTTPS://{OSS.upper()}/A", None),
    ],
)
def test_results_of_the_vendor_are_fetched_encrypted(url: str, fetched: str | None) -> None:
    assert checked(url, ACCOUNT, ("cdn.example", "*.b.example")) == (fetched or url)


@pytest.mark.parametrize(
    "url",
    [
        None,
        5,
        "",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://x.aliyuncs.com/a",
        "gopher://x.aliyuncs.com/",
        "https:///a",
        "https://aliyuncs.com/a",
        "https://evilaliyuncs.com/a",
        "https://aliyuncs.com.evil.example/a",
        "https://x.aliyuncs.com.evil.example/a",
        "https://evil.example/x.aliyuncs.com",
        "https://evil.example?x.aliyuncs.com",
        "https://evil.example#.aliyuncs.com",
        "https://evil.example\\@x.aliyuncs.com/",
        "https://x.aliyuncs.com@evil.example/a",
        "https://user:secret@x.aliyuncs.com/a",
        "https://@x.aliyuncs.com/a",
        "https://x.aliyuncs.com:99999/a",
        "https://x.aliyuncs.com:0x50/a",
        "https://169.254.169.254/latest/meta-data",
        "https://127.0.0.1/a",
        "https://[::1]/a",
        "https://[::ffff:10.0.0.1]/a",
        "https://2130706433/a",
        "https://0x7f.1/a",
        "https://localhost/a",
        "https://x..aliyuncs.com/a",
        "https://x_y.aliyuncs.com/a",
        "https://-x.aliyuncs.com/a",
        "https://x.aliyuncs.com./a",
        "https://b.example/a",
        "https://x.cdn.example/a",
        "https://x.aliyuncs.com/a b",
        "https://x.aliyuncs.com/a\r\nHost: evil",
        "https://x.aliyuncs.com/\x00",
        "https://ｘ.aliyuncs.com/a",
        "https://x.aliyuncs.com/" + "a" * 9000,
        f"http://{OSS}:8080/a",
        "http://dashscope-intl.aliyuncs.com/file",
    ],
)
def test_other_urls_are_refused(url: object) -> None:
    with pytest.raises(RefusedURL):
        checked(url, ACCOUNT, ("cdn.example", "*.b.example"))


def test_a_refusal_quotes_nothing_but_the_host() -> None:
    with pytest.raises(RefusedURL) as raised:
        checked("https://evil.example/secret?token=secret", ACCOUNT)

    assert "evil.example" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_an_account_without_encryption_may_have_results_without() -> None:
    base_url = "http://127.0.0.1:5000/v1"

    for url in ("http://127.0.0.1:5000/a", f"http://{OSS}/a", f"https://{OSS}/a"):
        assert checked(url, base_url) == url
    for url in ("http://127.0.0.1:5001/a", "http://127.0.0.2:5000/a", "https://10.0.0.1/a"):
        with pytest.raises(RefusedURL):
            checked(url, base_url)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("47.88.0.1", True),
        ("2606:4700::1111", True),
        ("10.1.2.3", False),
        ("127.0.0.1", False),
        ("169.254.169.254", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("100.100.100.200", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:192.168.0.1", False),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::808:808", True),
        ("2002:a00:1::1", False),
        ("no address", False),
    ],
)
def test_addresses_of_the_internet(address: str, public: bool) -> None:
    assert is_public(address) is public
