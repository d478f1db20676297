"""What runs in the sandbox for the tool `python`: executes code, and tells what came of it.

A program of its own (`python3 -I interpreter_program.py QUESTIONS ANSWERS`, two open files by their
numbers), which uses the standard library alone. A question and an answer are JSON objects, one a
line. What the code prints goes to standard output and error, which the runner reads.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import linecache
import os
import sys
import traceback
from typing import Any

WORK = "/tmp/work"
#: Files that are told of, and pictures of one call.
MOST_FILES = 200
MOST_PICTURES = 16


def main() -> None:
    questions, answers = map(int, sys.argv[1:3])
    for number in (questions, answers):
        os.set_inheritable(number, False)
    os.makedirs(WORK, exist_ok=True)
    os.chdir(WORK)
    sys.path.insert(0, WORK)
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    with open(questions, "rb") as source, open(answers, "wb") as sink:
        for count, line in enumerate(source, 1):
            answer = one(json.loads(line), names, f"<cell {count}>")
            sink.write(json.dumps(answer).encode() + b"\n")
            sink.flush()


def one(question: dict[str, Any], names: dict[str, Any], cell: str) -> dict[str, Any]:
    """Write the files, run the code, and look at what is there afterwards."""
    for name, data in question["files"].items():
        with open(os.path.join(WORK, os.path.basename(name)), "wb") as file:
            file.write(base64.b64decode(data))
    before = files()
    failed = run(question["code"], names, cell)
    pictures = plots()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    after = files()
    changed = [name for name, what in after.items() if before.get(name) != what]
    return {
        "failed": failed,
        "pictures": pictures,
        "files": [
            {"name": name, "size": after[name][1], "data": content(name, question["room"])}
            for name in sorted(changed)[:MOST_FILES]
        ],
    }


def run(code: str, names: dict[str, Any], cell: str) -> bool:
    """Run code as a notebook does: the value of a last expression is printed. Whether it failed."""
    own = os.getpid()
    linecache.cache[cell] = (len(code), None, code.splitlines(keepends=True), cell)
    try:
        tree = ast.parse(code, cell)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), cell, "eval"), names)
            if value is not None:
                print(repr(value))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code not in (None, 0)
    except BaseException as error:  # whatever the code raises is its own, and none of it ends this
        # Without the frames of this file.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace, limit=50)
        return True
    finally:
        if os.getpid() != own:
            os._exit(0)  # a process that the code has forked: nobody has asked it anything
    return False


def plots() -> list[str]:
    """The open figures of matplotlib as PNG; they are closed."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is None:
        return []
    found = []
    for number in pyplot.get_fignums()[:MOST_PICTURES]:
        buffer = io.BytesIO()
        try:
            pyplot.figure(number).savefig(buffer, format="png")
        except Exception:
            traceback.print_exc(limit=5)
            continue
        found.append(base64.b64encode(buffer.getvalue()).decode())
    pyplot.close("all")
    return found


def files() -> dict[str, tuple[int, int]]:
    """The files in the work folder: when they were changed, and their sizes."""
    found: dict[str, tuple[int, int]] = {}
    with os.scandir(WORK) as entries:
        for entry in entries:
            # What a symlink leads to is told of by nobody.
            if entry.is_file(follow_symlinks=False) and len(found) < 10 * MOST_FILES:
                stat = entry.stat(follow_symlinks=False)
                found[entry.name] = (stat.st_mtime_ns, stat.st_size)
    return found


def no_symlink(path: str, flags: int) -> int:
    """Opens a file, but not what a symlink leads to."""
    return os.open(path, flags | os.O_NOFOLLOW)


def content(name: str, room: list[int]) -> str | None:
    """A file in base64, while there is room: `room` holds the bytes that are left."""
    try:
        with open(os.path.join(WORK, name), "rb", opener=no_symlink) as file:
            data = file.read(room[0] + 1)
    except OSError:
        return None
    if len(data) > room[0]:
        return None
    room[0] -= len(data)
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    main()
