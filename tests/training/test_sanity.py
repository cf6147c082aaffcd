"""Verdicts: each state of each check, from numbers alone."""

from __future__ import annotations

import pytest

from ehrtrack.survival.resampling import Interval
from ehrtrack.training import sanity
from ehrtrack.training.sanity import State, Verdict

TRIVIAL = {"val/mlm_loss": "val/unigram_loss"}


@pytest.mark.parametrize(
    ("loss", "unigram", "pairs", "state"),
    [
        (3.0, 4.0, 3.5, "ok"),
        (3.0, 4.0, None, "ok"),
        (3.6, 4.0, 3.5, "warn"),  # more than the unigrams, less than pairs of codes
        (3.95, 4.0, 3.99, "fail"),  # 1.25 % under is what seeds differ by
        (4.1, 4.0, None, "fail"),
    ],
)
def test_pretraining_has_learned_if_it_beats_what_counting_knows(
    loss: float, unigram: float, pairs: float | None, state: State
) -> None:
    metrics = {"val/mlm_loss": loss, "val/unigram_loss": unigram}
    found = sanity.learned_codes(metrics | ({} if pairs is None else {"val/cooccurrence_loss": pairs}), TRIVIAL)
    assert (found.check, found.state) == ("learned", state)
    assert f"mlm loss {loss:.3f}" in found.reason
    assert f"unigram loss {unigram:.3f}" in found.reason
    assert ("cooccurrence loss" in found.reason) == (pairs is not None)


@pytest.mark.parametrize(("loss", "state"), [(137.0, "ok"), (139.0, "warn")])
def test_a_network_that_starts_from_a_regression_has_to_add_to_it(loss: float, state: State) -> None:
    metrics = {"val/onset_loss": loss, "val/marginal_loss": 144.0, "val/regression_loss": 138.7}
    found = sanity.learned_codes(metrics, {"val/onset_loss": "val/marginal_loss"})
    assert found.state == state
    assert "the regression loss 138.700" in found.reason


PROBED = {"val/mlm_loss": 3.0, "val/unigram_loss": 4.0}


@pytest.mark.parametrize(
    ("states_r2", "counts_r2", "error", "state", "said"),
    [
        (0.12, 0.21, 0.01, "fail", "states know less than counts"),
        (0.19, 0.21, 0.005, "warn", "states know less than counts"),  # a tenth less, and surely
        (0.12, 0.21, 0.05, "warn", "states may know less than counts"),  # too few subjects to be sure
        (0.20, 0.21, 0.01, "ok", "states do not know less than counts"),
        (0.25, 0.21, 0.01, "ok", "states know more than counts"),
        (-0.01, 0.005, 0.001, "ok", "the probe tells nothing"),
    ],
)
def test_states_that_foretell_less_than_counts_have_not_learned(
    states_r2: float, counts_r2: float, error: float, state: State, said: str
) -> None:
    found = {"probe/states_r2": states_r2, "probe/counts_r2": counts_r2, "probe/difference_error": error}
    verdict = sanity.learned_codes(PROBED | found, TRIVIAL)
    assert verdict.state == state
    assert verdict.reason.endswith(said)
    assert f"a ridge on its states foretells {states_r2:.3f} of the variance of what comes next, one" in verdict.reason
    assert sanity.learned_codes(PROBED, TRIVIAL).reason in verdict.reason  # a run without a probe says what it said
    assert sanity.learned_codes({"val/mlm_loss": 4.0, "val/unigram_loss": 4.0} | found, TRIVIAL).state == "fail"


def test_of_several_losses_the_one_that_learned_nothing_decides() -> None:
    metrics = {"val/mlm_loss": 3.0, "val/unigram_loss": 4.0, "val/onset_loss": 1.0, "val/rate_loss": 1.0}
    assert sanity.learned_codes(metrics, TRIVIAL | {"val/onset_loss": "val/rate_loss"}).state == "fail"


@pytest.mark.parametrize(
    ("gain", "state"),
    [
        (Interval(0.05, 0.02, 0.08), "ok"),
        (Interval(0.01, -0.02, 0.04), "warn"),
        (Interval(-0.3, -0.4, -0.2), "fail"),
    ],
)
def test_risks_have_learned_if_their_likelihood_is_above_kaplan_meiers(gain: Interval, state: State) -> None:
    found = sanity.learned_risk(gain)
    assert found.state == state
    assert f"{gain.estimate:+.3f} [{gain.lower:+.3f}, {gain.upper:+.3f}] nats" in found.reason


