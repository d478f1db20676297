"""Certificates that sign themselves, made by openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def self_signed(path: Path, name: str, *, days: int = 2) -> Path:
    """Write a certificate and its key into one file, which is also what a client has to trust.

    Args:
        name: that it has, as openssl writes it: `DNS:localhost` or `IP:127.0.0.1`.
        days: that it is good for.
    """
    certificate = path.with_suffix(".crt")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-days", str(days), "-subj", f"/CN={name.partition(':')[2]}"]
        + ["-addext", f"subjectAltName={name}", "-keyout", str(path), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    with path.open("a") as file:
        file.write(certificate.read_text())
    return path
