"""The site in front of the server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qwen_wsgi import net
from qwen_wsgi.doctor import nginx
from qwen_wsgi.doctor.findings import Finding, Level
from qwen_wsgi.doctor.machine import Ran
from tests.fakes.machine import FakeMachine, faults, levels, of, one
from tests.kit.installed_machine import SHIPPED_SITE, Load, install_nginx, write_site

BIND = net.parse("unix:/run/qwen-proxy/http.sock")


@pytest.fixture
def installed(machine: FakeMachine) -> FakeMachine:
    """nginx with our site, as `make install` leaves it."""
    install_nginx(machine)
    return machine


def found_of(machine: FakeMachine, load: Load, bind: str = str(BIND)) -> list[Finding]:
    site = nginx.look(machine)
    return list(nginx.check(load(), site, net.parse(bind), machine, group="qwen-proxy"))


def test_the_shipped_site_is_fine(installed: FakeMachine, load: Load) -> None:
    found = found_of(installed, load)

    assert {each.level for each in found} == {Level.OK}
    assert set(levels(found)) == {"site", "process", "nginx -t", "upstream", "streams", "socket"}
    assert nginx.look(installed).open_at == ("port 80", "[::]:80")


def test_without_nginx(machine: FakeMachine, load: Load) -> None:
    with pytest.raises(nginx.NotHere, match="no nginx here") as raised:
        nginx.look(machine)

    found = one(nginx.check(load(), raised.value, BIND, machine, group=""))
    assert found.level is Level.SKIPPED


def test_without_our_site(installed: FakeMachine, load: Load) -> None:
    (installed.root / "etc/nginx/sites-enabled/qwen-proxy.conf").unlink()
    with pytest.raises(nginx.NotHere, match="not enabled") as raised:
        nginx.look(installed)
    found = one(nginx.check(load(), raised.value, BIND, installed, group=""))
    assert (found.level, "sudo ln -s" in found.remedy) == (Level.WARN, True)

    (installed.root / "etc/nginx/sites-available/qwen-proxy.conf").unlink()
    with pytest.raises(nginx.NotHere, match="site of qwen-proxy is not installed"):
        nginx.look(installed)


def test_a_site_of_another_name_is_found(installed: FakeMachine) -> None:
    (installed.root / "etc/nginx/sites-enabled/qwen-proxy.conf").unlink()
    other = installed.root / "etc/nginx/conf.d/llm.conf"
    other.write_text("server { location / { proxy_pass http://127.0.0.1:8080; } } # qwen-proxy")
    with pytest.raises(nginx.NotHere):
        nginx.look(installed)  # only a comment says so

    other.write_text(
        "server { server_name qwen-proxy; location / { proxy_pass http://127.0.0.1:8080; } }"
    )

    assert nginx.look(installed).upstreams == (net.parse("127.0.0.1:8080"),)


@pytest.mark.parametrize(
    ("old", "new", "subject", "level", "words"),
    [
        ("proxy_buffering off;", "", "proxy_buffering", "warn", "in one piece"),
        ("proxy_buffering off;", "proxy_buffering on;", "proxy_buffering", "warn", "one piece"),
        ("read_timeout    3600s", "read_timeout 60s", "proxy_read_timeout", "warn", "60 s is less"),
        ("proxy_read_timeout    3600s;", "", "proxy_read_timeout", "warn", "60 s is less"),
        ("body_size 80m", "body_size 8m", "client_max_body_size", "warn", "8388608 bytes"),
        ("http.sock", "other.sock", "upstream", "fail", "every call gets a 502"),
        ("proxy_pass http://qwen_proxy;", "", "upstream", "warn", "no proxy_pass"),
    ],
)
def test_what_is_wrong_with_a_site(
    installed: FakeMachine, load: Load, old: str, new: str, subject: str, level: str, words: str
) -> None:
    assert old in SHIPPED_SITE
    write_site(installed, SHIPPED_SITE.replace(old, new))

    fault = one(faults(found_of(installed, load)))

    assert (fault.subject, fault.level.value, words in fault.what) == (subject, level, True)


def test_websockets_that_do_not_pass_are_told(installed: FakeMachine, load: Load) -> None:
    line = "proxy_set_header Upgrade    $qwen_proxy_upgrade;"
    assert line in SHIPPED_SITE
    write_site(installed, SHIPPED_SITE.replace(line, ""))

    (note,) = of(found_of(installed, load), Level.NOTE)
    assert (note.subject, "use HTTP" in note.what) == ("WebSockets", True)
    off = {"QWEN_PROXY_WEBSOCKETS": "0"}
    site = nginx.look(installed)
    assert list(nginx.websockets(load(**off), site)) == []


def test_uploads_that_a_site_of_an_older_version_stops_are_told(
    installed: FakeMachine, load: Load
) -> None:
    assert "body_size 520m" in SHIPPED_SITE
    write_site(installed, SHIPPED_SITE.replace("client_max_body_size 520m;", ""))

    (note,) = of(found_of(installed, load), Level.NOTE)
    assert (note.subject, "QWEN_PROXY_MAX_UPLOAD" in note.what) == ("uploads", True)


def test_no_limit_of_the_body_is_fine(installed: FakeMachine, load: Load) -> None:
    write_site(installed, SHIPPED_SITE.replace("body_size 80m", "body_size 0"))

    assert faults(found_of(installed, load)) == []


def test_where_the_server_listens_may_not_be_known(installed: FakeMachine, load: Load) -> None:
    found = nginx.check(load(), nginx.look(installed), None, installed, group="")

    assert levels(found)["upstream"] == "skipped"


def test_only_root_may_test_the_configuration(installed: FakeMachine, load: Load) -> None:
    installed.uid = 1000

    (skipped,) = of(found_of(installed, load), Level.SKIPPED)

    assert (skipped.subject, skipped.remedy) == ("nginx -t", "sudo nginx -t")
    assert installed.ran == []


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        (Ran(1, "", "nginx: [emerg] unknown directive\nnginx: failed\n"), "fail", "[emerg]"),
        (Ran(1, "", ""), "fail", "status 1"),
        (OSError("no"), "skipped", "cannot be run"),
    ],
    ids=str,
)
def test_nginx_refuses_its_configuration(
    installed: FakeMachine, load: Load, answer: Ran | OSError, level: str, words: str
) -> None:
    installed.programs["nginx"] = answer

    found = one(nginx.tested(installed))

    assert (found.level.value, words in found.what) == (level, True)


@pytest.mark.parametrize("pid", ["43", "", None])
def test_it_does_not_run(installed: FakeMachine, load: Load, pid: str | None) -> None:
    path = installed.root / "run/nginx.pid"
    path.unlink() if pid is None else path.write_text(pid)

    assert one(faults(found_of(installed, load))).subject == "process"


@pytest.mark.parametrize(
    ("groups", "level"),
    [
        ({"qwen-proxy": ("www-data",)}, "ok"),
        ({"qwen-proxy": ("bob",)}, "fail"),
        ({}, "skipped"),
    ],
)
def test_the_socket_is_open_to_a_group(
    installed: FakeMachine, groups: dict[str, tuple[str, ...]], level: str
) -> None:
    installed.groups = groups

    found = one(nginx.socket_group("qwen-proxy", installed))

    assert found.level.value == level


def test_nginx_as_root_needs_no_group(installed: FakeMachine) -> None:
    (installed.root / "etc/nginx/nginx.conf").write_text("user root;\n")

    assert list(nginx.socket_group("qwen-proxy", installed)) == []


def test_other_files_in_the_way(installed: FakeMachine, load: Load) -> None:
    (installed.root / "etc/nginx/sites-enabled/default").write_text("server {}")
    (installed.root / "etc/nginx/sites-available/qwen-proxy.conf.new").write_text("")

    notes = of(found_of(installed, load), Level.NOTE)

    assert len(notes) == 2
    assert "every name except qwen-proxy" in notes[1].what


@pytest.mark.parametrize(
    ("value", "seconds"), [("3600s", 3600), ("1h 30m", 5400), ("90", 90), ("500ms", 0.5)]
)
def test_times_of_nginx(value: str, seconds: float) -> None:
    assert nginx._seconds(value) == seconds


CERTIFICATE = "/etc/qwen-proxy/tls/server.crt"


def with_certificate(path: str) -> nginx.Site:
    text = SHIPPED_SITE.replace("#ssl_certificate  ", "ssl_certificate  ")
    text = text.replace("/etc/ssl/qwen-proxy/fullchain.pem", path)
    return nginx.Site(Path("site"), re.sub(r"(?m)(^|\s)#.*$", "", text))


@pytest.mark.parametrize(
    ("end", "level", "words"),
    [
        ("Feb 25 22:58:48 2029 GMT", "ok", "valid for 827 days"),
        ("Dec 11 12:00:00 2026 GMT", "warn", "ends in 20 days"),
        ("Nov 19 12:00:00 2026 GMT", "fail", "ended 2 days ago"),
        ("nonsense", "skipped", "cannot be read"),
    ],
)
def test_a_certificate_that_ends_is_told_in_time(
    machine: FakeMachine, end: str, level: str, words: str
) -> None:
    machine.programs["openssl"] = Ran(0, f"notAfter={end}\n", "")

    found = one(nginx.certificates(with_certificate(CERTIFICATE), machine))

    assert (found.subject, found.level.value) == (CERTIFICATE, level)
    assert words in found.what
    if level in ("warn", "fail"):
        assert found.remedy.startswith("sudo make install, then: ")


def test_a_certificate_of_the_operators_own_is_renewed_by_him(machine: FakeMachine) -> None:
    machine.programs["openssl"] = Ran(0, "notAfter=Dec 11 12:00:00 2026 GMT\n", "")

    found = one(nginx.certificates(with_certificate("/etc/ssl/q.pem"), machine))

    assert found.remedy.startswith("Renew it, then: ")


def test_a_certificate_that_cannot_be_read(machine: FakeMachine) -> None:
    site = with_certificate(CERTIFICATE)
    assert one(nginx.certificates(site, machine)).level is Level.SKIPPED

    machine.programs["openssl"] = Ran(1, "", "Can't open it\nand more")
    assert "(Can't open it)" in one(nginx.certificates(site, machine)).what


def test_a_site_without_tls_has_no_certificate(machine: FakeMachine) -> None:
    site = nginx.Site(Path("site"), re.sub(r"(?m)(^|\s)#.*$", "", SHIPPED_SITE))

    assert list(nginx.certificates(site, machine)) == []
