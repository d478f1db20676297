"""What one call may use: the account that it names, and what its client's key allows. Pure."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from qwen_wsgi.protocol.web.token import WebToken


class Permit(NamedTuple):
    """The accounts and models that a call may use.

    Attributes:
        pinned: the only account that may answer, by name (`x-qwen-account`), or "".
        accounts: the names of those that the key may use; () for all.
        models: patterns of the models that the key may use, such as `qwen3*`; () for all.
        web: the caller's own login at the web API: no other account may answer. None mostly.
    """

    pinned: str = ""
    accounts: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    web: WebToken | None = None

    def allows_model(self, name: str) -> bool:
        """Whether a model may be asked for by this name: the one that the upstream gets."""
        return not self.models or matches(name, self.models)

    def allows_account(self, name: str) -> bool:
        """Whether an account of the operator's may answer."""
        if self.web is not None:
            return False
        return not self.accounts or name in self.accounts


#: Of a call whose client has no limits, and that names no account.
EVERYTHING: Final = Permit()


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name fits one of the patterns, with `*`, `?` and `[…]` as in a shell."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
