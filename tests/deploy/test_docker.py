"""The image: built by buildah, run by podman, on a base that is made here."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.utils import canonicalize_name

from qwen_wsgi.doctor.dependencies import CONSTRAINTS, pinned
from qwen_wsgi.sandbox import Sandbox
from tests.kit import containers
from tests.kit.login_files import write_login
from tests.kit.processes import free_port
from tests.kit.raw_client import Exchange, chat, events
from tests.kit.secrets import secret
from tests.kit.servers import REPO, Server, wait_until

pytestmark = [pytest.mark.server, pytest.mark.timeout(400)]

KEY = secret("container-client")
BASE, IMAGE = "localhost/qwen-proxy-test-base", "localhost/qwen-proxy-test"
#: The user whose files the container uses; not the image's own.
USER = 4321
#: pip's own settings on this machine: where packages are from.
_PIP = tuple(
    f"{place}:{place}:ro" for place in ("/etc/pip.conf", "/etc/xdg/pip") if Path(place).exists()
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if why := containers.obstacle():
        pytest.skip(why)
    root = tmp_path_factory.mktemp("image") / "root"
    with containers.removed(IMAGE, BASE):
        containers.make_base(root)
        containers.image_of(root, BASE)
        shutil.rmtree(root)
        volumes = [part for volume in _PIP for part in ("--volume", volume)]
        done = subprocess.run(
            ["buildah", "build", "--quiet", "--isolation", "chroot", "--format", "docker"]
            + [*volumes, "--network", "host", "--build-arg", f"BASE={BASE}"]
            + ["--build-arg", "VERSION=7.8.9", "--file", "docker/Dockerfile", "--tag", IMAGE, "."],
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode and re.search(r"No matching distribution|Could not fetch", done.stderr):
            pytest.skip("pip cannot reach a package index")
        assert done.returncode == 0, done.stdout + done.stderr
        yield IMAGE


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


class Container(Server):
    """A running container: its log is that of podman's foreground process."""

    def __init__(self, image: str, name: str, directory: Path, *options: str, **env: str) -> None:
        self.name = name
        settings = [part for item in env.items() for part in ("--env", "=".join(item))]
        port = free_port()
        # `--rm` would remove it while its end is still looked at.
        command = ["podman", *containers.RUN, "--name", name, "--read-only", "--tmpfs", "/tmp"]
        command += [*options, *settings, "--env", f"PORT={port}", image]
        super().__init__(command, directory / "log", os.environ, directory)
        self.address = port

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *failure: Any) -> None:
        subprocess.run(["podman", "rm", "--force", self.name], capture_output=True, timeout=60)
        super().__exit__(*failure)

    def podman(self, *command: str) -> subprocess.CompletedProcess[str]:
        runtime = containers.RUN[: containers.RUN.index("run")]
        return subprocess.run(
            ["podman", *runtime, *command], capture_output=True, text=True, timeout=60
        )

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.podman("exec", self.name, *command)


