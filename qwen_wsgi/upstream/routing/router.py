"""Which accounts can answer a call, and in which order they are asked."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import StaticKey
from qwen_wsgi.errors import AccountUnavailable, BadRequest, NotFound
from qwen_wsgi.hosts import Family
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.routing import model_profiles
from qwen_wsgi.upstream.routing.accounts import AccountBook
from qwen_wsgi.upstream.routing.catalogue import Catalogue
from qwen_wsgi.upstream.routing.cooldown import Board, key_of
from qwen_wsgi.upstream.routing.limiter import Limiter
from qwen_wsgi.upstream.routing.model_names import ModelRef, at_portal, interpretations

#: Causes of a failure (`causes`) that say what an account does not serve.
MODEL_NOT_FOUND: Final = "model_not_found"
MODEL_DENIED: Final = "model_denied"

#: A key that names its workspace, and with it the Alibaba account that pays.
_WORKSPACE_KEY: Final = re.compile(r"sk-ws-[A-Za-z]\.([^.]+)\.")


class Route(NamedTuple):
    """An account, and what to ask it for.

    Attributes:
        listed: it is known to have the model.
    """

    account: Account
    model: str
    listed: bool = True
    search: bool = False
    thinking: bool | None = None


class Keys(NamedTuple):
    """An account's names in the board.

    Attributes:
        payer: the Alibaba account behind it: limits are its, and more keys do not help.
        host: what stands at its base URL.
        own: this very account, for conversations.
    """

    payer: bytes
    host: bytes
    own: bytes

    def of_model(self, model: str) -> bytes:
        """The payer's limits for one model."""
        return _of_model(self.payer, model)


@functools.lru_cache(maxsize=4096)
def _of_model(payer: bytes, model: str) -> bytes:
    return key_of(payer.hex(), model)


@dataclass(frozen=True)
class Plan:
    """What a call may try.

    Attributes:
        model: as the client named it; the default's name where that is used.
        routes: by how sure it is that they have the model, and by priority.
        conversation: the call's conversation in the board; None where there is no choice.
    """

    model: str
    routes: tuple[Route, ...]
    conversation: bytes | None


class Candidate(NamedTuple):
    """A route now: for how long it is to be left alone."""

    blocked_s: float
    route: Route


