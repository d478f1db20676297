"""Starting, watching and stopping the processes that are measured."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kit.processes import REPOSITORY, StartError, free_port, stop, tree

#: The client key of the measured proxies: authentication is part of what is measured.
CLIENT_KEY: Final = "sk-bench-0123456789abcdef"

#: What they call the upstream with.
UPSTREAM_KEY: Final = "sk-upstream-0123456789"

#: nginx is not on everybody's PATH.
_PATH: Final = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin"

_START_S: Final = 60.0


@dataclass(frozen=True)
class Target:
    """A server that answers, directly or through something in between.

    Attributes:
        pid: the root of the process tree that is measured; None for the upstream itself.
    """

    name: str
    port: int
    pid: int | None


def find_nginx() -> str | None:
    """The nginx program, or None."""
    return shutil.which("nginx", path=_PATH)


# Processes


@contextlib.contextmanager
def _running(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    how: signal.Signals = signal.SIGTERM,
    root: Path = REPOSITORY,
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=root,
            env=env,
            # Ctrl-C reaches this program alone, which then stops the others in order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process, how)


def _wait_ready(process: subprocess.Popen[bytes], port: int, children: int, log: Path) -> None:
    """Until the port takes connections and all workers are there."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            if len(tree(process.pid)) > children:
                return
        time.sleep(0.05)
    tail = log.read_text(errors="replace")[-2000:]
    raise StartError(f"{process.args!r} did not start:\n{tail}")


# Servers


