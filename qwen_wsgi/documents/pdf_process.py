"""Writes the text layer of the PDF on standard input to standard output, within limits.

A program of its own, started by `pdf.PdfReader`: a PDF can be made so that its reader needs hours
or gigabytes, and a worker's loop serves other clients meanwhile. Nothing of qwen_wsgi is imported.

Exits with 0; with another code, and nothing on standard output, if the file cannot be read.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from typing import Final

#: Seconds of CPU, and bytes of address space: what pypdf needs for a thick book, several times.
CPU_S: Final = 10
MEMORY_BYTES: Final = 1 << 30
#: Characters of text and pages; what comes after them is left out, and a sentence says so.
MOST_CHARS: Final = 2_000_000
MOST_PAGES: Final = 2_000


def main() -> int:
    """Read standard input, write the text; returns the exit code."""
    _limit()
    text = text_of(sys.stdin.buffer.read())
    sys.stdout.buffer.write(text.encode(errors="replace"))
    sys.stdout.buffer.flush()
    return 0


def text_of(data: bytes) -> str:
    """The pages' texts, each after its number; "" if no page has any.

    Raises:
        Exception: it is not a PDF, or one that pypdf cannot read.
    """
    from io import BytesIO

    import pypdf

    reader = pypdf.PdfReader(BytesIO(data))
    pages: list[str] = []
    size = 0
    for number, text in enumerate(_texts(reader), 1):
        if number > MOST_PAGES or size + len(text) > MOST_CHARS:
            pages.append(f"[The rest of the document, from page {number}, was left out here.]")
            break
        if text:
            pages.append(f"[Page {number}]\n{text}")
            size += len(text)
    return "\n\n".join(pages) if size else ""


def _texts(reader: object) -> Iterator[str]:
    for page in reader.pages:  # type: ignore[attr-defined]  # of pypdf, which may be missing
        yield page.extract_text().strip()


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes into a pipe, and no file


if __name__ == "__main__":
    sys.exit(main())
