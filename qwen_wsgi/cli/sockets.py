"""The sockets that systemd listens on for this process (sd_listen_fds(3)): `qwen-proxy.socket`."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from qwen_wsgi import env_file, net
from qwen_wsgi import settings as settings_module
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.net import Address
from qwen_wsgi.settings import Settings

#: The number of the first one.
_FIRST: Final = 3

_BIND: Final = "QWEN_PROXY_BIND"


def passed(environ: Mapping[str, str]) -> tuple[Address, ...]:
    """The addresses of the sockets that were passed to this process; mostly there are none.

    Raises:
        SettingsError: one is no socket to which clients connect.
    """
    count = 0
    with suppress(ValueError):
        if int(environ.get("LISTEN_PID", "0")) == os.getpid():
            count = int(environ.get("LISTEN_FDS", "0"))
    return tuple(_address(number) for number in range(_FIRST, _FIRST + count))


def _address(number: int) -> Address:
    try:
        with socket.socket(fileno=os.dup(number)) as same:
            if same.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                name = same.getsockname()
                if same.family == socket.AF_UNIX:
                    return Address(name, "", 0)
                return Address("", name[0], name[1])
    except OSError:
        pass
    raise SettingsError(
        f"the file {number} that systemd passed is no socket that listens; correct the "
        "ListenStream= of qwen-proxy.socket, which must not have Accept=yes"
    )


def adopt(settings: Settings, sockets: tuple[Address, ...]) -> tuple[Settings, str]:
    """The settings with the address of the first socket instead of their own; and what is to be
    told of that, if they name another one.

    Raises:
        SettingsError: the environment file has become invalid in this moment.
    """
    told = ""
    with suppress(ValueError):
        own = net.parse(settings.bind_address)
        if not any(own.is_same(each) for each in sockets):
            told = (
                f"systemd listens on {' and '.join(map(str, sockets))}, so the address "
                f"{own} of the settings has no effect. Change it with: systemctl edit "
                "qwen-proxy.socket"
            )
    environ = env_file.with_options(settings.environ, {_BIND: str(sockets[0])})
    return settings_module.load(env_file.layered(environ)), told
