"""A wheel serves wherever it is put: below a home, in a target directory, in an environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.kit import servers
from tests.kit.checkout import ENVIRONMENT, copy_of_checkout
from tests.kit.processes import free_port
from tests.kit.servers import REPO, Server

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

#: The man page and the completions.
SHARED = [path for path in (REPO / "share").rglob("*") if path.is_file()]


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
    # Data, schemas, scripts, styles and templates: setup.cfg has to name them.
    wanted = [path for path in (REPO / "qwen_wsgi").rglob("*") if path.is_file()]
    ours = {str(path.relative_to(REPO)) for path in wanted if path.suffix != ".pyc"}
    assert ours - {"qwen_wsgi/_version.py"} - set(names) == set()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert sorted(top for top in tops if not top.endswith(".data")) == ["qwen_wsgi"]
    shared = {name.partition(".data/data/")[2] for name in names if ".data/" in name}
    assert shared == {str(path.relative_to(REPO)) for path in SHARED}


@pytest.mark.once
def test_a_source_distribution_has_all_that_make_needs(tmp_path: Path) -> None:
    checkout = copy_of_checkout(tmp_path / "checkout")
    for name in ("MANIFEST.in", "CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(REPO / name, checkout)
    for name in ("docker", "docs", "debian"):
        shutil.copytree(REPO / name, checkout / name)
    code = "from setuptools import build_meta; print(build_meta.build_sdist('../dist'))"
    (tmp_path / "dist").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    folders = ("docker", "docs", "install", "nginx", "share", "systemd", "debian")
    kept = [path for each in folders for path in (checkout / each).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(checkout)) for path in kept if path.suffix != ".pyc"}
    wanted |= {"CHANGELOG.md", "LICENSE", "Makefile", "README.md", "gunicorn.conf.py", "setup.cfg"}
    assert wanted - inside == set()


@pytest.fixture(scope="module")
def installers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """uv and pipx, of the package index; the test is skipped where there is none."""
    place = tmp_path_factory.mktemp("installers")
    # By the pip that is there: another one in each environment takes longer than the rest.
    venv.create(place, with_pip=False)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(place / "bin/python")]
        + ["install", "--quiet", "--no-compile", "uv", "pipx"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        pytest.skip(f"uv and pipx cannot be installed: {done.stderr[-300:]}")
    return place / "bin"


@pytest.mark.once
@pytest.mark.parametrize("how", ["uv", "pipx"])
def test_it_is_a_command_by_uv_and_by_pipx(
    wheel: Path, installers: Path, tmp_path: Path, how: str
) -> None:
    """`uv tool install` and `pipx install`; pipx shows the man page, too."""
    install = {
        "uv": [str(installers / "uv"), "tool", "install", "--quiet", "--python", sys.executable],
        "pipx": [str(installers / "pipx"), "install", "--python", sys.executable],
    }[how]
    done = subprocess.run(
        [*install, str(wheel)],
        env={
            **ENVIRONMENT,
            # As pip does: a mirror may have a certificate of its own.
            "UV_SYSTEM_CERTS": "1",
            "UV_NATIVE_TLS": "1",
            "UV_TOOL_DIR": str(tmp_path / "tools"),
            "UV_TOOL_BIN_DIR": str(tmp_path / "bin"),
            "PIPX_HOME": str(tmp_path / "tools"),
            "PIPX_BIN_DIR": str(tmp_path / "bin"),
            "PIPX_MAN_DIR": str(tmp_path / "man"),
        },
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    command = str(tmp_path / "bin/qwen-proxy")
    environ = {"PATH": ENVIRONMENT["PATH"], "HOME": str(tmp_path)}
    for words, told in ((["--version"], "qwen-proxy "), (["settings"], "QWEN_PROXY_BIND")):
        told_by = subprocess.run(
            [command, *words], env=environ, capture_output=True, text=True, timeout=60
        )
        assert told in told_by.stdout, told_by.stderr
    assert len(list((tmp_path / "tools").rglob("man1/qwen-proxy.1"))) == 1
    assert (tmp_path / "man/man1/qwen-proxy.1").exists() is (how == "pipx")


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
