"""`make install` and `make uninstall` into a directory: first time, again, and away."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from qwen_wsgi import RELEASE
from qwen_wsgi.doctor.dependencies import CONSTRAINTS, pinned
from tests.kit.checkout import ENVIRONMENT, copy_of_checkout
from tests.kit.servers import REPO

pytestmark = [pytest.mark.server, pytest.mark.timeout(240)]

PREFIX = "/opt/with-another.name"

#: The man page and the completions.
_SHARE = REPO / "share"
SHARED = [str(path.relative_to(_SHARE)) for path in _SHARE.rglob("*") if path.is_file()]


@dataclass
class Installation:
    """A copy of the checkout, and the directory that stands for the root of a system."""

    checkout: Path
    root: Path

    def make(self, target: str, *variables: str, **environ: str) -> str:
        """Run a target; what it prints."""
        done = subprocess.run(
            ["make", target, f"DESTDIR={self.root}", f"PREFIX={PREFIX}", *variables],
            cwd=self.checkout,
            env={**ENVIRONMENT, **environ},
            capture_output=True,
            text=True,
            timeout=180,
        )
        if "it needs PyPI or a mirror" in done.stderr and "HASHES" not in done.stderr:
            pytest.skip("pip cannot reach a package index")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def at(self, path: str) -> Path:
        """A path of the installed system."""
        return self.root / path.lstrip("/")

    def files(self) -> set[str]:
        """What is installed, without the virtual environment."""
        venv = self.at(PREFIX + "/venv")
        return {
            "/" + str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if not path.is_dir() and venv not in path.parents
        }


def with_one_dependency(checkout: Path) -> None:
    """Have the copy depend on segno alone: deploy/test_moved_tree.py installs the others."""
    setup = checkout / "setup.cfg"
    lists = re.compile(r"^(install_requires|pdf|tools|redis) =\n(?:    .*\n)+", re.MULTILINE)
    text = lists.sub(r"\1 =\n", setup.read_text())
    setup.write_text(text.replace("install_requires =\n", "install_requires = segno >= 1.6, < 2\n"))
    constraints = checkout / "qwen_wsgi/constraints.txt"
    entries = re.findall(r"^\S+==.*\n(?:    --hash.*\n)+", constraints.read_text(), re.MULTILINE)
    constraints.write_text("".join(each for each in entries if each.startswith(FEW)))


def with_little_to_build(checkout: Path) -> None:
    """Have the copy's package be its first level alone, and leave it uncompiled: each of the
    installations below builds it, and what is in a whole one is test_moved_tree.py's."""
    for path in (checkout / "qwen_wsgi").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    script = checkout / "install/site.sh"
    text = script.read_text()
    assert COMPILING.search(text)
    script.write_text(COMPILING.sub("    :", text))


COMPILING = re.compile(r"^ .* -m compileall .*$", re.MULTILINE)

#: What is installed of that copy, with what installs it.
FEW = ("pip==", "segno==", "setuptools==")
PINS = {
    name: version for name, version in pinned(CONSTRAINTS.read_text()).items() if f"{name}==" in FEW
}


def commit(checkout: Path) -> None:
    """Make it a repository with one commit, where git is installed."""
    if shutil.which("git") is None:
        return
    names = ("-c", "user.name=A Test", "-c", "user.email=test@example.invalid")
    for command in (("init",), ("add", "--all"), ("commit", "--message", "All")):
        subprocess.run(["git", *names, *command], cwd=checkout, check=True, capture_output=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, str]]:
    """After the first `make install`; and what that printed."""
    base = tmp_path_factory.mktemp("install")
    checkout = copy_of_checkout(base / "check out")
    with_one_dependency(checkout)
    with_little_to_build(checkout)
    commit(checkout)
    before = sorted(checkout.rglob("*"))
    installation = Installation(checkout, base / "root")
    printed = installation.make("install")
    # Built as root elsewhere: nothing of root's is left in somebody's checkout.
    assert sorted(checkout.rglob("*")) == before
    yield installation, printed


@pytest.fixture
def system(installed: tuple[Installation, str]) -> Installation:
    return installed[0]


@pytest.fixture
def files_only(system: Installation) -> Iterator[None]:
    """`make install` leaves the virtual environment as it is, which takes most of its time."""
    program = system.checkout / "install/program.sh"
    text = program.read_text()
    program.write_text(":\n")
    yield
    program.write_text(text)


