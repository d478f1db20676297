"""Who may answer a call, and who is asked first."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from qwen_wsgi.access.permit import Permit
from qwen_wsgi.capabilities import Capability
from qwen_wsgi.credentials.account import Account
from qwen_wsgi.errors import AccountUnavailable, ApiError, BadRequest, Forbidden, NotFound
from qwen_wsgi.hosts import Family
from qwen_wsgi.state.shared_files import key_of
from qwen_wsgi.upstream.routing.accounts import MODEL_NOT_FOUND
from qwen_wsgi.upstream.routing.affinity import Affinity
from qwen_wsgi.upstream.routing.catalogue import Listing
from qwen_wsgi.upstream.routing.cooldown import BREAKS_AT, Cooldowns
from qwen_wsgi.upstream.routing.router import Plan, Router
from tests.fakes.upstream import account_of, pool_of, settings_of


class FakeCatalogue:
    """Listings as a test writes them, by account name."""

    def __init__(self, listings: dict[str, Listing]) -> None:
        self.listings = listings

    def listing_for_call(self, account: Account) -> Listing:
        return self.listings[account.name]


def live(*models: str) -> Listing:
    return Listing({model: {"id": model} for model in models}, live=True)


def guessed(*models: str) -> Listing:
    return Listing({model: {"id": model} for model in models}, live=False)


class World:
    """A router over accounts of name and listing, with what it looks at."""

    def __init__(
        self, *accounts: tuple[str, Listing], family: Family = Family.DASHSCOPE, **env: str
    ) -> None:
        settings = settings_of(**env)
        self.cooldowns = Cooldowns(None)
        self.affinity = Affinity(None)
        found = [
            account_of(name, base_url=f"https://{name}.example/v1", family=family)
            for name, _ in accounts
        ]
        self.pool = pool_of(*found, settings=settings, cooldowns=self.cooldowns)
        catalogue: Any = FakeCatalogue(dict(accounts))
        self.router = Router(settings, self.pool, catalogue, self.affinity)
        self.plan = self.router.plan


def router_of(*accounts: tuple[str, Listing], **env: str) -> Router:
    return World(*accounts, family=Family.DASHSCOPE, **env).router


def names_of(plan: Plan) -> list[str]:
    return [route.account.name for route in plan.routes]


def chosen(router: Router, plan: Plan, *without: str) -> str | None:
    candidate = router.choose(plan, set(without))
    return candidate.route.account.name if candidate else None


@pytest.mark.parametrize(
    ("accounts", "order"),
    [
        ([("a", live("m")), ("b", live("m"))], ["a", "b"]),
        ([("a", live("x")), ("b", live("m"))], ["b"]),
        ([("a", guessed("x")), ("b", live("m"))], ["b", "a"]),
        ([("a", guessed("x")), ("b", guessed("m"))], ["b", "a"]),
        ([("a", guessed("x")), ("b", guessed("y"))], ["a", "b"]),
        ([("a", guessed()), ("b", live("x"))], ["a"]),
        ([("a", guessed("m")), ("b", live("m"))], ["a", "b"]),
    ],
    ids=str,
)
def test_who_lists_the_model_comes_before_who_may_have_it(
    accounts: list[tuple[str, Listing]], order: list[str]
) -> None:
    router = router_of(*accounts)
    plan = router.plan("m")

    assert names_of(plan) == order
    assert [chosen(router, plan, *order[:tried]) for tried in range(len(order) + 1)] == [
        *order,
        None,
    ]
    assert {route.model for route in plan.routes} == {"m"}


THREE = (("a", live("m")), ("b", live("m")), ("c", live("m")))


class TestOrder:
    def test_what_is_left_alone_comes_last_and_the_soonest_first(self) -> None:
        world = World(*THREE)
        plan = world.plan("m")
        keys = [world.pool.keys(route.account) for route in plan.routes]
        world.cooldowns.set_cooldown(keys[0].of_model("m"), 5, "throttled")
        assert chosen(world.router, plan) == "b"
        world.cooldowns.set_cooldown(keys[1].payer, 50, "arrearage")
        assert chosen(world.router, plan) == "c"
        world.cooldowns.set_cooldown(keys[2].of_model("m"), 20, "throttled")
        candidate = world.router.choose(plan, set())
        assert candidate is not None
        assert candidate.route.account.name == "a"
        assert 4 < candidate.cooldown_s <= 5
        world.cooldowns.set_cooldown(keys[2].of_model("other"), 20, "throttled")
        world.cooldowns.clear(keys[2].of_model("m"))
        assert chosen(world.router, plan) == "c", "another model's limit is another limit"

    def test_an_open_circuit_is_of_the_host(self) -> None:
        world = World(*THREE)
        plan = world.plan("m")
        for _ in range(BREAKS_AT):
            world.cooldowns.record_failure(world.pool.keys(plan.routes[0].account).host, "timeout")
        assert chosen(world.router, plan) == "b"

    def test_a_conversation_stays_where_it_was(self) -> None:
        world = World(*THREE)
        plan = world.plan("m", conversation=lambda: key_of("talk"))
        assert chosen(world.router, plan) == "a"
        world.affinity.remember(key_of("talk"), world.pool.keys(plan.routes[2].account).own)
        assert chosen(world.router, plan) == "c"
        other = world.plan("m", conversation=lambda: key_of("another"))
        assert chosen(world.router, other) == "a"
        assert chosen(world.router, plan, "c") == "a"

    def test_calls_are_spread_over_equals(self) -> None:
        world = World(*THREE)
        plan = world.plan("m")
        served = []
        for _ in range(6):
            candidate = world.router.choose(plan, set())
            assert candidate is not None
            world.pool.limiter(candidate.route.account).acquire("client", 0)
            served.append(candidate.route.account.name)
        assert served == ["a", "b", "c", "a", "b", "c"]

    def test_the_operator_may_name_who_comes_first(self) -> None:
        world = World(*THREE, QWEN_PROXY_ACCOUNT_ORDER="c,b")
        plan = world.plan("m")
        world.pool.limiter(plan.routes[2].account).acquire("client", 0)
        assert [chosen(world.router, plan), chosen(world.router, plan, "c")] == ["c", "b"]

    def test_a_full_account_comes_after_one_with_room(self) -> None:
        world = World(*THREE, QWEN_PROXY_ACCOUNT_IN_FLIGHT="1", QWEN_PROXY_WORKERS="1")
        plan = world.plan("m")
        world.pool.limiter(plan.routes[0].account).acquire("client", 0)
        assert chosen(world.router, plan) == "b"

    def test_accounts_of_one_payer_share_its_limits(self) -> None:
        world = World(*THREE, QWEN_PROXY_SAME_ACCOUNT="a+b")
        plan = world.plan("m")
        world.cooldowns.set_cooldown(
            world.pool.keys(plan.routes[0].account).of_model("m"), 5, "throttled"
        )
        assert chosen(world.router, plan) == "c"


class TestChance:
    """Models that no live list names, because the vendor's lists miss some."""

    def test_a_name_like_a_hosts_models_is_asked_for(self) -> None:
        plan = router_of(("a", live("m")), ("b", live("x"))).plan("deepseek-v4-pro-0813")
        assert [(r.account.name, r.model, r.listed) for r in plan.routes] == [
            ("a", "deepseek-v4-pro-0813", False),
            ("b", "deepseek-v4-pro-0813", False),
        ]

    def test_a_vendors_prefix_is_left_out(self) -> None:
        (route,) = router_of(("a", live("m"))).plan("openai/qwen9-max").routes
        assert route.model == "qwen9-max"

    def test_another_name_is_not(self) -> None:
        with pytest.raises(NotFound):
            router_of(("a", live("m"))).plan("gpt-9")

    @pytest.mark.parametrize("model", ["b:gpt-9", "b/gpt-9"])
    def test_whatever_the_name_where_the_account_is_pinned(self, model: str) -> None:
        (route,) = router_of(*THREE).plan(model).routes
        assert (route.account.name, route.model, route.listed) == ("b", "gpt-9", False)

    def test_and_by_the_header(self) -> None:
        (route,) = router_of(*THREE, OPENAI_MODEL="m").plan("gpt-9", permit=Permit("b")).routes
        assert (route.account.name, route.model) == ("b", "gpt-9")

    def test_another_server_is_believed(self) -> None:
        account = account_of("up", family=Family.OTHER)
        settings = settings_of()
        pool = pool_of(account, settings=settings, cooldowns=Cooldowns(None))
        catalogue: Any = FakeCatalogue({"up": live("m")})
        with pytest.raises(NotFound):
            Router(settings, pool, catalogue, Affinity(None)).plan("qwen9-max")

    def test_a_refusal_is_remembered(self) -> None:
        world = World(("a", live("m")), ("b", live("m")))
        for model in ("qwen9-max", "a:gpt-9"):
            routes = world.plan(model).routes
            for route in routes:
                keys = world.pool.keys(route.account)
                world.cooldowns.set_cooldown(keys.of_model(route.model), 300, MODEL_NOT_FOUND)
            with pytest.raises(NotFound):
                world.plan(model)

    def test_a_list_that_names_it_is_enough(self) -> None:
        assert names_of(router_of(("a", live("x")), ("b", live("qwen9"))).plan("qwen9")) == ["b"]

    def test_the_operators_default_comes_first(self) -> None:
        plan = router_of(("a", live("m")), OPENAI_MODEL="m").plan("qwen9-max")
        assert [(plan.model, route.model) for route in plan.routes] == [("m", "m")]


