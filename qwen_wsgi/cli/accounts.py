"""`qwen-proxy status` and `qwen-proxy models`: what the accounts are, and what they serve."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, Final

from qwen_wsgi import text
from qwen_wsgi.cli import running
from qwen_wsgi.cli.running import Answer
from qwen_wsgi.errors import SettingsError
from qwen_wsgi.services import Services, build_services, configure_logs
from qwen_wsgi.settings import Settings, with_command

#: A server asks all its hosts for their lists before it answers.
_LISTS_S: Final = 60.0

#: What is shown of an account (`text.status_row`).
_ROW: Final = frozenset(
    {
        *("name", "kind", "origin", "endpoint", "state", "detail", "credential", "remedy"),
        *("usable", "cause", "left_alone_s", "last_call"),
    }
)


def status(settings: Settings, *, json_output: bool) -> int:
    """Print every account without calling any upstream; 0 if one is usable, else 1."""
    answer = running.ask(settings, "/status", check=_is_report)
    report = _own_report(settings) if answer.value is None else answer.value
    rows, problems = report["accounts"], (*report["problems"], *report["notes"])
    if json_output:
        asked = {"server": answer.server if answer.value else None, "why_not": answer.why or None}
        print(json.dumps({"asked": asked, **report}, indent=2))
    else:
        shown = f"{_asked(answer, settings)}\n\n{text.accounts_text(rows, problems)}"
        print(with_command(shown, settings.command))
    return 0 if any(row.get("usable") for row in rows) else 1


def models(settings: Settings, *, json_output: bool) -> int:
    """Print the models of all accounts; where each list comes from goes to standard error."""
    answer = running.ask(
        settings, "/v1/models?refresh=1", timeout_s=_LISTS_S, check=_is_list_of_models
    )
    if answer.value is not None:
        print(f"Asked: the server at {answer.server}", file=sys.stderr)
        found = {str(entry["id"]): entry for entry in answer.value["data"]}
    else:
        found = _own_models(settings, answer)
    if json_output:
        print(json.dumps({"object": "list", "data": list(found.values())}, indent=2))
    elif found:
        print("\n".join(found))
    return 0


def models_to_offer(settings: Settings) -> tuple[list[dict[str, Any]], list[str]]:
    """The catalogue's models for a client, and notes on why the list may be incomplete."""
    answer = running.ask(settings, "/v1/models", timeout_s=_LISTS_S, check=_is_list_of_models)
    if answer.value is not None:
        return answer.value["data"], []
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


def _is_report(value: dict[str, Any]) -> bool:
    """Whether it is what `/status` of this version answers."""
    rows = value.get("accounts")
    return (
        isinstance(rows, list)
        and all(isinstance(row, dict) and row.keys() >= _ROW for row in rows)
        and all(isinstance(value.get(name), list) for name in ("problems", "notes"))
    )


def _is_list_of_models(value: dict[str, Any]) -> bool:
    entries = value.get("data")
    return isinstance(entries, list) and all(
        isinstance(entry, dict) and "id" in entry for entry in entries
    )


def _own_report(settings: Settings) -> dict[str, Any]:
    """What this command finds by itself, in the form of the server's `/status`."""
    services = _services(settings)
    return {
        "accounts": [
            text.status_row(account, status, services.outcomes.latest(account))
            for account, status in services.statuses.summary().accounts
        ],
        "problems": list(services.discovery.problems()),
        "notes": list(map(str, services.discovery.notes())),
    }


def _own_models(settings: Settings, answer: Answer) -> dict[str, dict[str, Any]]:
    services = _services(settings)
    print(f"Asked: the hosts themselves ({_not_asked(answer)})", file=sys.stderr)
    found: dict[str, dict[str, Any]] = {}
    for account in services.pool.accounts():
        listing = services.catalogue.listing(account, max_age_s=0)
        found |= {id: entry for id, entry in listing.models.items() if id not in found}
        source = "live list" if listing.live else f"no live list ({listing.error})"
        print(f"{account.name}: {len(listing.models)} models, {source}", file=sys.stderr)
    services.close()
    return found


def _asked(answer: Answer, settings: Settings) -> str:
    """Whom the command asked, as a line."""
    if answer.value is None:
        return (
            f"Asked: this user's own environment and files ({_not_asked(answer)}). "
            "No call was made."
        )
    value = answer.value
    return (
        f"Asked: the server at {answer.server}, version {value.get('version')}, "
        f"{value.get('workers')} worker(s), {value.get('in_flight')} call(s) in flight, "
        f"{value.get('calls')} served"
    )


def _not_asked(answer: Answer) -> str:
    return f"not the server at {answer.server}: {answer.why}"


def _services(settings: Settings) -> Services:
    services = build_services(settings, known_in=Path(settings.state_dir))
    services.discovery.check()
    configure_logs(settings)
    return services
