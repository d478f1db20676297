"""Which models there are: live lists of the accounts, qwen-code's settings, a built-in fallback."""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from qwen_wsgi.access.permit import EVERYTHING, Permit
from qwen_wsgi.capabilities import can_be_called
from qwen_wsgi.capabilities import listed as listed_capabilities
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials import web
from qwen_wsgi.credentials.account import Account, ProviderModel
from qwen_wsgi.credentials.token import AccessToken
from qwen_wsgi.errors import ApiError, Scope, UpstreamError
from qwen_wsgi.greenlets import in_order
from qwen_wsgi.hosts import Family
from qwen_wsgi.protocol import json_access
from qwen_wsgi.protocol.json_object import MOST_SLOWLY
from qwen_wsgi.protocol.web import models as web_models
from qwen_wsgi.settings import Settings
from qwen_wsgi.state.model_lists import SharedList, SharedLists
from qwen_wsgi.upstream.failures import classify
from qwen_wsgi.upstream.failures.causes import CAUSES
from qwen_wsgi.upstream.http.transport import Transport
from qwen_wsgi.upstream.routing import model_profiles
from qwen_wsgi.upstream.routing.accounts import AccountPool, token_of
from qwen_wsgi.upstream.routing.model_names import listed_aliases
from qwen_wsgi.upstream.routing.outcomes import Outcomes

log = logging.getLogger(__name__)

#: A list is a small answer; a host that needs longer is as good as one without a list.
_TIMEOUT_S: Final = 8.0

#: After a failure the host is not asked again for this long.
_RETRY_S: Final = 60.0

#: A call never fetches a list that is younger than this, whatever MODEL_CACHE_DURATION says: a
#: model that no list has must not cost one upstream request for each call that names it.
_CALL_MIN_AGE_S: Final = 60.0


#: Lists of callers' own logins that a worker knows at a time.
_MOST_TOKENS: Final = 256

#: Many clients that force a refresh at once cost one upstream request a second.
_REFRESH_MIN_AGE_S: Final = 1.0


@dataclass(frozen=True)
class Listing:
    """The models of one account.

    Attributes:
        models: OpenAI model objects by id.
        live: the host itself listed them; then a model that is missing does not exist there.
        error: why there is no live list, in words, or "".
        cause: the same as a stable word, of `failures.causes`, if the host refused this worker.
    """

    models: Mapping[str, dict[str, Any]]
    live: bool
    error: str = ""
    cause: str = ""


