"""`qwen-proxy state backup | restore | check`: looks after what the server has stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.database.copies import CopyFailed, backup, restore
from qwen_wsgi.state.database.inspection import Inspection, inspect
from qwen_wsgi.state.database.tables import DIRECTORY, TABLES


def run(
    settings: Settings,
    action: str,
    file: str | None,
    *,
    force: bool,
    keep_keys: bool = False,
    json_output: bool,
    out: TextIO,
    err: TextIO,
) -> int:
    """Do one of the actions.

    Args:
        file: the copy to be made or to be restored.
        force: whether a copy that is there already is overwritten.
        keep_keys: whether a restore leaves the client keys as they are now.

    Returns:
        The exit status: 0 if it was done, or if all is well; else 1.

    Raises:
        SettingsError: the file is missing, or there is one too many.
    """
    state_dir = Path(settings.state_dir).absolute()
    directory = state_dir / DIRECTORY
    if (file is None) != (action == "check"):
        what = "wants no FILE" if file else "wants the FILE"
        raise SettingsError(f"`state {action}` {what}; see `qwen-proxy state --help`")
    try:
        if file is None:
            return _show(inspect(state_dir, directory, tables=TABLES), json_output, out)
        path = Path(file).absolute()
        if action == "backup":
            size = backup(directory, path, overwrite=force)
            shown: dict[str, Any] = {"file": str(path), "bytes": size}
            text = f"{path} has a copy of {directory} ({_size(size)})."
        else:
            done = restore(
                state_dir, directory, path, SystemClock(), tables=TABLES, keep_keys=keep_keys
            )
            replaced = None if done.replaced is None else str(done.replaced)
            shown = {"file": str(path), "bytes": done.size, "replaced": replaced, "keys": done.keys}
            text = _restored(path, replaced, done.size, done.keys)
    except CopyFailed as error:
        if json_output:
            out.write(json.dumps({"error": str(error)}, indent=2) + "\n")
        else:
            err.write(f"qwen-proxy: {error}\n")
        return 1
    out.write((json.dumps(shown, indent=2) if json_output else text) + "\n")
    return 0


def _restored(path: Path, replaced: str | None, size: int, keys: int) -> str:
    text = f"{path} is the server's database now ({_size(size)}). Start the server."
    if keys:
        text += (
            f"\nIts {keys} client keys are as they were when the copy was made: those that were "
            "revoked since are valid again, and those made since are not known. `qwen-proxy keys "
            "list` shows them; --keep-keys would have left them as they were."
        )
    if replaced is None:
        return text
    return (
        f"{text}\nWhat was there before is kept in {replaced}: only there is what was stored since "
        "the copy was made. Remove it when you do not need it any more."
    )


def _show(found: Inspection, json_output: bool, out: TextIO) -> int:
    shown = json.dumps(_as_json(found), indent=2) if json_output else _as_text(found)
    out.write(shown + "\n")
    return 1 if found.problems else 0


def _as_json(found: Inspection) -> dict[str, Any]:
    return {
        "file": str(found.file),
        "exists": found.exists,
        "in_use": found.in_use,
        "bytes": found.size,
        "log_bytes": found.log,
        "free_bytes": found.free,
        "features": [
            {"name": name, "version": there, "known": known}
            for name, (there, known) in found.versions.items()
        ],
        "rows": found.rows,
        "problems": found.problems,
        "notes": found.notes,
    }


def _as_text(found: Inspection) -> str:
    lines = [str(found.file)]
    if found.exists:
        used = {True: "a server uses it", False: "no server uses it", None: "in use: unknown"}
        lines.append(f"  {_size(found.size)}, log {_size(found.log)}, {used[found.in_use]}")
    if found.free is not None:
        lines.append(f"  {_size(found.free)} of its disk are free")
    for name, (there, known) in found.versions.items():
        later = "" if there >= known else f"; the next start makes version {known} of it"
        lines.append(f"  {name}: version {there}{later}")
    if found.rows:
        lines.append("  rows: " + ", ".join(f"{name} {rows}" for name, rows in found.rows.items()))
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"WRONG: {problem}" for problem in found.problems] or ["Nothing is wrong."]
    return "\n".join(lines)


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
