"""Renews the operator's web token before it ends: once for all workers, and by a better one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

from qwen_wsgi import greenlets
from qwen_wsgi.clock import Clock
from qwen_wsgi.credentials import web
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.credentials.kept_web_token import Kept
from qwen_wsgi.credentials.web import WebCredential
from qwen_wsgi.errors import ApiError, forget_frames
from qwen_wsgi.protocol.json_access import text
from qwen_wsgi.protocol.web.token import BadWebToken, WebToken, packed
from qwen_wsgi.upstream.routing.accounts import base_url_of
from qwen_wsgi.upstream.web.site import WebSite

log = logging.getLogger(__name__)


class _NotRenewed(Exception):
    """No better token came; the text says why."""


class WebRenewal:
    """Looks after the web tokens of the operator's accounts.

    Args:
        accounts: all accounts there are.
        later: does the work beside whoever asks for it.
    """

    def __init__(
        self,
        site: WebSite,
        accounts: Callable[[], Iterable[Account]],
        clock: Clock,
        *,
        later: Callable[[Callable[[], None]], None] = greenlets.later,
    ) -> None:
        self._site = site
        self._accounts = accounts
        self._clock = clock
        self._later = later
        self._busy = False

    def look_after(self) -> None:
        """Renew what is due."""
        for account in self._accounts():
            credential = account.credential
            if isinstance(credential, WebCredential) and credential.is_due and not self._busy:
                self._busy = True
                self._later(partial(self._renewed, account, credential))

    def _renewed(self, account: Account, credential: WebCredential) -> None:
        kept = credential.kept
        assert kept is not None, "it is due"
        try:
            with kept.locked() as mine:
                if not mine or not credential.is_due:
                    return  # another worker does it, or was faster
                now = self._clock.now()
                # Before the question: one that never ends is not asked by every worker.
                kept.write(Kept(kept.read().token, now, "the attempt did not end"))
                try:
                    token = self._better(account, credential)
                except (ApiError, _NotRenewed) as error:
                    forget_frames(error)
                    why = error.message if isinstance(error, ApiError) else str(error)
                    kept.write(Kept(kept.read().token, now, why[:300]))
                    log.warning(
                        "the web token was not renewed account=%s: %s It is %s; make a new one "
                        "before it ends (docs/web-account.md).",
                        account.name,
                        why,
                        credential.lifetime,
                    )
                    return
                kept.write(Kept(packed(token), now))
                log.info(
                    "the web token was renewed account=%s: it is %s",
                    account.name,
                    credential.lifetime,
                )
        except OSError as error:
            log.error(
                "a renewed web token cannot be kept account=%s: %s. Give the state directory to "
                "the user who runs the server.",
                account.name,
                error,
            )
        finally:
            self._busy = False

    def _better(self, account: Account, credential: WebCredential) -> WebToken:
        """A fresh token that was seen to work: for the same user, and for longer.

        Raises:
            ApiError: no answer, or a refusal.
            _NotRenewed: there is no better one.
        """
        old = credential.token
        said = self._site.user_of(account)
        try:
            new = old.renewed(text(said.get("token")))
        except BadWebToken:
            raise _NotRenewed("chat.qwen.ai gave no new token.") from None
        if new.expires_at is None or new.expires_at <= (old.expires_at or 0.0):
            raise _NotRenewed("chat.qwen.ai gave no token that is valid for longer.")
        tried = web.operator_account(new, base_url_of(account), self._clock)
        user = self._site.user_of(tried)
        if not text(said.get("id")) or text(user.get("id")) != text(said.get("id")):
            raise _NotRenewed("chat.qwen.ai gave a token of another user, which is not used.")
        return new
