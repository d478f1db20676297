"""Log lines: one a record, parsable, and without any secret."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.accounting import call_log
from qwen_wsgi.accounting.call_log import fields
from qwen_wsgi.accounting.record import CallRecord
from qwen_wsgi.logs import Formatter, configure, is_journal
from qwen_wsgi.protocol.usage import Usage
from qwen_wsgi.redaction import DISCOVERED, Redaction

# Known to no run-wide search: these do go into records, which is what is tested.
SECRET = "client-key-0123456789-abcdef-WXYZ"
OTHER = "upstream-key-9876543210-fedcba-1234"


def line_of(
    style: str,
    message: str = "event",
    *arguments: object,
    secrets: tuple[str, ...] = (SECRET, OTHER),
    error: BaseException | None = None,
    **fields: Any,
) -> str:
    """The text of one record."""
    exc_info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord(
        "qwen_wsgi.x", logging.INFO, "file.py", 1, message, arguments, exc_info
    )
    if fields:
        record.fields = fields
    return Formatter(style, Redaction(secrets)).format(record)


STYLES = pytest.mark.parametrize("style", ["human", "json"])


# --- shape ---------------------------------------------------------------------------------------


def test_a_line_for_people() -> None:
    line = line_of("human", "call", status=200, model="qwen3.7-plus", note="two words")

    moment, rest = line.split(" ", 1)
    assert moment.endswith("Z")
    assert moment[10] == "T"
    assert rest == 'INFO    call status=200 model=qwen3.7-plus note="two words"'


def test_a_line_for_programs() -> None:
    line = json.loads(line_of("json", "call %s", "x", status=200, ms=1.5, model="é😀"))

    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "qwen_wsgi.x",
        "event": "call x",
        "status": 200,
        "ms": 1.5,
        "model": "é😀",
    }


NASTY = [
    "a\nb",
    "a\r\nb",
    "a\x0bb\x0c\x1cb",
    "a\x85b",
    "a\u2028b\u2029c",
    "a\x00b",
    "a\x1b[31mb",
    '" status=200 "',
    "x status=200",
    "\\",
    "",
    " ",
    "\u202eevil",
    "\ud83d",
    '{"level":"ERROR"}',
    "a=b",
    "é😀中",
    "x" * 10_000,
]


@STYLES
@pytest.mark.parametrize("value", NASTY, ids=lambda value: repr(value[:20]))
def test_what_a_client_names_a_model_can_neither_break_nor_forge_a_line(
    style: str, value: str
) -> None:
    line = line_of(style, "call", model=value, status=404)

    assert "\n" not in line
    assert "\r" not in line
    if style == "json":
        parsed = json.loads(line)
        assert (parsed["model"], parsed["status"], parsed["level"]) == (value, 404, "INFO")
    else:
        assert line.endswith(" status=404")
        assert line.splitlines() == [line]
        assert all(character.isprintable() for character in line)
        assert line.count(" status=") == (1 if "status=" not in value else 2)


@pytest.mark.parametrize(
    "value",
    NASTY,
    ids=lambda value: repr(value[:20]),
)
def test_a_message_stays_one_line_for_people_too(value: str) -> None:
    """Messages quote errors of upstreams and files."""
    line = line_of("human", "no list: %s", value)

    assert line.splitlines() == [line]
    assert all(character.isprintable() for character in line)


def test_a_message_with_a_line_end_stays_one_line_for_programs() -> None:
    line = line_of("json", "no list: %s", "a\nb")

    assert "\n" not in line
    assert json.loads(line)["event"] == "no list: a\nb"


def raised(text: str) -> BaseException:
    try:
        try:
            raise ValueError(f"inner {text}")
        except ValueError as inner:
            raise RuntimeError(f"outer {text}") from inner
    except RuntimeError as error:
        return error


@STYLES
def test_a_traceback_is_there_and_whole(style: str) -> None:
    line = line_of(style, "fault", error=raised("x"))

    text = json.loads(line)["trace"] if style == "json" else line
    assert "Traceback" in text
    assert "inner x" in text
    assert text.endswith("RuntimeError: outer x")
    assert ("\n" in line) == (style == "human")


@STYLES
def test_values_of_any_type_are_written(style: str) -> None:
    line = line_of(style, "call", a=None, b=True, c=[1], d={"e": 1}, f=object())

    if style == "json":
        json.loads(line)
    assert "\n" not in line


# --- secrets -------------------------------------------------------------------------------------


@STYLES
def test_a_known_secret_never_comes_out(style: str) -> None:
    for line in (
        line_of(style, f"message with {SECRET}"),
        line_of(style, "argument %s", SECRET),
        line_of(style, "field", key=SECRET),
        line_of(style, "in a text", note=f"x={SECRET}, y={OTHER}"),
        line_of(style, "nested", data={"key": [SECRET]}),
        line_of(style, "trace", error=raised(f"{SECRET} {OTHER}")),
    ):
        assert SECRET[:-4] not in line
        assert OTHER[:-4] not in line
        assert "…WXYZ" in line
        if style == "json":
            json.loads(line)


@STYLES
@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcdefghijklmnopqrstuvwxyz",
        "authorization: bearer   abcdefghijklmnopqrstuvwxyz",
        "key sk-abcdefghijklmnopqrstuvwxyz",
        "key sk-sp-abcdefghijklmnopqrstuvwxyz",
        "key sk-ws-H.abc.defghijklmnopqrstuvwxyz",
        "{'Authorization': 'Bearer abcdefghijklmnopqrstuvwxyz'}",
        '{"api_key": "sk-abcdefghijklmnopqrstuvwxyz"}',
        "https://x.example/?key=sk-abcdefghijklmnopqrstuvwxyz",
        "SK-abcdefghijklmnopqrstuvwxyz",
    ],
)
def test_what_looks_like_a_secret_never_comes_out(style: str, text: str) -> None:
    """Tokens that are read later are known to nobody here."""
    for line in (
        line_of(style, "%s", text),
        line_of(style, "field", note=text),
        line_of(style, "trace", error=raised(text)),
    ):
        assert "abcdefghijkl" not in line
        assert "defghijklmnopqr" not in line
        assert "wxyz" in line


@STYLES
@pytest.mark.parametrize(
    "text", ["task-list", "a bearer of news", "sk-short", "risk-averse people"]
)
def test_ordinary_words_are_left_alone(style: str, text: str) -> None:
    assert text in line_of(style, "%s", text).replace("\\", "")


def test_short_secrets_are_not_searched_for() -> None:
    """They would be found in half of all words."""
    assert line_of("human", "status", secrets=("a", "stat", "")).endswith("status")


def test_the_longer_of_two_secrets_is_masked_whole() -> None:
    long, short = "abcdefghijkl-mnopqrstuvwx-1234", "abcdefghijkl-mnop"
    line = line_of("human", "%s", long, secrets=(short, long))

    assert line.endswith("…1234")
    assert "qrstuvwx" not in line


@STYLES
@pytest.mark.parametrize("value", ['quote"inside-0123456789', "back\\slash-0123456789"])
def test_a_secret_that_is_written_with_escapes_never_comes_out(style: str, value: str) -> None:
    assert "side-0123456" not in (
        line := line_of(style, "x", secrets=(value,), note=f"key {value}")
    )
    assert "lash-0123456" not in line


# --- systemd's journal ---------------------------------------------------------------------------


def in_journal(style: str, level: int, message: str, error: BaseException | None = None) -> str:
    exc_info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("qwen_wsgi.x", level, "file.py", 1, message, (), exc_info)
    return Formatter(style, Redaction((SECRET,)), journal=True).format(record)


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (logging.DEBUG, "<7>DEBUG   event"),
        (logging.INFO, "<6>INFO    event"),
        (logging.WARNING, "<4>WARNING event"),
        (logging.ERROR, "<3>ERROR   event"),
        (logging.CRITICAL, "<2>CRITICAL event"),
    ],
)
def test_in_the_journal_the_level_is_a_prefix_and_there_is_no_second_time(
    level: int, line: str
) -> None:
    assert in_journal("human", level, "event") == line


def test_each_line_of_a_traceback_has_the_prefix() -> None:
    """The journal makes an entry of each line."""
    lines = in_journal("human", logging.ERROR, "fault", raised(SECRET)).splitlines()

    assert len(lines) > 5
    assert all(line.startswith("<3>") for line in lines)
    assert not any(SECRET in line for line in lines)


def test_json_in_the_journal_has_its_level_as_a_field() -> None:
    line = json.loads(in_journal("json", logging.WARNING, "event"))

    assert (line["level"], line["event"]) == ("WARNING", "event")


def test_the_journal_is_known_by_the_device_and_inode_of_the_stream(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as stream, (tmp_path / "other").open("w") as other:
        found = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}

        assert is_journal(environ, stream)
        assert not is_journal(environ, other)
        assert not is_journal({}, stream)
        assert not is_journal({"JOURNAL_STREAM": "nonsense"}, stream)
        assert not is_journal(environ, io.StringIO())

        configure(level="INFO", style="human", secrets=(), stream=stream, environ=environ)
        logging.getLogger("qwen_wsgi.x").warning("event")
        stream.seek(0)
        assert stream.read() == "<4>WARNING event\n"


# --- configuration -------------------------------------------------------------------------------


def test_the_package_logs_to_the_stream_from_the_level_on() -> None:
    stream = io.StringIO()
    configure(level="WARNING", style="human", secrets=[SECRET], stream=stream)

    logging.getLogger("qwen_wsgi.x").info("quiet")
    logging.getLogger("qwen_wsgi.x").warning("loud %s", SECRET)
    logging.getLogger("other").error("not ours")

    (line,) = stream.getvalue().splitlines()
    assert line.endswith("WARNING loud …WXYZ")


def test_configuring_again_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(level="INFO", style="human", secrets=(), stream=first)
    configure(level="INFO", style="json", secrets=(), stream=second)

    logging.getLogger("qwen_wsgi").info("x")

    assert first.getvalue() == ""
    assert json.loads(second.getvalue())["event"] == "x"


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    configure(level="INFO", style="human", secrets=())

    logging.getLogger("qwen_wsgi").info("hello")

    assert capsys.readouterr().err.endswith("INFO    hello\n")
    assert logging.getLogger("qwen_wsgi").handlers[0].stream is sys.stderr  # type: ignore[attr-defined]  # a StreamHandler


# --- the line of a call --------------------------------------------------------------------------


def call_of(**more: Any) -> CallRecord:
    return CallRecord(
        **{
            "request_id": "r1",
            "client": "local",
            "method": "POST",
            "path": "/v1/x",
            "started_at": 10.0,
            **more,
        }
    )


def test_a_call_tells_what_is_known_and_leaves_out_what_is_not() -> None:
    assert fields(call_of()) == {
        "request_id": "r1",
        "client": "local",
        "method": "POST",
        "path": "/v1/x",
        "outcome": "open",
        "total_ms": 0.0,
    }


def test_a_call_tells_times_in_milliseconds_and_tokens_as_told() -> None:
    record = fields(
        call_of(
            status=200,
            outcome="complete",
            account="a",
            model="m",
            stream=True,
            attempts=2,
            first_byte_at=10.1234,
            ended_at=12.5,
            usage=Usage(prompt=3, completion=0, cached=1, cache_written=2),
            error_code="e",
            upstream_request_id="u",
        )
    )

    assert (record["first_byte_ms"], record["total_ms"]) == (123.4, 2500.0)
    assert (record["prompt_tokens"], record["completion_tokens"]) == (3, 0)
    assert (record["cached_tokens"], record["cache_written_tokens"]) == (1, 2)
    assert "reasoning_tokens" not in record
    assert (record["attempts"], record["error"], record["upstream_request_id"]) == (2, "e", "u")


@pytest.mark.parametrize(
    ("quiet", "level", "lines"), [(False, "INFO", 1), (True, "INFO", 0), (True, "DEBUG", 1)]
)
def test_a_call_is_one_line_and_a_quiet_one_only_at_debug(
    quiet: bool, level: str, lines: int
) -> None:
    stream = io.StringIO()
    configure(level=level, style="json", secrets=(), stream=stream)

    call_log.write(call_of(quiet=quiet, model="a\nb", path="/v1/\r\n"))

    assert len(stream.getvalue().splitlines()) == lines


TEXTS = st.sampled_from(["", "a", "env-1", *NASTY, SECRET, f"x {OTHER}"]) | st.text(max_size=9)
SECONDS = st.sampled_from([0.0, 0.00005, 0.0000499999]) | st.floats(0, 1e6)
COUNTS = st.none() | st.integers(0, 10**20)
CALLS = st.builds(
    CallRecord,
    request_id=TEXTS,
    client=TEXTS,
    address=TEXTS,
    method=TEXTS,
    path=TEXTS,
    started_at=st.just(1.0),
    account=TEXTS,
    model=TEXTS,
    upstream_model=TEXTS,
    stream=st.booleans(),
    status=st.sampled_from([0, 200]),
    attempts=st.integers(0, 2),
    queued_s=SECONDS,
    connect_s=SECONDS,
    first_byte_at=st.none() | SECONDS.map(lambda each: 1.0 + each),
    longest_gap_s=SECONDS,
    ended_at=st.none() | SECONDS.map(lambda each: 1.0 + each),
    usage=st.none()
    | st.builds(
        Usage,
        prompt=COUNTS,
        completion=COUNTS,
        cached=COUNTS,
        reasoning=COUNTS,
        cache_written=COUNTS,
    ),
    units=st.sampled_from([(), (("pictures", 2),), (("seconds", 1.5), ("rows", 3))]),
    tools=st.dictionaries(TEXTS, st.integers(1, 3), max_size=2),
    outcome=TEXTS,
    error_code=TEXTS,
    upstream_request_id=TEXTS,
    cache=st.sampled_from(["", "hit", "miss"]),
)


def written(style: str, calls: list[CallRecord], *, records: bool) -> list[str]:
    """The lines of calls without their time; with records, as somebody else listens."""
    stream = io.StringIO()
    configure(level="INFO", style=style, secrets=[SECRET, OTHER], stream=stream)
    other = logging.NullHandler()
    if records:
        call_log.log.addHandler(other)
    try:
        for call in calls:
            call_log.write(call)
    finally:
        call_log.log.removeHandler(other)
    lines = stream.getvalue().split("\n")
    assert lines.pop() == ""
    if style == "human":
        return [line.split(" ", 1)[1] for line in lines]
    return [str({**json.loads(line), "time": ""}) for line in lines]


@STYLES
@given(calls=st.lists(CALLS, max_size=4))
def test_the_line_of_a_call_is_the_same_with_a_record_and_without(
    style: str, calls: list[CallRecord]
) -> None:
    calls = [*calls, *calls]  # again, as it was remembered

    without = written(style, calls, records=False)

    assert without == written(style, calls, records=True)
    assert not any(SECRET[:-4] in line or OTHER[:-4] in line for line in without)


@pytest.mark.parametrize("where", ["a filter", "of the handler", "above"])
def test_who_listens_to_the_calls_gets_records(where: str) -> None:
    seen: list[Any] = []

    def listen(record: logging.LogRecord) -> bool:
        seen.append(record.__dict__["fields"])
        return True

    stream = io.StringIO()
    configure(level="INFO", style="human", secrets=(), stream=stream)
    root, above = logging.getLogger("qwen_wsgi"), logging.NullHandler()
    above.handle = listen  # type: ignore[method-assign]  # it only listens
    if where == "a filter":
        call_log.log.addFilter(listen)
    elif where == "of the handler":
        root.handlers[0].addFilter(listen)
    else:
        root.propagate = True
        logging.getLogger().addHandler(above)
    try:
        call_log.write(call_of(account="a"))
    finally:
        call_log.log.removeFilter(listen)
        logging.getLogger().removeHandler(above)
        root.propagate = False

    assert [each["account"] for each in seen] == ["a"]
    assert len(stream.getvalue().splitlines()) == 1


def test_a_secret_that_was_found_later_is_masked_in_what_is_remembered() -> None:
    stream = io.StringIO()
    configure(level="INFO", style="human", secrets=(), stream=stream)
    call_log.write(call_of(path="/v1/found-later-0123456789"))
    DISCOVERED.add("found-later-0123456789")
    call_log.write(call_of(path="/v1/found-later-0123456789"))

    before, after = stream.getvalue().splitlines()
    assert "found-later" in before
    assert "found-later" not in after
    assert "path=/v1/…6789" in after


def test_beginnings_of_lines_are_remembered_within_bounds() -> None:
    configure(level="INFO", style="human", secrets=(), stream=io.StringIO())
    for number in range(2000):
        call_log.write(call_of(path=f"/v1/{number}", model="m" * 300))

    known = call_log._FOR_PEOPLE._known
    assert 0 < len(known) <= 500
    assert max(len(str(key)) for key in known) < 1000


def test_a_log_that_cannot_be_written_does_not_fail_the_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = io.StringIO()
    configure(level="INFO", style="human", secrets=(), stream=stream)
    stream.close()

    call_log.write(call_of())

    assert "I/O operation on closed file" in capsys.readouterr().err


def test_a_path_with_line_ends_cannot_break_the_calls_line() -> None:
    stream = io.StringIO()
    configure(level="INFO", style="human", secrets=(), stream=stream)

    call_log.write(call_of(path="/v1/a\n2026 ERROR forged", model="m"))

    assert len(stream.getvalue().splitlines()) == 1
