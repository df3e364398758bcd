"""Training with two processes equals training with one: DDP over gloo, through all stages and fades."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from imagen_pl.schedules import batches
from tests.distributed import worker
from tests.helpers.training import assert_same

Outcome = dict[str, Any]
Ranks = Callable[[str], list[Outcome]]


@pytest.mark.parametrize("name", ["uncoupled", "accumulated", "everything", "resumed", *worker.POLICIES])
def test_weights_moving_averages_and_optimizer_state_are_equal_in_both(ranks: Ranks, name: str) -> None:
    """After every batch of every stage, to the bit."""
    first, second = ranks(name)
    start = worker.MIDDLE_OF_A_FADE if name == "resumed" else 0
    clocks = [clock for clock, _ in batches(worker.STAGES, start, worker.END)]
    assert list(first["weights"]) == [*clocks[1:], worker.END]
    assert any("ema." in key for key in first["final"])
    for key in ("weights", "final", "optimizers", "images_seen"):
        assert_same(first[key], second[key])
    moved = {
        n for n, value in first["final"].items() if not torch.equal(value, first["weights"][clocks[1]][n])
    }
    assert {"generator", "discriminator", "ema"} <= {name.split(".")[0] for name in moved}


@pytest.mark.parametrize("name", ["uncoupled", "accumulated"])
def test_gradients_equal_those_of_one_process_with_twice_the_batch(
    ranks: Ranks, alone: Outcome, name: str
) -> None:
    """At every step of every stage, fades among them, in float32: no number of a gradient differs by 1e-6.

    The difference is absolute, with nothing allowed for large numbers; the gradients' norms are about 1. What
    is left of it, under 5e-7 here, is the order in which float32 adds up the samples.
    """
    shared = ranks(name)[0]["gradients"]
    assert [step[:2] for step in shared] == [step[:2] for step in alone["gradients"]]
    positions = [here for _, here in batches(worker.STAGES, 0, worker.END)]
    assert sum(0 < here.growth.fade < 1 for here in positions) >= 4
    assert len(shared) == 2 * len(positions)
    for (clock, which, found), (_, _, expected) in zip(shared, alone["gradients"], strict=True):
        assert found.keys() == expected.keys(), (clock, which)
        assert 0.3 < float(torch.nn.utils.get_total_norm(found.values())) < 5
        for parameter, gradient in found.items():
            torch.testing.assert_close(gradient, expected[parameter], atol=1e-6, rtol=0)


def test_both_together_get_the_images_of_one_process(ranks: Ranks, alone: Outcome) -> None:
    first, second = (outcome["numbers"] for outcome in ranks("uncoupled"))
    assert [a + b for a, b in zip(first, second, strict=True)] == alone["numbers"]
    assert all(len(a) == len(b) for a, b in zip(first, second, strict=True))


def test_scores_equal_those_of_one_process(ranks: Ranks, alone: Outcome) -> None:
    """Both processes give the same score, over the images of both."""
    first, second = ranks("uncoupled")
    assert len(alone["scores"]) == 3  # the sanity check before training, and two epochs
    assert alone["scores"][0] == {}
    assert first["scores"] == second["scores"]
    for shared, expected in zip(first["scores"][1:], alone["scores"][1:], strict=True):
        assert shared.keys() == expected.keys() == {"val/mean_colour"}
        assert shared["val/mean_colour"] == pytest.approx(expected["val/mean_colour"], abs=1e-3)
    assert first["real_seen"] + second["real_seen"] == alone["real_seen"]
    assert min(first["real_seen"], second["real_seen"]) > 0


def test_resumed_run_equals_uninterrupted(ranks: Ranks) -> None:
    """Saved in the middle of a fade; both processes go on with their own images and random numbers."""
    for whole, resumed in zip(ranks("everything"), ranks("resumed"), strict=True):
        assert len(resumed["numbers"]) == 4
        assert resumed["numbers"] == whole["numbers"][-4:]
        for key in ("final", "optimizers", "images_seen"):
            assert_same(resumed[key], whole[key])


def test_resumed_stream_returns_the_same_images_in_each_process(ranks: Ranks) -> None:
    """Two workers in each process, stopped in the middle of an epoch; no image is read by both processes."""
    served = []
    for whole, resumed in zip(ranks("stream"), ranks("stream_resumed"), strict=True):
        assert len(resumed["captions"]) == 4
        assert resumed["captions"] == whole["captions"][-4:]
        assert_same(resumed["final"], whole["final"])
        served.append({caption for batch in whole["captions"][:2] for caption in batch})
    assert len(served[0]) == len(served[1]) == 16
    assert not served[0] & served[1]


@pytest.mark.parametrize("name", worker.POLICIES)
def test_frozen_blocks_are_frozen_in_both(ranks: Ranks, name: str) -> None:
    """To the bit, at every batch; parameters that are never trained have no optimizer state."""
    begins = (48, 112)  # a new block has no effect in its first batch, and the discriminator is reset
    for outcome in ranks(name):
        learn: dict[int, set[str]] = outcome["learn"]
        assert list(learn) == [clock for clock, _ in batches(worker.STAGES, 0, worker.END)]
        for (clock, before), (_, after) in itertools.pairwise(outcome["weights"].items()):
            moved = {block_of(n) for n, value in after.items() if not torch.equal(value, before[n])} - {""}
            if clock not in begins:
                assert moved == learn[clock], clock
            elif name == "newest":
                assert {block for block in moved if "generator" in block} <= learn[clock], clock
            else:
                assert moved <= learn[clock], clock
        ever = set().union(*learn.values())
        assert ("discriminator.8" in ever) == (name == "newest")
        for optimizer in outcome["optimizers"]:
            groups = [g for g in optimizer["param_groups"] if f"{g['network']}.{g['block']}" in ever]
            assert optimizer["state"].keys() <= {place for group in groups for place in group["params"]}


def block_of(name: str) -> str:
    """The block that a parameter of the system belongs to, as generator.16; empty where there is none."""
    network, *rest = name.split(".")
    if network == "losses":
        return "discriminator.shared"
    if network not in ("generator", "discriminator") or rest[-1] == "latent_mean":
        return ""
    return f"{network}.{rest[1] if rest[0] == 'grown' else 'shared'}"


def test_non_finite_loss_in_one_process_stops_both(ranks: Ranks) -> None:
    """Both name the loss, neither waits for the other, and no weight changes."""
    for outcome in ranks("stopped"):
        assert outcome["stopped"].startswith("d_loss became nan at 48 images seen (16 px)")
        assert outcome["images_seen"] == 48
        assert all(value.isfinite().all() for value in outcome["final"].values())


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_a_step_sends_only_the_gradients_of_its_network(ranks: Ranks, name: str) -> None:
    """All of them, and from the other network only parameters in a shared bucket."""
    for outcome in ranks("sent"):
        own = outcome["sizes"][name] * outcome["batches"]
        assert own <= outcome["sent"][name] < 1.1 * own