@pytest.fixture
def start(image: str, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    @contextmanager
    def starting(*options: str, **env: str) -> Iterator[Container]:
        name = f"qwen-proxy-test-{os.getpid()}"
        with Container(image, name, tmp_path, *options, **env) as container:
            yield container

    yield starting


@pytest.fixture
def volumes(tmp_path: Path) -> tuple[Path, list[str]]:
    """A directory for ~/.qwen, and the options that give it, and one for the state, to a user."""
    options = ["--user", f"{USER}:{USER}"]
    for name, target in (("qwen", "/home/qwen-proxy/.qwen"), ("state", "/var/lib/qwen-proxy")):
        (tmp_path / name).mkdir(mode=0o700)
        os.chown(tmp_path / name, USER, USER)
        options += ["--volume", f"{tmp_path / name}:{target}"]
    return tmp_path / "qwen", options


def test_it_is_small_and_has_no_tools_of_the_build(image: str) -> None:
    assert containers.size_of(image) - containers.size_of(BASE) < 80e6
    command = ("podman", *containers.RUN, "--rm", "--entrypoint", "sh", image, "-c")
    printed = containers.run(*command, "id -u; qwen-proxy --version; ls /opt/qwen-proxy/bin")
    user, version, *programs = printed.split("\n")
    assert (user, version) == ("10001", "qwen-proxy 7.8.9")
    assert "qwen-proxy" in programs
    assert not [name for name in programs if name.startswith(("pip", "gcc", "cc"))]


def test_it_has_the_packages_that_are_pinned_but_for_those_of_tools(image: str) -> None:
    told = "from importlib.metadata import distributions as d; print(*(each.name for each in d()))"
    command = ("podman", *containers.RUN, "--rm", "--entrypoint", "python", image, "-c", told)

    found = {canonicalize_name(name) for name in containers.run(*command).split()}

    of_tools = set(runpy.run_path(str(REPO / "install/requirements.py"))["only"]("tools"))
    assert {"gunicorn", "pypdf", "redis", "qwen-wsgi"} <= found
    assert found - {"qwen-wsgi"} <= pinned(CONSTRAINTS.read_text()).keys() - of_tools


def test_it_streams_renews_the_login_of_the_volume_and_drains(
    start: Callable[..., Any], volumes: tuple[Path, list[str]], sandbox: Sandbox
) -> None:
    qwen, options = volumes
    file = qwen / "oauth_creds.json"
    tokens = sandbox.issue()
    write_login(file, tokens, left_s=7200)
    os.chown(file, USER, USER)
    settings = {"QWEN_OAUTH_BASE_URL": sandbox.origin, "QWEN_PROXY_API_KEYS": KEY}
    with start(*options, **settings) as container:
        container.wait_for("is ready")
        assert container.execute("qwen-proxy", "healthcheck").returncode == 0
        assert container.podman("healthcheck", "run", container.name).returncode == 0
        assert container.get("/v1/models")[0] == 401

        sandbox.control(revoke_access_tokens=True)
        slow = chat("Tell me of the sea [[sandbox: interval=0.2, chunks=20]]", stream=True)
        with Exchange(container.address, slow, key=KEY, timeout_s=25) as exchange:
            assert exchange.head()[0] == 200
            # The login was renewed, into the host's file, whose owner stays.
            renewed = json.loads(file.read_text())
            assert renewed["access_token"] != tokens["access_token"]
            assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (USER, 0o600)
            # A stop waits for the stream.
            container.send(signal.SIGTERM)
            assert events(exchange.body())[-1] == "[DONE]"
        assert container.wait(30) == 0


def test_it_is_unhealthy_without_an_account(
    start: Callable[..., Any], volumes: tuple[Path, list[str]]
) -> None:
    with start(*volumes[1], QWEN_PROXY_API_KEYS=KEY) as container:
        container.wait_for("is ready")
        done = container.execute("qwen-proxy", "healthcheck")
        assert (done.returncode, done.stdout) == (1, "")
        assert "it answered 503: no_usable_account" in done.stderr
        # A first client key without any in the environment: see docs/docker.md.
        added = container.execute("qwen-proxy", "keys", "add", "anna", "--json")
        assert json.loads(added.stdout)["key"].startswith("sk-qp-")
        wait_until(lambda: container.get("/v1/models")[0] == 401, "the key counts")


def test_files_of_another_user_are_told(
    start: Callable[..., Any], volumes: tuple[Path, list[str]]
) -> None:
    (volumes[0] / "oauth_creds.json").write_text("{}")
    with start(*volumes[1][2:], QWEN_PROXY_API_KEYS=KEY) as container:
        assert container.wait() == 2
        assert f"it belongs to user {USER}, and qwen-proxy runs as user 10001" in container.text
        assert f"in a container --user {USER}:GROUP" in container.text


# --- what comes with it --------------------------------------------------------------------------


def test_the_compose_file_says_what_docker_needs() -> None:
    compose = yaml.safe_load((REPO / "docker/compose.yaml").read_text())
    service = compose["services"]["qwen-proxy"]

    assert (REPO / "docker" / service["build"]["context"]).resolve() == REPO
    assert (REPO / service["build"]["dockerfile"]).is_file()
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] and service["tmpfs"] == ["/tmp"]
    assert service["deploy"]["resources"]["limits"] == {"cpus": "2", "memory": "2G"}
    assert service["healthcheck"]["test"] == ["CMD", "qwen-proxy", "healthcheck"]
    # Not `:?`: an empty value is the operator's decision for `keys add`.
    assert re.match(
        r"\$\{QWEN_PROXY_API_KEYS\?\S.*\}$", service["environment"]["QWEN_PROXY_API_KEYS"]
    )
    # Every variable that it takes is in the example.
    text = (REPO / "docker/compose.yaml").read_text()
    example = (REPO / "docker/env.example").read_text()
    named = set(re.findall(r"\$\{([A-Z_]+)", text)) - {"VERSION", "NGINX_IMAGE", "REDIS_IMAGE"}
    assert named <= set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))


