"""The parts of the build that setup.cfg cannot say: the version is from git."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
_FROM_GIT: dict[str, Any] = runpy.run_path(str(ROOT / "install/version.py"))
SERVER_FILES = ("gunicorn.conf.py", "wsgi.py")
VERSION: str = _FROM_GIT["version"]()


class BuildPy(build_py):
    """Puts the version and the server's files into what is installed, and not into the checkout.

    The files are at the top of the checkout. In the package they are found wherever pip puts it:
    also below a home directory, and by `pip install --target`.
    """

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            package = Path(self.build_lib, "qwen_wsgi")
            _FROM_GIT["write"](package / "_version.py", VERSION)
            (package / "_server").mkdir(exist_ok=True)
            for name in SERVER_FILES:
                self.copy_file(str(ROOT / name), str(package / "_server" / name))


class Sdist(sdist):
    """Puts the version into the archive, which has no git."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        target = Path(base_dir, "qwen_wsgi/_version.py")
        target.unlink(missing_ok=True)  # it may be a hard link to the checkout's
        _FROM_GIT["write"](target, VERSION)


setup(version=VERSION, cmdclass={"build_py": BuildPy, "sdist": Sdist})
