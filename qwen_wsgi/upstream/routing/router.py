"""Which accounts can answer a call, and which of them is asked next. Keeps no state of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from qwen_wsgi.access.permit import EVERYTHING, Permit
from qwen_wsgi.capabilities import (
    ENDPOINTS,
    EVERYWHERE,
    Capability,
    capabilities_at,
    has_route,
    may_have,
)
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import AccountUnavailable, ApiError, BadRequest, Forbidden, NotFound
from qwen_wsgi.hosts import Family, has_files
from qwen_wsgi.protocol.web.models import named
from qwen_wsgi.protocol.web.request import refuse_media_names
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.routing import model_profiles
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.affinity import Affinity
from qwen_wsgi.upstream.routing.catalogue import Catalogue, Listing
from qwen_wsgi.upstream.routing.fallbacks import Fallbacks
from qwen_wsgi.upstream.routing.model_names import (
    ANTHROPIC,
    ModelRef,
    at_portal,
    interpretations,
)

#: While a plan is spent, all others come after its fallbacks.
_AFTER_FALLBACKS: Final = 1000
#: Names of models for which routes are kept.
_MOST_KNOWN: Final = 512
#: Stands for a model in the routes of files and batches.
FILES: Final = "files"


class Route(NamedTuple):
    """An account, and the model to ask it for.

    Attributes:
        listed: the account is known to have the model.
        fallback: its place among those that answer only while a plan is spent
            (QWEN_PROXY_PLAN_FALLBACK), from 1; 0 for all others.
    """

    account: Account
    model: str
    listed: bool = True
    search: bool = False
    thinking: bool | None = None
    fallback: int = 0


@dataclass(slots=True)  # a frozen one would take a call for each member, with each request
class Plan:
    """What a call may try. Nobody changes it.

    Attributes:
        model: as the client named it; the default's name where that is used.
        routes: by how sure it is that they have the model, and by priority.
        conversation: the call's key in `Affinity`; None where there is no choice.
        evidence: names the call's request, see `affinity.evidence_of`; None where it cannot.
        ordinary: the plan at the full price, where this one is of Batch Chat; else None.
    """

    model: str
    routes: tuple[Route, ...]
    conversation: bytes | None
    evidence: Callable[[], bytes] | None = None
    ordinary: Plan | None = None

    def alike(self, kind: Callable[[str], object]) -> Plan:
        """The plan with those routes alone whose model is asked as the first one's is: other
        accounts may have the model by a name that is asked for elsewhere, or in another form.

        Args:
            kind: how a model is asked, by its name.
        """
        first = kind(self.routes[0].model)
        return replace(
            self, routes=tuple(route for route in self.routes if kind(route.model) == first)
        )


class Candidate(NamedTuple):
    """A route, and for how long it is still cooling down."""

    cooldown_s: float
    route: Route


class _Known(NamedTuple):
    """Routes that were found, and what they follow from.

    Attributes:
        accounts: those that the call may use, of all that there are; each has a listing.
    """

    all_accounts: tuple[Account, ...]
    accounts: tuple[Account, ...]
    listings: tuple[Listing, ...]
    routes: tuple[Route, ...]


class Router:
    """Finds the accounts for a model, and picks one for each attempt.

    A pinned account comes alone. Else the order is: not cooling down; fallbacks in their order,
    while a plan is spent, and never else; known to have the model; has the conversation in its
    cache; priority; the fewest calls in flight in this worker.
    """

    def __init__(
        self, settings: Settings, pool: AccountPool, catalogue: Catalogue, affinity: Affinity
    ) -> None:
        self._default = settings.openai_model
        self._pool = pool
        self._catalogue = catalogue
        self._affinity = affinity
        self._fallbacks = Fallbacks(settings)
        self._known: dict[tuple[str, Permit], _Known] = {}
        aliases = dict(settings.model_aliases)
        self._interpretations = functools.lru_cache(maxsize=512)(
            lambda name, accounts: tuple(interpretations(name, aliases=aliases, accounts=accounts))
        )

    # --- which accounts ----------------------------------------------------------------------

    def plan(
        self,
        model: str,
        *,
        permit: Permit = EVERYTHING,
        capability: Capability = Capability.CHAT,
        literal: bool = False,
        conversation: Callable[[], bytes] | None = None,
        evidence: Callable[[], bytes] | None = None,
    ) -> Plan:
        """The accounts that may serve `model`.

        One that lists the model comes before one that has no live list and may know it; then its
        own answer decides. A model that no list names is asked for on the chance where its name
        begins like the host's models, or the account is pinned; a refusal is remembered.

        Args:
            permit: what the call may use. A model is checked by the name that the upstream gets.
            capability: what the model is to do.
            literal: no other model may stand in for an old name.
            conversation: computes the call's key; used only where there is a choice.
            evidence: for `Plan`; computed only after a failure.

        Raises:
            BadRequest: no model named, and no default set; or no account of the pinned name; or the
                model does something else.
            Forbidden: the client's key may not use the account (`account_not_allowed`), or none of
                the models that were meant (`model_not_allowed`).
            ApiError: 501: no account has a route for such calls.
            NotFound: `model_not_found`: every account has a live list, and none has the model.
            AccountUnavailable: there is no account at all.
        """
        is_kept = capability is Capability.CHAT and permit.web is None and not literal
        known = self._known.get((model, permit)) if is_kept else None
        if known is not None and self._is_true(known):
            return _plan(model, known.routes, conversation, evidence)
        found = self._pool.accounts() if is_kept else ()
        accounts, pinned = self._accounts(permit), bool(permit.pinned)
        # Before the routes: they are looked for anew if a list has changed meanwhile.
        listings = tuple(map(self._catalogue.listing_for_call, accounts)) if is_kept else ()
        if permit.web is not None and capability is Capability.CHAT:
            refuse_media_names(named(model))
        default = self._default
        if capability is not Capability.CHAT and (
            capability not in EVERYWHERE or any(each.family is Family.WEB for each in accounts)
        ):
            accounts = _with_route(accounts, capability)
            default = default if capability in EVERYWHERE else ""
        for name in (model, default):
            # The operator's default is for the names that nobody lists: it is no chance.
            chance = pinned or not default
            routes = name and self._routes(
                name, accounts, permit, pinned=pinned, chance=chance, literal=literal
            )
            if routes:
                if permit.models:
                    routes = _permitted(routes, permit, name)
                if self._fallbacks and not pinned:
                    routes = self._with_fallbacks(name, routes, accounts, permit, capability)
                routes = _able(routes, capability, name)
                if capability not in EVERYWHERE:
                    routes = _of_one_protocol(routes)
                # What is asked for on the chance depends on what was refused lately.
                if is_kept and name == model and all(route.listed for route in routes):
                    self._keep(model, permit, _Known(found, accounts, listings, routes))
                return _plan(name, routes, conversation, evidence)
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

    def _keep(self, model: str, permit: Permit, known: _Known) -> None:
        """Keep the routes of a chat that follow from the accounts and their lists alone."""
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[model, permit] = known

    def _is_true(self, known: _Known) -> bool:
        """Whether nothing has changed of what some routes follow from."""
        if self._pool.accounts() is not known.all_accounts:
            return False
        for account, listing in zip(known.accounts, known.listings, strict=True):
            if self._catalogue.listing_for_call(account) is not listing:
                return False
        return True

    def plan_files(self, *, permit: Permit = EVERYTHING, owning: str = "") -> Plan:
        """The accounts that may have files and batches; the model of their routes is `files`, under
        which their limits are known.

        Args:
            permit: what the call may use.
            owning: the account that has the file or the batch in question, by name; the one that
                the call names does not matter then.

        Raises:
            BadRequest: no account of the pinned name.
            Forbidden: the client's key may not use the account.
            ApiError: 501: no account has files; 503: the account is not there any more.
        """
        if permit.web is not None:
            raise not_available("Files and batches are", "them")
        if owning and not permit.allows_account(owning):
            raise _account_not_allowed(owning, permit)
        accounts = self._accounts(permit._replace(pinned="") if owning else permit)
        if owning:
            accounts = tuple(each for each in accounts if each.name == owning)
            if not accounts:
                raise AccountUnavailable(
                    f"It is at the account '{owning}', which this proxy does not have any more. "
                    "The operator of this proxy has to configure it again.",
                    code="account_not_found",
                    should_retry=False,
                )
        able = tuple(each for each in accounts if has_files(each.family))
        if not able:
            raise not_available("Files and batches are", "them")
        return Plan(FILES, tuple(Route(each, FILES) for each in able), None)

    def _accounts(self, permit: Permit) -> tuple[Account, ...]:
        pinned = permit.pinned
        if permit.web is not None:
            own = self._pool.of_token(permit.web)
            if pinned not in ("", own.name):
                raise BadRequest(
                    "A call with a web token is answered by the token's own account alone; leave "
                    "the header x-qwen-account out.",
                    code="account_not_found",
                )
            return (own,)
        accounts = self._pool.accounts()
        if not accounts:
            raise AccountUnavailable(
                "This proxy has no Qwen account. Its operator has to log in with qwen-code or to "
                "set an API key such as DASHSCOPE_API_KEY, or QWEN_UPSTREAM_BASE_URL; "
                "`qwen-proxy status` shows what was found.",
                code="no_account",
                should_retry=False,
            )
        if pinned and not permit.allows_account(pinned):
            raise _account_not_allowed(pinned, permit)
        if not pinned:
            return _allowed(accounts, permit) if permit.accounts else accounts
        named = tuple(each for each in accounts if each.name == pinned)
        if not named:
            raise BadRequest(
                f"This proxy has no account '{pinned[:64]}' (header x-qwen-account).",
                code="account_not_found",
            )
        return named

    def _routes(
        self,
        name: str,
        accounts: tuple[Account, ...],
        permit: Permit,
        *,
        pinned: bool,
        chance: bool,
        literal: bool,
    ) -> tuple[Route, ...]:
        # A name may pin an account that the key may not use: that is told, and is no other model.
        all_names = permit.accounts and not pinned
        named = self._pool.accounts() if all_names else accounts
        refs: tuple[ModelRef, ...] = self._interpretations(name, tuple(each.name for each in named))
        for ref in refs:
            if literal and ref.renamed:
                continue
            if listed := self._listed(ref, accounts):
                if len(listed) == len(accounts):
                    return listed
                return (*listed, *self._unlisted(ref, accounts))
        if all_names:
            _check_named(refs, permit)
        plain = tuple(ref for ref in refs if not ref.renamed)
        # No account lists it. A model that is known from elsewhere is the best interpretation.
        best = max(
            plain,
            key=lambda ref: (
                not ref.model.startswith(ANTHROPIC),
                bool(model_profiles.facts_of(ref.model)),
                bool(ref.account),
            ),
        )
        models = (at_portal(ref.model) for ref in (best, *refs[len(plain) :]))
        if (model := next(filter(None, models), None)) is not None:
            portals = tuple(each for each in accounts if each.family is Family.PORTAL)
            if routes := self._listed(replace(best, model=model), portals):
                others = tuple(each for each in accounts if each not in portals)
                return (*self._unlisted(best, others), *routes)
        unlisted = self._unlisted(best, accounts)
        asked = {route.account.name for route in unlisted}
        for ref in (best, *plain):
            for account in accounts:
                if account.name not in asked and self._has_chance(ref, account, pinned, chance):
                    asked.add(account.name)
                    route = Route(account, ref.model, False, ref.search, ref.thinking)
                    unlisted = (*unlisted, route)
        return unlisted

    def _has_chance(self, ref: ModelRef, account: Account, pinned: bool, chance: bool) -> bool:
        """Whether an account is asked for a model that its live list misses."""
        if ref.account == account.name or (pinned and ref.account is None):
            return not self._pool.has_refused(account, ref.model)
        return (
            chance
            and ref.account is None
            and may_have(account.family, ref.model)
            and not self._pool.has_refused(account, ref.model)
        )

    def _listed(self, ref: ModelRef, accounts: tuple[Account, ...]) -> tuple[Route, ...]:
        return tuple(
            Route(account, ref.model, True, ref.search, ref.thinking)
            for account in accounts
            if ref.account in (None, account.name)
            and ref.model in self._catalogue.listing_for_call(account).models
        )

    def _unlisted(self, ref: ModelRef, accounts: tuple[Account, ...]) -> tuple[Route, ...]:
        """Routes to accounts without a live list: they may have the model."""
        routes = []
        for account in accounts:
            listing = self._catalogue.listing_for_call(account)
            if listing.live or ref.model in listing.models:
                continue
            if ref.account in (None, account.name):
                routes.append(Route(account, ref.model, False, ref.search, ref.thinking))
        return tuple(routes)

    def listed(self, account: Account) -> frozenset[str]:
        """The models that a web account's host lists itself, without their variants."""
        listing = self._catalogue.known(account)
        if not listing.live:
            return frozenset()
        models = listing.models.items()
        return frozenset(id for id, entry in models if "variant_of" not in entry)

    def _with_fallbacks(
        self,
        name: str,
        routes: tuple[Route, ...],
        accounts: tuple[Account, ...],
        permit: Permit,
        capability: Capability,
    ) -> tuple[Route, ...]:
        """The routes with those at their end that answer only while a plan is spent; unchanged
        where no plan has the model, or where the name names its account."""
        fallbacks, pool = self._fallbacks, self._pool
        if not any(
            each.account.name not in fallbacks.places and pool.limits_of(each.account)
            for each in routes
        ):
            return routes
        asked = {each.account.name for each in routes}
        refs = self._interpretations(name, tuple(each.name for each in pool.accounts()))
        if len(asked) == 1 and any(ref.account in asked for ref in refs):
            return routes
        held = []
        for account in accounts:
            place = fallbacks.places.get(account.name)
            if place is None:
                continue
            model = fallbacks.models[account.name] if capability is Capability.CHAT else ""
            if model and permit.allows_model(model):
                like = routes[0]
                held.append(Route(account, model, True, like.search, like.thinking, place))
            elif not model:
                own = (each for each in routes if each.account is account)
                held += [each._replace(fallback=place) for each in own]
        held.sort(key=lambda each: each.fallback)
        return (*(each for each in routes if each.account.name not in fallbacks.places), *held)

    def _plans_are_spent(self, plan: Plan) -> bool:
        """Whether the fallbacks of a plan are to answer now."""
        pool = self._pool
        return all(
            pool.plan_is_spent(each.account)
            for each in plan.routes
            if not each.fallback and pool.limits_of(each.account)
        )

    # --- which one next ----------------------------------------------------------------------

    def choose(self, plan: Plan, excluded: set[str]) -> Candidate | None:
        """The route for the next attempt; None when all accounts are excluded, by name.

        Where every account is cooling down, the one that is free first.
        """
        pool = self._pool
        if len(plan.routes) == 1:
            route = plan.routes[0]
            if route.account.name in excluded:
                return None
            return Candidate(pool.cooldown_s(route.account, route.model), route)
        latest = plan.conversation and self._affinity.account_of(plan.conversation)
        best: Candidate | None = None
        best_rank: tuple[object, ...] = ()
        has_fallbacks = plan.routes[-1].fallback > 0
        spent = has_fallbacks and self._plans_are_spent(plan)
        for place, route in enumerate(plan.routes):
            account = route.account
            if account.name in excluded or (route.fallback and not spent):
                continue
            cooldown_s = pool.cooldown_s(account, route.model)
            limiter = pool.limiter(account)
            rank = (
                round(cooldown_s, 1),
                (route.fallback or _AFTER_FALLBACKS) if spent else 0,
                not route.listed,
                pool.keys(account).own != latest,
                pool.priority(account),
                limiter.is_full,
                limiter.in_flight,
                place,
            )
            if best is None or rank < best_rank:
                best, best_rank = Candidate(cooldown_s, route), rank
        return best


