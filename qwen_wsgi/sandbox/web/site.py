"""Users and their chats: kept in memory. Whoever has a token of a user sees that user's chats."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]

_LIFETIME_S: Final = 30 * 86400


@dataclass(slots=True)
class Task:
    """A video that is being made; it is done at so many looks at it."""

    user: str
    prompt: str
    fails: bool
    looks: int = 2


@dataclass
class Site:
    """The state of the web API. Thread-safe."""

    clock: Callable[[], float]
    #: Chats that there are, and those that were deleted: id -> user.
    chats: dict[str, str] = field(default_factory=dict)
    deleted: dict[str, str] = field(default_factory=dict)
    #: What was uploaded: path -> user, content type, bytes.
    objects: dict[str, tuple[str, str, bytes]] = field(default_factory=dict)
    #: Places that were given: path -> user, size, and the secret that signs for it.
    places: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    #: Addresses that the history of a chat names: chat -> URL.
    history: dict[str, str] = field(default_factory=dict)
    #: Videos that are being made: task -> what is known of it.
    tasks: dict[str, Task] = field(default_factory=dict)
    #: Where files are to be put; "" is here.
    endpoint: str = ""
    #: What a refresh gives: how long it lives, and whose it is ("" for the user's own).
    renewed_s: float = _LIFETIME_S
    renewed_for: str = ""
    #: Users that have logged out: their tokens are refused.
    gone: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def token(self, user: str, lifetime_s: float = _LIFETIME_S) -> str:
        """A session token as a browser's login gives it. It is not signed: nobody checks that."""
        claims = {"id": user, "exp": int(self.clock() + lifetime_s), "jti": uuid.uuid4().hex}
        return ".".join((_encoded({"alg": "HS256", "typ": "JWT"}), _encoded(claims), "c2FuZGJveA"))

    def user_of(self, token: str | None) -> str | None:
        """Whose a token is; None if it is not valid now."""
        try:
            part = (token or "").split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
            user, expires = str(claims["id"]), float(claims["exp"])
        except (ValueError, IndexError, KeyError, TypeError):
            return None
        return user if expires > self.clock() and user not in self.gone else None

    def open(self, user: str) -> str:
        """Open a chat; its id."""
        id = str(uuid.uuid4())
        with self._lock:
            self.chats[id] = user
        return id

    def owns(self, user: str, id: str) -> bool:
        with self._lock:
            return self.chats.get(id) == user

    def delete(self, user: str, id: str) -> bool:
        """Delete a chat; False if the user has none of this id."""
        with self._lock:
            if self.chats.get(id) != user:
                return False
            self.deleted[id] = self.chats.pop(id)
            return True

    def delete_all(self, user: str) -> None:
        """Delete all chats of a user."""
        with self._lock:
            mine = [id for id, owner in self.chats.items() if owner == user]
        for id in mine:
            self.delete(user, id)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self.chats.clear()
            self.deleted.clear()
            self.objects.clear()
            self.places.clear()
            self.history.clear()
            self.tasks.clear()
            self.gone.clear()
            self.endpoint = self.renewed_for = ""
            self.renewed_s = _LIFETIME_S


def _encoded(value: Json) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")
