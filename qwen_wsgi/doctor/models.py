"""Checks the models: does each account list some, and do the models in settings exist."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from qwen_wsgi.doctor.findings import Finding, Teller
from qwen_wsgi.doctor.probe import quoted
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.routing.catalogue import Listing
from qwen_wsgi.upstream.routing.model_names import interpretations

TELL: Final = Teller("models")


def check(settings: Settings, listings: Mapping[str, Listing] | None) -> Iterator[Finding]:
    """
    Args:
        listings: by account; None if no upstream was called.
    """
    if listings is None:
        yield TELL.skipped("lists", "no upstream was called (--no-calls)")
        return
    if not listings:
        yield TELL.skipped("lists", "no account could be called")
    for name, listing in listings.items():
        if listing.live:
            yield TELL.ok(name, f"lists {len(listing.models)} models")
        else:
            yield TELL.note(
                name,
                f"its live list cannot be read ({quoted(listing.error)}); {len(listing.models)} "
                "models are known from other sources",
            )
    yield from named(settings, listings)


def named(settings: Settings, listings: Mapping[str, Listing]) -> Iterator[Finding]:
    """Check the models that settings name."""
    wanted = [("QWEN_PROXY_MODEL_ALIASES", alias, model) for alias, model in settings.model_aliases]
    if settings.openai_model:
        wanted.append(("OPENAI_MODEL", "", settings.openai_model))
    # An account without a live list may have more than it is known to have.
    complete = bool(listings) and all(listing.live for listing in listings.values())
    for setting, alias, model in wanted:
        shown = f"{alias}={model}" if alias else model
        aliases = {} if alias else dict(settings.model_aliases)
        refs = interpretations(model, aliases=aliases, accounts=tuple(listings))
        if any(
            ref.model in listings[name].models
            for ref in refs
            for name in ([ref.account] if ref.account else listings)
        ):
            yield TELL.ok(setting, f"{shown}: an account lists it")
        elif complete:
            yield TELL.warn(
                setting, f"{shown}: no account lists it", "See `qwen-proxy models` for the names."
            )
        else:
            yield TELL.note(
                setting, f"{shown}: no account lists it, but some accounts have no live list"
            )