class TestNames:
    def test_an_account_is_pinned_by_prefix_or_header(self) -> None:
        router = router_of(*THREE)
        for plan in (
            router.plan("b:m"),
            router.plan("b/m"),
            router.plan("m", permit=Permit("b")),
            router.plan("openai/m", permit=Permit("b")),
        ):
            assert names_of(plan) == ["b"]
            assert plan.routes[0].model == "m"

    def test_an_unknown_account_is_a_bad_request(self) -> None:
        with pytest.raises(BadRequest) as caught:
            router_of(*THREE).plan("m", permit=Permit("zzz"))
        assert caught.value.code == "account_not_found"

    def test_a_literal_id_comes_before_what_it_may_mean(self) -> None:
        router = router_of(("a", live("m", "m-search")), ("b", live("m", "a/m")))
        (literal,) = router.plan("m-search").routes
        assert (literal.account.name, literal.search) == ("a", False)
        (slashed,) = router.plan("a/m").routes
        assert (slashed.account.name, slashed.model) == ("b", "a/m")
        switched = router.plan("m-thinking-search").routes
        assert [(r.model, r.search, r.thinking) for r in switched] == [("m", True, True)] * 2

    def test_an_old_name_means_todays_model_unless_it_is_listed(self) -> None:
        router = router_of(
            ("a", live("qwen3.7-max", "qwen3-coder-plus")), ("b", live("qwen-flash"))
        )
        (route,) = router.plan("qwen-max-latest").routes
        assert (route.account.name, route.model, route.listed) == ("a", "qwen3.7-max", True)
        (route,) = router.plan("qwen-turbo-thinking").routes
        assert (route.account.name, route.model, route.thinking) == ("b", "qwen-flash", True)
        (route,) = router.plan("a:qwen-coder-plus").routes
        assert (route.account.name, route.model) == ("a", "qwen3-coder-plus")
        both = router_of(("a", live("qwen-flash")), ("b", live("qwen-turbo")))
        (route,) = both.plan("qwen-turbo").routes
        assert (route.account.name, route.model) == ("b", "qwen-turbo")

    def test_nothing_stands_in_for_a_name_that_is_meant_literally(self) -> None:
        router = router_of(("a", live("qwen3-coder-flash")))
        (route,) = router.plan("qwen-coder-turbo", literal=True).routes
        assert (route.model, route.listed) == ("qwen-coder-turbo", False)

    def test_a_server_without_a_list_is_asked_for_the_name_itself(self) -> None:
        (route,) = router_of(("a", guessed("x"))).plan("qwen-coder-plus").routes
        assert route.model == "qwen-coder-plus"

    def test_aliases(self) -> None:
        router = router_of(*THREE, QWEN_PROXY_MODEL_ALIASES="gpt-4o=m, claude-*=b:m,gpt-*=nothing")
        assert names_of(router.plan("gpt-4o")) == ["a", "b", "c"]
        assert names_of(router.plan("claude-sonnet")) == ["b"]
        with pytest.raises(NotFound, match="gpt-5"):
            router.plan("gpt-5")

    def test_the_portal_is_asked_for_its_one_model(self) -> None:
        portal = account_of("oauth", family=Family.PORTAL)
        listings = {"oauth": guessed("coder-model"), "other": guessed("x")}
        for accounts, expected in (
            ((portal,), [("oauth", "coder-model")]),
            (
                (portal, account_of("other", family=Family.OTHER)),
                [("other", "qwen3-coder-plus"), ("oauth", "coder-model")],
            ),
        ):
            catalogue: Any = FakeCatalogue(listings)
            router = Router(settings_of(), pool_of(*accounts), catalogue, Affinity(None))
            routes = router.plan("qwen3-coder-plus").routes
            assert [(route.account.name, route.model) for route in routes] == expected

    def test_of_unlisted_readings_a_known_model_is_asked_for(self) -> None:
        router = router_of(("a", guessed()))
        (route,) = router.plan("qwen3.7-plus-search").routes
        assert (route.model, route.search, route.listed) == ("qwen3.7-plus", True, False)
        (route,) = router.plan("unheard-of-search").routes
        assert (route.model, route.search) == ("unheard-of-search", False)


