"""The installed systemd service: its properties, and the settings that it gets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qwen_wsgi import settings as settings_module
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings

UNIT: Final = "qwen-proxy.service"

_PROPERTIES: Final = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "Result",
    "ExecMainStatus",
    "NRestarts",
    "NeedDaemonReload",
    "User",
    "Group",
    "ExecStart",
    "Environment",
    "EnvironmentFiles",
    "StateDirectory",
    "DropInPaths",
    "ProtectHome",
    "ProtectSystem",
    "BindPaths",
    "BindReadOnlyPaths",
    "ReadWritePaths",
    "LimitNOFILE",
    "TimeoutStopUSec",
)

_TIMEOUT_S: Final = 10.0

#: Settings that may be shown on a command line: they hold no secret.
_SHOWN: Final = ("QWEN_PROXY_BIND", "QWEN_PROXY_SANDBOX", "QWEN_HOME")

_SPAN_S: Final = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
    "w": 7 * 86_400.0,
}


class NotHere(Exception):
    """There is no service to check; the message says why."""


@dataclass(frozen=True)
class EnvironmentFile:
    """An environment file of the unit.

    Attributes:
        text: None if this user may not read it; "" if it does not exist.
    """

    path: Path
    text: str | None


@dataclass(frozen=True)
class Service:
    """The installed unit.

    Attributes:
        environ: the service's environment, as far as this user may read it.
        settings: parsed from it; None if it is not fully known, or invalid.
        problem: why it is invalid.
    """

    properties: Mapping[str, str]
    files: tuple[EnvironmentFile, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Settings | None = None
    problem: str = ""

    def __getitem__(self, name: str) -> str:
        return self.properties.get(name, "")

    @property
    def user(self) -> str:
        """The user that it runs as."""
        return self["User"] or "root"

    @property
    def runs(self) -> bool:
        """Whether it is active."""
        return self["ActiveState"] == "active"

    @property
    def is_known(self) -> bool:
        """Whether all of its settings could be read."""
        return all(file.text is not None for file in self.files)

    @property
    def bind(self) -> str:
        """Where it listens, in gunicorn's notation; "" if unknown."""
        if self.settings is not None:
            return self.settings.bind_address
        return self.environ.get("QWEN_PROXY_BIND", "")

    def paths(self, name: str) -> tuple[str, ...]:
        """The paths that a property lists; of `source:target:options` the target."""
        targets = []
        for word in self[name].split():
            source, _, rest = word.lstrip("-+").partition(":")
            targets.append(rest.partition(":")[0] or source)
        return tuple(targets)

    def as_service(self, command: str) -> str:
        """A command line for `qwen-proxy COMMAND` with the service's user and settings."""
        found = re.search(r"path=(\S+)", self["ExecStart"])
        program = found[1] if found else "qwen-proxy"
        words = ["sudo systemd-run -qP --wait", f"-p User={self.user}"]
        words += [f"-p EnvironmentFile=-{file.path}" for file in self.files]
        # The environment files override these, as in the unit.
        words += [
            f"-E {name}={shlex.quote(self.environ[name])}"
            for name in _SHOWN
            if name in self.environ
        ]
        if state := self["StateDirectory"].split():
            words.append(f"-E STATE_DIRECTORY=/var/lib/{state[0].partition(':')[0]}")
        return " ".join((*words, program, command))


def look(machine: Machine) -> Service:
    """Read the service from systemd.

    Raises:
        NotHere: there is no systemd, or it does not know the service.
    """
    systemctl = machine.program("systemctl")
    if systemctl is None:
        raise NotHere("there is no systemd here")
    try:
        done = machine.run(
            [systemctl, "show", UNIT, "--no-pager", "-p", ",".join(_PROPERTIES)],
            timeout_s=_TIMEOUT_S,
        )
    except OSError as error:
        raise NotHere(f"systemctl cannot be run ({error})") from None
    if done.status:
        lines = (done.err or done.out).strip().splitlines()
        raise NotHere(f"systemctl says: {lines[0] if lines else f'status {done.status}'}")
    properties = _properties(done.out)
    if properties.get("LoadState") in (None, "", "not-found"):
        raise NotHere("the service is not installed")
    files = tuple(_environment_files(properties.get("EnvironmentFiles", ""), machine))
    environ = _environment(properties.get("Environment", ""))
    for file in files:
        environ |= parse_environment(file.text or "")
    problem, settings = "", None
    if all(file.text is not None for file in files):
        try:
            settings = settings_module.load(environ)
        except SettingsError as error:
            problem = str(error)
    return Service(properties, files, environ, settings, problem)


def _properties(text: str) -> dict[str, str]:
    """Parse `NAME=VALUE` lines; a repeated name appends its value."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found[name] = f"{found[name]} {value}".strip() if name in found else value
    return found


def _environment_files(listed: str, machine: Machine) -> Iterator[EnvironmentFile]:
    for word in re.findall(r"(/\S*) \(ignore_errors=\w+\)", listed):
        path = Path(word)
        try:
            text = (machine.root / word.lstrip("/")).read_text(errors="replace")
        except FileNotFoundError:
            text = ""
        except OSError:
            text = None
        yield EnvironmentFile(path, text)


def _environment(assignments: str) -> dict[str, str]:
    try:
        words = shlex.split(assignments)
    except ValueError:
        words = assignments.split()
    pairs = (word.partition("=") for word in words)
    return {name: value for name, equals, value in pairs if equals}


def parse_environment(text: str) -> dict[str, str]:
    """Parse an environment file as systemd does: quotes, and `\\` at the end of a line. Lines that
    systemd ignores are ignored."""
    found = {}
    for line in text.replace("\\\n", "").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            value = value.strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            found[name] = value
    return found


def ignored_lines(text: str) -> tuple[int, ...]:
    """The numbers of lines that look like settings and are ignored: blanks around `=`, `export`."""
    return tuple(
        number
        for number, line in enumerate(text.splitlines(), 1)
        if re.match(r"\s*(export\s+)?[A-Z][A-Z0-9_]*(\s+=|=\s+\S)|\s*export\s", line)
    )


def seconds(span: str) -> float | None:
    """Parse a time span of systemd, e.g. `1min 40s`; None for `infinity` and anything else."""
    parts: Sequence[tuple[str, str]] = re.findall(r"([0-9.]+)\s*(us|ms|min|s|h|d|w)\b", span)
    return sum(float(number) * _SPAN_S[unit] for number, unit in parts) if parts else None


def open_variables(unit: Service) -> tuple[str, ...]:
    """The variables that are set in the unit itself, which every user can read."""
    return tuple(sorted(_environment(unit["Environment"])))


def differing(settings: Settings, unit: Service) -> tuple[str, ...]:
    """The variables of the service that have another value, or none, in these settings."""
    return tuple(
        sorted(
            name
            for name, value in unit.environ.items()
            if value and settings.environ.get(name, "").strip() != value.strip()
        )
    )
