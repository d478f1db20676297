"""The certificate authority that `make install TLS=internal` makes."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.kit.servers import REPO

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def make(directory: Path, *names: str) -> str:
    """Run the script; what it prints."""
    done = subprocess.run(
        ["sh", str(REPO / "install/tls.sh"), str(directory), *names],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "tls"


def told(certificate: Path) -> str:
    command = ["openssl", "x509", "-in", str(certificate), "-noout", "-text"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_strict_clients_accept_the_certificate(place: Path) -> None:
    assert make(place, "qwen.lan", "localhost", "127.0.0.1") == "new\n"

    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslserver"]
        + ["-CAfile", str(place / "ca.crt"), str(place / "server.crt")],
        capture_output=True,
        text=True,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    text = told(place / "server.crt")
    assert "DNS:qwen.lan, DNS:localhost, IP Address:127.0.0.1" in text
    assert "CA:FALSE" in text
    assert "pathlen:0" in told(place / "ca.crt")
    ssl.create_default_context(cafile=str(place / "ca.crt"))
    assert (place / "ca.key").stat().st_mode & 0o077 == 0
    assert (place / "server.key").stat().st_mode & 0o077 == 0


def test_what_is_still_good_is_kept(place: Path) -> None:
    make(place, "qwen.lan")
    before = {path.name: path.read_bytes() for path in place.iterdir()}

    assert make(place, "qwen.lan") == ""
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


def test_other_names_get_a_certificate_of_the_same_authority(place: Path) -> None:
    make(place, "qwen.lan")
    authority = (place / "ca.crt").read_bytes()

    assert make(place, "other.lan", "10.0.0.7") == "new\n"
    assert "DNS:other.lan, IP Address:10.0.0.7" in told(place / "server.crt")
    assert (place / "ca.crt").read_bytes() == authority


def test_a_certificate_that_ends_soon_is_replaced(place: Path) -> None:
    make(place, "qwen.lan")
    authority = (place / "ca.crt").read_bytes()
    soon = place / "soon.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-key", str(place / "server.key"), "-days", "80"]
        + ["-subj", "/CN=qwen.lan", "-out", str(soon)],
        check=True,
        capture_output=True,
    )
    soon.replace(place / "server.crt")

    assert make(place, "qwen.lan") == "new\n"
    assert (place / "ca.crt").read_bytes() == authority


def test_a_long_name_fits(place: Path) -> None:
    name = ".".join(["a-rather-long-label"] * 5)

    assert make(place, name) == "new\n"
    assert f"DNS:{name}" in told(place / "server.crt")
