"""How much memory an answer costs a proxy's worker."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.kit.proxy import Proxy

MB: Final = 1_000_000


class Memory:
    """The memory of a proxy's worker, by the kernel's count."""

    def __init__(self, proxy: Proxy) -> None:
        pid = proxy.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self._worker = Path("/proc") / max(
            children, key=lambda each: self._mb(Path("/proc") / each)
        )

    def _mb(self, process: Path, field: str = "VmRSS") -> float:
        for line in (process / "status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1000
        raise AssertionError(f"no {field}")

    def __enter__(self) -> Memory:
        (self._worker / "clear_refs").write_text("5")  # forget the peak: proc(5)
        self._before_mb = self._mb(self._worker)
        self.grown_mb = 0.0
        return self

    def __exit__(self, *error: object) -> None:
        self.grown_mb = self._mb(self._worker, "VmHWM") - self._before_mb


def ask(
    proxy: Proxy, path: str, body: dict[str, Any], *, method: str = "POST"
) -> tuple[bytes, int]:
    """The end of an answer, and its size; read without holding up other threads."""
    data = json.dumps(body).encode()
    request = f"{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\n"
    request += f"Host: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
    kept, size, buffer = b"", 0, bytearray(MB)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=60) as sock:
        sock.sendall(request.encode() + data)
        with suppress(ConnectionResetError):
            while count := sock.recv_into(buffer):
                size += count
                kept = (kept + bytes(buffer[max(0, count - 2000) : count]))[-2000:]
    return kept, size