class Router:
    """Finds the accounts for a model, and orders them for each attempt.

    Pinned accounts come alone. Else: what is not to be left alone; the account that has the
    conversation in its cache; priority; the fewest calls in flight in this worker.
    """

    def __init__(
        self, settings: Settings, book: AccountBook, catalogue: Catalogue, board: Board
    ) -> None:
        self._default = settings.openai_model
        self._book = book
        self._catalogue = catalogue
        self._board = board
        self._order = settings.account_order
        self._groups = _groups(settings.same_account)
        self._places = -(-settings.account_in_flight // settings.workers)
        self._queue = settings.account_queue
        aliases = dict(settings.model_aliases)
        self._readings = functools.lru_cache(maxsize=512)(
            lambda name, accounts: tuple(interpretations(name, aliases=aliases, accounts=accounts))
        )
        self._known: tuple[Account, ...] = ()
        self._keys: dict[str, Keys] = {}
        self._priority: dict[str, int] = {}
        self._gates: dict[str, Limiter] = {}

    # --- which accounts ----------------------------------------------------------------------

    def plan(
        self,
        model: str,
        *,
        pinned: str = "",
        conversation: Callable[[], bytes] | None = None,
    ) -> Plan:
        """The accounts that may serve `model`.

        One that lists the model comes before one that has no live list and is asked on the chance
        that it knows it; its own answer then counts.

        Args:
            pinned: the only account that may answer, by name (`x-qwen-account`).
            conversation: tells the call's conversation; asked only where there is a choice.

        Raises:
            BadRequest: no model named, and no default set; or no account of the pinned name.
            NotFound: `model_not_found`: every account has a live list, and none has the model.
            AccountUnavailable: there is no account at all.
        """
        accounts = self._accounts()
        if pinned:
            accounts = tuple(each for each in accounts if each.name == pinned)
            if not accounts:
                raise BadRequest(
                    f"This proxy has no account '{pinned[:64]}' (header x-qwen-account).",
                    code="account_not_found",
                )
        for name in (model, self._default):
            if name and (routes := self._routes(name, accounts)):
                several = len(routes) > 1 and conversation is not None
                return Plan(name, routes, conversation() if several and conversation else None)
        if not model:
            raise BadRequest(
                "you must provide a model parameter",
                param="model",
                code="missing_required_parameter",
            )
        raise NotFound(
            f"The model `{model}` does not exist or you do not have access to it. "
            "GET /v1/models lists the models of this server.",
            param="model",
            code="model_not_found",
        )

    def _accounts(self) -> tuple[Account, ...]:
        accounts = self._book.accounts()
        if not accounts:
            raise AccountUnavailable(
                "This proxy has no Qwen account. Its operator has to log in with qwen-code or to "
                "set an API key such as DASHSCOPE_API_KEY, or QWEN_UPSTREAM_BASE_URL; "
                "`qwen-proxy status` shows what was found.",
                code="no_account",
                should_retry=False,
            )
        if accounts is not self._known:
            self._keys = {each.name: _keys(each, self._groups) for each in accounts}
            self._priority = _priorities(accounts, self._order)
            self._known = accounts
        return accounts

    def _routes(self, name: str, accounts: tuple[Account, ...]) -> tuple[Route, ...]:
        wishes: tuple[ModelRef, ...] = self._readings(name, tuple(each.name for each in accounts))
        for wish in wishes:
            if listed := self._listed(wish, accounts):
                return (*listed, *self._unlisted(wish, accounts))
        # Nobody lists it. Of the readings, one that is known to be a model is worth asking for.
        best = max(
            wishes, key=lambda wish: (bool(model_profiles.facts_of(wish.model)), bool(wish.account))
        )
        if (model := at_portal(best.model)) is not None:
            portals = tuple(each for each in accounts if each.family is Family.PORTAL)
            if routes := self._listed(replace(best, model=model), portals):
                others = tuple(each for each in accounts if each not in portals)
                return (*self._unlisted(best, others), *routes)
        return self._unlisted(best, accounts)

    def _listed(self, wish: ModelRef, accounts: tuple[Account, ...]) -> tuple[Route, ...]:
        return tuple(
            Route(account, wish.model, True, wish.search, wish.thinking)
            for account in accounts
            if wish.account in (None, account.name)
            and wish.model in self._catalogue.listing_for_call(account).models
        )

    def _unlisted(self, wish: ModelRef, accounts: tuple[Account, ...]) -> tuple[Route, ...]:
        """Accounts without a live list: what they have is not known."""
        routes = []
        for account in accounts:
            listing = self._catalogue.listing_for_call(account)
            if listing.live or wish.model in listing.models:
                continue
            if wish.account in (None, account.name):
                routes.append(Route(account, wish.model, False, wish.search, wish.thinking))
        return tuple(routes)

    # --- in which order ----------------------------------------------------------------------

    def choose(self, plan: Plan, without: set[str]) -> Candidate | None:
        """The route for the next attempt; None when all accounts are among `without`.

        Where every account is to be left alone, the one that may be asked first.
        """
        if len(plan.routes) == 1:
            route = plan.routes[0]
            return None if route.account.name in without else self._standing(route)
        visited = plan.conversation and self._board.visited(plan.conversation)
        best: Candidate | None = None
        best_rank: tuple[object, ...] = ()
        for place, route in enumerate(plan.routes):
            name = route.account.name
            if name in without:
                continue
            standing = self._standing(route)
            gate = self.gate(route.account)
            rank = (
                round(standing.blocked_s, 1),
                not route.listed,
                self._keys[name].own != visited,
                self._priority[name],
                gate.is_full,
                gate.in_flight,
                place,
            )
            if best is None or rank < best_rank:
                best, best_rank = standing, rank
        return best

    def _standing(self, route: Route) -> Candidate:
        if self._board.is_clear:
            return Candidate(0.0, route)
        keys, blocked_s = self._keys[route.account.name], self._board.blocked_s
        longest = max(
            blocked_s(keys.payer), blocked_s(keys.of_model(route.model)), blocked_s(keys.host)
        )
        return Candidate(longest, route)

    def keys(self, account: Account) -> Keys:
        """The account's names in the board."""
        return self._keys.get(account.name) or _keys(account, self._groups)

    def has_refused(self, account: Account, model: str) -> bool:
        """Whether the account said lately that it has no such model, or may not use it."""
        key = self.keys(account).of_model(model)
        refused = self._board.cause(key) in (MODEL_NOT_FOUND, MODEL_DENIED)
        return refused and self._board.blocked_s(key) > 0

    def gate(self, account: Account) -> Limiter:
        """The account's places in this worker."""
        gate = self._gates.get(account.name)
        if gate is None:
            gate = self._gates[account.name] = Limiter(self._places, self._queue)
        return gate


def _groups(same: tuple[str, ...]) -> Mapping[str, str]:
    """Account name -> its group, of `("a+b", "c+d")`."""
    return {name: group for group in same for name in group.split("+")}


def _keys(account: Account, groups: Mapping[str, str]) -> Keys:
    url = account.base_url or account.name
    return Keys(
        payer=key_of("payer", groups.get(account.name) or _payer(account)),
        host=key_of("host", url),
        own=key_of("own", account.name, url),
    )


def _payer(account: Account) -> str:
    """Who pays, as far as it shows: the same key, or keys of one workspace, have one set of limits.

    Two other keys may belong to one Alibaba account as well, which only their owner knows.
    """
    credential = account.credential
    if isinstance(credential, StaticKey) and credential.key:
        if found := _WORKSPACE_KEY.match(credential.key):
            return f"workspace {found[1]}"
        return f"key {credential.key}"
    return f"account {account.name} {account.base_url}"


def _priorities(accounts: tuple[Account, ...], order: tuple[str, ...]) -> dict[str, int]:
    """Who comes first: those that the operator named, then the order in which they were found.

    Accounts of one kind of host that were found in a row are equals: calls are spread over them.
    """
    named = {name: place for place, name in enumerate(order)}
    priorities: dict[str, int] = {}
    kinds: list[tuple[Family, bool]] = []
    for account in accounts:
        kind = (account.family, account.explicit)
        if not kinds or kinds[-1] != kind:
            kinds.append(kind)
        priorities[account.name] = named.get(account.name, len(order) + len(kinds))
    return priorities
