"""The Debian package: what is in it, and its life on a Debian with systemd as PID 1."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.deploy.debian import machine as debian
from tests.deploy.debian.machine import Machine
from tests.kit.checkout import ENVIRONMENT
from tests.kit.secrets import secret
from tests.kit.servers import REPO, wait_until

pytestmark = [pytest.mark.server, pytest.mark.once, pytest.mark.timeout(400)]

_PYTHON: Final = Path("/usr/bin/python3")
_KEY: Final = secret("deb-client")
_SETTINGS: Final = "/etc/qwen-proxy/qwen-proxy.env"
_HEALTH: Final = (
    "/usr/lib/qwen-proxy/venv/bin/python -I -c 'import socket; s = socket.socket(socket.AF_UNIX);"
    's.connect("/run/qwen-proxy/http.sock"); s.sendall(b"GET /health HTTP/1.0\\r\\n\\r\\n");'
    "print(s.makefile().read())'"
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built as `make deb` builds it, but hardly compressed: that takes longest."""
    for program in ("dpkg-deb", "strip"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if not _PYTHON.exists():
        pytest.skip("Debian's Python is not installed")
    dist = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        ["make", "deb"],
        cwd=REPO,
        env={**ENVIRONMENT, "DIST": str(dist), "LEVEL": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if "it needs PyPI or a mirror" in done.stderr:
        pytest.skip("pip cannot reach a package index")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = dist.glob("*.deb")
    return found


def told(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_it_pins_the_python_and_names_its_version(package: Path) -> None:
    fields = dict(
        line.split(": ", 1) for line in told("dpkg-deb", "-f", package).splitlines() if ": " in line
    )
    minor = re.search(r"\d\.\d+", told(_PYTHON, "-V"))
    assert minor is not None
    assert fields["Depends"].split(", ")[0] == f"python{minor[0]}"
    assert package.name == f"qwen-proxy_{fields['Version']}_{fields['Architecture']}.deb"
    assert "-" not in fields["Version"]


def test_it_has_the_program_unit_site_and_documents(package: Path) -> None:
    listed = told("dpkg-deb", "-c", package)
    names = {line.split()[5].removeprefix(".") for line in listed.splitlines()}
    for name in (
        "/lib/systemd/system/qwen-proxy.service",
        "/lib/systemd/system/qwen-proxy.socket",
        "/lib/systemd/system/qwen-proxy-tools.service",
        "/lib/systemd/system/qwen-proxy-tools.socket",
        "/etc/nginx/sites-available/qwen-proxy.conf",
        "/etc/qwen-proxy/owner.conf.example",
        "/usr/bin/qwen-proxy",
        "/usr/share/man/man1/qwen-proxy.1.gz",
        "/usr/share/bash-completion/completions/qwen-proxy",
        "/usr/share/doc/qwen-proxy/copyright",
    ):
        assert name in names
    # The settings are made by postinst: as a file of the package each upgrade would ask about them.
    assert _SETTINGS not in names
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}
    assert not [name for name in names if "__pycache__" in name or "site-packages/pip/" in name]


def test_no_file_names_the_place_of_the_build(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-x", package, tmp_path / "root"], check=True)
    done = subprocess.run(
        ["grep", "-rlE", f"{re.escape(str(REPO))}|/tmp/tmp\\.", tmp_path / "root"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == ""


def test_lintian_finds_no_error(package: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is not installed")
    done = subprocess.run(
        ["lintian", "--fail-on", "error", "--no-cfg", package],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout


# --- its life ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def system(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """This machine's own files under an overlay, with a systemd of their own."""
    place = tmp_path_factory.mktemp("system")
    tree = place / "tree"
    if not Path("/lib/systemd/systemd").exists() or not Path("/usr/sbin/useradd").exists():
        pytest.skip("systemd is not installed")
    if reason := debian.obstacle(Path("/")):
        pytest.skip(f"no system can be booted here: {reason}")
    with ExitStack() as stack:
        tree.mkdir()
        layers = place / "layers"
        layers.mkdir()
        mount(stack, "-t", "tmpfs", "none", str(layers))
        for name in ("upper", "work"):
            (layers / name).mkdir()
        options = f"lowerdir=/,upperdir={layers}/upper,workdir={layers}/work"
        mount(stack, "-t", "overlay", "none", "-o", options, str(tree))
        (tree / "etc/hostname").write_text("debian\n")
        (tree / "root/qwen-proxy").mkdir()
        # No service of this machine is started there.
        for wants in (tree / "etc/systemd/system").glob("*.wants"):
            shutil.rmtree(wants)
        (tree / "etc/systemd/system/default.target").unlink(missing_ok=True)
        (tree / "etc/systemd/system/default.target").symlink_to("/lib/systemd/system/basic.target")
        (tree / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        shutil.copy(package, tree / "qwen-proxy.deb")
        yield stack.enter_context(Machine(tree, place / "log"))


def mount(stack: ExitStack, *arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this environment allows no mount: {done.stderr.strip()}")
    stack.callback(subprocess.run, ["umount", "--lazy", arguments[-1]], check=True)


def is_active(system: Machine) -> str:
    return system.run("systemctl is-active qwen-proxy", check=False).strip()


def test_it_is_installed_used_upgraded_removed_and_purged(system: Machine) -> None:
    """One test: each step needs what the ones before it left."""
    _is_installed_and_not_started(system)
    _serves(system)
    _is_upgraded(system)
    _is_removed(system)
    _is_purged(system)


def _is_installed_and_not_started(system: Machine) -> None:
    printed = system.run("dpkg -i /qwen-proxy.deb 2>&1")
    assert "nothing was started" in printed
    assert is_active(system) == "inactive"
    assert system.run("systemctl is-enabled qwen-proxy", check=False) == "disabled\n"
    assert system.run(f"stat -c '%U %G %a' {_SETTINGS}") == "root qwen-proxy-env 640\n"
    assert "qwen-proxy" in system.run("id -nG www-data").split()
    assert "qwen-proxy-env" not in system.run("id -nG www-data").split()
    assert system.run("readlink /etc/nginx/sites-enabled/qwen-proxy.conf").endswith("proxy.conf\n")
    assert "qwen-proxy " in system.run("qwen-proxy --version")


def _serves(system: Machine) -> None:
    system.run(f"printf 'QWEN_PROXY_SANDBOX=1\\nQWEN_PROXY_API_KEYS={_KEY}\\n' >>{_SETTINGS}")
    # The unit's own line says 0, and the file wins.
    system.run("systemctl enable --now qwen-proxy")
    assert '"status":"ok"' in system.run(_HEALTH)
    assert "sandbox" in system.run("qwen-proxy status")
    printed = system.run("qwen-proxy doctor --no-calls --problems", check=False)
    assert "qwen-proxy.service" not in printed, printed
    # A login of the service's user.
    system.run("install -d -o qwen-proxy -m 700 /var/lib/qwen-proxy/.qwen")
    system.run("touch /var/lib/qwen-proxy/.qwen/oauth_creds.json")


def _is_upgraded(system: Machine) -> None:
    """A setting stays, a site that was switched off stays so, and the new version runs."""
    before = system.run("systemctl show -P MainPID qwen-proxy")
    settings = system.run(f"md5sum {_SETTINGS}")
    system.run("rm /etc/nginx/sites-enabled/qwen-proxy.conf")
    system.run("echo '# mine' >>/etc/nginx/sites-available/qwen-proxy.conf")
    system.run("dpkg -i /qwen-proxy.deb 2>&1")
    assert system.run(f"md5sum {_SETTINGS}") == settings
    assert "# mine" in system.run("cat /etc/nginx/sites-available/qwen-proxy.conf")
    system.run("test ! -e /etc/nginx/sites-enabled/qwen-proxy.conf")
    assert system.run("systemctl show -P MainPID qwen-proxy") != before
    wait_until(lambda: '"status":"ok"' in system.run(_HEALTH, check=False), "the new one answers")


def _is_removed(system: Machine) -> None:
    system.run("ln -s ../sites-available/qwen-proxy.conf /etc/nginx/sites-enabled/")
    system.run("dpkg -r qwen-proxy 2>&1")
    assert is_active(system) != "active"
    system.run(
        "test ! -e /usr/lib/qwen-proxy && test ! -L /etc/nginx/sites-enabled/qwen-proxy.conf"
    )
    assert _KEY in system.run(f"cat {_SETTINGS}")
    system.run("test -d /var/lib/qwen-proxy")


def _is_purged(system: Machine) -> None:
    printed = system.run("dpkg -P qwen-proxy 2>&1")
    assert "kept /var/lib/qwen-proxy/.qwen" in printed
    assert system.run("find /var/lib/qwen-proxy -type f") == (
        "/var/lib/qwen-proxy/.qwen/oauth_creds.json\n"
    )
    left = "ls -d /etc/qwen-proxy /etc/nginx/sites-available/qwen-proxy.conf /lib/systemd/system/q*"
    assert "/etc/qwen-proxy\n" not in system.run(f"{left} 2>/dev/null", check=False)
    # Without a login nothing is left.
    system.run("rm -r /var/lib/qwen-proxy && dpkg-deb -e /qwen-proxy.deb /tmp/scripts")
    system.run("sh /tmp/scripts/postrm purge")
    assert system.run("getent passwd qwen-proxy", check=False) == ""
    assert system.run("getent group qwen-proxy qwen-proxy-env", check=False) == ""


def test_it_refuses_beside_make_install(system: Machine) -> None:
    unit = "/etc/systemd/system/qwen-proxy.service"
    system.run(f"echo '# installed by `make install`' >{unit}")
    printed = system.run("dpkg -i /qwen-proxy.deb 2>&1", check=False)
    system.run(f"rm {unit}")
    assert "sudo make uninstall" in printed
    assert "nothing was started" not in printed
