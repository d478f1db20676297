"""Models that the settings name and nobody has; and the terms of plans."""

from __future__ import annotations

import pytest

from qwen_wsgi.doctor import models, plan_terms
from qwen_wsgi.doctor.findings import Level
from qwen_wsgi.hosts import Family
from qwen_wsgi.upstream.routing.catalogue import Listing
from tests.fakes.machine import levels, one
from tests.fakes.upstream import account_of
from tests.kit.installed_machine import Load
from tests.kit.secrets import secret

LIVE = Listing({"qwen-flash": {}, "qwen3.8-max": {}}, True)
BUILT_IN = Listing({"qwen-flash": {}}, False, "GET /models answered HTTP 404.")


def test_without_calls_nothing_is_known(load: Load) -> None:
    assert one(models.check(load(), None)).level is Level.SKIPPED
    assert one(models.check(load(), {})).level is Level.SKIPPED


def test_lists_are_counted(load: Load) -> None:
    found = levels(models.check(load(), {"a": LIVE, "b": BUILT_IN}))

    assert found == {"a": "ok", "b": "note"}


@pytest.mark.parametrize(
    ("environ", "listing", "level"),
    [
        ({"QWEN_PROXY_MODEL_ALIASES": "gpt-4o=qwen-flash"}, LIVE, "ok"),
        ({"QWEN_PROXY_MODEL_ALIASES": "gpt-4o=a:qwen-flash-search"}, LIVE, "ok"),
        ({"QWEN_PROXY_MODEL_ALIASES": "gpt-4o=qwen-nope"}, LIVE, "warn"),
        ({"QWEN_PROXY_MODEL_ALIASES": "gpt-4o=qwen-nope"}, BUILT_IN, "note"),
        ({"OPENAI_MODEL": "qwen-flash"}, LIVE, "ok"),
        ({"OPENAI_MODEL": "qwen-nope"}, LIVE, "warn"),
        ({"OPENAI_MODEL": "x", "QWEN_PROXY_MODEL_ALIASES": "x=qwen-flash"}, LIVE, "ok"),
    ],
    ids=str,
)
def test_models_that_settings_name(
    load: Load, environ: dict[str, str], listing: Listing, level: str
) -> None:
    found = levels(models.named(load(**environ), {"a": listing}))

    assert set(found.values()) == {level}


class TestTerms:
    @pytest.mark.parametrize("family", [Family.CODING_PLAN, Family.TOKEN_PLAN])
    def test_a_plan_must_not_be_shared(self, family: Family) -> None:
        account = account_of("plan", family=family)

        alone = one(plan_terms.check((account,), ()))
        shared = one(plan_terms.check((account,), ("there are 2 client keys",)))

        assert (alone.level, shared.level) == (Level.NOTE, Level.WARN)
        assert "there are 2 client keys" in shared.what
        assert "pay-as-you-go" in shared.remedy

    def test_other_accounts_may_be(self) -> None:
        assert one(plan_terms.check((account_of(),), ("x",))).level is Level.OK

    def test_who_shares(self, load: Load) -> None:
        two = f"{secret('doctor-a')},{secret('doctor-b')}"

        assert plan_terms.shared_by(load(), ()) == ()
        assert plan_terms.shared_by(load(QWEN_PROXY_API_KEYS=secret("doctor-c")), ()) == ()
        shared = plan_terms.shared_by(load(QWEN_PROXY_API_KEYS=two), ())
        assert shared == ("there are 2 client keys",)
        assert plan_terms.shared_by(load(), ("port 80",)) == ("other machines reach port 80",)
