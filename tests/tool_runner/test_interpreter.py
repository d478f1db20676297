"""The sandbox and the tool `python`, with real processes that try to escape."""

from __future__ import annotations

import asyncio
import base64
import errno
import functools
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_wsgi.tool_runner import interpreter as module
from qwen_wsgi.tool_runner import system_calls
from qwen_wsgi.tool_runner.config import Entry
from qwen_wsgi.tool_runner.interpreter import Interpreter
from qwen_wsgi.tool_runner.results import Result
from qwen_wsgi.tool_runner.sandbox import (
    Bounds,
    CannotStart,
    Program,
    Sandbox,
    arguments,
    folder_for,
)
from qwen_wsgi.tool_runner.toolbox import works
from tests.kit.processes import REPOSITORY
from tests.kit.sandboxes import open_folder, processes_with, without_sandbox

needs_sandbox = pytest.mark.skipif(bool(without_sandbox()), reason=without_sandbox())

pytestmark = pytest.mark.once  # dozens of sandboxes, which take seconds each


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_folder() as made:
        yield made


BOUNDS = Bounds(memory=256 << 20, processes=40, disk=16 << 20)


def sandbox(private: Path | None = None) -> Sandbox:
    return Sandbox(BOUNDS, private=[str(private)] if private else [])


def run(work: Callable[[Interpreter], Awaitable[Any]], entry: Entry | None = None) -> Any:
    async def whole() -> Any:
        one = Interpreter(entry or Entry("python"), sandbox(), output_bytes=20_000)
        try:
            return await work(one)
        finally:
            await one.close()

    return asyncio.run(whole())


def result_of(code: str, *, seconds: float = 20.0, **more: object) -> Result:
    found: Result = run(
        lambda one: one.call({"code": code, **more}, seconds=seconds, container=None)
    )
    return found


# --- what comes back -----------------------------------------------------------------------------


@needs_sandbox
def test_what_is_printed_and_the_last_value() -> None:
    result = result_of("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7")

    assert not result.is_error
    assert result.text == "out\n42\nerr"
    assert isinstance(result.structured, dict)
    assert result.structured["stdout"] == "out\n42\n"
    assert result.structured["return_code"] == 0


@needs_sandbox
def test_an_exception_is_an_error_with_its_line() -> None:
    result = result_of("x = 1\n1 / 0")

    assert result.is_error
    assert result.text.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "1 / 0" in result.text
    assert "interpreter" not in result.text


@needs_sandbox
def test_a_container_keeps_variables_and_files() -> None:
    async def work(one: Interpreter) -> list[str]:
        codes = ["x = 5; open('f', 'w').write('kept')", "print(x, open('f').read())"]
        found = [await one.call({"code": c}, seconds=20, container="a") for c in codes]
        found.append(await one.call({"code": codes[1]}, seconds=20, container="b"))
        return [each.text for each in found]

    _, second, other = run(work)

    assert second == "5 kept"
    assert "NameError" in other


@needs_sandbox
def test_a_call_that_takes_too_long_is_stopped_and_its_container_is_lost() -> None:
    async def work(one: Interpreter) -> list[Result]:
        await one.call({"code": "x = 5"}, seconds=20, container="a")
        late = await one.call({"code": "while True: pass"}, seconds=0.5, container="a")
        return [late, await one.call({"code": "x"}, seconds=20, container="a")]

    late, after = run(work)

    assert late.is_error
    assert "after 0.5 seconds" in late.text
    assert "variables and files are gone" in late.text
    assert "NameError" in after.text


@needs_sandbox
def test_a_call_that_waited_while_another_one_failed_leaves_its_container_to_the_next() -> None:
    async def work(one: Interpreter) -> tuple[Result, Result, Result, int]:
        failing = asyncio.create_task(
            one.call(
                {"code": "import os, time; time.sleep(1); os._exit(3)"}, seconds=20, container="a"
            )
        )
        while not one._containers:
            await asyncio.sleep(0.01)
        waited = await one.call({"code": "x = 5; x"}, seconds=20, container="a")
        next_one = await one.call({"code": "x + 1"}, seconds=20, container="a")
        return await failing, waited, next_one, len(one._containers)

    failed, waited, next_one, count = run(work)
    assert failed.is_error
    assert (waited.text, next_one.text, count) == ("5", "6", 1)


