"""What /usr/local/bin/qwen-proxy runs: the command, for root as the service.

Called by root, the command must see what the service sees, and must leave no file of root's in the
service's directories. So it becomes the service first: its user and group, its environment, its
directories, as systemd sets them (systemd.exec(5)). Anybody else just runs the command.

It works without systemd, too: then the unit's files are read instead of asking for its properties.
"""

from __future__ import annotations

import grp
import os
import pwd
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from qwen_wsgi import settings as settings_module
from qwen_wsgi.doctor import nginx, service, witness
from qwen_wsgi.doctor.machine import Machine
from qwen_wsgi.doctor.service import NotHere, Service
from qwen_wsgi.doctor.witness import Witness

#: The exit status for what the operator must correct.
_EXIT_CONFIGURATION: Final = 2

#: The variables that say where a server is.
_ADDRESS: Final = (
    "QWEN_PROXY_BIND",
    "QWEN_PROXY_HOST",
    "QWEN_PROXY_PORT",
    "QWEN_PROXY_PUBLIC_URL",
)

#: systemd's own PATH for services.
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
#: What belongs to the terminal, and not to the service.
_OF_THE_TERMINAL: Final = ("TERM", "LANG", "LANGUAGE", "COLUMNS", "LINES", "NO_COLOR", "TZ")


#: Said to a user who is not root.
_OWN_KEYS: Final = (
    "qwen-proxy: these are the client keys of your own state directory, which the service does not "
    "have. For the service's: sudo qwen-proxy keys"
)


#: Said to root, whose command becomes the service, which has no clients.
_OWN_FILES: Final = (
    "qwen-proxy: the client's files are those of a user: run this as that user, without sudo. "
    "Nothing was changed."
)


class Identity(NamedTuple):
    """Whose rights the service has."""

    name: str
    uid: int
    gid: int
    home: str
    shell: str


class Directory(NamedTuple):
    """A directory that systemd makes for the service.

    Attributes:
        variable: of the environment, with the path.
    """

    path: Path
    mode: int
    variable: str


def main() -> NoReturn:
    """Become the command: as the service if root asks, and there is one."""
    environ, arguments = settings_module.environment(), sys.argv[1:]
    command = [sys.executable, "-I", "-m", "qwen_wsgi.cli", *arguments]
    machine = Machine(environ)
    unit = _unit(machine)
    if unit is None:
        os.execve(command[0], command, environ)
    if os.geteuid() != 0:
        if "keys" in arguments[:1]:
            print(_OWN_KEYS, file=sys.stderr)
        hints = {} if "serve" in arguments[:1] else address(unit, environ)
        os.execve(command[0], command, environ | hints)
    if "clients" in arguments[:1] and {"--write", "--undo"} & set(arguments):
        print(_OWN_FILES, file=sys.stderr)
        sys.exit(_EXIT_CONFIGURATION)
    try:
        who, groups = identity(unit), supplementary_groups(unit)
    except KeyError as error:
        print(
            f"qwen-proxy: the service's unit names {error.args[0]}, which does not exist. "
            "Correct it: systemctl cat qwen-proxy",
            file=sys.stderr,
        )
        sys.exit(_EXIT_CONFIGURATION)
    seen = _witness(unit, machine) if "doctor" in arguments[:1] else {}
    places = directories(unit, serving="serve" in arguments[:1])
    for place in places:
        make(place, who)
    become(who, groups, unit)
    os.execve(command[0], command, environment(unit, who, places, environ) | seen)


def _unit(machine: Machine) -> Service | None:
    """The service, from systemd or from its files; None if there is none."""
    for find in (service.look, service.read):
        with suppress(NotHere):
            return find(machine)
    return None


def address(unit: Service, environ: Mapping[str, str]) -> dict[str, str]:
    """Where the service is, for a user who says nothing about a server of his own."""
    if any(environ.get(name, "").strip() for name in (*_ADDRESS, "HOST", "PORT")):
        return {}
    return {name: unit.environ[name] for name in _ADDRESS if name in unit.environ}


def identity(unit: Service) -> Identity:
    """The service's user and group.

    Raises:
        KeyError: the unit names one that does not exist; the error's argument says which.
    """
    try:
        user = pwd.getpwnam(unit.user)
    except KeyError:
        raise KeyError(f"the user {unit.user}") from None
    gid = user.pw_gid
    if name := unit["Group"]:
        try:
            gid = grp.getgrnam(name).gr_gid
        except KeyError:
            raise KeyError(f"the group {name}") from None
    return Identity(user.pw_name, user.pw_uid, gid, user.pw_dir, user.pw_shell)


def supplementary_groups(unit: Service) -> list[int]:
    """The further groups of the service; one of them may read the environment file.

    Raises:
        KeyError: one does not exist; the error's argument says which.
    """
    found = []
    for name in unit["SupplementaryGroups"].split():
        try:
            found.append(grp.getgrnam(name).gr_gid)
        except KeyError:
            raise KeyError(f"the group {name}") from None
    return found


def directories(unit: Service, *, serving: bool) -> list[Directory]:
    """The service's directories; the one of its socket only for a server."""
    kinds = [("StateDirectory", "/var/lib", "STATE_DIRECTORY")]
    if serving:
        kinds.append(("RuntimeDirectory", "/run", "RUNTIME_DIRECTORY"))
    found = []
    for kind, base, variable in kinds:
        for word in unit[kind].split()[:1]:
            mode = int(unit[f"{kind}Mode"] or "755", 8)
            found.append(Directory(Path(base, word.partition(":")[0]), mode, variable))
    return found


def make(place: Directory, who: Identity) -> None:
    """Make a directory as systemd does before it starts the service; one that exists stays."""
    with suppress(FileExistsError):
        os.mkdir(place.path, 0o700)
        os.chown(place.path, who.uid, who.gid)
        os.chmod(place.path, place.mode)


def environment(
    unit: Service, who: Identity, places: Sequence[Directory], environ: Mapping[str, str]
) -> dict[str, str]:
    """The service's environment, with what belongs to the terminal."""
    kept = {
        name: value
        for name, value in environ.items()
        if name in _OF_THE_TERMINAL or name.startswith("LC_")
    }
    own = {"PATH": _PATH, "HOME": who.home, "USER": who.name, "LOGNAME": who.name}
    made = {place.variable: str(place.path) for place in places}
    # The command reads the file of QWEN_PROXY_ENV_FILE itself, as the server does.
    return {**kept, **own, "SHELL": who.shell, **made, **unit.given}


def become(who: Identity, groups: Sequence[int], unit: Service) -> None:
    """Give up root's rights for good, and take the service's.

    Args:
        groups: the service's further groups.
    """
    os.umask(int(unit["UMask"] or "022", 8))
    if who.uid != 0:
        os.setgroups([*os.getgrouplist(who.name, who.gid), *groups])
        os.setresgid(who.gid, who.gid, who.gid)
        os.setresuid(who.uid, who.uid, who.uid)
    # root's directory may be closed to the service.
    if not os.access(".", os.X_OK):
        os.chdir("/")


def _witness(unit: Service, machine: Machine) -> dict[str, str]:
    files = witness.read_files(file.path for file in unit.files)
    tested = None
    with suppress(OSError):  # it cannot be run, or takes too long
        tested = nginx.test(machine)
    return witness.hand_over(Witness(files, tested))


if __name__ == "__main__":
    main()
