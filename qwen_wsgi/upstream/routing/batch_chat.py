"""Batch Chat: the host at which a call waits longer and costs half (`service_tier: "flex"`).

It takes the keys of Model Studio's shared host in Beijing. To the rest of the program it is an
account of its own, `<name>-flex`, with its own pauses and limits: a full queue there says nothing
of the ordinary host.
"""

from __future__ import annotations

from dataclasses import replace

from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.credential import StaticKey
from qwen_wsgi.hosts import Family, batch_chat_url
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.routing.accounts import AccountPool
from qwen_wsgi.upstream.routing.router import Plan


class BatchChat:
    """Finds the accounts that have Batch Chat. Shared by all greenlets of a worker."""

    def __init__(self, settings: Settings, pool: AccountPool) -> None:
        self._url = settings.batch_host
        self._wait_s = settings.flex_timeout_s
        self._pool = pool
        #: By the ordinary account's name: that account, and its twin.
        self._twins: dict[str, tuple[Account, Account]] = {}

    def preferred(self, plan: Plan) -> Plan:
        """The plan for a call that is to cost half: the ordinary one where no account has Batch
        Chat, or where it has refused the model lately."""
        routes = tuple(
            # Whoever asks for it means it: it is no fallback.
            route._replace(account=twin, fallback=0)
            for route in plan.routes
            if (twin := self._twin(route.account)) is not None
            and not self._pool.has_refused(twin, route.model)
        )
        return replace(plan, routes=routes, ordinary=plan) if routes else plan

    def _twin(self, account: Account) -> Account | None:
        key = account.credential
        if account.family is not Family.DASHSCOPE or not isinstance(key, StaticKey):
            return None
        url = self._url or batch_chat_url(account.base_url or "")
        if not url:
            return None
        known = self._twins.get(account.name)
        if known is None or known[0] is not account:
            twin = replace(
                account,
                name=f"{account.name}-flex",
                base_url=url,
                credential=replace(key, base_url=url),
                batch_wait_s=self._wait_s,
            )
            known = self._twins[account.name] = (account, twin)
        return known[1]