@needs_sandbox
def test_a_call_that_waits_while_the_interpreter_is_closed_is_not_begun() -> None:
    """As at a reload: what follows might forbid what this one allows, and nobody would end it."""

    async def work(one: Interpreter) -> tuple[list[Result], int]:
        slow = {"code": "import time; time.sleep(20)"}
        calls = [one.call(slow, seconds=20, container="a")]
        calls += [one.call({"code": "1"}, seconds=20, container="a")]
        tasks = [asyncio.create_task(each) for each in calls]
        while not one._containers or one._containers["a"].session is None:
            await asyncio.sleep(0.01)
        await one.close()
        found = await asyncio.gather(*tasks)
        found.append(await one.call({"code": "1"}, seconds=20, container=None))
        return found, len(one._containers)

    results, count = run(work)

    assert [each.is_error for each in results] == [True] * 3
    assert ["read anew" in each.text for each in results] == [False, True, True]
    assert count == 0


@needs_sandbox
def test_containers_are_few_and_idle_ones_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CONTAINERS", 1)

    async def work(one: Interpreter) -> list[Result]:
        await one.call({"code": "x = 1"}, seconds=20, container="a")
        slow = asyncio.create_task(
            one.call({"code": "import time; time.sleep(1); 1"}, seconds=20, container="b")
        )
        await asyncio.sleep(0.3)
        refused = await one.call({"code": "2"}, seconds=20, container="c")
        found = [await slow, refused]
        monkeypatch.setattr(module, "IDLE_S", -1.0)
        await one._end_idle()
        assert not one._containers
        return found

    second, refused = run(work)

    assert second.text == "1"
    assert refused.is_error
    assert "in use" in refused.text


@needs_sandbox
def test_files_go_in_and_come_out() -> None:
    result = result_of(
        "text = open('a.txt').read()\nopen('b.bin', 'wb').write(text.upper().encode())",
        files={"a.txt": base64.b64encode(b"hello").decode()},
    )

    assert isinstance(result.structured, dict)
    (file,) = result.structured["files"]
    assert (file["name"], base64.b64decode(file["data"])) == ("b.bin", b"HELLO")
    assert "b.bin (5 bytes)" in result.text


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], "object"),
        ({"../x": ""}, "plain name"),
        ({"..": ""}, "plain name"),
        ({"x": "?"}, "not base64"),
        ({"x": base64.b64encode(bytes(11 << 20)).decode()}, "larger than 10 MiB"),
    ],
)
def test_files_that_cannot_go_in_are_refused(files: object, told: str) -> None:
    result = result_of("1", files=files) if files != [] else result_of("1", files=[1])

    assert result.is_error
    assert told in result.text


@needs_sandbox
def test_figures_come_back_as_pictures() -> None:
    """With a `matplotlib` of our own: what is used of it is this."""
    fake = (
        "import sys, types\n"
        "class Figure:\n"
        "    def savefig(self, file, format): file.write(b'PNG ' + format.encode())\n"
        "pyplot = types.ModuleType('matplotlib.pyplot')\n"
        "pyplot.get_fignums = lambda: [1, 2]\n"
        "pyplot.figure = lambda number: Figure()\n"
        "pyplot.close = lambda which: print('closed', which)\n"
        "sys.modules['matplotlib.pyplot'] = pyplot\n"
    )

    result = result_of(fake)

    picture = base64.b64encode(b"PNG png").decode()
    assert result.pictures == (("image/png", picture),) * 2
    assert result.text == "closed all"


# --- escapes -------------------------------------------------------------------------------------


