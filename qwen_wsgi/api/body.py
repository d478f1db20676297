"""Reads request bodies: bounded, in pieces, as JSON or as a form."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qsl

from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser
from werkzeug.http import parse_options_header

from qwen_wsgi.api import codings
from qwen_wsgi.errors import ApiError, BadRequest, Overloaded
from qwen_wsgi.greenlets import InTurn, apart, let_others_run
from qwen_wsgi.protocol.json_object import LONG_BYTES, JsonObject, JsonObjectError, is_long
from qwen_wsgi.settings import Settings

if TYPE_CHECKING:
    from wsgiref.types import WSGIEnvironment

#: A member of the WSGI environment: the body was read to its end, or to our limit.
READ: Final = "qwen_wsgi.body_was_read"

#: A body is read in pieces of this size, which stay in the processor's cache.
_PIECE_BYTES: Final = 64 * 1024

#: Parts of a form.
_MOST_PARTS: Final = 200

#: What a multipart form has besides its file, at most.
FORM_BYTES: Final = 64 * 1024

#: Members of a request itself: no API has a tenth of them.
_MOST_MEMBERS: Final = 1000

#: A shorter body is parsed in less than two milliseconds, whatever it has.
_SHORT_BYTES: Final = 64 * 1024
_in_turn: Final = InTurn()

#: Strings of JSON, in which a comma separates nothing.
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')

#: Members that decide what is asked for, and of whom.
_DECISIVE: Final = frozenset(
    {
        "model",
        "messages",
        "input",
        "prompt",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
        "n",
        "tools",
        "tool_choice",
        "store",
        "previous_response_id",
    }
)
#: Members with lists whose entries are translated one by one.
_LISTS: Final = ("messages", "input", "tools", "functions", "system", "prompt")


def read_json(
    environ: WSGIEnvironment, settings: Settings, *, take: Callable[[int], None]
) -> JsonObject:
    """Read and parse the body of a request.

    Args:
        take: is told of bytes beyond the declared length, of chunks and after decoding; it may
            refuse them.

    Raises:
        ApiError: what `take` raises; 413 above the limit; 415 for a content coding other than
            gzip and zstd; 408 if it does not come in time; 503 if the server stops before it is
            there; 400 if it is incomplete or broken, and as `parse`.
    """
    coding = codings.coding_of(environ) if "HTTP_CONTENT_ENCODING" in environ else None
    body = _received(environ, settings, take)
    if coding is not None:
        decode = partial(codings.decoded, body, coding, settings.max_body_bytes)
        body = apart(decode) if len(body) * codings.RATIO >= LONG_BYTES else decode()
        take(len(body))
    return _checked(body, settings) if len(body) < _SHORT_BYTES else parse(body, settings)


class Form(NamedTuple):
    """A multipart body: the fields, and the files by the name of their field.

    Attributes:
        fields: the last value of each.
        values: all values of each.
    """

    fields: dict[str, str]
    files: dict[str, list[FileStorage]]
    values: dict[str, list[str]]


def read_form(environ: WSGIEnvironment, settings: Settings, *, take: Callable[[int], None]) -> Form:
    """Read a multipart body whole, as `read_json` reads JSON.

    Raises:
        ApiError: as `read_json`; 400 if it is no multipart, or has too many parts.
    """
    body = _received(environ, settings, take)
    parser = FormDataParser(
        stream_factory=_in_memory,
        max_form_memory_size=settings.max_body_bytes,
        max_content_length=settings.max_body_bytes,
        max_form_parts=_MOST_PARTS,
        silent=False,
    )
    mimetype, options = parse_options_header(environ.get("CONTENT_TYPE", ""))
    read = partial(parser.parse, BytesIO(body), mimetype, len(body), options)
    try:
        _, fields, files = apart(read) if is_long(body) else read()
    except RequestEntityTooLarge:
        raise BadRequest(
            f"The form has more than {_MOST_PARTS} parts.", code="request_too_large"
        ) from None
    except ValueError as error:
        raise BadRequest(
            "The multipart body of the request could not be read: its boundary is missing, or a "
            "part is broken."
        ) from error
    return Form(
        {name: values[-1] for name, values in fields.lists()},
        {name: list(values) for name, values in files.lists()},
        {name: list(values) for name, values in fields.lists()},
    )


def _in_memory(*_: Any, **__: Any) -> BytesIO:
    """Where a part is kept: the body is held already, so no file on a disk."""
    return BytesIO()


def is_form(environ: Mapping[str, Any]) -> bool:
    """Whether a request says that its body is multipart/form-data."""
    kind: str = environ.get("CONTENT_TYPE", "")
    return kind.partition(";")[0].strip().lower() == "multipart/form-data"


def _received(environ: WSGIEnvironment, settings: Settings, take: Callable[[int], None]) -> bytes:
    """The body as it was sent. Raises as `read_json`."""
    max_bytes = settings.max_body_bytes
    declared = environ.get("CONTENT_LENGTH")
    # One byte more than allowed shows that a chunked body is too long.
    size = int(declared) if declared else max_bytes + 1
    if declared and size > max_bytes:
        raise codings.too_large(max_bytes)
    try:
        if size <= _PIECE_BYTES:
            body = bytes(environ["wsgi.input"].read(size))
        else:
            body = _read(environ["wsgi.input"], size, None if declared else take)
    except ApiError:
        raise
    except Exception as error:
        raise _unreadable(error, settings) from error
    if len(body) > max_bytes:
        raise codings.too_large(max_bytes)
    environ[READ] = True
    if declared and len(body) < size:
        raise BadRequest("The request body ended before its Content-Length.")
    return body


def pieces(
    environ: WSGIEnvironment,
    settings: Settings,
    *,
    max_bytes: int,
    setting: str = "QWEN_PROXY_MAX_UPLOAD",
) -> Iterator[bytes]:
    """The body of a request as it comes, for those that are not held; empty at its end.

    Args:
        setting: what says the limit; "" if no setting does.

    Raises:
        ApiError: 413 above the limit; 408, 503 or 400 as `read_json`.
    """
    declared = environ.get("CONTENT_LENGTH")
    left = int(declared) if declared else max_bytes + 1
    if left > max_bytes and declared:
        raise codings.too_large(max_bytes, setting)
    source = environ["wsgi.input"]
    while left > 0:
        try:
            piece = bytes(source.read(min(left, _PIECE_BYTES)))
        except Exception as error:
            raise _unreadable(error, settings) from error
        if not piece:
            break
        left -= len(piece)
        yield piece
    if not declared and left <= 0:
        raise codings.too_large(max_bytes, setting)
    environ[READ] = True
    if declared and left > 0:
        raise BadRequest("The request body ended before its Content-Length.")


def page_form(
    environ: WSGIEnvironment, settings: Settings, *, max_bytes: int, most_fields: int
) -> dict[str, str]:
    """The fields of a form of one of our pages; of several with one name, the last.

    Raises:
        ApiError: as `pieces`; 400 for what is no such form, or has more fields.
    """
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise BadRequest("A form was expected, and something else was sent.")
    text = b"".join(pieces(environ, settings, max_bytes=max_bytes, setting=""))
    try:
        return dict(
            parse_qsl(
                text.decode(), keep_blank_values=True, max_num_fields=most_fields, errors="strict"
            )
        )
    except ValueError:
        raise BadRequest(
            f"The form could not be read: it is damaged, or has more than {most_fields} fields. "
            "Nothing was changed."
        ) from None


def _unreadable(error: Exception, settings: Settings) -> ApiError:
    """The client's error for a body that could not be read."""
    if isinstance(error, TimeoutError):
        return _too_slow(settings.body_timeout_s)
    if isinstance(error, ConnectionAbortedError):
        return Overloaded(
            "The server is stopping. Please send the request again.",
            code="server_stopping",
            retry_after_s=1,
        )
    if isinstance(error, OSError):
        return BadRequest("The request body could not be read to its end.")
    # gunicorn has a dozen, of no common base, for broken chunked coding.
    return BadRequest(
        "The chunked coding of the request body is broken: it has a chunk without a readable "
        "size, or one that does not end where its size says."
    )


