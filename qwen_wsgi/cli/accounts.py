"""`qwen-proxy status` and `qwen-proxy models`: what the accounts are, and what they serve."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from qwen_wsgi import text
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.services import Services, build_services, configure_logs
from qwen_wsgi.settings import Settings
from qwen_wsgi.upstream.routing.account_status import READY


def status(settings: Settings, *, json_output: bool) -> int:
    """Print every account without calling any upstream; 0 if one is usable, else 1."""
    services = _services(settings)
    summary = services.statuses.summary()
    problems = services.discovery.problems()
    rows = [text.account_row(account, status) for account, status in summary.accounts]
    if json_output:
        print(json.dumps({"accounts": rows, "problems": list(problems)}, indent=2))
    else:
        print(text.accounts_text(rows, problems))
    return 0 if summary.status in READY else 1


def models(settings: Settings, *, json_output: bool) -> int:
    """Print the models of all accounts; where each list comes from goes to standard error."""
    services = _services(settings)
    found: dict[str, dict[str, Any]] = {}
    for account in services.pool.accounts():
        listing = services.catalogue.listing(account, max_age_s=0)
        found |= {id: entry for id, entry in listing.models.items() if id not in found}
        source = "live list" if listing.live else f"no live list ({listing.error})"
        print(f"{account.name}: {len(listing.models)} models, {source}", file=sys.stderr)
    if json_output:
        print(json.dumps({"object": "list", "data": list(found.values())}, indent=2))
    else:
        print("\n".join(found))
    services.close()
    return 0


def models_to_offer(settings: Settings) -> tuple[list[dict[str, Any]], list[str]]:
    """The catalogue's models for a client, and notes on why the list may be incomplete."""
    try:
        services = _services(settings)
    except SettingsError as error:
        return [], [f"The accounts cannot be read ({error}), so no model list was requested."]
    try:
        accounts = services.pool.accounts()
        entries = services.catalogue.models()
        notes = [
            f"The models of account {account.name} cannot be listed ({listing.error})"
            for account in accounts
            if (listing := services.catalogue.listing(account, max_age_s=math.inf)).error
        ]
    finally:
        services.close()
    if not accounts:
        notes.append("No account was found, so no model list was requested: `qwen-proxy status`.")
    return entries, notes


def _services(settings: Settings) -> Services:
    services = build_services(settings, known_in=Path(settings.state_dir))
    services.discovery.check()
    configure_logs(settings)
    return services
