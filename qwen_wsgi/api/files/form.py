"""Reads the multipart form of an upload piece by piece; the file in it is never held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

from qwen_wsgi.errors import BadRequest

#: What may wait for its end: the head of a part, or what stands before and behind the parts.
_HELD_BYTES: Final = 192 * 1024

#: An upload has four at most; all fields together are some words.
_MOST_PARTS: Final = 32
_FIELD_BYTES: Final = 64 * 1024


class UploadForm:
    """The form of `POST /v1/files`: fields, one file, and perhaps fields behind it.

    Read it in order: `begin`, then `file_pieces` to its end, which reads the fields behind as well.

    Attributes:
        fields: those that were read so far.
        filename, file_type: of the file, after `begin`.
    """

    def __init__(self, content_type: str, pieces: Iterator[bytes]) -> None:
        """
        Args:
            content_type: of the request.
            pieces: its body.

        Raises:
            BadRequest: it is no multipart form.
        """
        kind, options = parse_options_header(content_type)
        boundary = options.get("boundary", "")
        if kind.lower() != "multipart/form-data" or not 1 <= len(boundary) <= 200:
            raise BadRequest(
                "A file is uploaded as multipart/form-data with a boundary: with the fields "
                "'purpose' and 'file'.",
                code="invalid_content_type",
            )
        self.fields: dict[str, str] = {}
        self.filename = self.file_type = ""
        self._pieces = pieces
        self._decoder = MultipartDecoder(
            boundary.encode("latin-1", "replace"), _HELD_BYTES, max_parts=_MOST_PARTS
        )
        self._dashes = b""
        self._field_bytes = 0

    def begin(self) -> None:
        """Read up to the file.

        Raises:
            ApiError: there is none, the form is broken, or the body cannot be read.
        """
        if not self._read_fields():
            raise BadRequest(
                "The form has no file: a part with the name 'file' and a filename is needed.",
                param="file",
                code="missing_required_parameter",
            )

    def file_pieces(self) -> Iterator[bytes]:
        """The file's bytes as they come, then the fields behind it.

        Raises:
            ApiError: as `begin`; or a second file.
        """
        more = True
        while more:
            event = self._next()
            if not isinstance(event, Data):
                raise _broken()
            more = event.more_data
            if event.data:
                yield event.data
        if self._read_fields():
            raise BadRequest("The form has more than one file.", param="file")

    def _read_fields(self) -> bool:
        """Read fields up to a file, or to the end of the body; whether there is a file."""
        while True:
            event = self._next()
            if isinstance(event, Epilogue):
                return False
            if isinstance(event, File):
                if event.name != "file":
                    raise BadRequest(
                        f"The form has a file '{str(event.name)[:64]}', but it is to be 'file'.",
                        param="file",
                    )
                self.filename = event.filename
                self.file_type = event.headers.get("content-type", "")
                return True
            if isinstance(event, Field):
                self.fields[str(event.name)[:64]] = self._value()

    def _value(self) -> str:
        value = b""
        more = True
        while more:
            event = self._next()
            if not isinstance(event, Data):
                raise _broken()
            more = event.more_data
            value += event.data
            self._field_bytes += len(event.data)
            if self._field_bytes > _FIELD_BYTES:
                raise BadRequest(
                    f"The fields of the form are longer than {_FIELD_BYTES} bytes. A file needs a "
                    "filename in its part's Content-Disposition.",
                    code="request_too_large",
                )
        return value.decode(errors="replace").strip()

    def _next(self) -> Event:
        """The next event, for which the body is read as far as is needed."""
        decoder = self._decoder
        try:
            while isinstance(event := decoder.next_event(), NeedData):
                decoder.receive_data(self._received())
        except RequestEntityTooLarge:
            raise BadRequest(
                f"The form has more than {_MOST_PARTS} parts, or a part with too long a head.",
                code="request_too_large",
            ) from None
        except ValueError:
            raise _broken() from None
        return event

    def _received(self) -> bytes | None:
        """The next piece of the body; None at its end.

        The decoder takes a mark that is cut behind the first dash of its end (`--boundary-`) for a
        part of the file, so the last dashes of a piece wait for the next one.
        """
        piece = next(self._pieces, None)
        if piece is None:
            rest, self._dashes = self._dashes, b""
            return rest or None
        piece = self._dashes + piece
        kept = len(piece) - len(piece.rstrip(b"-"))
        kept = min(kept, 2)
        self._dashes = piece[len(piece) - kept :]
        return piece[: len(piece) - kept]


def _broken() -> BadRequest:
    return BadRequest(
        "The multipart form is broken: it ends too early, or a part has no readable head.",
        code="invalid_form",
    )