@needs_sandbox
def test_nothing_of_the_proxy_is_in_sight(tmp_path: Path) -> None:
    secret = tmp_path / "oauth_creds.json"
    secret.write_text("token")
    tmp_path.chmod(0o755)
    secret.chmod(0o644)
    code = f"""
import os, socket
def tried(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__
print(tried(lambda: open({str(secret)!r}).read()))
os.symlink({str(secret)!r}, 'link')
print(tried(lambda: open('link').read()))
print(sorted(each for each in os.listdir('/proc') if each.isdigit())[:9])
print(tried(lambda: open('/proc/{os.getpid()}/environ').read()))
print([each for each in open('/proc/1/environ').read().split(chr(0)) if 'QWEN' in each])
print(tried(lambda: open('/usr/x', 'w')), tried(lambda: open('/x', 'w')))
print(tried(lambda: os.listdir('/run')), tried(lambda: os.listdir('/root')))
print(tried(lambda: socket.create_connection(('127.0.0.1', 9), 2)))
print(tried(lambda: socket.create_connection(('1.1.1.1', 53), 2)))
print(os.getuid() == 0, tried(lambda: os.setuid(0)))
print(os.path.exists('/etc/shadow'), open('/etc/passwd').read().count(chr(10)))
"""

    lines = result_of(code).text.splitlines()

    assert lines[0] == lines[1] == "FileNotFoundError"
    assert lines[2] in ("['1', '2']", "['1', '2', '3']")
    assert lines[3:5] == ["FileNotFoundError", "[]"]
    assert lines[5] == "OSError OSError"
    assert lines[6] == "FileNotFoundError FileNotFoundError"
    assert lines[7] == "ConnectionRefusedError"  # of its own loopback interface
    assert lines[8] == "OSError"
    assert lines[9] == "False OSError"  # no such user in there
    assert lines[10] == "False 1"


@needs_sandbox
def test_a_file_that_is_a_symlink_is_not_given_out() -> None:
    result = result_of("import os\nos.symlink('/etc/passwd', 'p'); os.mkfifo('f')")

    assert isinstance(result.structured, dict)
    assert result.structured["files"] == []


CALLS = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def tried(number):
    ctypes.set_errno(0)
    libc.syscall(number, 0, 0, 0, 0, 0)
    return errno.errorcode.get(ctypes.get_errno())
