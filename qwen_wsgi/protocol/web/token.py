"""Compressed tokens: what a browser's login at chat.qwen.ai is carried in.

base64 of gzip of either JSON (the session token, perhaps a user id, perhaps cookies) or of
`token|cookie`. Nothing of them is kept: who has one is known by a digest of it.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qwen_wsgi.protocol.json_access import mapping, text

#: How every compressed token begins: gzip's first bytes, in base64.
COMPRESSED: Final = "H4sI"

#: Characters of a compressed token, and bytes of what it unpacks to. A browser's whole cookie jar
#: has some tens of kilobytes.
MOST_PACKED: Final = 512 * 1024
MOST_UNPACKED: Final = 256 * 1024
#: Characters of the session token, and of all cookies: what goes into two headers.
_MOST_TOKEN: Final = 8 * 1024
_MOST_COOKIES: Final = 16 * 1024
_MOST_COOKIE_COUNT: Final = 100

_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_SESSION: Final = re.compile(r"[!-+\--:<-\[\]-~]{8,}")
_JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
#: RFC 6265 §4.1.1; values in quotes as some browsers tell them.
_COOKIE_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}")
_COOKIE_VALUE: Final = re.compile(r"\"?[!#-+\--:<-\[\]-~]*\"?")
_USER_ID: Final = re.compile(r"[A-Za-z0-9._@-]{1,128}")

#: Names of the session token, in the JSON or in its copy of localStorage.
_TOKEN_NAMES: Final = ("session_token", "web_api_auth_token", "token", "access_token")
#: What a cookie without a name is, behind `token|`.
_NAMELESS: Final = "ssxmod_itna"


class BadWebToken(ValueError):
    """A text is no compressed token; the message says what is wrong, and shows nothing of it."""


@dataclass(frozen=True, repr=False)
class WebToken:
    """A login at the web API.

    Attributes:
        value: the session token, a JWT.
        cookies: the line of a Cookie header, as the owner gave them; "" for none.
        user_id: as the owner says; "" if nothing is said. It proves nothing.
        expires_at: seconds since 1970, of the JWT; None if it does not say.
    """

    value: str
    cookies: str = ""
    user_id: str = ""
    expires_at: float | None = None

    def __repr__(self) -> str:
        return f"WebToken({self.digest[:8]})"

    @property
    def digest(self) -> str:
        """Names whoever has the session token, and reveals nothing of it."""
        return hashlib.sha256(b"qwen-proxy web token\0" + self.value.encode()).hexdigest()[:32]

    def renewed(self, value: str) -> WebToken:
        """The same login with another session token.

        Raises:
            BadWebToken: it cannot be one.
        """
        return _checked(value, self.cookies, self.user_id)


def looks_like(offered: str) -> bool:
    """Whether a text is meant as a web token: compressed, or `token|cookie` in plain."""
    if offered.startswith(COMPRESSED):
        return True
    session, bar, _ = offered.partition("|")
    return bool(bar) and session.startswith("eyJ") and _JWT.fullmatch(session) is not None


def parse(offered: str) -> WebToken:
    """Read a compressed token, or `token|cookie` in plain.

    The work is bounded, whatever it is: what it unpacks to is cut at `MOST_UNPACKED`.

    Raises:
        BadWebToken: it is not one.
    """
    if not offered.startswith(COMPRESSED):
        if not looks_like(offered):
            raise BadWebToken("it is neither base64 of gzip (`H4sI…`) nor `token|cookie`")
        return _of_pair(offered)
    return _of_plain(_unpacked(offered))


def packed(token: WebToken) -> str:
    """The compressed form of a token, as `parse` reads it."""
    value: dict[str, Any] = {"session_token": token.value}
    if token.user_id:
        value["user_id"] = token.user_id
    if token.cookies:
        value["cookies"] = token.cookies
    data = json.dumps(value, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


def _unpacked(offered: str) -> str:
    if len(offered) > MOST_PACKED:
        raise BadWebToken(f"it has more than {MOST_PACKED} characters")
    bare = "".join(offered.split())
    if not _BASE64.fullmatch(bare):
        raise BadWebToken("it is not base64")
    bare = bare.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        data = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadWebToken("it is not base64, or was cut") from None
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(data, MOST_UNPACKED + 1)
    except zlib.error:
        raise BadWebToken("it is not gzip, or was damaged") from None
    if len(plain) > MOST_UNPACKED:
        raise BadWebToken(f"it unpacks to more than {MOST_UNPACKED} bytes")
    if not unpacker.eof:
        raise BadWebToken("it was cut: its gzip has no end")
    if unpacker.unused_data:
        raise BadWebToken("something stands behind the end of its gzip")
    try:
        return plain.decode()
    except UnicodeDecodeError:
        raise BadWebToken("it unpacks to no text") from None


def _of_plain(plain: str) -> WebToken:
    if not plain.lstrip().startswith("{"):
        return _of_pair(plain.strip())
    try:
        value = json.loads(plain)
    except (ValueError, RecursionError):
        raise BadWebToken("it unpacks to broken JSON") from None
    storage = _storage(value)
    session = next(
        (
            found
            for each in (value, storage)
            for name in _TOKEN_NAMES
            if (found := text(each.get(name)))
        ),
        "",
    )
    if not session:
        raise BadWebToken("it has no session token (`session_token`, `token` or `access_token`)")
    user_id = text(value.get("user_id")) or text(storage.get("user_id"))
    return _checked(session, _cookie_line(value.get("cookies", value.get("cookie"))), user_id)


def _storage(value: Mapping[str, Any]) -> dict[str, Any]:
    """The copy of the browser's localStorage."""
    return mapping(value.get("localStorage"))


