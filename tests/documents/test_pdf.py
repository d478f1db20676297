"""The text layer of PDFs, read by a real process: ordinary, broken and hostile ones."""

from __future__ import annotations

import base64
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qwen_wsgi.clock import SystemClock
from qwen_wsgi.documents import pdf_process
from qwen_wsgi.documents.pdf import PdfReader
from tests.kit.pdf_files import bomb, endless, pdf_of

pytestmark = pytest.mark.once


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def reader() -> PdfReader:
    return PdfReader(SystemClock())


def test_each_page_comes_with_its_number(reader: PdfReader) -> None:
    document = base64_of(pdf_of("The first page.", "", "The last page."))

    texts = reader.texts_of([document])

    assert texts == {document: "[Page 1]\nThe first page.\n\n[Page 3]\nThe last page."}


@pytest.mark.parametrize(
    "data",
    [pdf_of(""), b"", b"no PDF", b"%PDF-1.7\n", pdf_of("whole")[:200], bytes(100_000)],
    ids=["scanned", "empty", "other", "head", "cut", "zeros"],
)
def test_what_has_no_text_is_left_out(reader: PdfReader, data: bytes) -> None:
    assert reader.texts_of([base64_of(data)]) == {}


def test_what_is_not_base64_is_left_out(reader: PdfReader) -> None:
    assert reader.texts_of(["%%%", "\ud800"]) == {}


@pytest.mark.parametrize("make", [bomb, endless])
def test_a_hostile_file_costs_a_bounded_time(make: type[bytes]) -> None:
    began_s = time.monotonic()

    assert PdfReader(SystemClock()).texts_of([base64_of(make())]) == {}

    assert time.monotonic() - began_s < 30  # its own limit is 20


def test_a_document_is_read_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    notes = tmp_path / "notes"
    program.write_text(
        "import sys\n"
        f"open({str(notes)!r}, 'a').write('read ')\n"
        "print('text of', len(sys.stdin.buffer.read()))\n"
    )
    reader = PdfReader(SystemClock(), command=(sys.executable, str(program)))
    document = base64_of(b"12345")

    for _ in range(3):
        assert reader.texts_of([document]) == {document: "text of 5\n"}

    assert notes.read_text() == "read "


def test_a_document_of_two_calls_at_a_time_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_wsgi.documents.pdf._CACHED_CHARS", 12)
    reader, both = PdfReader(SystemClock(), command=("unused",)), threading.Barrier(2)
    runs: list[bytes] = []

    def run(data: bytes, timeout_s: float) -> str:
        both.wait(5)
        runs.append(data)
        return data.decode()

    monkeypatch.setattr(reader, "_run", run)
    document = base64_of(b"12345678")
    with ThreadPoolExecutor(2) as calls:
        for _ in range(2):
            found = list(calls.map(reader.texts_of, [[document], [document]]))
            assert found == [{document: "12345678"}] * 2

    assert len(runs) == 2


def test_a_document_that_had_no_time_is_read_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    script = (
        f"import os, time\nif not os.path.exists({str(first)!r}):\n"
        f"    open({str(first)!r}, 'w').close(); time.sleep(60)\nprint('text')"
    )
    reader = PdfReader(SystemClock(), command=(sys.executable, "-c", script))
    document = base64_of(b"a")
    monkeypatch.setattr("qwen_wsgi.documents.pdf._BUDGET_S", 0.5)
    assert reader.texts_of([document]) == {}
    monkeypatch.setattr("qwen_wsgi.documents.pdf._BUDGET_S", 20.0)

    assert reader.texts_of([document]) == {document: "text\n"}


def test_a_program_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_wsgi.documents.pdf._BUDGET_S", 0.5)
    left = tmp_path / "alive"
    script = f"import time; time.sleep(60); open({str(left)!r}, 'w')"
    reader = PdfReader(SystemClock(), command=(sys.executable, "-c", script))

    before = threading.active_count()
    assert reader.texts_of([base64_of(b"a"), base64_of(b"b")]) == {}

    assert not left.exists()
    assert threading.active_count() == before


def test_without_the_library_nothing_is_read() -> None:
    assert PdfReader(SystemClock(), command=()).texts_of([base64_of(pdf_of("text"))]) == {}


def test_the_rest_of_a_long_document_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_process, "MOST_PAGES", 2)

    text = pdf_process.text_of(pdf_of("one", "two", "three"))

    assert text.endswith("two\n\n[The rest of the document, from page 3, was left out here.]")