@pytest.mark.parametrize(
    ("training", "validation", "kept", "state"),
    [
        ([1.0, 0.9, 0.85], [1.0, 0.95, 0.9], 3, "ok"),
        ([1.0, 0.8, 0.6, 0.4], [1.0, 0.9, 0.9, 0.93], 4, "warn"),  # 3 % over the lowest
        ([1.0, 0.7, 0.5], [1.0, 0.9, 0.88], 3, "warn"),  # a gap of 43 % that opens
        ([0.5, 0.6, 0.65], [0.9, 0.9, 0.9], 3, "ok"),  # a gap of 28 % that closes
        ([1.0, 0.5, 0.2], [0.8, 0.85, 1.56], 3, "fail"),  # kept for its C-index, loss nearly doubled
        ([0.9], [1.0], 1, "ok"),
    ],
)
def test_overfit_is_told_by_the_kept_weights_loss_and_by_a_gap_that_opens(
    training: list[float], validation: list[float], kept: int, state: State
) -> None:
    found = sanity.overfit(training, validation, kept)
    assert found.state == state
    assert f"{validation[kept - 1]:.3f}" in found.reason


def test_epochs_after_the_kept_one_are_no_part_of_the_gap() -> None:
    found = sanity.overfit([1.0, 0.9, 0.1, 0.01], [1.0, 0.95, 2.0, 3.0], 2)
    assert found.state == "ok"
    assert "a gap of 5%" in found.reason


def test_one_layer_that_stood_still_fails() -> None:
    changes = {"layers.0.q_proj.weight": 0.02, "layers.1.q_proj.weight": 0.03}
    assert sanity.moved(changes).state == "ok"
    assert "2 of 2 layers moved, by 2.50%" in sanity.moved(changes).reason
    weak = sanity.moved(changes | {"layers.2.fc1.weight": 1e-5})
    assert weak.state == "warn"
    still = sanity.moved(changes | {"layers.2.fc1.weight": 0.0})
    assert still.state == "fail"
    assert "2 of 3" in still.reason
    assert "layers.2.fc1.weight" in still.reason


@pytest.mark.parametrize(
    ("change", "is_pretrained", "state"),
    [(0.0, False, "fail"), (1e-6, False, "warn"), (0.1, False, "ok"), (0.0, True, "ok"), (0.1, True, "ok")],
)
def test_random_embeddings_have_to_learn(change: float, is_pretrained: bool, state: State) -> None:
    assert sanity.embeddings(change, is_pretrained=is_pretrained).state == state


@pytest.mark.parametrize(
    ("slope", "ici", "state"),
    [
        (Interval(1.1, 0.9, 1.3), 0.02, "ok"),
        (Interval(1.4, 1.2, 1.6), 0.02, "ok"),  # the interval reaches the limits
        (Interval(1.6, 1.4, 1.8), 0.02, "warn"),
        (Interval(1.0, 0.8, 1.2), 0.09, "warn"),
        (Interval(0.3, 0.2, 0.4), 0.09, "fail"),
        (None, 0.02, "ok"),
        (None, None, "warn"),
    ],
)
def test_calibration_is_judged_by_slope_and_ici(slope: Interval | None, ici: float | None, state: State) -> None:
    assert sanity.calibrated(slope, ici).state == state


def test_measures_without_a_value_are_named_and_groups_may_be_too_small() -> None:
    assert sanity.measured({}).state == "ok"
    groups = {"subgroup race: other": "3 events", "subgroup sex: F": "4 events"}
    of_groups = sanity.measured(groups)
    assert of_groups.state == "ok"
    assert of_groups.reason.endswith("2 groups are too small for a C-index")
    found = sanity.measured({"uno_c": "8 events by day 365", "ici at 365 days": "8 events"} | groups)
    assert (found.check, found.state) == ("measured", "warn")
    assert found.reason.startswith("no value of uno_c, ici at 365 days: too few")
    assert "8 events" not in found.reason  # of so few subjects nothing is said on the server


def test_the_worst_check_is_the_runs_verdict_in_tags_and_description() -> None:
    verdicts = [Verdict("learned", "ok", "a"), Verdict("overfit", "fail", "b"), Verdict("moved", "warn", "c")]
    assert sanity.to_tags(verdicts) == {
        "sanity.learned": "ok", "sanity.overfit": "fail", "sanity.moved": "warn", "sanity.verdict": "fail",
    }  # fmt: skip
    assert sanity.to_markdown(verdicts) == (
        "\n#### Sanity: fail\n\n- learned: **ok** — a\n- overfit: **fail** — b\n- moved: **warn** — c\n"
    )