def _of_pair(pair: str) -> WebToken:
    session, _, rest = pair.partition("|")
    cookies = rest if "=" in rest or not rest else f"{_NAMELESS}={rest}"
    return _checked(session, _cookie_line(cookies), "")


def _checked(session: str, cookies: str, user_id: str) -> WebToken:
    if len(session) > _MOST_TOKEN:
        raise BadWebToken(f"its session token has more than {_MOST_TOKEN} characters")
    if not _SESSION.fullmatch(session):
        raise BadWebToken("its session token is too short, or has characters that no header takes")
    if user_id and not _USER_ID.fullmatch(user_id):
        raise BadWebToken("its user id has characters that no id has")
    return WebToken(session, cookies, user_id, _expiry(session))


def _cookie_line(cookies: Any) -> str:
    """The line of a Cookie header: an object, a list as browsers export it, or the line itself."""
    if cookies is None or cookies == "":
        return ""
    if isinstance(cookies, str):
        pairs = [
            (n.strip(), v.strip()) for n, _, v in (p.partition("=") for p in cookies.split(";"))
        ]
        pairs = [pair for pair in pairs if pair != ("", "")]
    elif isinstance(cookies, dict):
        pairs = list(cookies.items())
    elif isinstance(cookies, list) and all(isinstance(each, dict) for each in cookies):
        pairs = [(each.get("name"), each.get("value")) for each in cookies]
    else:
        raise BadWebToken("its cookies are neither an object, nor a list, nor a line")
    if len(pairs) > _MOST_COOKIE_COUNT:
        raise BadWebToken(f"it has more than {_MOST_COOKIE_COUNT} cookies")
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise BadWebToken("the names and values of its cookies must be texts")
        if not _COOKIE_NAME.fullmatch(name) or not _COOKIE_VALUE.fullmatch(value):
            raise BadWebToken("a cookie of it has characters that no header takes")
    line = "; ".join(f"{name}={value}" for name, value in pairs)
    if len(line) > _MOST_COOKIES:
        raise BadWebToken(f"its cookies have more than {_MOST_COOKIES} characters")
    return line


def _expiry(session: str) -> float | None:
    """When a JWT expires by its own word; None if it does not say, or is none."""
    if not _JWT.fullmatch(session):
        return None
    claims = session.split(".")[1]
    try:
        value = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    except (ValueError, RecursionError):
        return None
    expires = value.get("exp") if isinstance(value, dict) else None
    if isinstance(expires, bool) or not isinstance(expires, int | float):
        return None
    return float(expires) if 0 < expires < 1e11 else None
