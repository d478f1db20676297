"""Where the runner finds what it needs: tools.json, its socket, and what no tool may see."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from qwen_wsgi.credentials.files import jsonc
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.redaction import names_secret
from qwen_wsgi.settings import Settings
from qwen_wsgi.tool_runner.config import Entry, parse

#: Where the service qwen-proxy-tools listens.
SERVICE_SOCKET: Final = "/run/qwen-proxy-tools/tools.sock"
_NAME: Final = "tools.sock"
_LARGEST_FILE: Final = 1024 * 1024
#: The proxy's places as a service, whatever the settings say.
_PRIVATE: Final = ("/etc/qwen-proxy", "/var/lib/qwen-proxy", "/run/qwen-proxy")
_LONGEST_SOCKET: Final = 100


def socket_of(settings: Settings) -> str:
    """Where workers find the runner: the settings' place, the service's if it is there, or that of
    the runner that `serve` has started."""
    if settings.tools_socket:
        return settings.tools_socket
    return SERVICE_SOCKET if is_service() else own_socket(settings)


def own_socket(settings: Settings) -> str:
    """Where a runner that is no service listens."""
    return settings.tools_socket or str(Path(settings.state_dir).absolute() / _NAME)


def is_service() -> bool:
    """Whether the service's socket is there."""
    try:
        return stat.S_ISSOCK(os.stat(SERVICE_SOCKET).st_mode)
    except OSError:
        return False


@contextlib.contextmanager
def short_path(path: str) -> Iterator[str]:
    """The same place by a short name: unix(7) has room for 107 bytes."""
    if len(path.encode()) <= _LONGEST_SOCKET:
        yield path
        return
    folder = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{os.path.basename(path)}"
    finally:
        os.close(folder)


def entries(settings: Settings) -> tuple[Entry, ...]:
    """The entries of the tools.json that the settings name.

    Raises:
        SettingsError: it cannot be read or used.
    """
    path = settings.tools
    if not path:
        raise SettingsError("QWEN_PROXY_TOOLS is not set, so there are no tools to run")
    try:
        text = _text(Path(path))
    except OSError as error:
        raise SettingsError(f"QWEN_PROXY_TOOLS={path}: {error.strerror or error}") from None
    try:
        return parse(text, environ=settings.environ, of_qwen_code=_of_qwen_code(settings))
    except SettingsError as error:
        raise SettingsError(f"QWEN_PROXY_TOOLS={path}: {error}") from None


def private_paths(settings: Settings) -> tuple[str, ...]:
    """The files and folders of the proxy that no tool may see."""
    found = [*_PRIVATE, settings.state_dir, str(_qwen_home(settings)), settings.tools]
    found += [settings.environment_file, os.path.dirname(socket_of(settings))]
    return tuple(each for each in found if each)


def secrets_of(settings: Settings, entries: Iterable[Entry]) -> tuple[str, ...]:
    """What no log line may show."""
    found = [value for name, value in settings.environ.items() if names_secret(name)]
    found += settings.all_client_keys
    for entry in entries:
        found += [*entry.env.values(), *entry.headers.values()]
    return tuple(each for each in found if len(each) >= 8)


def _qwen_home(settings: Settings) -> Path:
    return Path(settings.qwen_home) if settings.qwen_home else settings.home / ".qwen"


def _of_qwen_code(settings: Settings) -> Mapping[str, Any] | str:
    """`mcpServers` of qwen-code's settings.json, or why it cannot be read."""
    path = _qwen_home(settings) / "settings.json"
    try:
        document = jsonc.loads(_text(path), comments=True)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        return f"qwen-code's {path} cannot be read: {why}"
    found = document.get("mcpServers", {}) if isinstance(document, dict) else {}
    return found if isinstance(found, dict) else f"{path} has mcpServers that are no object"


def _text(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: it cannot be read, or is no text of a reasonable size.
    """
    with path.open("rb") as file:
        data = file.read(_LARGEST_FILE + 1)
    if len(data) > _LARGEST_FILE:
        raise OSError(f"it is larger than {_LARGEST_FILE // 1024} kB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OSError("it is not UTF-8") from None
