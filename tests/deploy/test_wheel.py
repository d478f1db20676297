"""A wheel serves wherever it is put: below a home, in a target directory, in an environment."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.kit import servers
from tests.kit.checkout import ENVIRONMENT, copy_of_checkout
from tests.kit.processes import free_port
from tests.kit.servers import REPO, Server

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        + ["--wheel-dir", str(base / "dist"), str(copy_of_checkout(base / "checkout"))],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    (found,) = (base / "dist").glob("*.whl")
    return found


def test_it_has_all_that_serving_needs_inside_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for name in ("gunicorn.conf.py", "wsgi.py"):
            assert archive.read(f"qwen_wsgi/_server/{name}") == (REPO / name).read_bytes()
        constraints = archive.read("qwen_wsgi/constraints.txt")  # doctor compares with it
    assert constraints == (REPO / "qwen_wsgi/constraints.txt").read_bytes()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"qwen_wsgi"}


@pytest.mark.parametrize("how", ["target", "user"])
def test_it_serves_where_pip_puts_it(wheel: Path, tmp_path: Path, how: str) -> None:
    """`pip install --target` and `--user`; the dependencies are those of the tests."""
    place = tmp_path / "a place"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    if how == "target":
        where = ["--target", str(place)]
        found = place
    else:
        # --user needs a Python whose site is on; --prefix makes the same layout.
        where = ["--prefix", str(place), "--ignore-installed"]
        found = place / f"lib/python3.{sys.version_info.minor}/site-packages"
    subprocess.run([*pip, *where, str(wheel)], env=ENVIRONMENT, check=True, timeout=120)
    assert (found / "qwen_wsgi/_server/wsgi.py").is_file()
    port = free_port()
    server = Server(
        [sys.executable, "-P", "-m", "qwen_wsgi.cli", "serve", "--port", str(port)],
        tmp_path / "log",
        {
            **{name: ENVIRONMENT[name] for name in ("PATH",)},
            "HOME": str(tmp_path),
            "PYTHONPATH": str(found),
            "QWEN_PROXY_SANDBOX": "1",
            "QWEN_PROXY_WORKERS": "1",
        },
        tmp_path,
    )
    with server:
        server.wait_for(r"Listening at: http://127\.0\.0\.1:\d+")
        server.address = port
        servers.wait_until(lambda: server.get("/health/live")[0] == 200, "an answer")
        command = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert f"{found}/qwen_wsgi/_server" in command