def parse(body: bytes, settings: Settings) -> JsonObject:
    """Parse the body of a request; if that takes long, while other clients are served.

    Raises:
        BadRequest: it is no JSON object, has too many values, members or entries, or a member
            twice that decides what is asked for.
    """
    if len(body) < _SHORT_BYTES:
        return _checked(body, settings)
    return (apart if len(body) >= LONG_BYTES else _in_turn)(partial(_checked, body, settings))


def _checked(body: bytes, settings: Settings) -> JsonObject:
    # Looked for only where there is room for so many: a look at all bytes is a part of the parsing.
    if len(body) > settings.max_values and body.count(b",") > settings.max_values:
        _check_values(body, settings.max_values)
    try:
        parsed = JsonObject(body)
        repeated = parsed.repeated(_DECISIVE)
    except JsonObjectError as error:
        raise BadRequest(
            "We could not parse the JSON body of your request. (HINT: This likely means you "
            "aren't using your HTTP library correctly. The API expects a JSON payload, but "
            f"what was sent was not valid JSON: {error}.)"
        ) from None
    if repeated is not None:
        raise BadRequest(
            f"The request has '{repeated}' more than once, and readers of JSON do not agree on "
            "which one counts. Send it once.",
            param=repeated,
        )
    if len(body) > _MOST_MEMBERS and (members := len(parsed.names())) > _MOST_MEMBERS:
        raise BadRequest(
            f"The request has {members} members, more than any API knows "
            f"({_MOST_MEMBERS} are accepted)."
        )
    if len(body) > settings.max_items:
        _check_lengths(parsed, settings.max_items)
    return parsed


