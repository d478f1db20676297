"""Certificates of tests."""

from __future__ import annotations

import subprocess
from pathlib import Path


def self_signed(path: Path, name: str) -> Path:
    """A certificate that signs itself, with its key in one file; made by the program `openssl`.

    Args:
        name: whose it is, as a subject's alternative name: `DNS:localhost`, `IP:127.0.0.1`.
    """
    certificate = path.with_suffix(".crt")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        + ["-nodes", "-days", "2", "-subj", f"/CN={name.partition(':')[2]}"]
        + ["-addext", f"subjectAltName={name}", "-keyout", str(path), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    with path.open("a") as file:
        file.write(certificate.read_text())
    return path
