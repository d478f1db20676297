"""Seals what must not be read by whoever can read Redis: logins, what clients have stored, and the
calls that boxes tell each other.

A sealed text is `1 <id of the key> <nonce> <ciphertext>`, the last two in base64: AES-256-GCM with
a random nonce of 96 bits, and with the record's name and the first two fields as associated data,
so that a record cannot be moved to another name. The key is derived from QWEN_PROXY_STATE_KEY by
HKDF (RFC 5869), apart from its other uses; the id is derived beside it and says nothing about it.
Random nonces allow 2**32 records of one key: at ten a second, enough for thirteen years.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_VERSION: Final = b"1"
_NONCE_BYTES: Final = 12


class WrongKey(Exception):
    """Sealed with a key that we do not have.

    Attributes:
        key_id: of that key.
    """

    def __init__(self, key_id: str) -> None:
        super().__init__(key_id)
        self.key_id = key_id


class Damaged(Exception):
    """Not what was sealed, or not by us."""


class _Key:
    def __init__(self, secret: str) -> None:
        self.id = _derived(secret, b"qwen-proxy login key id", 4).hex()
        self.cipher = AESGCM(_derived(secret, b"qwen-proxy login", 32))


class Seal:
    """Seals with the newest key, opens with all.

    Args:
        secrets: QWEN_PROXY_STATE_KEY, and those before it.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        keys = [_Key(secret) for secret in secrets]
        self._newest = keys[0]
        self._keys = {key.id: key for key in keys}

    @property
    def key_id(self) -> str:
        """Of the key that seals."""
        return self._newest.id

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Of all keys that open."""
        return tuple(self._keys)

    def seal(self, name: str, content: bytes) -> bytes:
        """Seal a content for the record of that name."""
        nonce, head = os.urandom(_NONCE_BYTES), self._newest.id.encode()
        sealed = self._newest.cipher.encrypt(nonce, content, _bound(name, head))
        return b" ".join((_VERSION, head, base64.b64encode(nonce), base64.b64encode(sealed)))

    def open(self, name: str, sealed: bytes) -> bytes:
        """The content.

        Raises:
            WrongKey: it was sealed with a key that we do not have.
            Damaged: it was changed, belongs to another name, or is of a newer version.
        """
        try:
            version, head, nonce, body = sealed.split(b" ")
            if version != _VERSION:
                raise Damaged("it is of a version that this qwen-proxy does not know")
            key = self._keys.get(head.decode())
            if key is None:
                raise WrongKey(head.decode())
            return key.cipher.decrypt(
                base64.b64decode(nonce, validate=True),
                base64.b64decode(body, validate=True),
                _bound(name, head),
            )
        except (ValueError, InvalidTag):
            raise Damaged("it was changed, or belongs to another login") from None


def _derived(secret: str, purpose: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=purpose).derive(secret.encode())


def _bound(name: str, key_id: bytes) -> bytes:
    return b" ".join((_VERSION, key_id, name.encode()))
