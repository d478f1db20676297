"""For every test: a home of its own, no proxies, loopback only, and no secret in any log."""

from __future__ import annotations

import collections
import contextlib
import gc
import importlib
import logging
import os
import re
import signal
import socket
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from qwen_wsgi.net import is_loopback
from tests.kit import log_files, secrets

# A busy machine is no failure of a property. In CI the examples follow from the test's text, so
# that a commit passes or fails for good, and are fewer, since each run has the same ones; elsewhere
# they are drawn anew, to find more.
_repeatable = bool(os.environ.get("CI"))
hypothesis.settings.register_profile(
    "patient", deadline=None, derandomize=_repeatable, max_examples=40 if _repeatable else 100
)
# For the other Pythons and the lowest versions, after all examples ran on the newest Python.
hypothesis.settings.register_profile("few", deadline=None, derandomize=_repeatable, max_examples=6)
hypothesis.settings.load_profile("patient")

#: The files whose tests take longest. Begun last, one of them would keep a single processor busy
#: while the others have nothing to do.
_LONGEST = (
    "test_install.py",
    "test_linear.py",
    "test_released.py",
    "test_large_answers.py",
    "test_hostile_upstreams.py",
    "test_videos.py",
    "test_websocket_ends.py",
    "test_logins.py",
    "test_starting.py",
    "test_gunicorn_conf.py",
    "test_moved_tree.py",
    "test_many_workers.py",
    "test_environment.py",
    "test_reload.py",
    "test_main.py",
    "test_model_profiles.py",
    "test_pdf.py",
    "test_command.py",
    "test_architecture.py",
    "test_schemas.py",
)

#: Of a value in the name of a test, in characters.
_LONGEST_NAME = 80

#: How many directories of that name tests have got.
_directories: collections.Counter[str] = collections.Counter()

#: What this process logged, before it was redacted.
_messages: list[str] = []


#: A test, or all tests of a file, start servers (`needs` is that of tests/kit/client_programs.py).
_WITH_SERVERS = re.compile(r"mark\.server\b|\bneeds\(")
_ALL_WITH_SERVERS = re.compile(
    rf"^pytestmark = (?:\[\n(?:    .*\n)*?)?.*(?:{_WITH_SERVERS.pattern})", re.MULTILINE
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the files that hold no test of `-m server`, or only such ones for `-m "not server"`: to
    read all files takes half a minute, in each of several processes."""
    chosen = config.option.markexpr.split(" and ")[0]
    if chosen not in ("server", "not server") or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text()
    if chosen == "server":
        return None if _WITH_SERVERS.search(text) else True
    return True if _ALL_WITH_SERVERS.search(text) else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Read the tests, and have the garbage collector leave alone what they are made of: it is more
    than half a gigabyte, and tests ask for hundreds of full rounds, of half a second each."""
    _read_apart(session)
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        # At its first example Hypothesis asks the collector who knows `random`, and would be told
        # of nobody: what is frozen is not looked at.
        _first_example()
        gc.collect()
        gc.freeze()


@hypothesis.settings(max_examples=1, database=None)
@hypothesis.given(st.none())
def _first_example(nothing: None) -> None:
    assert nothing is None


def _read_apart(session: pytest.Session) -> None:
    """Of several processes, begin each with other files: the first that reads a file rewrites its
    asserts and keeps it, for all. In a new checkout each would do it for every file, all at once;
    it takes longer than the rest of reading them."""
    work: dict[str, Any] | None = getattr(session.config, "workerinput", None)
    if work is None:
        return
    given = [Path(argument.split("::")[0]) for argument in session.config.args]
    files = [
        file
        for path in given
        for file in (sorted(path.rglob("test_*.py")) if path.is_dir() else [path])
        if not pytest_ignore_collect(file, session.config)
    ]
    begin = len(files) * int(work["workerid"].removeprefix("gw")) // work["workercount"]
    for file in files[begin:] + files[:begin]:
        # Whatever is wrong with it is told when its tests are collected.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(_module_of(file, session.config.rootpath)))


def _module_of(file: Path, root: Path) -> tuple[str, ...]:
    return file.absolute().with_suffix("").relative_to(root).parts


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a test by the beginning of a long value only. pytest takes the whole: 150 MB of a file
    that is too large, kept, hashed and sent between processes."""
    if not isinstance(val, str | bytes) or len(val) <= _LONGEST_NAME:
        return None
    begin = val[:_LONGEST_NAME]
    text = begin if isinstance(begin, str) else begin.decode("latin-1")
    return f"{text.encode('unicode_escape').decode()}... ({len(val)})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; within a file the order stays."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _no_secret_in_any_log() -> Iterator[None]:
    factory = logging.getLogRecordFactory()

    def noting(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = factory(*args, **kwargs)
        if record.name.startswith("qwen_wsgi"):
            _messages.append(record.getMessage())
        return record

    logging.setLogRecordFactory(noting)
    yield
    logging.setLogRecordFactory(factory)
    texts = [*_messages, *log_files.texts()]
    leaked = {
        value[:12] + "…"
        for value in secrets.made()
        if any(secrets.core(value) in text for text in texts)
    }
    assert not leaked, f"secrets in the logs of this run: {sorted(leaked)}"


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_reaches_the_programs_under_test() -> None:
    """A shell lets what it runs in the background ignore Ctrl-C, and all children inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the test's own, named as by pytest. pytest's looks at all that are there for
    the next number: of thousands, that is most of what a short test takes."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    path = tmp_path_factory.getbasetemp() / f"{name}{_directories[name]}"
    _directories[name] += 1
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and none of the machine's own settings, keys or proxies."""
    for name in list(os.environ):
        if name.upper().endswith(("_PROXY", "_API_KEY", "_BASE_URL")) or name.startswith(
            ("QWEN_", "OPENAI_", "BAILIAN_")
        ):
            monkeypatch.delenv(name)
    directory = tmp_path / "home"
    directory.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(directory))
    return directory


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Whatever an application under test did to the log is undone."""
    log = logging.getLogger("qwen_wsgi")
    before = (log.handlers[:], log.level, log.propagate)
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not is_loopback(str(address[0])):
            raise AssertionError(f"a test tried to connect to {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
