"""How secrets are recognized and masked, wherever text leaves the process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

#: How much of a secret may ever be shown.
SHOWN_SECRET_CHARS: Final = 4

#: A shorter value is not searched for: it would be found in half of all words.
_SEARCHED_CHARS: Final = 6

#: What looks like a secret: bearer tokens, vendors' API keys, and JSON web tokens. The first group
#: stays readable. A token ends before a quote or a backslash, so that masked JSON stays JSON.
_LOOKS_SECRET: Final = re.compile(
    r"(bearer\s+)(?:[^\s\"'<>\\]{12,}|[a-z0-9._~+/=-]{8,})"
    r"|(?<![a-z0-9])(sk-)[a-z0-9._~+/=-]{8,}"
    r"|(?<![a-z0-9])eyj[a-z0-9_.-]{20,}",
    re.IGNORECASE,
)

#: Endings of the names of environment variables that hold secrets.
_SECRET_NAMES: Final = ("_API_KEY", "_API_KEYS", "_TOKEN", "_SECRET", "_PASSWORD")


def mask(secret: str) -> str:
    """Show which secret it is, by its last four characters; a short one is not shown at all."""
    if len(secret) < 4 * SHOWN_SECRET_CHARS:
        return "****"
    return "…" + secret[-SHOWN_SECRET_CHARS:]


def mask_lookalikes(text: str) -> str:
    """Mask everything in a text that looks like a secret, whether it is known or not."""
    # Three searches cost a fraction of the pattern, and most texts have none of the words.
    lower = text.lower()
    if "sk-" not in lower and "bearer" not in lower and "eyj" not in lower:
        return text
    return _LOOKS_SECRET.sub(_masked, text)


def _masked(found: re.Match[str]) -> str:
    kept = found[1] or found[2] or ""
    return kept + mask(found[0][len(kept) :])


def names_secret(variable: str) -> bool:
    """Whether an environment variable holds a secret, by its name."""
    return variable.endswith(_SECRET_NAMES)


class Redaction:
    """Masks known secrets, and what looks like one: the last line of defence, not the first.

    Args:
        secrets: values known at start. Tokens that are read later are recognized by their look, or
            never reach a log because their types mask themselves.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = {s for s in secrets if len(s) >= _SEARCHED_CHARS}
        # Also as JSON writes them: fields are escaped before the line is searched.
        known |= {json.dumps(s)[1:-1] for s in known}
        self._secrets = sorted(known, key=len, reverse=True)

    def redact(self, text: str) -> str:
        """The text with each secret replaced by its mask."""
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, mask(secret))
        return mask_lookalikes(text)
