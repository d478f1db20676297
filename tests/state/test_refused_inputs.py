"""What models refused to read is known to all workers, for a while."""

from __future__ import annotations

from pathlib import Path

from qwen_wsgi.state.refused_inputs import PROVED_S, SUSPECTED_S, RefusedInputs
from qwen_wsgi.state.shared_files import SharedFiles
from tests.fakes.clock import FakeClock

ACCOUNT = ("one", "https://one.example/v1")
OTHER = ("one", "https://two.example/v1")


def test_a_refusal_is_of_one_model_at_one_base_url() -> None:
    refused = RefusedInputs(None)
    assert refused.of(*ACCOUNT, "m") == frozenset()

    refused.remember(*ACCOUNT, "m", {"image"}, believed_s=PROVED_S)
    refused.remember(*ACCOUNT, "m", {"video"}, believed_s=PROVED_S)

    assert refused.of(*ACCOUNT, "m") == {"image", "video"}
    assert refused.of(*ACCOUNT, "n") == frozenset()
    assert refused.of(*OTHER, "m") == frozenset()


def test_a_suspicion_ends_soon_and_a_proof_later() -> None:
    clock = FakeClock()
    refused = RefusedInputs(None, boottime=clock.monotonic)

    refused.remember(*ACCOUNT, "m", {"audio"}, believed_s=SUSPECTED_S)
    clock.advance(SUSPECTED_S + 1)
    assert refused.of(*ACCOUNT, "m") == frozenset()

    refused.remember(*ACCOUNT, "m", {"image"}, believed_s=PROVED_S)
    clock.advance(PROVED_S - 1)
    assert refused.of(*ACCOUNT, "m") == {"image"}
    clock.advance(2)
    assert refused.of(*ACCOUNT, "m") == frozenset()


def test_workers_share_what_they_learn(tmp_path: Path) -> None:
    RefusedInputs(SharedFiles(tmp_path)).remember(*ACCOUNT, "m", {"image"}, believed_s=PROVED_S)

    assert RefusedInputs(SharedFiles(tmp_path)).of(*ACCOUNT, "m") == {"image"}