@dataclass
class _Cached:
    """One account's list and when it was fetched; guarded by its own lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    live: dict[str, dict[str, Any]] | None = None
    fetched_at: float | None = None
    tried_at: float | None = None
    #: The first try has ended, well or not.
    tried: bool = False
    #: `SharedLists.changed` when this was last compared with it, and when the list was learned, by
    #: its clock.
    seen: float | None = None
    at: float = -math.inf
    #: What `_listing` made of the account and of `live` and `error` as they then were.
    made: tuple[Account, dict[str, dict[str, Any]] | None, str, Listing] | None = None
    error: str = ""
    cause: str = ""


class Catalogue:
    """Model lists of all accounts, cached in this worker.

    Lists are fetched one at a time per account. A list that grew old is still used while a thread
    fetches the new one, so that no call waits for it; only the first call ever does. What another
    worker fetched is used as well; a list of a caller's own login is for that login alone.

    Args:
        lists: shared with the other workers; None shares nothing.
        outcomes: a key that is refused here, and has answered no call, is noted there.
    """

    def __init__(
        self,
        settings: Settings,
        pool: AccountPool,
        transport: Transport,
        clock: Clock,
        lists: SharedLists | None = None,
        outcomes: Outcomes | None = None,
    ) -> None:
        self._lists = lists or SharedLists(None)
        self._outcomes = outcomes or Outcomes(None)
        self._max_age_s = settings.model_cache_s
        self._call_age_s = max(self._max_age_s, _CALL_MIN_AGE_S)
        self._aliases = dict(settings.model_aliases)
        self._pool = pool
        self._transport = transport
        self._clock = clock
        self._cache: dict[tuple[str, str | None], _Cached] = {}
        #: Of callers that bring their own login, by the digest of it; the latest ones.
        self._of_tokens: OrderedDict[str, _Cached] = OrderedDict()
        self._tokens_lock = threading.Lock()

    def models(self, *, refresh: bool = False, permit: Permit = EVERYTHING) -> list[dict[str, Any]]:
        """The union over all accounts, for `GET /v1/models`; the first account's entry counts.

        Other names of these models follow, each with its model in `alias_of`.

        Args:
            refresh: fetch the lists now, unless they are younger than a second.
            permit: what the caller may use; other accounts and models are left out.
        """
        max_age_s = _REFRESH_MIN_AGE_S if refresh else self._max_age_s
        union: dict[str, dict[str, Any]] = {}
        if permit.web is not None:
            accounts = [self._pool.of_token(permit.web)]
        else:
            accounts = [each for each in self._pool.accounts() if permit.allows_account(each.name)]
        works = [partial(self.listing, account, max_age_s=max_age_s) for account in accounts]
        # All at a time: one host that does not answer must not make the others wait.
        listings = in_order(works, at_a_time=max(1, len(works)))
        for account, listing in zip(accounts, listings, strict=True):
            for id, entry in listing.models.items():
                if id in union or not permit.allows_model(id):
                    continue
                if not self._pool.has_refused(account, id):
                    union[id] = entry
        names = [account.name for account in accounts]
        for alias, id in listed_aliases(self._aliases, union, accounts=names).items():
            union[alias] = {**union[id], "id": alias, "alias_of": id}
        return list(union.values())

    def listing(self, account: Account, *, max_age_s: float) -> Listing:
        """One account's models, its live list not older than `max_age_s` if the host answers."""
        cached = self._cached(account)
        with cached.lock:
            self._adopt(account, cached)
            if self._due(cached, max_age_s):
                self._fetch(account, cached)
        return _listing(account, cached)

    def listing_for_call(self, account: Account) -> Listing:
        """As `listing`, but waits only for the first answer of a host, be it a failure. The same
        object while nothing has changed."""
        cached = self._cache.get((account.name, account.base_url)) or self._cached(account)
        if self._lists.changed() != cached.seen:
            self._adopt(account, cached)
        if not cached.tried:
            return self.listing(account, max_age_s=self._call_age_s)
        if self._due(cached, self._call_age_s) and not cached.lock.locked():
            threading.Thread(
                target=self.listing,
                args=(account,),
                kwargs={"max_age_s": self._call_age_s},
                daemon=True,
            ).start()
        return _listing(account, cached)

    def known(self, account: Account) -> Listing:
        """What this worker or another one knows of an account's models; asks no host."""
        cached = self._cached(account)
        if self._lists.changed() != cached.seen:
            self._adopt(account, cached)
        return _listing(account, cached)

    def ask(self, account: Account) -> UpstreamError | None:
        """Request an account's list, without keeping it; the refusal of its credential, if so.

        Raises:
            ApiError: there is no credential, or no answer.
        """
        token = token_of(account)
        status, body = self._transport.get(token, _path_of(account), timeout_s=_TIMEOUT_S)
        refusal = _refusal_of(account, status, body, token)
        if refusal is not None and account.credential.renewable:
            token_of(account, rejected=token.value)
        return refusal

    def _cached(self, account: Account) -> _Cached:
        if account.name == web.HOLDER:
            return self._of_token(account)
        key = (account.name, account.base_url)
        found = self._cache.get(key)
        # Not made in vain: its lock alone would cost a call 8 µs.
        return self._cache.setdefault(key, _Cached()) if found is None else found

    def _of_token(self, account: Account) -> _Cached:
        assert isinstance(account.credential, web.WebCredential)
        digest = account.credential.digest
        with self._tokens_lock:
            found = self._of_tokens.setdefault(digest, _Cached())
            self._of_tokens.move_to_end(digest)
            while len(self._of_tokens) > _MOST_TOKENS:
                self._of_tokens.popitem(last=False)
        return found

    def _due(self, cached: _Cached, max_age_s: float) -> bool:
        now = self._clock.monotonic()
        if cached.error and cached.tried_at is not None:
            return now - cached.tried_at >= min(_RETRY_S, max_age_s)
        return cached.fetched_at is None or now - cached.fetched_at >= max_age_s

    def _adopt(self, account: Account, cached: _Cached) -> None:
        """Take over what another worker has learned since."""
        changed = self._lists.changed()
        if changed == cached.seen:
            return
        cached.seen = changed
        if account.name == web.HOLDER:
            return
        found = self._lists.read(account.name, account.base_url)
        if found is None or found.at <= cached.at:
            return
        cached.at = found.at
        cached.tried_at = self._clock.monotonic() - (self._lists.now() - found.at)
        cached.tried = True
        if found.models is not None:
            cached.live, cached.fetched_at = found.models, cached.tried_at
        cached.error = found.error

    def _fetch(self, account: Account, cached: _Cached) -> None:
        cached.tried_at = self._clock.monotonic()
        cached.at = self._lists.now()
        learned: SharedList | None = None
        try:
            token = token_of(account)
            status, body = self._transport.get(token, _path_of(account), timeout_s=_TIMEOUT_S)
            if (refusal := _refusal_of(account, status, body, token)) is not None:
                raise refusal
            cached.live = _parse(status, body, web=account.family is Family.WEB)
        except ApiError as error:
            if error.message != cached.error:
                log.warning("no live model list account=%s: %s", account.name, error.message)
            cached.error = error.message
            failure = error.failure if isinstance(error, UpstreamError) else None
            cached.cause = "" if failure is None else failure.cause
            self._note_refusal(account, error)
            if isinstance(error, UpstreamError):
                learned = SharedList(cached.at, None, error.message)
        else:
            cached.fetched_at = cached.tried_at
            cached.error = cached.cause = ""
            learned = SharedList(cached.at, cached.live, "")
        cached.tried = True
        if learned is not None and account.name != web.HOLDER:
            self._lists.write(account.name, account.base_url, learned)

    def _note_refusal(self, account: Account, error: ApiError) -> None:
        """Remember that a key is refused. Calls count more: once one was answered, lists do not
        count any more, which some hosts keep from keys that are good for calls."""
        failure = error.failure if isinstance(error, UpstreamError) else None
        if failure is None or failure.scope is not Scope.ACCOUNT or account.credential.renewable:
            return
        latest = self._outcomes.latest(account)
        if latest is None or latest.answered_s is None:
            self._outcomes.failed(account, error)


