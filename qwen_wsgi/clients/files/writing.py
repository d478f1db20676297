"""Shows what would change in the files of a client, and changes it, or takes it back."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TextIO

from qwen_wsgi import redaction
from qwen_wsgi.clients.files import changes, file_store
from qwen_wsgi.clients.files.changes import SetUp
from qwen_wsgi.clients.files.file_store import Content
from qwen_wsgi.clients.files.record import Record, Written
from qwen_wsgi.clients.files.texts import Refused
from qwen_wsgi.errors import SettingsError

#: The directory of the records, in the state directory.
RECORDS: Final = "clients"


@dataclass
class _Step:
    """What happens to one file.

    Attributes:
        after: None if it is removed.
        written: what is noted of it afterwards; None for nothing.
        mode: None for the one that it has.
        backup: whether what is there is copied first.
    """

    path: Path
    before: Content
    after: bytes | None
    written: Written | None
    mode: int | None = None
    backup: bool = False
    remove: list[str] = field(default_factory=list)
    kept: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """Whether the file becomes another one."""
        return self.before.raw != self.after or (
            self.mode is not None and self.mode != self.before.mode
        )


@dataclass(frozen=True)
class Terminal:
    """Where it is told what happens.

    Attributes:
        ask: asks a person a question, None where there is nobody.
        secrets: what is masked.
    """

    out: TextIO
    json_output: bool = False
    ask: Callable[[str], str] | None = None
    secrets: Sequence[str] = ()


class Files:
    """The files of one client.

    Args:
        directory: the state directory.
    """

    def __init__(self, directory: Path, client: str, terminal: Terminal) -> None:
        self._client = client
        self._record = Record(directory / RECORDS, client)
        self._terminal = terminal
        self._out = terminal.out

    def write(self, set_up: SetUp, *, private: bool, notes: Sequence[str] = ()) -> int:
        """Write a client's set-up, in place of one that was written before.

        Args:
            private: the files get a secret, so that nobody else may read them.
            notes: further sentences for the person.

        Raises:
            SettingsError: a file cannot be changed; then none is.
        """
        _refuse_hidden(set_up)
        with self._record.locked():
            noted = {each.path: each for each in self._record.read()}
            steps = [
                _write_step(change, noted.get(str(change.path)), private=private)
                for change in set_up.files
            ]
            ours = {str(change.path) for change in set_up.files}
            rest = [each for path, each in noted.items() if path not in ours]
            steps += [_undo_step(each) for each in rest]
            done = self._do(steps, "written")
        key = f"Set {set_up.variable} to your client key." if set_up.variable else ""
        self._tell(
            steps, "written" if done else "left", [*filter(None, [key]), *set_up.notes, *notes]
        )
        return 0 if done else 1

    def undo(self) -> int:
        """Take back what was written.

        Raises:
            SettingsError: a file cannot be changed; then none is.
        """
        with self._record.locked():
            noted = self._record.read()
            if not noted:
                raise SettingsError(
                    f"nothing is noted that `qwen-proxy clients {self._client} --write` has written"
                )
            steps = [_undo_step(each) for each in noted]
            done = self._do(steps, "taken back")
        self._tell(steps, "taken back" if done else "left", [])
        return 0 if done else 1

    def _do(self, steps: Sequence[_Step], what: str) -> bool:
        """Show the changes, ask, and make them; whether they were made."""
        if not self._terminal.json_output:
            for step in steps:
                self._out.write(self._diff(step))
            self._out.flush()
        changing = [step for step in steps if step.changes]
        if changing and self._terminal.ask is not None:
            answer = self._terminal.ask("Change this? [y/N] ").strip().lower()
            if answer not in ("y", "yes"):
                return False
        done: list[_Step] = []
        for step in steps:
            try:
                self._one(step, steps)
            except (OSError, Refused) as error:
                raise SettingsError(_half_done(step, done, what, error, self._client)) from None
            done.append(step)
        return True

    def _one(self, step: _Step, steps: Sequence[_Step]) -> None:
        """Change one file: the copy first, then the note of it, then the file.

        A crash in between leaves a note of something that is not there, which an undo passes over.
        """
        made: tuple[str, ...] = ()
        backup: Path | None = None
        earlier = self._record.read()
        try:
            if step.written is not None:
                if step.after is not None and step.before.raw is None:
                    made = file_store.make_directories(step.path)
                if step.backup:
                    backup = file_store.back_up(step.path, step.before)
                self._note(step, made, backup)
            if step.changes:
                _replace(step)
            if step.written is None:
                self._record.write([each for each in earlier if each.path != str(step.path)])
                _clean(step)
        except (OSError, Refused):
            with suppress(OSError):
                self._record.write(earlier)
            _forget(made, backup)
            raise

    def _note(self, step: _Step, made: tuple[str, ...], backup: Path | None) -> None:
        assert step.written is not None
        step.written = replace(
            step.written,
            directories=made or step.written.directories,
            backup=str(backup) if backup else step.written.backup,
        )
        others = [each for each in self._record.read() if each.path != str(step.path)]
        self._record.write([*others, step.written])

    def _diff(self, step: _Step) -> str:
        if not step.changes:
            return f"{step.path}: nothing to change\n"
        old = (step.before.raw or b"").decode(errors="replace").splitlines(keepends=True)
        new = (step.after or b"").decode(errors="replace").splitlines(keepends=True)
        here, gone = str(step.path), "/dev/null"
        lines = difflib.unified_diff(
            old,
            new,
            gone if step.before.raw is None else here,
            gone if step.after is None else here,
        )
        text = "".join(line if line.endswith("\n") else line + "\n" for line in lines)
        mode = f"{step.path}: mode {step.mode:o}\n" if not text and step.mode is not None else ""
        return redaction.mask_all(text, self._terminal.secrets) + mode

    def _tell(self, steps: Sequence[_Step], what: str, notes: Sequence[str]) -> None:
        """Say what was done."""
        rows: list[dict[str, Any]] = [
            {
                "path": str(step.path),
                "change": what if step.changes else "none",
                "backup": step.written.backup if step.written else "",
                "kept": list(step.kept),
            }
            for step in steps
        ]
        if self._terminal.json_output:
            value = {"client": self._client, "files": rows, "notes": list(notes)}
            self._out.write(json.dumps(value, indent=2) + "\n")
            return
        if what == "left":
            self._out.write("Nothing was changed.\n")
            return
        for row in rows:
            backup = f"; as it was: {row['backup']}" if row["backup"] else ""
            if row["change"] != "none":
                self._out.write(f"{row['path']}: {row['change']}{backup}\n")
            self._out.writelines(f"{row['path']}: {each}\n" for each in row["kept"])
        self._out.writelines(f"note: {note}\n" for note in notes)


def refuse_root(home: Path) -> None:
    """Leave the files of a user alone who is not root.

    Raises:
        SettingsError: this is root, in the home directory of somebody else.
    """
    with suppress(OSError):
        if os.geteuid() == 0 and home.stat().st_uid != 0:
            raise SettingsError(
                f"{home} is not root's: run this as the user of the client, without sudo"
            )


def _refuse_hidden(set_up: SetUp) -> None:
    hidden = set_up.hidden_by_us
    if hidden is not None and hidden.exists():
        raise SettingsError(
            f"{set_up.files[0].path} is not there, but the older {hidden} is, which the client "
            "would not read any more. Have the client convert it, or move it away. Nothing was "
            "changed"
        )


def _write_step(change: changes.FileChange, noted: Written | None, *, private: bool) -> _Step:
    """What writing does to one file, in which an earlier set-up of ours may be."""
    path = change.path
    try:
        before = file_store.read(path)
        bare, _ = _without_ours(before, noted) if noted else (before, ())
        applied = change.apply(bare.text)
    except (OSError, Refused) as error:
        raise SettingsError(_untouched(path, error)) from None
    after = applied.text.encode()
    mode = before.mode & 0o700 if private and before.mode is not None else None
    written = Written(
        path=str(path),
        kind=change.kind,
        note=applied.note,
        after=file_store.digest(after),
        mode=noted.mode if noted else before.mode,
        backup=noted.backup if noted else "",
        directories=noted.directories if noted else (),
    )
    copy = noted is None and before.raw is not None
    return _Step(path, before, after, written, mode=mode, backup=copy)


def _without_ours(before: Content, noted: Written) -> tuple[Content, tuple[str, ...]]:
    """A file without what we wrote, and what of that stays: a clause each.

    If nobody has touched it since, it is the copy, to the last byte.

    Raises:
        OSError, Refused: the file or the copy cannot be read.
    """
    if before.raw is None:
        return before, ()
    copy = _copy_of(noted)
    if copy is not None and file_store.digest(before.raw) == noted.after:
        return Content(copy, before.mode), ()
    back = changes.take_back(noted.kind, before.text, noted.note)
    return Content(back.text.encode(), before.mode), back.kept


def _copy_of(noted: Written) -> bytes | None:
    return file_store.read(Path(noted.backup)).raw if noted.backup else None


def _undo_step(noted: Written) -> _Step:
    """What taking back does to one file."""
    path = Path(noted.path)
    try:
        before = file_store.read(path)
        bare, kept = _without_ours(before, noted)
        copy = _copy_of(noted)
    except (OSError, Refused) as error:
        raise SettingsError(_untouched(path, error)) from None
    after = bare.raw
    if noted.mode is None and after is not None and not after.strip():
        after = None
    step = _Step(path, before, after, None, kept=kept)
    if noted.mode is not None and before.mode is not None:
        # The one that it had, but for what its owner has allowed or forbidden since.
        step.mode = noted.mode if before.mode == noted.mode & 0o700 else before.mode
    if after is None:
        step.remove += noted.directories
    if copy is not None and copy == after:
        step.remove.insert(0, noted.backup)
    return step


def _replace(step: _Step) -> None:
    if step.after is not None:
        file_store.replace(step.path, step.before, step.after, mode=step.mode)
    elif step.before.raw is not None:
        if file_store.read(step.path).raw != step.before.raw:
            raise Refused("another program has just changed it; try again")
        step.path.unlink()


def _clean(step: _Step) -> None:
    """Remove the copy, and directories of ours that are empty."""
    for each in step.remove:
        with suppress(OSError):
            path = Path(each)
            path.rmdir() if path.is_dir() else path.unlink()


def _forget(made: Sequence[str], backup: Path | None) -> None:
    """Take away what was made for a change that failed."""
    with suppress(OSError):
        if backup is not None:
            backup.unlink()
        for each in made:
            os.rmdir(each)


def _why(error: OSError | Refused) -> str:
    return str(error) if isinstance(error, Refused) else error.strerror or type(error).__name__


def _untouched(path: Path, error: OSError | Refused) -> str:
    return f"{path} is left alone: {_why(error)}. Nothing was changed"


def _half_done(
    step: _Step, done: Sequence[_Step], what: str, error: OSError | Refused, client: str
) -> str:
    others = [str(each.path) for each in done if each.changes]
    if not others:
        return _untouched(step.path, error)
    return (
        f"{step.path} is left alone: {_why(error)}. {', '.join(others)} was {what} before that; "
        f"`qwen-proxy clients {client} --undo` takes back what is written"
    )
