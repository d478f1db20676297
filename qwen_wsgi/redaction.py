"""How secrets are recognized and masked, wherever text leaves the process."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from typing import Final

#: How much of a secret may ever be shown.
SHOWN_SECRET_CHARS: Final = 4

#: A shorter value is not searched for: it would be found in half of all words.
_SEARCHED_CHARS: Final = 6
#: One of an account that has so many is searched for as a word in what its upstream says.
_ALONE_CHARS: Final = 4

#: How many secrets are remembered; a login has some new ones a day.
_REMEMBERED: Final = 2000

#: What looks like a secret: bearer tokens, vendors' API keys, JSON web tokens, and compressed
#: tokens (`protocol.web.token`). The first group stays readable. A token ends before a quote or a
#: backslash, so that masked JSON stays JSON.
_LOOKS_SECRET: Final = re.compile(
    r"(bearer\s+)(?:[^\s\"'<>\\]{12,}|[a-z0-9._~+/=-]{8,})"
    r"|(?<![a-z0-9])(sk-)[a-z0-9._~+/=-]{8,}"
    r"|(?<![a-z0-9])eyj[a-z0-9_.-]{20,}"
    r"|(?<![a-z0-9+/])h4sia[a-z0-9+/_=-]{20,}",
    re.IGNORECASE,
)

#: Endings of the names of environment variables that hold secrets.
_SECRET_NAMES: Final = ("_API_KEY", "_API_KEYS", "_ADMIN_KEYS", "_TOKEN", "_SECRET", "_PASSWORD")


def mask(secret: str) -> str:
    """Show which secret it is, by its last four characters; a short one is not shown at all."""
    if len(secret) < 4 * SHOWN_SECRET_CHARS:
        return "****"
    return "…" + secret[-SHOWN_SECRET_CHARS:]


def masked_url(url: str) -> str:
    """A URL without user and password, and without its options."""
    scheme, _, rest = url.partition("://")
    user, _, place = rest.partition("?")[0].rpartition("@")
    return f"{scheme}://" + ("****@" if user else "") + place


def mask_lookalikes(text: str) -> str:
    """Mask everything in a text that looks like a secret, whether it is known or not."""
    # Four searches cost a fraction of the pattern, and most texts have none of the words.
    lower = text.lower()
    if "sk-" in lower or "bearer" in lower or "eyj" in lower or "h4sia" in lower:
        return _LOOKS_SECRET.sub(_masked, text)
    return text


def _masked(found: re.Match[str]) -> str:
    kept = found[1] or found[2] or ""
    return kept + mask(found[0][len(kept) :])


def names_secret(variable: str) -> bool:
    """Whether an environment variable holds a secret, by its name."""
    return variable.endswith(_SECRET_NAMES)


class Secrets:
    """Secrets that this process has read: keys, tokens, and those that followed them."""

    def __init__(self) -> None:
        self._known: dict[str, None] = {}
        #: What is searched for, the longest first; replaced as a whole, because threads read it.
        self.searched: tuple[str, ...] = ()

    def add(self, *secrets: str | None) -> None:
        """Add some; of thousands the oldest are forgotten."""
        new = [each for each in secrets if each and each not in self._known]
        if not new:
            return
        self._known.update(dict.fromkeys(new))
        for old in list(self._known)[:-_REMEMBERED]:
            del self._known[old]
        self.searched = tuple(searched(self._known))


#: Those that credentials were made of, wherever they were found. They add themselves.
DISCOVERED: Final = Secrets()


def searched(secrets: Iterable[str]) -> list[str]:
    """What to search for of some secrets, the longest first."""
    known = {each for each in secrets if len(each) >= _SEARCHED_CHARS}
    # Also as JSON writes them: fields are escaped before the line is searched.
    known |= {json.dumps(each)[1:-1] for each in known}
    return sorted(known, key=len, reverse=True)


@functools.lru_cache(maxsize=64)
def _masks(secrets: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """What to search for of some secrets, in its order, with the masks. Remembered, as each answer
    of an upstream is searched for the secrets of its account."""
    return tuple((each, mask(each)) for each in searched(secrets))


def mask_all(text: str, secrets: Iterable[str]) -> str:
    """Mask some secrets whatever they look like, and everything that looks like one.

    One that is too short to be found in a text is masked where it stands alone.
    """
    secrets = tuple(secrets)
    for secret, masked in _masks(secrets):
        if secret in text:
            text = text.replace(secret, masked)
    for secret in secrets:
        if _ALONE_CHARS <= len(secret) < _SEARCHED_CHARS and secret in text:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", mask(secret), text)
    return mask_lookalikes(text)


class Redaction:
    """Masks known secrets, and what looks like one: the last line of defence, not the first.

    Args:
        secrets: values known at start.
        discovered: those that are read later.
    """

    def __init__(self, secrets: Iterable[str] = (), discovered: Secrets | None = None) -> None:
        self._secrets = searched(secrets)
        self._discovered = Secrets() if discovered is None else discovered

    def redact(self, text: str) -> str:
        """The text with each secret replaced by its mask."""
        for secrets in (self._secrets, self._discovered.searched):
            for secret in secrets:
                if secret in text:
                    text = text.replace(secret, mask(secret))
        return mask_lookalikes(text)
