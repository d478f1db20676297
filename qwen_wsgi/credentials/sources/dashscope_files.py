"""Reads the key that the `dashscope` package keeps: `~/.dashscope/config.toml` and `api_key`.

As version 2.0.2 of the package does. The file `api_key` is that of 1.x, which 2.x still reads. A
key in the environment has precedence there, so these files count only without `DASHSCOPE_API_KEY`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from qwen_wsgi.credentials.files.watched import FileIdentity, Unusable

KEY_ENV: Final = "DASHSCOPE_API_KEY"
#: All variables that count here.
NAMES: Final = (
    KEY_ENV,
    "DASHSCOPE_API_KEY_FILE_PATH",
    "DASHSCOPE_API_REGION",
    "DASHSCOPE_BASE_URL",
    "DASHSCOPE_CONFIG",
    "DASHSCOPE_HTTP_BASE_URL",
    "DASHSCOPE_REGION",
    "DASHSCOPE_WORKSPACE",
    "DASHSCOPE_WORKSPACE_ID",
)
_DEFAULT_REGION: Final = "cn-beijing"

#: Hosts of the regions for keys without a workspace. The package sends us-east-1 to the
#: international host; Model Studio's pages name this one.
_SHARED_HOSTS: Final = {
    "cn-beijing": "dashscope.aliyuncs.com",
    "cn-hongkong": "cn-hongkong.dashscope.aliyuncs.com",
    "us-east-1": "dashscope-us.aliyuncs.com",
}
_OTHER_SHARED_HOST: Final = "dashscope-intl.aliyuncs.com"

#: Both become labels of a host name; anything else could lead the key to another host.
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Paths(NamedTuple):
    """Where the package looks."""

    config: Path
    key: Path


class Found(NamedTuple):
    """A key and its base URL, of whatever protocol."""

    key: str
    base_url: str
    path: Path


def paths(environ: Mapping[str, str], home: Path) -> Paths:
    """The package's files."""
    return Paths(
        _path(environ.get("DASHSCOPE_CONFIG", ""), home, "config.toml"),
        _path(environ.get("DASHSCOPE_API_KEY_FILE_PATH", ""), home, "api_key"),
    )


def _path(named: str, home: Path, default: str) -> Path:
    named = named.strip()
    if not named:
        return home / ".dashscope" / default
    return home / named[2:] if named.startswith("~/") else Path(named).absolute()


def parse_config(content: bytes, _identity: FileIdentity) -> Mapping[str, str]:
    """The texts at the top of `config.toml`.

    Raises:
        Unusable: it is not TOML.
    """
    try:
        value = tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise Unusable("is not TOML", remedy="Correct it, or remove it.") from None
    return {name: text.strip() for name, text in value.items() if isinstance(text, str)}


def parse_key(content: bytes, _identity: FileIdentity) -> str:
    """The key in `api_key`."""
    return content.decode("utf-8-sig", errors="replace").strip()


def find(
    environ: Mapping[str, str], config: Mapping[str, str], key: str, where: Paths
) -> Found | None:
    """The key that the package would use, and where it would send it."""
    if own := config.get("api_key"):
        return Found(own, _base_url(environ, config), where.config)
    return Found(key, _base_url(environ, config), where.key) if key else None


def _base_url(environ: Mapping[str, str], config: Mapping[str, str]) -> str:
    def setting(file_name: str, *names: str) -> str:
        named = (environ.get(name, "").strip() for name in names)
        return next(filter(None, named), "") or config.get(file_name, "")

    if url := setting("base_url", "DASHSCOPE_BASE_URL", "DASHSCOPE_HTTP_BASE_URL"):
        return url
    region = setting("region", "DASHSCOPE_REGION", "DASHSCOPE_API_REGION") or _DEFAULT_REGION
    workspace = setting("workspace", "DASHSCOPE_WORKSPACE", "DASHSCOPE_WORKSPACE_ID")
    if _LABEL.fullmatch(workspace) and _LABEL.fullmatch(region):
        return f"https://{workspace}.{region}.maas.aliyuncs.com/compatible-mode/v1"
    host = _SHARED_HOSTS.get(region, _OTHER_SHARED_HOST)
    return f"https://{host}/compatible-mode/v1"