def test_the_first_installation(installed: tuple[Installation, str]) -> None:
    system, printed = installed
    assert system.files() == {
        PREFIX + "/nginx-site.installed",
        "/etc/qwen-proxy/qwen-proxy.env",
        "/etc/qwen-proxy/qwen-proxy.env.example",
        "/etc/qwen-proxy/owner.conf.example",
        "/etc/systemd/system/qwen-proxy.service",
        "/etc/systemd/system/qwen-proxy.socket",
        "/etc/systemd/system/qwen-proxy-tools.service",
        "/etc/systemd/system/qwen-proxy-tools.socket",
        "/etc/nginx/sites-available/qwen-proxy.conf",
        "/etc/nginx/sites-enabled/qwen-proxy.conf",
        "/usr/local/bin/qwen-proxy",
        *(f"{PREFIX}/share/{each}" for each in SHARED),
        *(f"/usr/local/share/{each}" for each in SHARED),
    }
    for each in SHARED:
        link = system.at(f"/usr/local/share/{each}")
        assert str(link.readlink()) == f"{PREFIX}/share/{each}"
    assert "nothing was started" in printed
    assert "systemctl enable --now qwen-proxy" in printed
    assert "systemctl reload nginx" in printed


def test_the_package_is_installed_and_not_linked(system: Installation) -> None:
    venv = system.at(PREFIX + "/venv")
    (package,) = venv.glob("lib/python3*/site-packages/qwen_wsgi/__init__.py")
    assert not package.is_symlink()
    assert os.access(venv / "bin/qwen-proxy", os.X_OK)
    for name in ("gunicorn.conf.py", "wsgi.py"):
        assert (package.parent / "_server" / name).read_bytes() == (REPO / name).read_bytes()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_version_is_that_of_the_commit(system: Installation) -> None:
    log = ["git", "rev-parse", "--short", "HEAD"]
    hash = subprocess.run(log, cwd=system.checkout, capture_output=True, text=True).stdout.strip()
    code = "import qwen_wsgi; print(qwen_wsgi.__version__)"
    python = system.at(PREFIX + "/venv/bin/python")
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{RELEASE}+g{hash}\n", "")


