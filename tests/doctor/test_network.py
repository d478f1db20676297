"""The way to the upstreams."""

from __future__ import annotations

import socket
import ssl

import pytest

from qwen_wsgi.doctor import network
from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.doctor.network import Target, proxy_for, targets
from tests.fakes.machine import NOON_S, FakeMachine, faults, one

HTTPS = Target("https", "up.example", 443, ("dashscope",), True)
LOCAL = Target("http", "127.0.0.1", 8000, ("upstream",), True)


def way(target: Target, machine: FakeMachine, **environ: str) -> list[Finding]:
    return list(network.check((target,), environ, machine))


def test_a_good_way(machine: FakeMachine) -> None:
    found = one(way(HTTPS, machine))

    assert found.level is Level.OK
    assert "resolves to 192.0.2.1, connects in" in found.what
    assert "valid until 2027-02-19" in found.what


def test_hosts_are_looked_at_once() -> None:
    used = [
        ("a", "https://up.example/v1", True),
        ("b", "https://up.example/other", True),
        ("c", "http://up.example:8000/v1", False),
    ]

    assert targets(used) == (
        Target("https", "up.example", 443, ("a", "b"), True),
        Target("http", "up.example", 8000, ("c",), False),
    )


def test_no_host_is_no_ok(machine: FakeMachine) -> None:
    assert one(network.check((), {}, machine)).level is Level.SKIPPED


def test_plain_http_on_this_machine_is_fine(machine: FakeMachine) -> None:
    assert one(way(LOCAL, machine)).level is Level.OK


def test_a_key_in_clear_is_told(machine: FakeMachine) -> None:
    target = LOCAL._replace(host="192.0.2.7")

    assert "crosses the network unencrypted" in one(faults(way(target, machine))).what
    assert faults(way(target._replace(secret=False), machine)) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
def test_a_name_that_does_not_resolve(machine: FakeMachine, error: OSError, words: str) -> None:
    machine.addresses = error

    found = one(way(HTTPS, machine))

    assert found.level is Level.FAIL
    assert f"its name does not resolve ({words})" in found.what
    assert machine.connected == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (TimeoutError("timed out"), "no answer in time"),
    ],
)
def test_a_host_that_takes_no_connection(machine: FakeMachine, error: OSError, words: str) -> None:
    machine.refuses = error

    found = one(way(HTTPS, machine))

    assert (found.level, words in found.what) == (Level.FAIL, True)
    assert "HTTPS_PROXY" in found.remedy
    assert "Check that the server is running" in one(way(LOCAL, machine)).remedy


def _untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError("no")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("certificate", "level", "words"),
    [
        (NOON_S + 15 * 86_400, "ok", "valid until"),
        (NOON_S + 13 * 86_400, "warn", "13 days from now"),
        (_untrusted(), "fail", "not trusted (self-signed certificate)"),
        (ssl.SSLError(1, "wrong version number"), "fail", "wrong version number"),
        (KeyError("notAfter"), "fail", "TLS fails"),
    ],
    ids=str,
)
def test_the_certificate(
    machine: FakeMachine, certificate: float | Exception, level: str, words: str
) -> None:
    machine.certificate = certificate

    found = one(way(HTTPS, machine))

    assert (found.level.value, words in found.what) == (level, True)


def test_a_fault_of_the_check_is_no_ok(machine: FakeMachine) -> None:
    machine.certificate = RuntimeError("oops")

    found = one(way(HTTPS, machine))

    assert (found.level, "oops" in found.what) == (Level.SKIPPED, True)


class TestProxies:
    @pytest.mark.parametrize(
        ("environ", "name"),
        [
            ({}, ""),
            ({"HTTPS_PROXY": "http://p:3128"}, "HTTPS_PROXY"),
            ({"HTTPS_PROXY": "http://p:1", "https_proxy": "http://p:2"}, "https_proxy"),
            ({"HTTP_PROXY": "http://p:3128"}, ""),
            ({"ALL_PROXY": "http://p:3128"}, "ALL_PROXY"),
            ({"HTTPS_PROXY": "http://p", "NO_PROXY": "*"}, ""),
            ({"HTTPS_PROXY": "http://p", "NO_PROXY": "other, .example"}, ""),
            ({"HTTPS_PROXY": "http://p", "no_proxy": "up.example:443"}, ""),
            ({"HTTPS_PROXY": "http://p", "no_proxy": "p.example"}, "HTTPS_PROXY"),
            ({"HTTPS_PROXY": "", "https_proxy": ""}, ""),
        ],
        ids=str,
    )
    def test_which_is_used(self, environ: dict[str, str], name: str) -> None:
        assert proxy_for(HTTPS, environ)[0] == name

    def test_a_range_of_addresses_is_exempt(self) -> None:
        environ = {"HTTP_PROXY": "http://p", "no_proxy": "127.0.0.0/8"}

        assert proxy_for(LOCAL, environ) == ("", None)

    def test_it_is_named_without_its_password_and_tried(self, machine: FakeMachine) -> None:
        found = way(HTTPS, machine, HTTPS_PROXY="http://me:secret@proxy.example:3128")

        assert [each.level for each in found] == [Level.NOTE, Level.OK]
        assert "proxy.example:3128" in found[0].what
        assert "secret" not in str(found)
        assert machine.connected == [("proxy.example", 3128)]

    @pytest.mark.parametrize("value", ["http://proxy.example:3128", "proxy.example:3128"])
    def test_it_cannot_be_reached(self, machine: FakeMachine, value: str) -> None:
        machine.refuses = ConnectionRefusedError(111, "Connection refused")

        fault = one(faults(way(HTTPS, machine, HTTPS_PROXY=value)))

        assert fault.subject == "proxy.example:3128"
        assert "HTTPS_PROXY" in fault.remedy

    def test_it_is_none(self, machine: FakeMachine) -> None:
        assert one(way(HTTPS, machine, HTTPS_PROXY="http://p:http")).level is Level.FAIL
