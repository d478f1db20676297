"""Which box may renew: rules, silence, and the file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qwen_wsgi.credentials.shared.board import Holder, Seen
from qwen_wsgi.credentials.shared.custody import (
    LEASE_S,
    SETTLE_S,
    WATCHED_S,
    Custody,
    CustodyFile,
    Silence,
    Step,
    decide,
    learn,
    missing,
)

ME, OTHER = "b0", "b1"


def holder(
    box: str, fence: int = 7, *, keeps: bool = False, beat: int = 3, free: bool = False
) -> Holder:
    return Holder(box, fence, keeps, beat, free)


def seen(of: Holder | None, *, spending: str = "", asks: str = "") -> Seen:
    return Seen(1, None, "", of, spending, "", asks)


def custody(
    box: str, fence: int = 7, *, keeps: bool = False, free: bool = False, mine: bool = False
) -> Custody:
    return Custody(fence, box, keeps, free, mine)


NONE = Custody()
MINE, KEPT = custody(ME, mine=True), custody(ME, keeps=True, mine=True)


@pytest.mark.parametrize(
    ("known", "look", "silent_s", "step"),
    [
        # Nobody has it.
        (NONE, seen(None), SETTLE_S - 1, Step.WAIT),
        (NONE, seen(None), SETTLE_S, Step.CLAIM),
        # We have it.
        (MINE, seen(holder(ME)), 0, Step.HOLD),
        (KEPT, seen(holder(ME, keeps=True)), 0, Step.HOLD),
        (MINE, seen(holder(ME), asks=OTHER), 0, Step.HAND_OVER),
        (MINE, seen(holder(ME), asks=ME), 0, Step.HOLD),
        (KEPT, seen(holder(ME, keeps=True), asks=OTHER), 0, Step.HOLD),
        # We had it.
        (MINE, seen(holder(OTHER, 8)), 0, Step.DROP),
        (KEPT, seen(holder(OTHER, 8)), 0, Step.DROP),
        (MINE, seen(holder(ME, 8)), 0, Step.DROP),
        # It is handed to us, or another worker of ours gave it up.
        (NONE, seen(holder(ME)), 0, Step.CLAIM),
        (custody(ME, free=True), seen(holder(ME, free=True)), 0, Step.CLAIM),
        # Another box has it.
        (custody(OTHER), seen(holder(OTHER)), LEASE_S - 1, Step.WAIT),
        (custody(OTHER), seen(holder(OTHER)), LEASE_S, Step.CLAIM),
        (custody(OTHER), seen(holder(OTHER, free=True)), SETTLE_S - 1, Step.WAIT),
        (custody(OTHER), seen(holder(OTHER, free=True)), SETTLE_S, Step.CLAIM),
        (custody(OTHER, keeps=True), seen(holder(OTHER, keeps=True)), 1e9, Step.WAIT),
        # … and was about to send this very token, or another one.
        (custody(OTHER), seen(holder(OTHER), spending=f"{OTHER} fp"), 1e9, Step.WAIT),
        (custody(OTHER), seen(holder(OTHER), spending=f"{OTHER} old"), LEASE_S, Step.CLAIM),
        (custody(OTHER), seen(holder(OTHER), spending=f"{ME} fp"), LEASE_S, Step.CLAIM),
        # Redis forgot: what we have we have, and what others may have we leave to them.
        (KEPT, seen(None), 0, Step.CLAIM),
        (KEPT, seen(holder(OTHER, 3)), 0, Step.CLAIM),
        (MINE, seen(None), SETTLE_S - 1, Step.WAIT),
        (MINE, seen(None), SETTLE_S, Step.CLAIM),
        (custody(OTHER, keeps=True), seen(None), 1e9, Step.WAIT),
        (custody(OTHER, keeps=True), seen(holder("b2", 2)), 1e9, Step.WAIT),
        (custody(OTHER, keeps=True, free=True), seen(None), SETTLE_S, Step.CLAIM),
        (custody(OTHER), seen(None), 1e9, Step.WAIT),
        (custody(OTHER), replace(seen(None), left=frozenset({OTHER})), SETTLE_S, Step.CLAIM),
    ],
)
def test_what_a_box_does(known: Custody, look: Seen, silent_s: float, step: Step) -> None:
    assert decide(ME, known, look, silent_s=silent_s, able=True, keeper=False, fp="fp") is step


@pytest.mark.parametrize(
    ("known", "look", "step"),
    [
        (MINE, seen(holder(ME)), Step.RELEASE),
        (KEPT, seen(None), Step.WAIT),
        (NONE, seen(None), Step.WAIT),
        (NONE, seen(holder(ME)), Step.WAIT),
    ],
)
def test_a_box_that_cannot_renew_leaves_it_to_others(
    known: Custody, look: Seen, step: Step
) -> None:
    assert decide(ME, known, look, silent_s=1e9, able=False, keeper=True, fp="fp") is step


def test_only_a_higher_fence_teaches_who_has_it() -> None:
    assert learn(ME, NONE, seen(None)) == NONE
    assert learn(ME, MINE, seen(holder(OTHER, 6))) == MINE
    assert learn(ME, MINE, seen(holder(ME, 7))) == MINE
    assert learn(ME, KEPT, seen(holder(OTHER, 8, keeps=True))) == custody(OTHER, 8, keeps=True)
    assert learn(ME, custody(OTHER), seen(holder(OTHER, free=True))) == custody(OTHER, free=True)


def test_boxes_are_known_until_they_are_seen_to_leave() -> None:
    first = learn(ME, NONE, replace(seen(None), boxes=frozenset({ME, OTHER, "b2"})))
    assert first.boxes == {OTHER, "b2"}
    # Redis lost its data: who may know more is waited for.
    assert missing(first, replace(seen(None), boxes=frozenset({ME, "b2"}))) == {OTHER}

    gone = replace(seen(None), left=frozenset({OTHER}))
    assert learn(ME, first, gone, in_step=False).boxes == {OTHER, "b2"}
    assert learn(ME, first, gone).boxes == {"b2"}


@pytest.mark.parametrize("known", [NONE, MINE, custody(OTHER), custody(ME, free=True)])
def test_nobody_claims_while_a_box_may_know_more(known: Custody) -> None:
    waits = replace(known, boxes=frozenset({"b2"}))

    step = decide(ME, waits, seen(None), silent_s=1e9, able=True, keeper=False, fp="fp")

    assert step is Step.WAIT


def test_a_box_that_keeps_it_waits_for_nobody() -> None:
    kept = replace(KEPT, boxes=frozenset({"b2"}))

    assert decide(ME, kept, seen(None), silent_s=0, able=True, keeper=True, fp="") is Step.CLAIM


def test_silence_is_what_was_watched() -> None:
    silence = Silence()

    assert silence.contact_s(0.0) == 0.0
    assert silence.seen(holder(OTHER), 0.0) == 0.0
    assert silence.seen(holder(OTHER), 5.0) == 5.0
    assert silence.seen(holder(OTHER, beat=4), 10.0) == 0.0
    assert silence.seen(holder(OTHER, beat=4), 20.0) == 10.0
    assert silence.contact_s(20.0) == 20.0
    # Not watched for too long: it may have changed, and changed back.
    assert silence.contact_s(20.0 + WATCHED_S + 1) == 0.0
    assert silence.seen(holder(OTHER, beat=4), 20.0 + WATCHED_S + 1) == 0.0


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    file = CustodyFile(tmp_path / "custody_oauth.json")
    assert file.read() == NONE

    file.write(KEPT)
    assert file.read() == KEPT

    file.path.write_text("{")
    assert file.read() == NONE
