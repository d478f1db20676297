"""Finds variables of the environment that do something else than they seem to: nothing, mostly.

For the start of the server, `qwen-proxy status` and doctor. Only names are told, never values that
may be secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

from qwen_wsgi import settings as settings_module
from qwen_wsgi.credentials.sources import dashscope_files, providers, qwen_settings
from qwen_wsgi.credentials.sources.qwen_settings import Value
from qwen_wsgi.settings import Settings

#: Whoever begins a name so means this program; there is no other use for it.
_OURS: Final = ("QWEN_PROXY_", "QWEN_UPSTREAM_")
#: Names that qwen-code and other programs use, too: they are told only if they are nearly a name
#: that has an effect here.
_SHARED: Final = ("QWEN", "DASHSCOPE", "BAILIAN", "MODELSTUDIO", "QIANWEN")
#: How alike two names must be: one letter too many, or a word too few.
_ALIKE: Final = 0.87
#: For what follows our prefix: there any hint is better than none.
_SOMEWHAT_ALIKE: Final = 0.6

_NO_EFFECT: Final = "has no effect: there is no such setting"

#: Keys of vendors whose own API is not OpenAI's, so that no account can be made of the key alone.
_OTHER_VENDORS: Final = {
    "ANTHROPIC_API_KEY": "Anthropic",
    "GEMINI_API_KEY": "Google",
    "GOOGLE_API_KEY": "Google",
    "MISTRAL_API_KEY": "Mistral",
    "GROQ_API_KEY": "Groq",
}


class Note(NamedTuple):
    """What there is to say about a variable.

    Attributes:
        name: of the variable.
        what: the rest of the sentence, without its full stop.
        remedy: what to do, as a sentence; "" if nothing is to be done.
        misspelt: certainly a mistake.
    """

    name: str
    what: str
    remedy: str = ""
    misspelt: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.what}. {self.remedy}".rstrip()


def notes(settings: Settings) -> tuple[Note, ...]:
    """What there is to say about the variables of the environment."""
    return (
        *_host(settings),
        *_misspelt(settings),
        *_openai(settings),
        *_unused_keys(settings),
    )


def _host(settings: Settings) -> Iterator[Note]:
    if settings.ignored_host:
        yield Note(
            f"HOST={settings.ignored_host}",
            "is ignored: it is the name of a machine, as shells set it, and not an address of this "
            f"one. The server listens on {settings.host}",
            "To choose the address, set QWEN_PROXY_HOST.",
        )


def _misspelt(settings: Settings) -> Iterator[Note]:
    known = _known_names()
    for name in sorted(settings.environ):
        if name in known or not name.startswith((*_OURS, *_SHARED)):
            continue
        if near := _nearest(name, known):
            yield Note(name, _NO_EFFECT, f"Did you mean {near}?", misspelt=True)
        elif name.startswith(_OURS):
            yield Note(name, _NO_EFFECT, "`qwen-proxy settings` lists all.", misspelt=True)


def _nearest(name: str, known: list[str]) -> str:
    """The name that may have been meant; "" if none is alike enough."""
    for prefix in _OURS:
        if name.startswith(prefix):
            if (bare := name.removeprefix(prefix)) in known:
                return bare
            # What they have in common says nothing, and would make all of them alike.
            rest = [each.removeprefix(prefix) for each in known if each.startswith(prefix)]
            near = difflib.get_close_matches(bare, rest, n=1, cutoff=_SOMEWHAT_ALIKE)
            if near:
                return prefix + near[0]
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)), "")


def _known_names() -> list[str]:
    """Every name that has an effect."""
    found = [*settings_module.names(), *dashscope_files.NAMES]
    for each in providers.PROVIDERS:
        found += [each.key_env, each.base_url_env]
    return found


def _openai(settings: Settings) -> Iterator[Note]:
    """The pair that makes an account in other programs."""
    if settings.openai_api_key and settings.openai_base_url:
        yield Note(
            "OPENAI_API_KEY",
            "and OPENAI_BASE_URL make no account here: the key is one that clients of this server "
            "may use, and is sent nowhere; the URL is that of logins without one",
            "If they are meant as an account, name them QWEN_UPSTREAM_API_KEY and "
            "QWEN_UPSTREAM_BASE_URL.",
        )


def _unused_keys(settings: Settings) -> Iterator[Note]:
    environ = settings.environ
    for name, vendor in _OTHER_VENDORS.items():
        if environ.get(name, "").strip():
            yield Note(
                name,
                f"is not used: {vendor}'s keys make no account by themselves",
                f"If {vendor} has an OpenAI-compatible endpoint, set it as QWEN_UPSTREAM_BASE_URL, "
                "with the key as QWEN_UPSTREAM_API_KEY.",
            )
    for each in providers.PROVIDERS:
        # DASHSCOPE_BASE_URL also belongs to the key in the dashscope package's files.
        if each.key_env == dashscope_files.KEY_ENV or environ.get(each.key_env, "").strip():
            continue
        if environ.get(each.base_url_env, "").strip():
            yield Note(each.base_url_env, f"is not used: {each.key_env} is not set")


def unknown_accounts(settings: Settings, names: Collection[str]) -> Iterator[Note]:
    """What there is to say about settings of plans that name accounts which are not there.

    Args:
        names: of all accounts.
    """
    fallbacks = tuple(word.partition(":")[0] for word in settings.plan_fallback)
    for variable, named in (
        ("QWEN_PROXY_PLANS", settings.plans.accounts),
        ("QWEN_PROXY_PLAN_FALLBACK", fallbacks),
    ):
        if unknown := [name for name in named if name not in names]:
            yield Note(
                variable,
                f"names what is no account: {', '.join(unknown)}",
                f"The accounts are: {', '.join(sorted(names)) or 'none'}.",
                misspelt=True,
            )


def unused_in_files(
    keys: Iterable[tuple[str, Value]], used: Collection[str], settings_file: str
) -> Iterator[Note]:
    """What there is to say about keys in qwen-code's files of which no account was made.

    Args:
        keys: names and values, as found.
        used: the keys of all accounts.
        settings_file: where an entry for it belongs.
    """
    told = set()
    for name, found in keys:
        if found.text in used or name in told or not qwen_settings.is_variable_name(name):
            continue
        told.add(name)
        yield Note(
            name,
            f"in {found.place} is not used: no entry of modelProviders.openai in {settings_file} "
            "names it as its envKey",
            "Add an entry, or set the key in the environment of the server.",
        )