def _plan(
    name: str,
    routes: tuple[Route, ...],
    conversation: Callable[[], bytes] | None,
    evidence: Callable[[], bytes] | None,
) -> Plan:
    several = len(routes) > 1 and conversation is not None
    return Plan(name, routes, conversation() if several and conversation else None, evidence)


def _allowed(accounts: tuple[Account, ...], permit: Permit) -> tuple[Account, ...]:
    """The accounts that a key may use.

    Raises:
        AccountUnavailable: none of them is there.
    """
    found = tuple(each for each in accounts if permit.allows_account(each.name))
    if not found:
        raise AccountUnavailable(
            "None of the accounts that your key may use is there: "
            f"{', '.join(permit.accounts)}. The operator of this proxy has to change the key, or "
            "its accounts.",
            code="no_account",
            should_retry=False,
        )
    return found


def _check_named(refs: tuple[ModelRef, ...], permit: Permit) -> None:
    """Refuse a name that asks for an account that the key may not use."""
    for ref in refs:
        if ref.account is not None and not permit.allows_account(ref.account):
            raise _account_not_allowed(ref.account, permit)


def _account_not_allowed(name: str, permit: Permit) -> Forbidden:
    return Forbidden(
        f"Your key may not use the account '{name[:64]}', but: {', '.join(permit.accounts)}.",
        code="account_not_allowed",
    )