def versions(system: Installation) -> dict[str, str]:
    """What is installed beside the proxy."""
    python = system.at(PREFIX + "/venv/bin/python")
    command = [str(python), "-I", "-m", "pip", "list", "--format=json"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = {
        str(canonicalize_name(each["name"])): str(each["version"])
        for each in json.loads(listed.stdout)
    }
    assert found.pop("qwen-wsgi").startswith(RELEASE)
    return found


def test_what_is_installed_is_what_is_pinned(system: Installation) -> None:
    """pip and setuptools, too, and nothing else."""
    assert versions(system) == PINS


def make_older(system: Installation, name: str, version: str) -> None:
    """Let an installed package say that it is of another version, as pip sees it."""
    (told,) = system.at(PREFIX).glob(f"venv/lib/python3*/site-packages/{name}-*.dist-info/METADATA")
    told.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", told.read_text()))
    named = f"{name}-{version}.dist-info"
    record = told.with_name("RECORD")  # what pip removes
    record.write_text(record.read_text().replace(told.parent.name, named))
    told.parent.rename(told.parent.with_name(named))


def test_an_upgrade_upgrades_the_dependencies_unless_it_shall_not(system: Installation) -> None:
    make_older(system, "segno", "1.6.0")
    make_older(system, "pip", "26.0")
    kept = {**PINS, "segno": "1.6.0", "pip": "26.0"}

    # Without an index: it must not even look for newer ones.
    printed = system.make("install", "UPGRADE=0", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert "Kept the dependencies (UPGRADE=0)" in printed
    assert versions(system) == kept

    assert "Kept the dependencies" not in system.make("install")
    assert versions(system) == PINS


def test_dependencies_below_the_bounds_are_not_kept(system: Installation) -> None:
    make_older(system, "segno", "1.5")

    printed = system.make("install", "UPGRADE=0")

    assert "UPGRADE=0 cannot be followed: what is there does not suffice." in printed
    assert versions(system) == PINS


def test_an_upgrade_with_the_same_dependencies_needs_no_network(system: Installation) -> None:
    system.make("install", PIP_NO_INDEX="1", PIP_FIND_LINKS="")

    assert versions(system) == PINS


def test_a_file_that_is_not_the_pinned_one_is_not_installed(system: Installation) -> None:
    pinned_file = system.checkout / "qwen_wsgi/constraints.txt"
    right = pinned_file.read_text()
    make_older(system, "segno", "1.6.0")
    hashes = re.compile(rf"(segno=={PINS['segno']})(?: \\\n    --hash=.*)+")
    changed = hashes.sub(r"\1 --hash=sha256:" + "0" * 64, right)
    assert changed != right
    pinned_file.write_text(changed)
    try:
        done = subprocess.run(
            ["make", "install", f"DESTDIR={system.root}", f"PREFIX={PREFIX}"],
            cwd=system.checkout,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=180,
        )
    finally:
        pinned_file.write_text(right)
    if "HASHES" not in done.stderr:
        pytest.skip("pip cannot reach a package index")
    assert done.returncode != 0
    assert versions(system)["segno"] == "1.6.0"


def test_the_unit_starts_the_program_where_it_was_put(system: Installation) -> None:
    unit = system.at("/etc/systemd/system/qwen-proxy.service").read_text()
    assert f"ExecStart={PREFIX}/venv/bin/python -I -m qwen_wsgi.cli serve\n" in unit
    assert "/opt/qwen-proxy" not in unit


def test_the_settings_are_for_root_alone_until_their_group_is_there(system: Installation) -> None:
    assert system.at("/etc/qwen-proxy/qwen-proxy.env").stat().st_mode & 0o777 == 0o600


def test_the_site_is_switched_on(system: Installation) -> None:
    link = system.at("/etc/nginx/sites-enabled/qwen-proxy.conf")
    assert link.is_symlink()
    assert link.read_bytes() == (REPO / "nginx/qwen-proxy.conf").read_bytes()


@pytest.mark.usefixtures("files_only")
def test_an_upgrade_keeps_what_the_operator_changed_and_replaces_the_rest(
    system: Installation,
) -> None:
    settings = system.at("/etc/qwen-proxy/qwen-proxy.env")
    settings.write_text("DASHSCOPE_API_KEY=mine\n")
    unit = system.at("/etc/systemd/system/qwen-proxy.service")
    unit.write_text("old")
    link = system.at("/etc/nginx/sites-enabled/qwen-proxy.conf")
    link.unlink()
    site = system.at("/etc/nginx/sites-available/qwen-proxy.conf")
    shipped = system.checkout / "nginx/qwen-proxy.conf"

    # A new version of a site that the operator left as it was.
    shipped.write_text(shipped.read_text() + "# newer\n")
    printed = system.make("install")
    assert "systemctl restart qwen-proxy" in printed
    assert settings.read_text() == "DASHSCOPE_API_KEY=mine\n"
    assert "ExecStart=" in unit.read_text()
    assert site.read_text().endswith("# newer\n")
    assert not link.exists()

    # And of one that the operator edited.
    site.write_text("# mine\n")
    printed = system.make("install")
    assert site.read_text() == "# mine\n"
    new = site.with_name(site.name + ".new")
    assert new.read_bytes() == shipped.read_bytes()
    assert f"the new version is {new}" in printed

    # The operator took the new one over.
    new.rename(site)
    system.make("install")
    assert not new.exists()


@pytest.mark.usefixtures("files_only")
def test_a_site_that_is_switched_off_is_told_with_how_to_switch_it_on(
    system: Installation,
) -> None:
    link = system.at("/etc/nginx/sites-enabled/qwen-proxy.conf")
    site = system.at("/etc/nginx/sites-available/qwen-proxy.conf")
    assert not link.exists()  # by the test above
    site.write_text("# mine\n")

    printed = system.make("install")

    assert "The site is switched off." in printed
    assert (
        "sudo ln -s ../sites-available/qwen-proxy.conf /etc/nginx/sites-enabled/\n"
        "  sudo nginx -t && sudo systemctl reload nginx\n" in printed
    )
    assert "nginx has a new site" not in printed
    assert not link.exists()
    site.unlink()
    assert "switched off" not in system.make("install")
    assert link.exists()


def directives(text: str) -> list[str]:
    """The directives that are about the address of the site."""
    found = re.findall(r"^    (listen|server_name|ssl_certificate(?:_key)?) +(.+);$", text, re.M)
    return [" ".join(each) for each in found]


@pytest.mark.usefixtures("files_only")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_one_command_sets_up_the_site_with_a_name_and_tls(system: Installation) -> None:
    site = system.at("/etc/nginx/sites-available/qwen-proxy.conf")
    unit = system.at("/etc/systemd/system/qwen-proxy.service")
    tls = system.at("/etc/qwen-proxy/tls")

    printed = system.make("install", "NAME=qwen.lan", "TLS=internal")
    assert directives(site.read_text()) == [
        "server_name qwen-proxy qwen.lan localhost",
        "listen 443 ssl",
        "listen [::]:443 ssl",
        "ssl_certificate /etc/qwen-proxy/tls/server.crt",
        "ssl_certificate_key /etc/qwen-proxy/tls/server.key",
    ]
    assert "\nEnvironment=QWEN_PROXY_PUBLIC_URL=https://qwen.lan\n" in unit.read_text()
    assert "https://qwen.lan/health" in printed
    assert "NODE_EXTRA_CA_CERTS" in printed
    assert {path.name: path.stat().st_mode & 0o777 for path in tls.iterdir()} == {
        "ca.crt": 0o644,
        "ca.key": 0o600,
        "server.crt": 0o644,
        "server.key": 0o600,
        "server.names": 0o644,
    }

    # An upgrade remembers the choice, and keeps the certificate.
    certificate = (tls / "server.crt").read_bytes()
    printed = system.make("install")
    assert directives(site.read_text())[1] == "listen 443 ssl"
    assert "QWEN_PROXY_PUBLIC_URL=https://qwen.lan\n" in unit.read_text()
    assert (tls / "server.crt").read_bytes() == certificate
    assert "nginx has a new site or certificate" not in printed

    # One's own certificate, and without TLS.
    system.make("install", "NAME=q.example", "TLS=/etc/ssl/q.pem,/etc/ssl/private/q.key")
    assert directives(site.read_text()) == [
        "server_name qwen-proxy q.example localhost",
        "listen 443 ssl",
        "listen [::]:443 ssl",
        "ssl_certificate /etc/ssl/q.pem",
        "ssl_certificate_key /etc/ssl/private/q.key",
    ]
    system.make("install", "TLS=off")
    assert directives(site.read_text()) == [
        "listen 80",
        "listen [::]:80",
        "server_name qwen-proxy q.example localhost",
    ]
    assert "\nEnvironment=QWEN_PROXY_PUBLIC_URL=http://q.example\n" in unit.read_text()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TLS": "internal"}, "TLS needs the name"),
        ({"NAME": "qwen lan"}, "NAME must be a host name"),
        ({"NAME": "qwen;lan"}, "NAME must be a host name"),
        ({"NAME": "qwen..lan"}, "NAME must be a host name"),
        ({"NAME": "-q"}, "NAME must be a host name"),
        ({"NAME": "q.lan", "TLS": "yes"}, "TLS must be internal"),
        ({"NAME": "q.lan", "TLS": "/a"}, "TLS must be internal"),
        ({"NAME": "q.lan", "TLS": "relative,/b"}, "TLS must be internal"),
        ({"NAME": "q.lan", "TLS": "/a,/b,/c"}, "TLS takes two paths"),
        ({"NAME": "q.lan", "TLS": "/a b,/c"}, "may contain only letters"),
    ],
    ids=str,
)
def test_an_address_that_cannot_work_is_refused_before_anything_is_done(
    system: Installation, tmp_path: Path, variables: dict[str, str], words: str
) -> None:
    done = subprocess.run(
        ["sh", str(system.checkout / "install/install.sh")],
        env={**ENVIRONMENT, "DESTDIR": str(tmp_path / "root"), "PREFIX": PREFIX, **variables},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert not (tmp_path / "root").exists()


@pytest.mark.usefixtures("files_only")
def test_another_program_of_that_name_is_not_replaced(system: Installation) -> None:
    command = system.at("/usr/local/bin/qwen-proxy")
    command.write_text("#!/bin/sh\n# somebody else's\n")

    printed = system.make("install")
    assert "another program" in printed
    assert "somebody else's" in command.read_text()

    system.make("uninstall")
    assert command.exists()
    command.unlink()
    system.make("install")
    assert f"exec {PREFIX}/venv/bin/python -I -m qwen_wsgi.cli.as_service" in command.read_text()


def test_uninstalling_keeps_settings_and_state_by_default(
    system: Installation,
) -> None:
    state = system.at("/var/lib/qwen-proxy/ledger")
    state.parent.mkdir(parents=True)
    state.touch()
    assert "PURGE=1" in system.make("uninstall")
    kept = {path for path in system.files() if not path.startswith("/etc/qwen-proxy/tls/")}
    assert kept == {
        "/etc/qwen-proxy/qwen-proxy.env",
        "/etc/qwen-proxy/site",
        "/var/lib/qwen-proxy/ledger",
    }
    assert not system.at(PREFIX).exists()

    system.make("uninstall", "PURGE=1")
    assert system.files() == set()


def test_uninstalling_does_not_touch_a_directory_that_is_not_ours(system: Installation) -> None:
    other = system.at(PREFIX + "/venv/precious")
    other.parent.mkdir(parents=True)
    other.touch()
    system.make("uninstall", "PURGE=1")
    assert other.exists()


def test_a_prefix_must_be_a_plain_absolute_path(system: Installation) -> None:
    for prefix in ("relative", "/with space", "/with|bar"):
        done = subprocess.run(
            ["sh", str(system.checkout / "install/install.sh")],
            env={**ENVIRONMENT, "DESTDIR": str(system.root), "PREFIX": prefix},
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert "PREFIX" in done.stderr
