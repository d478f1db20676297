"""The installed systemd service: its properties, and the settings that it gets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from qwen_wsgi import env_file
from qwen_wsgi import settings as settings_module
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings

UNIT: Final = "qwen-proxy.service"
SOCKET: Final = "qwen-proxy.socket"

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
    "SupplementaryGroups",
    "ExecStart",
    "Environment",
    "EnvironmentFiles",
    "StateDirectory",
    "StateDirectoryMode",
    "RuntimeDirectory",
    "RuntimeDirectoryMode",
    "UMask",
    "DropInPaths",
    "ProtectHome",
    "ProtectSystem",
    "BindPaths",
    "BindReadOnlyPaths",
    "ReadWritePaths",
    "LimitNOFILE",
    "TimeoutStopUSec",
    "Listen",
)

_TIMEOUT_S: Final = 10.0

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
    """An environment file of the unit, or the one that the server itself reads.

    Attributes:
        text: None if this user may not read it; "" if it does not exist.
    """

    path: Path
    text: str | None


@dataclass(frozen=True)
class Service:
    """The installed unit.

    Attributes:
        given: the environment that systemd gives to the service, as far as this user may read it.
        environ: the same, with what the environment file that the server reads says.
        settings: parsed from it; None if it is not fully known, or invalid.
        problem: why it is invalid.
        socket: the properties of the socket unit, as far as they are known.
    """

    properties: Mapping[str, str]
    files: tuple[EnvironmentFile, ...] = ()
    given: Mapping[str, str] = field(default_factory=dict, repr=False)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Settings | None = None
    problem: str = ""
    socket: Mapping[str, str] = field(default_factory=dict)

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
        return next(iter(self.sockets), self.own_bind)

    @property
    def sockets(self) -> tuple[str, ...]:
        """Where systemd listens for it, in the same notation."""
        if self.socket.get("ActiveState") != "active":
            return ()
        found = re.findall(r"(\S+) \(Stream\)", self.socket.get("Listen", ""))
        return tuple(f"unix:{each}" if each.startswith("/") else each for each in found)

    @property
    def own_bind(self) -> str:
        """Where its settings say that it listens."""
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
            [systemctl, "show", UNIT, SOCKET, "--no-pager", "-p", ",".join(_PROPERTIES)],
            timeout_s=_TIMEOUT_S,
        )
    except OSError as error:
        raise NotHere(f"systemctl cannot be run ({error})") from None
    if done.status:
        lines = (done.err or done.out).strip().splitlines()
        raise NotHere(f"systemctl says: {lines[0] if lines else f'status {done.status}'}")
    # One block for each, with an empty line between them.
    service, _, socket = done.out.partition("\n\n")
    properties = _properties(service)
    if properties.get("LoadState") in (None, "", "not-found"):
        raise NotHere("the service is not installed")
    return replace(_service(properties, machine), socket=_properties(socket))


def read(machine: Machine) -> Service:
    """Read the service from the files of its unit: for a machine that systemd does not run.

    Raises:
        NotHere: there are none.
    """
    unit = next((each for each in _places(machine, UNIT) if each.is_file()), None)
    if unit is None:
        raise NotHere("the service is not installed")
    # The same name in a more important place hides the others.
    drop_ins: dict[str, Path] = {}
    for directory in reversed(_places(machine, f"{UNIT}.d")):
        drop_ins |= {path.name: path for path in sorted(directory.glob("*.conf"))}
    paths = [unit, *(drop_ins[name] for name in sorted(drop_ins))]
    try:
        texts = [path.read_text(errors="replace") for path in paths]
    except OSError as error:
        raise NotHere(f"{error.filename} cannot be read ({error.strerror})") from None
    return _service(_of_files(texts), machine)


def _places(machine: Machine, name: str) -> list[Path]:
    """Where systemd looks for a file, the most important place first."""
    return [
        machine.root / place / "systemd/system" / name
        for place in ("etc", "run", "usr/local/lib", "usr/lib", "lib")
    ]


def _of_files(texts: Sequence[str]) -> dict[str, str]:
    """The properties that a unit and its drop-ins set, as `systemctl show` prints them.

    A list grows with each line; an empty line begins it anew.
    """
    found: dict[str, str] = {}
    section = ""
    for line in "\n".join(texts).replace("\\\n", " ").splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line
        name, equals, value = (part.strip() for part in line.partition("="))
        if section != "[Service]" or not equals or line.startswith(("#", ";")):
            continue
        if name == "EnvironmentFile":
            name = "EnvironmentFiles"
            ignored = "yes" if value.startswith("-") else "no"
            value = value and f"{value.lstrip('-')} (ignore_errors={ignored})"
        is_list = name in ("Environment", "EnvironmentFiles", "BindPaths", "BindReadOnlyPaths")
        before = found.get(name, "") if is_list and value else ""
        found[name] = f"{before} {value}".strip()
    return found


def _service(properties: dict[str, str], machine: Machine) -> Service:
    listed = re.findall(r"(/\S*) \(ignore_errors=\w+\)", properties.get("EnvironmentFiles", ""))
    files = [_environment_file(path, machine) for path in listed]
    given = _environment(properties.get("Environment", ""))
    for file in files:
        given |= env_file.parse(file.text or "").values
    environ = given
    if path := given.get(env_file.VARIABLE, "").strip():
        files.append(own := _environment_file(path, machine))
        environ = env_file.over(given, env_file.parse(own.text or "").values)
    problem, settings = "", None
    if all(file.text is not None for file in files):
        try:
            settings = settings_module.load(environ)
        except SettingsError as error:
            problem = str(error)
    return Service(properties, tuple(files), given, environ, settings, problem)


def _properties(text: str) -> dict[str, str]:
    """Parse `NAME=VALUE` lines; a repeated name appends its value."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            found[name] = f"{found[name]} {value}".strip() if name in found else value
    return found


def _environment_file(path: str, machine: Machine) -> EnvironmentFile:
    try:
        text = (machine.root / path.lstrip("/")).read_text(errors="replace")
    except FileNotFoundError:
        text = ""
    except OSError:
        saw = machine.root_saw
        return EnvironmentFile(Path(path), saw.files.get(path) if saw else None)
    return EnvironmentFile(Path(path), text)


def _environment(assignments: str) -> dict[str, str]:
    try:
        words = shlex.split(assignments)
    except ValueError:
        words = assignments.split()
    pairs = (word.partition("=") for word in words)
    return {name: value for name, equals, value in pairs if equals}


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
            if name != env_file.VARIABLE  # what it says counts, and not where it is
            and name[:1] != "_"
            and value
            and settings.environ.get(name, "").strip() != value.strip()
        )
    )