def test_the_replicas_differ_in_their_state_alone() -> None:
    services = yaml.safe_load((REPO / "docker/compose.yaml").read_text())["services"]
    first = services["qwen-proxy"]
    apart = ("volumes", "ports", "profiles", "depends_on")
    states = {first["volumes"][1]}
    for name in ("qwen-proxy-2", "qwen-proxy-3"):
        replica = services[name]
        assert {key: value for key, value in replica.items() if key not in apart} == {
            key: value for key, value in first.items() if key not in apart
        }
        assert replica["profiles"] == ["replicas"]
        assert replica["depends_on"] == {"redis": {"condition": "service_healthy"}}
        # Only nginx leads to it, and its login comes through Redis.
        assert "ports" not in replica and len(replica["volumes"]) == 1
        states.add(replica["volumes"][0])
    assert len(states) == 3
    assert "ports" not in services["redis"]


def test_the_redis_of_the_replicas_wants_the_password(tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    service = yaml.safe_load((REPO / "docker/compose.yaml").read_text())["services"]["redis"]
    port = str(free_port())

    def words(text: str) -> str:
        """As Compose hands it on, in a directory of the test's."""
        return text.replace("$$", "$").replace("/tmp/", f"{tmp_path}/")

    command = [words(each) for each in service["command"]]
    command[-1] = command[-1].rstrip().replace("/data", f"{tmp_path} --port {port}")
    check = words(service["healthcheck"]["test"][1]).replace("redis-cli", f"redis-cli -p {port}")
    environ = {"PATH": os.environ["PATH"], "REDIS_PASSWORD": secret("compose-redis")}
    refused = subprocess.run(
        command, env={**environ, "REDIS_PASSWORD": ""}, capture_output=True, text=True, timeout=20
    )
    assert (refused.returncode, refused.stderr) == (1, "set REDIS_PASSWORD in docker/.env\n")
    server = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: subprocess.run(["sh", "-c", check], env=environ).returncode == 0, "PONG")
        other = {**environ, "REDIS_PASSWORD": secret("compose-other")}
        assert subprocess.run(["sh", "-c", check], env=other, stderr=-3).returncode != 0
    finally:
        server.terminate()
        server.wait(10)


def test_nginx_has_a_line_for_each_replica(tmp_path: Path) -> None:
    site = tmp_path / "site"
    program = tmp_path / "nginx"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SOURCES": str(REPO), "SITE": str(site)}
    example = (REPO / "docker/env.example").read_text()
    proxies = re.search(r"^#PROXIES=(.*)$", example, re.MULTILINE)
    assert proxies is not None
    environ["PROXIES"] = proxies[1]
    subprocess.run(["sh", str(REPO / "docker/nginx.sh")], env=environ, check=True, timeout=20)
    text = site.read_text()
    servers = [
        (f"qwen-proxy{each}:8080", "max_fails=1 fail_timeout=5s") for each in ("", "-2", "-3")
    ]
    for name in ("qwen_proxy_console", "qwen_proxy"):
        block = re.search(rf"^upstream {name} {{\n(.*?)^}}", text, re.MULTILINE | re.DOTALL)
        assert block is not None
        assert re.findall(r"^    server (\S+) (.*);$", block[1], re.MULTILINE) == servers
        # A browser stays where its session of the console is.
        assert ("ip_hash;" in block[1]) == (name == "qwen_proxy_console")
    assert "location ^~ /console {\n            proxy_pass http://qwen_proxy_console;" in text


def test_what_nginx_gets_is_the_shipped_site(tmp_path: Path) -> None:
    site = tmp_path / "site"
    program = tmp_path / "nginx"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NAME": "qwen.lan"}
    subprocess.run(
        ["sh", str(REPO / "docker/nginx.sh")],
        env={**environ, "SOURCES": str(REPO), "SITE": str(site)},
        check=True,
        timeout=20,
    )
    text = site.read_text()
    assert "    server qwen-proxy:8080 max_fails=0;" in text
    assert "qwen_proxy_console" not in text
    assert "    server_name qwen-proxy qwen.lan localhost;" in text
    assert "    listen 443 ssl;" in text
    assert re.search(r"^    ssl_certificate +/etc/nginx/tls/server.crt;", text, re.MULTILINE)
    assert "listen 80" not in text
