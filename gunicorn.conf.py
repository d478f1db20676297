"""How gunicorn runs the proxy: gevent workers, sizes, timeouts, and a stop that is graceful.

`qwen-proxy serve` starts `python -m gunicorn -c gunicorn.conf.py wsgi:application`. The values
that an operator may change are settings (`qwen-proxy settings`); the others are fixed here.
gunicorn reads this file at its start, and again at each reload.
"""

from __future__ import annotations

# Patching comes first: what is imported below must see gevent's sockets, locks and threads.
# gunicorn itself is already loaded, and it keeps modules rather than names out of them, so that
# patching the modules in place reaches it too.
from gevent import monkey

monkey.patch_all()

import gc  # noqa: E402  # all below: after the patching
import ipaddress  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from typing import Final  # noqa: E402

# What is not ours is loaded here, before workers are forked: they are ready earlier, and share its
# memory. Our own modules are loaded by the workers: a reload must find new code.
import flask  # noqa: E402, F401
import gevent  # noqa: E402
import requests  # noqa: E402, F401
from gunicorn.arbiter import Arbiter  # noqa: E402
from gunicorn.workers.base import Worker  # noqa: E402

from qwen_wsgi import master as _master  # noqa: E402
from qwen_wsgi import server as _server  # noqa: E402
from qwen_wsgi.errors import CannotStartYet, SettingsError  # noqa: E402

#: The exit code for settings that cannot work; the systemd unit does not restart after it.
_EXIT_BAD_SETTINGS: Final = 2
#: The one for what may pass by itself; the unit restarts after it.
_EXIT_NOT_YET: Final = 1

#: gunicorn's master kills a worker that is not gone by its own graceful timeout. Workers get this
#: much less, so that they can still write the calls that they cut into the ledger, and wait for a
#: renewal of a login that was sent (27 s at most): its answer exists nowhere else.
_WORKER_EXIT_S: Final = 30

try:
    _settings = _master.load_settings()
except SettingsError as error:
    print(f"qwen-proxy: {error}", file=sys.stderr)
    sys.exit(_EXIT_BAD_SETTINGS)


def _raise_open_files_limit(needed: int) -> None:
    """A shell's usual soft limit of 1024 files is less than a worker's streams need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _writable(directory: str) -> str | None:
    return directory if os.path.isdir(directory) and os.access(directory, os.W_OK) else None


on_reload = _master.tell_reload
pre_fork = _master.Master.before_fork


def on_starting(server: Arbiter) -> None:
    """Have a master of ours; and bring what an older version has stored forward, before there are
    workers that use it."""
    _master.Master.take_over(server)
    try:
        _server.prepare_state(_settings)
    except (SettingsError, CannotStartYet) as error:
        print(f"qwen-proxy: {error}", file=sys.stderr)
        sys.exit(_EXIT_BAD_SETTINGS if isinstance(error, SettingsError) else _EXIT_NOT_YET)


def post_fork(server: object, worker: Worker) -> None:
    """Give the worker its own, shorter graceful timeout; this is the worker's copy of `cfg`."""
    worker.cfg.set("graceful_timeout", _settings.graceful_timeout_s)


def post_worker_init(worker: _server.StreamWorker) -> None:
    """Begin the worker's own work, and print the banner once: not for a replaced worker."""
    # gunicorn looks up thirty settings per request, each through three calls; a plain attribute
    # costs none. After this the worker's settings do not change any more.
    vars(worker.cfg).update({name: each.get() for name, each in worker.cfg.settings.items()})
    # What is loaded now stays: without it a full collection stops a worker with 1000 streams for
    # 20 to 120 ms, and there would be one every few seconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    # Each spawn would note who spawned it and from where, for traces that nobody prints.
    gevent.config.track_greenlet_tree = False
    # Nobody prints them, and each record would ask for all of them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if (services := _server.services_of(worker)) is not None:
        services.begin()
        if worker.age == 1 or worker.tells:
            _server.announce(worker, banner=worker.age == 1)


post_request = _server.free_call_after


def worker_exit(server: object, worker: Worker) -> None:
    """Let the services finish what must not be cut, e.g. a token refresh that was sent."""
    # gunicorn's master calls this too, for a worker that vanished: nothing there is ours to close.
    same_process = str(worker.pid) == str(os.getpid())
    if same_process and (services := _server.services_of(worker)) is not None:
        services.close()


bind = _settings.bind_address
# nginx connects through its group. The unit's RuntimeDirectory is closed to everybody else.
umask = 0o007
proc_name = "qwen-proxy"

workers = _settings.workers
worker_class = _server.StreamWorker
_server.StreamWorker.body_timeout_s = _settings.body_timeout_s
worker_connections = _settings.worker_connections
_raise_open_files_limit(_settings.worker_files)
# The heartbeat file must not wait for a disk.
worker_tmp_dir = _writable("/dev/shm")

# Seconds after which a worker whose event loop stands still is killed. Streams do not count: a
# worker that waits for an upstream gives its sign of life all the same.
timeout = 30
graceful_timeout = _settings.graceful_timeout_s + _WORKER_EXIT_S
keepalive = _settings.client_keepalive_s

# As large as nginx passes on by default; API calls keep their data in the body.
limit_request_line = 8190
limit_request_fields = 100
# A web token with a whole cookie jar is larger.
limit_request_field_size = 32768 if _settings.web else 8190

# X-Forwarded-For is the application's business; this is only about the scheme of the request.
secure_scheme_headers = {"X-FORWARDED-PROTO": "https"}
forwarded_allow_ips = ",".join(
    str(ipaddress.ip_network(peer, strict=False))
    for peer in _settings.trusted_proxies
    if peer != "unix"
)
# No header may set SCRIPT_NAME or PATH_INFO.
forwarder_headers = ""
http_protocols = "h1"
# One parser everywhere, whatever else is installed beside us.
http_parser = "python"
# A second way in, which nobody asked for.
control_socket_disable = True

# The application logs one line per call itself.
accesslog = None
logger_class = _server.ServerLog
_server.ServerLog.settings = _settings
errorlog = "-"
loglevel = _settings.log_level.lower()
