"""The version of a build: from git, and without it."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from qwen_wsgi import RELEASE
from tests.kit.servers import REPO

_SCRIPT: dict[str, Any] = runpy.run_path(str(REPO / "install/version.py"))
#: RFC 9110: what a User-Agent's version may be made of.
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Checkout:
    """A repository with the files that a build is made of."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(
            REPO / "qwen_wsgi",
            root / "qwen_wsgi",
            ignore=shutil.ignore_patterns("__pycache__", "_version.py"),
        )
        shutil.copytree(REPO / "share", root / "share")
        (root / "install").mkdir()
        for name in ("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md"):
            shutil.copy(REPO / name, root)
        for name in ("gunicorn.conf.py", "wsgi.py", "LICENSE", "CHANGELOG.md", ".gitignore"):
            shutil.copy(REPO / name, root)
        shutil.copy(REPO / "install/version.py", root / "install")

    def git(self, *command: str) -> str:
        names = ("-c", "user.name=A Test", "-c", "user.email=test@example.invalid")
        done = subprocess.run(
            ["git", *names, *command], cwd=self.root, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self) -> str:
        """One more commit; how git abbreviates it."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "A change")
        return self.git("rev-parse", "--short", "HEAD")

    @property
    def version(self) -> str:
        found: str = _SCRIPT["version"](self.root)
        assert str(Version(found)) == found
        assert TOKEN.fullmatch(found)
        return found

    def build(self, what: str, into: Path) -> Path:
        """Build a `wheel` or an `sdist`, without the network."""
        code = f"import setuptools.build_meta as b, sys; print(b.build_{what}(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(into)], cwd=self.root, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return into / done.stdout.splitlines()[-1]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    found = Checkout(tmp_path / "checkout")
    found.git("init", "--quiet")
    return found


def test_a_commit_without_a_tag(checkout: Checkout) -> None:
    assert checkout.version == RELEASE, "without any commit"
    first = checkout.commit()
    assert checkout.version == f"{RELEASE}+g{first}"
    second = checkout.commit()
    assert checkout.version == f"{RELEASE}+g{second}"
    assert first != second


def test_what_differs_from_the_commit_is_marked(checkout: Checkout) -> None:
    commit = checkout.commit()
    (checkout.root / "wsgi.py").write_text("# changed\n")
    assert checkout.version == f"{RELEASE}+g{commit}.dirty"
    (checkout.root / "a-new-file").touch()
    checkout.git("checkout", "--quiet", "wsgi.py")
    assert checkout.version == f"{RELEASE}+g{commit}", "git does not know the new file"


def test_tags_are_releases(checkout: Checkout) -> None:
    first = checkout.commit()
    checkout.git("tag", "v0.4.9")
    checkout.git("tag", "another")
    assert checkout.version == "0.4.9"
    (checkout.root / "wsgi.py").write_text("# changed\n")
    assert checkout.version == f"0.4.9+g{first}.dirty"
    checkout.commit()
    last = checkout.commit()
    assert checkout.version == f"0.4.10.dev2+g{last}"
    assert Version("0.4.9") < Version(checkout.version) < Version("0.4.10")


def test_an_archive_inside_the_repository_of_somebody_else(checkout: Checkout) -> None:
    checkout.commit()
    inside = checkout.root / "vendor/qwen-proxy"
    shutil.copytree(checkout.root / "qwen_wsgi", inside / "qwen_wsgi")
    assert _SCRIPT["version"](inside) == RELEASE
    _SCRIPT["write"](inside / "qwen_wsgi/_version.py", "0.9.9+gabcdef0")
    assert _SCRIPT["version"](inside) == "0.9.9+gabcdef0"


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(REPO / "qwen_wsgi", tmp_path / "qwen_wsgi")
    (tmp_path / "qwen_wsgi/_version.py").unlink(missing_ok=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _SCRIPT["version"](tmp_path) == RELEASE


def test_git_leaves_the_index_alone(checkout: Checkout) -> None:
    """`sudo make install` would leave one of root's."""
    checkout.commit()
    index = checkout.root / ".git/index"
    os.utime(checkout.root / "wsgi.py")
    before = index.stat()
    assert not checkout.version.endswith("dirty")
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_wheel_has_the_version_and_the_checkout_stays_as_it_is(
    checkout: Checkout, tmp_path: Path
) -> None:
    version = f"{RELEASE}+g{checkout.commit()}"
    # Left from an earlier `make run`.
    stale = checkout.root / "qwen_wsgi/_version.py"
    _SCRIPT["write"](stale, "0.0.1")

    wheel = checkout.build("wheel", tmp_path)

    assert wheel.name == f"qwen_wsgi-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    assert told_by(tmp_path / "installed") == version
    assert '"0.0.1"' in stale.read_text()


def test_a_source_distribution_knows_it_without_git(checkout: Checkout, tmp_path: Path) -> None:
    version = f"{RELEASE}+g{checkout.commit()}"
    archive = checkout.build("sdist", tmp_path)
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"qwen_wsgi-{version}"
    assert told_by(unpacked) == version
    assert _SCRIPT["version"](unpacked) == version
    assert (unpacked / "gunicorn.conf.py").exists()


def told_by(directory: Path) -> str:
    """What the package in a directory says."""
    done = subprocess.run(
        # -S: what is installed editable would add its modules to this package.
        [sys.executable, "-SB", "-c", "import qwen_wsgi; print(qwen_wsgi.__version__)"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    return done.stdout.strip()


def test_a_checkout_that_nothing_was_installed_from_has_the_release(checkout: Checkout) -> None:
    checkout.commit()
    assert told_by(checkout.root) == RELEASE


def test_the_module_is_written_only_if_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "_version.py"
    _SCRIPT["write"](path, "1.2.3")
    os.utime(path, (1, 1))
    _SCRIPT["write"](path, "1.2.3")
    assert path.stat().st_mtime == 1
    _SCRIPT["write"](path, "1.2.4")
    assert runpy.run_path(str(path))["version"] == "1.2.4"


def test_the_user_agents_are_tokens() -> None:
    from qwen_wsgi.upstream.http.transport import USER_AGENT

    name, _, version = USER_AGENT.partition("/")
    assert name == "qwen-proxy"
    assert TOKEN.fullmatch(version)
