"""Ids of videos: signed, so that they hold all that is needed to find the task again.

`video_` and in base64url (RFC 4648 §5) a signature and a JSON array. Whoever has the key reads
them: after a restart, in another worker, on another box.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from typing import Final, NamedTuple

_PREFIX: Final = "video_"
_FORM: Final = re.compile(r"video_[A-Za-z0-9_-]{32,1000}")
_MAC_BYTES: Final = 16
_MODEL_CHARS: Final = 100


class VideoRef(NamedTuple):
    """What an id tells.

    Attributes:
        account: that makes the video, by name.
        task: Model Studio's id of the task.
        model: as the client named it.
        created: seconds since 1970.
        size, seconds: see `request.NativeCall`.
        prompt: for a task that was found after a lost answer: the digest of the prompt that it
            must have (see `digest_of`); "" otherwise.
    """

    account: str
    task: str
    model: str
    created: int
    size: str
    seconds: str
    prompt: str = ""


def digest_of(prompt: str) -> str:
    """What an id keeps of a prompt: enough to tell it from others."""
    return hashlib.sha256(prompt.strip().encode(errors="replace")).hexdigest()[:16]


def id_of(ref: VideoRef, key: bytes, owner: str) -> str:
    """The id of a video.

    Args:
        owner: the id of the client that it belongs to; only with it the id can be read.
    """
    ref = ref._replace(model=ref.model[:_MODEL_CHARS])
    content = json.dumps(ref, separators=(",", ":")).encode()
    signed = _signature(content, key, owner) + content
    return _PREFIX + base64.urlsafe_b64encode(signed).rstrip(b"=").decode("ascii")


def read_id(id: str, key: bytes, owner: str) -> VideoRef | None:
    """What an id tells; None if it is not one that was made with this key for this owner."""
    if not _FORM.fullmatch(id):
        return None
    text = id.removeprefix(_PREFIX)
    try:
        signed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
    mac, content = signed[:_MAC_BYTES], signed[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _signature(content, key, owner)):
        return None
    # Nobody but us made it: it has the form that it was given. Other spellings of the same bytes
    # are refused, because the store knows videos by their id.
    ref = VideoRef(*json.loads(content))
    return ref if id_of(ref, key, owner) == id else None


def _signature(content: bytes, key: bytes, owner: str) -> bytes:
    return hmac.digest(key, b"video\0" + owner.encode() + b"\0" + content, "sha256")[:_MAC_BYTES]
