"""Lost answers: whether a task began, and which one it is."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from qwen_wsgi.upstream.tasks.lost import NEAR_S, Candidate, Others, Sent, Unclear, decide

SENT = Sent("wan", "a cat", 1000.0, 1010.0)


def at(began: float, id: str = "t", prompt: str | None = None) -> Candidate:
    return Candidate(id, began, prompt)


def test_what_is_clear() -> None:
    assert decide(SENT, [], Others()) is None
    assert decide(SENT, [at(1001)], Others()) == "t"
    assert decide(SENT, [at(990)], Others()) == "t"  # clocks differ a bit
    assert decide(SENT, [at(1001)], Others(tasks={"t"})) is None
    assert decide(SENT, [at(1001, prompt="a dog")], Others()) is None
    assert decide(SENT, [at(1001, "a"), at(1002, "b", "a cat")], Others()) == "b"
    assert decide(SENT, [at(1001, "a"), at(1002, "b")], Others(tasks={"a"})) == "b"
    assert decide(SENT, [at(1010 + NEAR_S + 1)], Others()) is None


def test_what_is_not_clear() -> None:
    for candidates, others in (
        ([at(1001, "a"), at(1002, "b")], Others()),
        ([at(1001, "a", "a cat"), at(1002, "b", "a cat")], Others()),
        ([at(1001)], Others(open=1)),
        ([at(900)], Others()),  # somebody else's, or a clock is wrong
    ):
        assert isinstance(decide(SENT, candidates, others), Unclear)


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.sampled_from("abcdef"),
        st.floats(SENT.began - 2 * NEAR_S, SENT.ended + 2 * NEAR_S),
        st.none() | st.sampled_from(("a cat", "a dog")),
    ),
    unique_by=lambda each: each.id,
    max_size=5,
)
OTHERS = st.builds(Others, st.sets(st.sampled_from("abcdef")), st.integers(0, 2))


@given(candidates=CANDIDATES, others=OTHERS)
def test_a_task_is_never_taken_from_others_and_never_begun_twice(
    candidates: list[Candidate], others: Others
) -> None:
    decision = decide(SENT, candidates, others)
    may_be_ours = [
        each
        for each in candidates
        if each.id not in others.tasks
        and each.prompt != "a dog"
        and SENT.began - NEAR_S <= each.began <= SENT.ended + NEAR_S
    ]

    if decision is None:  # it is sent again: nothing may run
        assert not may_be_ours
    elif isinstance(decision, str):  # no other one can be meant
        (found,) = (each for each in may_be_ours if each.id == decision)
        if found.prompt is None:
            assert len(may_be_ours) == 1
            assert not others.open
        else:
            assert [each.prompt for each in may_be_ours].count("a cat") == 1
    else:
        assert may_be_ours


@given(candidates=CANDIDATES, others=OTHERS, seed=st.integers(0, 99))
def test_the_order_of_the_list_does_not_matter(
    candidates: list[Candidate], others: Others, seed: int
) -> None:
    mixed = random.Random(seed).sample(candidates, len(candidates))

    assert decide(SENT, mixed, others) == decide(SENT, candidates, others)