def _check_values(body: bytes, most: int) -> None:
    """Refuse more values than the limit. They are counted before the body is parsed, because a
    value takes a hundred bytes, and some take two in the text.

    Raises:
        BadRequest: there are more.
    """
    if _STRINGS.sub(b"", body).count(b",") > most:
        raise BadRequest(
            f"The request body has more than {most} JSON values (QWEN_PROXY_MAX_VALUES on the "
            "server).",
            code="request_too_large",
        )


def _check_lengths(parsed: JsonObject, most: int) -> None:
    """Refuse lists with more messages, content blocks together, or tools than the limit.

    Raises:
        BadRequest: one has.
    """
    for name in _LISTS:
        value = parsed.get(name)
        if not isinstance(value, list):
            continue
        contents = (each.get("content") for each in value if isinstance(each, dict))
        blocks = sum(len(content) for content in contents if isinstance(content, list))
        # Lists of anything but objects have limits of their own where they are read.
        if (len(value) > most or blocks > most) and parsed.source.count(b"{") > most:
            what = "entries" if len(value) > most else "content blocks"
            raise BadRequest(
                f"Invalid '{name}': more than {most} {what} (QWEN_PROXY_MAX_ITEMS on the server).",
                param=name,
                code="array_above_max_length",
            )


def _too_slow(pause_s: float) -> ApiError:
    return ApiError(
        f"The request body did not come in time: nothing for {pause_s:g} seconds, or less than "
        "64 kB/s in all. Please send it again.",
        status=408,
        type="invalid_request_error",
        code="request_timeout",
    )


def _read(source: Any, size: int, take: Callable[[int], None] | None) -> bytes:
    """At most `size` bytes, piece by piece: gunicorn copies what it has three times over.

    Args:
        take: None for a body whose length is known.
    """
    if take is None and hasattr(source, "read_whole"):  # the server's own: with no copy
        return bytes(source.read_whole())
    # Grows in place and gives its bytes away: to join a list would copy all of them at once.
    body = io.BytesIO()
    while size > 0 and (piece := source.read(min(size, _PIECE_BYTES))):
        if take is not None:
            take(len(piece))
        size -= len(piece)
        body.write(piece)
        # A fast client's socket always has more. After each piece, because there may be many such
        # clients, and each read lets a thread have the interpreter, for milliseconds.
        let_others_run()
    return body.getvalue()