def test_a_model_that_no_live_list_has_does_not_exist() -> None:
    with pytest.raises(NotFound) as caught:
        router_of(("a", live("x")), ("b", live("y"))).plan("m")

    assert caught.value.body()["error"] == {
        "message": caught.value.message,
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    assert "`m`" in caught.value.message


@pytest.mark.parametrize(
    ("asked", "default", "model"),
    [("m", "d", "m"), ("", "d", "d"), ("unknown", "d", "d"), ("d", "d", "d"), ("m", "", "m")],
)
def test_the_default_model_stands_in_for_none_and_for_one_that_nobody_has(
    asked: str, default: str, model: str
) -> None:
    router = router_of(("a", live("m", "d")), OPENAI_MODEL=default)

    assert router.plan(asked).routes[0].model == model


def test_no_model_and_no_default_is_a_bad_request() -> None:
    with pytest.raises(BadRequest) as caught:
        router_of(("a", live("m"))).plan("")

    assert (caught.value.status, caught.value.param) == (400, "model")


def test_a_default_that_nobody_has_does_not_hide_what_was_asked() -> None:
    with pytest.raises(NotFound, match="`m`"):
        router_of(("a", live("x")), OPENAI_MODEL="gone").plan("m")


def test_without_any_account_the_operator_is_told_what_to_do() -> None:
    with pytest.raises(AccountUnavailable) as caught:
        router_of().plan("m")

    assert (caught.value.status, caught.value.code) == (503, "no_account")
    assert caught.value.should_retry is False
    assert "qwen-proxy status" in caught.value.message


# --- what the model is to do ---------------------------------------------------------------------


def test_a_model_is_called_for_what_it_does() -> None:
    world = World(("a", live("qwen-image-3.0", "qwen3-max")))

    assert names_of(world.plan("qwen-image-3.0", capability=Capability.IMAGE)) == ["a"]
    with pytest.raises(BadRequest) as chat:
        world.plan("qwen-image-3.0")
    with pytest.raises(BadRequest) as picture:
        world.plan("qwen3-max", capability=Capability.IMAGE)

    assert (chat.value.code, chat.value.param) == ("wrong_endpoint_for_model", "model")
    assert "makes pictures (POST /v1/images/generations)" in chat.value.message
    assert "it chats (POST /v1/chat/completions)" in picture.value.message


def test_a_host_without_the_route_is_not_asked() -> None:
    world = World(("a", guessed("qwen3-max")), family=Family.CODING_PLAN)

    with pytest.raises(ApiError) as raised:
        world.plan("qwen-image-3.0", capability=Capability.IMAGE)

    assert (raised.value.status, raised.value.code) == (501, "not_available_here")
    assert raised.value.should_retry is False
    assert "DASHSCOPE_API_KEY" in raised.value.message


def test_the_default_model_stands_in_for_no_picture() -> None:
    world = World(("a", live("qwen3-max")), OPENAI_MODEL="qwen3-max")

    with pytest.raises(NotFound):
        world.plan("dall-e-3", capability=Capability.IMAGE)


class TestWhatAKeyMayUse:
    def test_routes_to_models_that_it_may_not_use_are_left_out(self) -> None:
        """A host may serve another model for an old name than the one beside it."""
        router = router_of(("a", live("qwen-max")), ("b", live("qwen3-max")))
        permit = Permit(models=("qwen3*",))

        with pytest.raises(Forbidden) as caught:
            router.plan("qwen-max", permit=permit)
        assert caught.value.code == "model_not_allowed"
        assert [route.model for route in router.plan("qwen3-max", permit=permit).routes] == [
            "qwen3-max"
        ]

    def test_what_the_portal_is_asked_for_counts(self) -> None:
        world = World(("a", live("coder-model")), family=Family.PORTAL)

        with pytest.raises(Forbidden):
            world.plan("qwen3-coder-plus", permit=Permit(models=("qwen3*",)))
        assert world.plan("qwen3-coder-plus", permit=Permit(models=("coder*",)))

    def test_only_its_accounts_are_asked(self) -> None:
        router = router_of(*THREE)

        assert names_of(router.plan("m", permit=Permit(accounts=("c", "b")))) == ["b", "c"]
        for permit in (Permit("a", ("b",)), Permit("zzz", ("b",))):
            with pytest.raises(Forbidden) as caught:
                router.plan("m", permit=permit)
            assert caught.value.code == "account_not_allowed"
        with pytest.raises(Forbidden):
            router.plan("a:m", permit=Permit(accounts=("b",)))

    def test_a_listed_model_whose_name_looks_like_a_pin_is_that_model(self) -> None:
        router = router_of(("a", live("m")), ("b", live("a:m")))

        (route,) = router.plan("a:m", permit=Permit(accounts=("b",))).routes
        assert (route.account.name, route.model) == ("b", "a:m")

    def test_files_are_at_its_accounts(self) -> None:
        router = router_of(*THREE)

        assert names_of(router.plan_files(permit=Permit(accounts=("b",)))) == ["b"]
        assert names_of(router.plan_files(permit=Permit("a", ("b",)), owning="b")) == ["b"]
        with pytest.raises(Forbidden):
            router.plan_files(permit=Permit(accounts=("b",)), owning="a")

    def test_without_any_of_its_accounts_it_is_told(self) -> None:
        with pytest.raises(AccountUnavailable, match="zzz"):
            router_of(*THREE).plan("m", permit=Permit(accounts=("zzz",)))


class TestKeptRoutes:
    """Routes that were found once are the answer only while what they follow from is the same."""

    def test_a_list_that_changed_counts_from_the_next_call_on(self) -> None:
        listings = {"a": live("m"), "b": live("x")}
        world = World(*listings.items())
        catalogue: Any = world.router._catalogue
        seen = [names_of(world.plan("m")), names_of(world.plan("m"))]
        for name, listing in (("b", live("m")), ("a", live("x")), ("b", live("x", "m"))):
            catalogue.listings[name] = listing
            seen.append(names_of(world.plan("m")))

        assert seen == [["a"], ["a"], ["a", "b"], ["b"], ["b"]]

    def test_accounts_that_changed_count_from_the_next_call_on(self) -> None:
        world = World(*THREE)
        assert names_of(world.plan("m")) == names_of(world.plan("m")) == ["a", "b", "c"]
        finder: Any = world.pool._finder
        finder.found = finder.accounts()[1:]
        finder.accounts = lambda: finder.found

        assert names_of(world.plan("m")) == ["b", "c"]

    def test_a_key_gets_what_it_may_use_whoever_asked_before(self) -> None:
        world = World(*THREE)
        for _ in range(2):
            assert names_of(world.plan("m")) == ["a", "b", "c"]
            assert names_of(world.plan("m", permit=Permit(accounts=("b",)))) == ["b"]
            assert names_of(world.plan("m", permit=Permit(pinned="c"))) == ["c"]
            with pytest.raises(Forbidden):
                world.plan("m", permit=Permit(models=("other*",)))

    def test_a_model_that_was_refused_is_not_asked_for_again_on_the_chance(self) -> None:
        world = World(("a", live("x")))
        (route,) = world.plan("qwen-new").routes
        assert not route.listed
        key = world.pool.keys(route.account).of_model("qwen-new")
        world.cooldowns.set_cooldown(key, 60, MODEL_NOT_FOUND)

        with pytest.raises(NotFound):
            world.plan("qwen-new")

    def test_each_call_has_its_own_conversation_and_evidence(self) -> None:
        world = World(*THREE)
        plans = [
            world.plan("m", conversation=partial(bytes, name), evidence=partial(bytes, name))
            for name in (b"one", b"two")
        ]

        assert [plan.conversation for plan in plans] == [b"one", b"two"]
        assert [plan.evidence and plan.evidence() for plan in plans] == [b"one", b"two"]