def _permitted(routes: tuple[Route, ...], permit: Permit, name: str) -> tuple[Route, ...]:
    """The routes whose model the key may ask for, by the name that the upstream gets.

    Raises:
        Forbidden: none is.
    """
    found = tuple(route for route in routes if permit.allows_model(route.model))
    if found:
        return found
    meant = ", ".join(dict.fromkeys(route.model for route in routes))
    shown = f"`{name[:100]}`" if meant == name else f"`{name[:100]}` ({meant[:200]})"
    raise Forbidden(
        f"Your key may not use the model {shown}. It may use: {', '.join(permit.models)}. "
        "GET /v1/models lists what is there.",
        param="model",
        code="model_not_allowed",
    )


def _with_route(accounts: tuple[Account, ...], capability: Capability) -> tuple[Account, ...]:
    """The accounts whose hosts have a route for such calls.

    Raises:
        ApiError: 501: none has.
    """
    able = tuple(each for each in accounts if has_route(each.family, capability))
    if not able:
        does, endpoint = ENDPOINTS[capability]
        raise not_available(f"{endpoint} is", f"a model that {does}")
    return able


def not_available(what: str, lacking: str) -> ApiError:
    """The refusal of calls for which no account has a route.

    Args:
        what: the calls, and a verb: `POST /v1/rerank is`.
        lacking: what no account has: `a model that ranks documents`.
    """
    return ApiError(
        f"{what} not available here: no account that may answer has {lacking}. The operator of "
        "this proxy needs an API key of Model Studio, pay as you go: DASHSCOPE_API_KEY.",
        status=501,
        type="invalid_request_error",
        code="not_available_here",
        should_retry=False,
    )


def _of_one_protocol(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    """Those that are asked as the first one is: the web API, or Model Studio's native one."""
    first = routes[0].account.family is Family.WEB
    return tuple(each for each in routes if (each.account.family is Family.WEB) == first)


def _able(routes: tuple[Route, ...], capability: Capability, name: str) -> tuple[Route, ...]:
    """The routes whose model does what is asked for.

    Raises:
        BadRequest: none does; the message names the endpoint for what it does.
    """
    able = []
    for route in routes:  # as for each call: a generator would be two more
        family = route.account.family
        if not family.is_qwen or capability in capabilities_at(family, route.model):
            able.append(route)  # noqa: PERF401
    if able:
        return tuple(able)
    others = capabilities_at(routes[0].account.family, routes[0].model)
    does = " and ".join(f"{ENDPOINTS[each][0]} ({ENDPOINTS[each][1]})" for each in others)
    raise BadRequest(
        f"The model `{name}` cannot be called here: it {does or 'needs a protocol of its own'}.",
        param="model",
        code="wrong_endpoint_for_model",
    )