@contextlib.contextmanager
def upstream() -> Iterator[Target]:
    """The fake upstream."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.upstream"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise StartError("the fake upstream did not start")
        yield Target("direct", int(port), None)
    finally:
        process.terminate()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


_NGINX: Final = """
daemon off;
pid {directory}/nginx.pid;
{user}
worker_processes {workers};
worker_rlimit_nofile 16384;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 0;
    client_body_buffer_size 4m;
    keepalive_requests 1000000;
    upstream fake {{ {servers} keepalive 1024; keepalive_requests 1000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=2048;
        location / {{
            proxy_pass http://fake;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_read_timeout 600s;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(
    program: str, ups: Sequence[Target], *, workers: int, directory: Path
) -> Iterator[Target]:
    """nginx as a plain reverse proxy: the floor. Of several upstreams a call goes to the one that
    has the fewest."""
    port = free_port()
    home = directory / f"nginx-{port}"
    home.mkdir()
    config = home / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    listed = ["least_conn;"] * (len(ups) > 1) + [f"server 127.0.0.1:{up.port};" for up in ups]
    config.write_text(
        _NGINX.format(
            directory=home, user=user, workers=workers, port=port, servers=" ".join(listed)
        )
    )
    command = [program, "-p", str(home), "-e", "stderr", "-c", str(config)]
    log = home / "log"
    with _running(command, log=log) as process:
        _wait_ready(process, port, workers, log)
        yield Target("nginx", port, process.pid)


def plain_environment(home: Path) -> dict[str, str]:
    """No setting of whoever runs this may change what is measured."""
    return {"PATH": _PATH, "HOME": str(home), "LC_ALL": "C.UTF-8"}


_WITH_CALL: Final = """
from pathlib import Path
conf = Path({conf!r})
exec(compile(conf.read_text(), str(conf), "exec"))
_init = post_worker_init
def post_worker_init(worker):
    _init(worker)
    from benchmarks import {module}
    {module}.{function}({argument!r})
"""


def calling(module: str, function: str, argument: str) -> str:
    """gunicorn.conf.py, whose workers also call a function of this package when they begin."""
    conf = str(REPOSITORY / "gunicorn.conf.py")
    return _WITH_CALL.format(conf=conf, module=module, function=function, argument=argument)


@contextlib.contextmanager
def proxy(
    up: Target,
    *,
    workers: int,
    directory: Path,
    config: Path | None = None,
    root: Path = REPOSITORY,
    settings: Mapping[str, str] | None = None,
    under: Sequence[str] = (),
) -> Iterator[Target]:
    """qwen-proxy with its defaults, a client key, and its log in a file.

    Args:
        config: in place of gunicorn.conf.py.
        root: the checkout whose code runs.
        settings: more of them.
        under: the command of a program that runs it, like valgrind.
    """
    port = free_port()
    home = directory / f"proxy-{port}"
    home.mkdir()
    env = plain_environment(home) | {
        "QWEN_UPSTREAM_BASE_URL": f"http://127.0.0.1:{up.port}/v1",
        "QWEN_UPSTREAM_API_KEY": UPSTREAM_KEY,
        "QWEN_PROXY_API_KEYS": CLIENT_KEY,
        "QWEN_PROXY_WORKERS": str(workers),
        # 1000 streams of one client on one worker are more than its share of the default.
        "QWEN_PROXY_MAX_IN_FLIGHT": "1200",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        **(settings or {}),
    }
    command = [sys.executable, "-m", "qwen_wsgi.cli", "serve"]
    if config is not None:
        command = [sys.executable, "-m", "gunicorn", "-c", str(config), "wsgi:application"]
    log = home / "log"
    # SIGINT is gunicorn's quick stop; SIGTERM would wait for open streams.
    command = [*under, *command]
    with _running(command, log=log, env=env, how=signal.SIGINT, root=root) as process:
        _wait_ready(process, port, workers, log)
        yield Target("qwen-proxy", port, process.pid)


#: So many answers in a row are most likely of each worker.
_EACH_WORKER: Final = 8

_LIMITS: Final = ("--rpm", "1000000000", "--tpm", "1000000000")
_MORE_LIMITS: Final = ("--tokens-per-day", "1000000000", "--concurrency", "100")


@contextlib.contextmanager
def limited(
    up: Target, *, workers: int, directory: Path, config: Path | None = None
) -> Iterator[tuple[Target, str]]:
    """As `proxy`, and a key of its database with all limits."""
    with proxy(up, workers=workers, directory=directory, config=config) as target:
        home = directory / f"proxy-{target.port}"
        added = subprocess.run(
            [sys.executable, "-m", "qwen_wsgi.cli", "keys", "add", "limited", "--json"]
            + [*_LIMITS, *_MORE_LIMITS],
            env=plain_environment(home),
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        )
        key: str = json.loads(added.stdout)["key"]
        _wait_known(target, key)
        yield target, key


def _wait_known(target: Target, key: str) -> None:
    """Until a new key is accepted: workers look for new ones once in a while, not at each call."""
    deadline = time.monotonic() + _START_S
    told = 0
    while time.monotonic() < deadline:
        asked = http.client.HTTPConnection("127.0.0.1", target.port, timeout=_START_S)
        asked.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        told = told + 1 if asked.getresponse().status == 200 else 0
        asked.close()
        if told >= _EACH_WORKER:
            return
        time.sleep(0.05)
    raise StartError("the server does not accept a new key")


#: The environment variable with the base URL of the bare stack's upstream.
BARE_UPSTREAM: Final = "BARE_UPSTREAM"


@contextlib.contextmanager
def bare(up: Target, *, workers: int, directory: Path) -> Iterator[Target]:
    """`benchmarks.bare` under gunicorn's gevent workers."""
    port = free_port()
    home = directory / f"bare-{port}"
    home.mkdir()
    env = plain_environment(home) | {BARE_UPSTREAM: f"http://127.0.0.1:{up.port}/v1"}
    command = [sys.executable, "-m", "gunicorn", "benchmarks.bare:app", "--worker-class", "gevent"]
    command += ["--workers", str(workers), "--bind", f"127.0.0.1:{port}", "--keep-alive", "75"]
    command += ["--worker-connections", "2000", "--no-control-socket"]
    # gunicorn reads gunicorn.conf.py of the working directory, which is ours, if none is named.
    config = home / "gunicorn.conf.py"
    config.touch()
    command += ["--config", str(config)]
    log = home / "log"
    with _running(command, log=log, env=env, how=signal.SIGINT) as process:
        _wait_ready(process, port, workers, log)
        yield Target("bare", port, process.pid)


@contextlib.contextmanager
def aiohttp(python: str, up: Target, *, workers: int, directory: Path) -> Iterator[Target]:
    """`benchmarks.pass_through`, with the interpreter that is named."""
    port = free_port()
    home = directory / f"aiohttp-{port}"
    home.mkdir()
    script = str(REPOSITORY / "benchmarks" / "pass_through.py")
    command = [python, script, str(port), f"http://127.0.0.1:{up.port}/v1", str(workers)]
    log = home / "log"
    with _running(command, log=log, env=plain_environment(home)) as process:
        _wait_ready(process, port, workers, log)
        yield Target("aiohttp", port, process.pid)


@contextlib.contextmanager
def litellm(
    python: str, up: Target, models: Sequence[str], *, workers: int, directory: Path
) -> Iterator[Target]:
    """LiteLLM's proxy, from the environment whose interpreter is named."""
    port = free_port()
    home = directory / f"litellm-{port}"
    home.mkdir()
    config = home / "config.yaml"
    base_url = f"http://127.0.0.1:{up.port}/v1"
    listed = [
        {
            "model_name": model,
            "litellm_params": {
                "model": f"openai/{model}",
                "api_base": base_url,
                "api_key": UPSTREAM_KEY,
            },
        }
        for model in models
    ]
    # JSON is YAML.
    config.write_text(
        json.dumps({"model_list": listed, "general_settings": {"master_key": CLIENT_KEY}})
    )
    env = plain_environment(home) | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
        "LITELLM_LOG": "ERROR",
    }
    command = [str(Path(python).parent / "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", str(workers)]
    log = home / "log"
    with _running(command, log=log, env=env) as process:
        _wait_ready(process, port, workers, log)
        yield Target("LiteLLM", port, process.pid)