# io_uring_setup, io_uring_register, fsopen, move_mount
[tried(number) for number in (425, 427, 430, 429)]
"""


@needs_sandbox
@pytest.mark.skipif(not system_calls.program(), reason="no filter for this machine")
def test_system_calls_that_no_tool_needs_are_refused() -> None:
    assert result_of(CALLS).text == str(["EPERM"] * 4)


@needs_sandbox
def test_a_fork_bomb_stays_in_its_bounds() -> None:
    marker = f"bomb-{uuid.uuid4().hex}"
    code = f"import os, time\nmarker = {marker!r}\nwhile True:\n    os.fork()"

    result = result_of(code, seconds=10)

    assert result.is_error
    assert "Resource temporarily unavailable" in result.text


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("bytearray(10 << 30)", "MemoryError"),
        (
            # Each of them is below the limit; all together are not.
            "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n"
            "        kept = bytearray(b'x') * (100 << 20)\n        time.sleep(60)\n"
            "time.sleep(60)",
            "QWEN_PROXY_TOOL_MEMORY",
        ),
        (
            # A memory that is shared does not count against the limit of a process.
            "import mmap, time\nkept = mmap.mmap(-1, 600 << 20)\n"
            "for at in range(0, 600 << 20, 4096): kept[at] = 1\ntime.sleep(60)",
            "QWEN_PROXY_TOOL_MEMORY",
        ),
    ],
    ids=["one process", "many processes", "shared memory"],
)
def test_memory_is_bounded(code: str, told: str) -> None:
    result = result_of(code, seconds=20)

    assert result.is_error
    assert told in result.text


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("open('x', 'wb').write(bytes(17 << 20))", "File too large"),
        (
            "for n in range(9): open(str(n), 'wb').write(bytes(3 << 20))",
            "No space left on device",
        ),
        ("open('/dev/shm/x', 'wb').write(bytes(17 << 20))", "File too large"),
        ("open('/dev/x', 'wb')", "Read-only file system"),
        ("while True: print('y' * 1000)", "printed without an end"),
        ("import os\nos.close(1); os.kill(os.getpid(), 9)", "ended"),
        ("import os\nos.closerange(3, 99)", "ended"),
    ],
)
def test_disk_and_output_are_bounded(code: str, told: str) -> None:
    result = result_of(code)

    assert result.is_error
    assert told in result.text
    assert len(result.text) < 25_000


@needs_sandbox
def test_output_within_the_bounds_of_endlessness_is_cut() -> None:
    result = result_of("print('y' * 100_000)")

    assert not result.is_error
    assert "[cut: this is the first 20,000 of 100,001 bytes]" in result.text


@needs_sandbox
def test_it_can_end_nobody_but_itself() -> None:
    result = result_of("import os\nos.kill(-1, 9)\nprint('still here')")

    assert result.text == "still here" or result.is_error


@needs_sandbox
def test_fifty_at_a_time_and_none_stays() -> None:
    marker = f"mark-{uuid.uuid4().hex}"

    async def work(one: Interpreter) -> list[Result]:
        calls = [one.call({"code": f"{n} * 2"}, seconds=50, container=None) for n in range(50)]
        return list(await asyncio.gather(*calls))

    found = run(work, Entry("python", env={"MARK": marker}))

    assert [each.text for each in found] == [str(2 * n) for n in range(50)]
    assert processes_with(marker) == []


@needs_sandbox
def test_what_is_cancelled_is_ended_with_all_its_processes() -> None:
    marker = f"mark-{uuid.uuid4().hex}"
    code = "import subprocess, time\nsubprocess.Popen(['setsid', 'sleep', '60'])\ntime.sleep(60)"

    async def work(one: Interpreter) -> int:
        call = asyncio.create_task(one.call({"code": code}, seconds=50, container=None))
        end_s = time.monotonic() + 20
        while not any("sleep" in each for each in processes_with(marker)):
            assert time.monotonic() < end_s
            await asyncio.sleep(0.05)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        return len(processes_with(marker))

    assert run(work, Entry("python", env={"MARK": marker})) == 0


# --- folders and reasons -------------------------------------------------------------------------


@needs_sandbox
def test_folders_are_seen_as_they_are_named(folder: Path) -> None:
    tmp_path = folder
    for name, mode in (("r", 0o755), ("w", 0o777)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    (tmp_path / "r/f").write_text("seen")
    program = Program(
        ("sh", "-c", f"cat {tmp_path}/r/f; echo w > {tmp_path}/w/f; echo x > {tmp_path}/r/f"),
        read=[str(tmp_path / "r")],
        write=[str(tmp_path / "w")],
    )

    async def whole() -> tuple[bytes, bytes]:
        async with sandbox().started(program) as process:
            process.stdin.close()
            return await process.stdout.read(), await process.stderr.read()

    out, err = asyncio.run(whole())

    assert out == b"seen"
    assert (tmp_path / "w/f").read_text() == "w\n"
    assert b"Read-only file system" in err


def test_a_folder_that_would_show_something_private_is_refused(tmp_path: Path) -> None:
    private = tmp_path / "home/.qwen"
    private.mkdir(parents=True)
    (tmp_path / "link").symlink_to(private)
    (tmp_path / "ok").mkdir()

    assert folder_for(str(tmp_path / "ok"), [str(private)]) == str(tmp_path / "ok")
    for path in (tmp_path, tmp_path / "home", private, tmp_path / "link", Path("/run"), Path("/")):
        with pytest.raises(CannotStart, match="would show"):
            folder_for(str(path), [str(private)])
    with pytest.raises(CannotStart, match="not there"):
        folder_for(str(tmp_path / "missing"), [])


def test_the_root_is_closed_before_the_program_starts() -> None:
    found = arguments(Program(("x", "y")), BOUNDS, bwrap="/bwrap")

    assert found[-7:] == ["--remount-ro", "/", "--chdir", "/tmp", "--", "x", "y"]
    assert "--share-net" not in found
    assert "--share-net" in arguments(Program(("x",), network=True), BOUNDS, bwrap="/bwrap")


def test_a_sandbox_that_cannot_work_says_why(folder: Path) -> None:
    broken = folder / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no permissions' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "does not start" in asyncio.run(
        works(Sandbox(BOUNDS, private=[], bwrap=str(folder / "missing")))
    )
    found = asyncio.run(works(Sandbox(BOUNDS, private=[], bwrap=str(broken))))
    assert found.startswith("bubblewrap cannot work here")


def test_bubblewrap_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None)

    assert asyncio.run(works(sandbox())) == "bubblewrap is not installed (apt install bubblewrap)"


#: Runs a sandbox where no process has one of the low numbers but the first.
IN_A_CONTAINER = """
import asyncio, os
for _ in range(40):
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)
from qwen_wsgi.tool_runner.sandbox import Bounds, Sandbox
from qwen_wsgi.tool_runner.toolbox import works
print(asyncio.run(works(Sandbox(Bounds(256 << 20, 40, 16 << 20), private=[]))))
"""

#: A namespace of processes with a /proc of its own, as a container has.
_AS_CONTAINER = (
    *("unshare", "--pid", "--fork", "--mount-proc"),
    *(() if os.geteuid() == 0 else ("--user", "--map-current-user")),
)


@functools.cache
def no_container() -> str:
    """Why there can be no such namespace here; "" if there can."""
    if shutil.which("unshare") is None:
        return "unshare is not installed (util-linux)"
    tried = subprocess.run([*_AS_CONTAINER, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


@needs_sandbox
@pytest.mark.skipif(bool(no_container()), reason=no_container())
def test_a_sandbox_starts_where_its_numbers_of_processes_mean_nothing_outside() -> None:
    """bubblewrap looks for its child in /proc, by the number of the innermost namespace."""
    ran = subprocess.run(
        [*_AS_CONTAINER, sys.executable, "-c", IN_A_CONTAINER],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ran.stdout, ran.returncode) == ("\n", 0), ran.stderr


@needs_sandbox
def test_why_a_program_has_ended_can_be_asked_after_its_end() -> None:
    """Whoever waits for it may learn of its end only once another one has ended it."""

    async def ended() -> tuple[str, str]:
        async with sandbox().started(Program(["/bin/sleep", "20"])) as process:
            pass
        # The number of the closed pipe may be another file's by now.
        others = [os.memfd_create("other") for _ in range(20)]
        try:
            for number in others:
                os.pwrite(number, b'{"failed": "of others"}\n', 0)
            return process.reason(), await process.wait()
        finally:
            for number in others:
                os.close(number)

    assert asyncio.run(ended()) == ("it was stopped", "it was stopped")


@pytest.mark.parametrize("works_so_often", [0, 1])
def test_a_start_without_free_file_descriptors_leaves_none_open(
    monkeypatch: pytest.MonkeyPatch, works_so_often: int
) -> None:
    pipe = os.pipe
    made: list[tuple[int, int]] = []

    def scarce() -> tuple[int, int]:
        if len(made) == works_so_often:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(pipe())
        return made[-1]

    async def start() -> set[str]:
        before = set(os.listdir("/proc/self/fd"))
        monkeypatch.setattr(os, "pipe", scarce)
        with pytest.raises(OSError, match="Too many"):
            async with sandbox().started(Program(["/bin/true"])):
                raise AssertionError("it was started")
        return set(os.listdir("/proc/self/fd")) - before

    assert asyncio.run(start()) == set()
