"""Makes small PDF files, byte by byte: with texts, without any, and hostile ones."""

from __future__ import annotations

import zlib


def pdf_of(*pages: str) -> bytes:
    """A PDF with a line of text on each page; "" is a page without text, as of a scanner."""
    contents = [
        f"BT /F1 12 Tf 72 720 Td ({page}) Tj ET".encode() if page else b"" for page in pages
    ]
    return _file([zlib.compress(each) for each in contents], b"/Filter /FlateDecode ")


def bomb() -> bytes:
    """A PDF of some kilobytes whose page unpacks to 2 GB, by two filters on each other."""
    inner = zlib.compress(b" " * (64 << 20), 9)
    packed = zlib.compress(inner * 32, 9)
    return _file([packed], b"/Filter [/FlateDecode /FlateDecode] ")


def endless(operators: int = 3_000_000) -> bytes:
    """A PDF of some kilobytes whose page has so many operators that reading it takes minutes."""
    content = b"BT /F1 12 Tf " + b"(a) Tj 1 0 0 1 0 0 Tm " * operators + b"ET"
    return _file([zlib.compress(content, 9)], b"/Filter /FlateDecode ")


def _file(contents: list[bytes], filters: bytes) -> bytes:
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    kids = b" ".join(b"%d 0 R" % (4 + 2 * index) for index in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%b] /Count %d >>" % (kids, len(contents)),
        font,
    ]
    for index, content in enumerate(contents):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> >> >>" % (5 + 2 * index)
        )
        objects.append(
            b"<< %b/Length %d >>\nstream\n%b\nendstream" % (filters, len(content), content)
        )
    made, offsets = b"%PDF-1.7\n", []
    for number, each in enumerate(objects, 1):
        offsets.append(len(made))
        made += b"%d 0 obj\n%b\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return made + (
        b"xref\n0 %d\n0000000000 65535 f \n%btrailer\n<< /Size %d /Root 1 0 R >>\n"
        b"startxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table, len(objects) + 1, len(made))
    )