def _refusal_of(
    account: Account, status: int, body: bytes, token: AccessToken
) -> UpstreamError | None:
    """The refusal of the account's credential; None for any other answer."""
    if status not in (401, 403):
        return None
    made = classify.from_response(
        status, {}, body, account=account.name, family=account.family, secrets=(token.value,)
    )
    row = CAUSES.get(made.failure.cause) if made.failure is not None else None
    if row is None or not row.refuses_account:
        return None
    return UpstreamError(
        f"GET /models answered HTTP {status}: {row.meaning} ({made.upstream_message}). "
        f"{row.remedy}",
        code=row.code,
        failure=made.failure,
        upstream_message=made.upstream_message,
    )


def _path_of(account: Account) -> str:
    """Where a host lists its models, behind the account's base URL."""
    return "/api/models" if account.family is Family.WEB else "/models"


def _parse(status: int, body: bytes, *, web: bool = False) -> dict[str, dict[str, Any]]:
    """The entries of `{"object": "list", "data": [{"id", ...}]}` by id.

    Args:
        web: it is the web API's list, whose entries get their variants.

    Raises:
        UpstreamError: anything else.
    """
    value = json_access.read(body, most_slowly=MOST_SLOWLY)
    if web and status == 200 and (entries := web_models.entries_of(value)) is not None:
        return entries
    data = value.get("data") if isinstance(value, dict) and not web else None
    if status != 200 or not isinstance(data, list):
        raise UpstreamError(f"GET /models answered HTTP {status} without a list of models.")
    return {
        entry["id"]: entry
        for entry in data
        if isinstance(entry, dict) and isinstance(entry.get("id"), str)
    }


def _listing(account: Account, cached: _Cached) -> Listing:
    """Settings' models first, then the live list or, without one, the built-in list.

    Made once for each change: every call needs it, and a host may list 165 models.
    """
    made = cached.made
    if (
        made is not None
        and made[0] is account
        and made[1] is cached.live
        and made[2] is cached.error
    ):
        return made[3]
    models = {
        model.id: _from_settings(account, model)
        for model in account.models
        if model.chat and model.wire_api == "chat-completions"
    }
    if cached.live is not None:
        for id, entry in cached.live.items():
            if not can_be_called(account.family, id):
                continue
            models[id] = _entry(account, id, entry, models.get(id, {}))
    else:
        for id in model_profiles.BUILT_IN[account.family]:
            models.setdefault(id, _entry(account, id, {}, {}))
    listing = Listing(models, cached.live is not None, cached.error, cached.cause)
    cached.made = (account, cached.live, cached.error, listing)
    return listing


def _entry(
    account: Account, id: str, listed: Mapping[str, Any], known: Mapping[str, Any]
) -> dict[str, Any]:
    """One OpenAI model object: what the host lists, then what is known of the model."""
    entry: dict[str, Any] = {
        "id": id,
        "object": "model",
        "created": listed.get("created") or model_profiles.AS_OF_EPOCH,
        "owned_by": listed.get("owned_by") or account.name,
    }
    if capabilities := listed_capabilities(account.family, id):
        entry["capabilities"] = capabilities
    facts = model_profiles.facts_of(id)
    if facts is not None:
        if facts.context is not None:
            entry["context_length"] = facts.context
        if facts.max_output is not None:
            entry["max_output_tokens"] = facts.max_output
        entry["input_modalities"] = list(facts.inputs)
    # What the operator wrote into the settings counts more than what is known in general.
    own = ("id", "object")
    entry.update({k: v for k, v in known.items() if k not in (*own, "created", "owned_by")})
    entry.update({k: v for k, v in listed.items() if v is not None and k not in own})
    return entry


def _from_settings(account: Account, model: ProviderModel) -> dict[str, Any]:
    listed: dict[str, Any] = {}
    if model.name:
        listed["name"] = model.name
    if model.description:
        listed["description"] = model.description
    if model.context_length:
        listed["context_length"] = model.context_length
    if model.modalities:
        listed["input_modalities"] = list(model.modalities)
    return _entry(account, model.id, listed, {})
