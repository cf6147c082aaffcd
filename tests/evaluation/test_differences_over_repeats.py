"""Differences over splits and within one, what may be said of them, and the answer of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
import pytest
from repeated import N_SUBJECTS, predicted, repeat

from ehrtrack.evaluation.answer import answer
from ehrtrack.evaluation.differences import OVER_SPLITS, WITHIN, differences_over_repeats, sentences
from ehrtrack.evaluation.pairs import Questions
from ehrtrack.evaluation.repeats import Difference, Repeat, configurations
from ehrtrack.study.settings import Comparison, StudySettings
from ehrtrack.survival.bootstrap import paired_difference

LORA = {"strategy.name": "lora", "strategy.rank": 8}
FULL = {"strategy.name": "full"}
SCRATCH = {"strategy.name": "scratch"}
COX = {"baseline.name": "cox"}
TO_COX = Questions({"baseline": {"name": "cox"}})


def over_splits(settings: Mapping[str, str | int], scores: Sequence[float], **facts: float) -> list[Repeat]:
    return [repeat(settings, split=f"split {number}", test=score, **facts) for number, score in enumerate(scores)]


def only(found: Sequence[Difference]) -> Difference:
    (one,) = found
    return one


def test_over_splits_by_hand() -> None:
    # Differences .01 to .05 as in tests/survival/test_repeats.py, with 200 test and 800 training subjects:
    # sqrt((1/5 + 1/4) x .00025) = .0106066, x 2.776445 = .029449.
    runs = over_splits(LORA, [0.71, 0.72, 0.73, 0.74, 0.75]) + over_splits(COX, [0.7] * 5)
    found = only(differences_over_repeats(configurations(runs), {}, TO_COX))
    assert found.interval is not None
    assert found.interval.estimate == pytest.approx(0.03)
    assert found.interval.lower == pytest.approx(0.03 - 0.029449, abs=1e-6)
    assert (found.method, found.n_splits, found.finding) == (OVER_SPLITS, 5, "better")
    assert found.sentence == "lora is better than cox by .030 [.001, .059] in C-index (Nadeau and Bengio over 5 splits)"


def test_the_difference_of_a_split_is_that_of_the_means_over_its_seeds() -> None:
    runs = [
        repeat(LORA, split=split, seed=seed, test=test)
        for split, tests in {"x": (0.70, 0.74), "y": (0.71, 0.73), "z": (0.72, 0.72)}.items()
        for seed, test in enumerate(tests)
    ]
    runs += over_splits(COX, [0.7] * 3)
    for number, one in enumerate("xyz"):  # a baseline has one seed, which stands for all
        runs.append(repeat(COX, split=one, test=0.70 + 0.001 * number))
    found = only(differences_over_repeats(configurations(runs), {}, TO_COX))
    assert found.interval is not None
    assert (found.n_splits, found.n_seeds) == (3, 2)
    assert found.interval.estimate == pytest.approx(0.019)  # (.020 + .019 + .018) / 3


def test_what_few_labels_were_drawn_from_counts_as_the_training_subjects() -> None:
    few = [
        repeat({**settings, "cohort.n_labels": n}, split=split, test=test, n_train=n)
        for n in (800, 40)
        for settings, tests in ((LORA, (0.72, 0.73, 0.74)), (COX, (0.7, 0.7, 0.7)))
        for split, test in zip("xyz", tests, strict=True)
    ]
    tables = {
        one.row.run_id: predicted(1, split="xyz".index(one.row.cohort_fingerprint[0])) for one in few
    }  # by these, splits of 40 and of 800 labels are known for the same
    found = differences_over_repeats(configurations(few), tables, TO_COX)
    widths = [one.interval.upper - one.interval.lower for one in found if one.interval is not None]
    # Mean .03, S² .0001, 200 test and 800 training subjects: sqrt((1/3 + 1/4) x .0001) = .0076376, x 4.302653.
    assert widths == pytest.approx([2 * 0.032862] * 2, abs=1e-5)


def test_two_splits_are_said_to_be_few() -> None:
    runs = over_splits(LORA, [0.71, 0.73]) + over_splits(COX, [0.7, 0.7])
    found = only(differences_over_repeats(configurations(runs), {}, TO_COX))
    assert found.finding == "no difference shown"
    assert "from two splits an interval is so wide that it shows next to nothing, 5 are usual" in found.sentence


def test_within_a_split_one_seed_each_is_the_paired_bootstrap() -> None:
    runs = [repeat(LORA), repeat(COX)]
    tables = {runs[0].row.run_id: predicted(0.3, seed=1), runs[1].row.run_id: predicted(1.5, seed=2)}
    found = only(differences_over_repeats(configurations(runs), tables, TO_COX, n_resamples=500))
    mine, theirs = tables.values()
    pairs = mine.with_columns(other=theirs["risk"]).sort("follow_up_days", "is_event", "risk", "other")
    expected = paired_difference(*(pairs[name] for name in ("risk", "other", "follow_up_days", "is_event")))
    assert found.interval == expected
    assert (found.method, found.finding, found.n_splits) == (WITHIN, "better", 1)
    assert found.sentence.endswith("(paired bootstrap within the split, over test subjects, of one seed each)")


def test_seeds_are_drawn_with_the_test_subjects() -> None:
    seeds = [repeat(LORA, seed=seed) for seed in range(3)]
    runs = [*seeds, repeat(COX)]
    tables = {one.row.run_id: predicted(noise, seed=1) for one, noise in zip(seeds, (0.3, 0.9, 1.5), strict=True)}
    tables[runs[-1].row.run_id] = predicted(0.9, seed=2)
    both = only(differences_over_repeats(configurations(runs), tables, TO_COX, n_resamples=500))
    alike = tables | {one.row.run_id: predicted(0.9, seed=1) for one in seeds}
    of_subjects = only(differences_over_repeats(configurations(runs), alike, TO_COX, n_resamples=500))
    assert both.interval is not None
    assert of_subjects.interval is not None
    assert both.n_seeds == 3
    assert both.interval.upper - both.interval.lower > 1.3 * (of_subjects.interval.upper - of_subjects.interval.lower)


def over_draws(of_lora: Sequence[float], of_cox: Sequence[float]) -> Difference:
    """Models that each learned from three draws of labels, and were tested on the same subjects."""
    runs = [repeat(settings, split=f"draw {number}") for settings in (LORA, COX) for number in range(3)]
    noises = (*of_lora, *of_cox)
    tables = {
        one.row.run_id: predicted(noise, seed=n % 3) for n, (one, noise) in enumerate(zip(runs, noises, strict=True))
    }
    return only(differences_over_repeats(configurations(runs), tables, TO_COX, n_resamples=500))


def test_a_draw_of_labels_that_is_good_to_both_models_makes_no_difference() -> None:
    paired = over_draws((0.3, 0.9, 1.5), (0.4, 1.0, 1.6))
    crossed = over_draws((0.3, 0.9, 1.5), (1.6, 1.0, 0.4))
    assert paired.interval is not None
    assert crossed.interval is not None
    assert (paired.method, paired.n_splits, paired.n_draws, paired.finding) == (WITHIN, 1, 3, "better")
    assert "over test subjects, 3 draws of labels, of one seed each" in paired.sentence
    assert crossed.finding == "no difference shown"
    assert crossed.interval.upper - crossed.interval.lower > 3 * (paired.interval.upper - paired.interval.lower)


def test_models_of_other_labels_are_compared_as_a_whole() -> None:
    few, many = ({**LORA, "cohort.n_labels": n} for n in (40, 800))
    runs = [repeat(settings, split=f"draw {number}") for settings in (few, many) for number in range(2)]
    tables = {one.row.run_id: predicted(noise, seed=1) for one, noise in zip(runs, (1.5, 1.4, 0.3, 0.4), strict=True)}
    found = only(differences_over_repeats(configurations(runs), tables, Questions(few | {})))
    assert (found.finding, found.n_draws) == ("better", 1)


def test_the_order_and_the_names_of_subjects_change_nothing() -> None:
    runs = [repeat(LORA), repeat(COX)]
    tables = {one.row.run_id: predicted(noise, seed=1) for one, noise in zip(runs, (0.3, 1.5), strict=True)}
    found = differences_over_repeats(configurations(runs), tables, TO_COX, n_resamples=100)
    names = np.random.default_rng(3).permutation(N_SUBJECTS)
    renamed = {
        run: table.with_columns(subject_id=pl.Series(names)).sample(fraction=1, shuffle=True, seed=number)
        for number, (run, table) in enumerate(tables.items())
    }
    assert differences_over_repeats(configurations(runs), renamed, TO_COX, n_resamples=100) == found


def test_runs_that_were_tested_on_other_subjects_are_not_compared() -> None:
    runs = [repeat(LORA), repeat(COX)]
    tables = {one.row.run_id: predicted(1, split=number) for number, one in enumerate(runs)}
    found = only(differences_over_repeats(configurations(runs), tables, TO_COX))
    assert (found.finding, found.interval, found.p_holm) == ("not tested", None, None)
    assert found.sentence.startswith("lora and cox are not compared in C-index: they share no split")


def test_one_split_without_predictions_says_what_is_needed() -> None:
    found = only(differences_over_repeats(configurations([repeat(LORA), repeat(COX)]), {}, TO_COX))
    assert found.finding == "not tested"
    assert "needs the test predictions of both; or run them on 2 splits or more (data.split.seed)" in found.sentence


def test_too_few_events_for_an_interval_are_told() -> None:
    runs = [repeat(LORA), repeat(COX)]
    one_event = predicted(1).with_columns(is_event=pl.col("follow_up_days") == pl.col("follow_up_days").min())
    found = only(differences_over_repeats(configurations(runs), {one.row.run_id: one_event for one in runs}, TO_COX))
    assert found.finding == "not tested"
    assert "too few events for an interval" in found.sentence


def test_holm_takes_back_what_one_of_many_shows_by_itself() -> None:
    noise = np.array([0.0, 0.001, -0.001, 0.002, -0.002])
    runs = over_splits(COX, [0.7] * 5) + over_splits(LORA, [0.7 + 0.0032 + one for one in noise])
    alone = only(differences_over_repeats(configurations(runs), {}, TO_COX))
    assert alone.p is not None
    assert alone.finding == "better"
    assert 0.01 < alone.p < 0.05
    for rank in range(16, 22):
        runs += over_splits({**LORA, "strategy.rank": rank}, [0.7 + one for one in noise])
    first = differences_over_repeats(configurations(runs), {}, TO_COX)[0]
    assert first.p == alone.p
    assert first.p_holm == pytest.approx(7 * alone.p)
    assert first.finding == "equivalent"  # within .01, which is another question
    wide = differences_over_repeats(configurations(runs), {}, Questions(TO_COX.reference, margin=0.001))[0]
    assert wide.finding == "no difference shown"
    assert "by Holm among all that were compared" in wide.sentence


def test_equivalence_is_told_with_its_margin() -> None:
    runs = over_splits(COX, [0.7] * 5) + over_splits(LORA, [0.701, 0.699, 0.702, 0.698, 0.7])
    found = only(differences_over_repeats(configurations(runs), {}, TO_COX))
    assert (found.finding, found.is_equivalent) == ("equivalent", True)
    assert found.sentence.startswith("lora and cox are equivalent within .01: +.000 [-.003, .003] in C-index")
    narrow = only(differences_over_repeats(configurations(runs), {}, Questions(TO_COX.reference, margin=0.001)))
    assert (narrow.finding, narrow.is_equivalent) == ("no difference shown", False)


def test_of_errors_the_lower_is_the_better() -> None:
    runs = [repeat(COX, split=str(n), test=0.7, test__ibs=0.12) for n in range(4)]
    runs += [repeat(LORA, split=str(n), test=0.7, test__ibs=0.11 + n / 10_000) for n in range(4)]
    c_index, ibs = differences_over_repeats(configurations(runs), {}, TO_COX)
    assert (c_index.metric, c_index.finding) == ("c_index", "equivalent")
    assert (ibs.metric, ibs.finding, ibs.margin) == ("ibs", "better", 0)
    assert ibs.interval is not None
    assert ibs.interval.upper < 0
    assert ibs.sentence.startswith("lora is better than cox by .010 [.010, .010] in IBS")


def study(*asked: Comparison) -> StudySettings:
    return StudySettings(
        question="Is LoRA better than Cox?",
        baseline="baseline.toml",
        matrix={"baseline": ["cox"]},
        reference={"baseline": "cox"},
        compare=asked,
    )


def test_questions_are_a_family_of_their_own_and_unmet_ones_are_said() -> None:
    steady = [0.001, -0.001, 0.002, -0.002, 0.0]
    runs = over_splits(COX, [0.7] * 5)
    for settings, gain in ((LORA, 0.03), (FULL, 0.031), (SCRATCH, 0.0)):
        runs += over_splits(settings, [0.7 + gain + one for one in (steady if gain else steady[::-1])])
    pays = Comparison(question="Does pretraining pay?", this={"strategy": "full"}, to={"strategy": "scratch"})
    bitfit = Comparison(question="And BitFit?", this={"strategy": "bitfit"}, to={"strategy": "full"})
    found = differences_over_repeats(configurations(runs), {}, study(pays, bitfit))
    assert [(one.question, one.this, one.finding) for one in found] == [
        ("", "lora", "better"),
        ("", "full", "better"),
        ("", "scratch", "equivalent"),
        ("Does pretraining pay?", "full", "better"),
        ("And BitFit?", "strategy.name bitfit", "not tested"),
    ]
    assert found[3].p == found[3].p_holm  # it is the only one that was asked and could be tested
    assert found[0].p_holm is not None
    assert found[0].p is not None
    assert found[0].p_holm > found[0].p


def test_a_question_that_is_answered_alike_at_several_numbers_of_labels_has_one_sentence() -> None:
    runs = []
    for n, gain in ((128, 0.0), (512, 0.001), (2048, 0.03)):
        noise = [0.01, -0.01, 0.02, -0.02, 0.0] if n < 2048 else [0.001, -0.001, 0.002, -0.002, 0.0]
        few = {"cohort.n_labels": n}
        runs += over_splits({**COX, **few}, [0.7] * 5, n_train=2048)
        runs += over_splits({**LORA, **few}, [0.7 + gain + one for one in noise], n_train=2048)
    asked = Comparison(question="Does LoRA pay?", this={"strategy.name": "lora"}, to={"baseline.name": "cox"})
    found = differences_over_repeats(configurations(runs), {}, study(asked))
    assert sentences([one for one in found if one.question and one.metric == "c_index"]) == [
        "No difference shown between lora and cox: +.000 [-.024, .024] (128 labels), +.001 [-.023, .025] (512 labels) "
        "in C-index (Nadeau and Bengio over 5 splits).",
        "lora is better than cox by .030 [.028, .032] (2,048 labels) in C-index (Nadeau and Bengio over 5 splits).",
    ]


def test_the_answer_says_what_wins_at_what_cost_and_where_the_transformer_does_not_win() -> None:
    steady = [0.001, -0.001, 0.002, -0.002, 0.0]
    runs = []
    for n, gains in ((128, (0.0, -0.03)), (2048, (0.03, 0.001))):
        few = {"cohort.n_labels": n}
        runs += over_splits({**COX, **few}, [0.7 + n / 100_000] * 5, n_train=2048)
        for settings, gain in zip((LORA, FULL), gains, strict=True):
            scores = [0.7 + n / 100_000 + gain + one for one in steady]
            runs += over_splits({**settings, **few}, scores, n_train=2048, cost__train_seconds=17.2)
    found = configurations(runs)
    told = answer(differences_over_repeats(found, {}, study()), found)
    assert told == (
        "Best by validation is lora · 2,048 labels, with a test C-index of .750 (sd .002 over 5 runs); it trains "
        "5,000 parameters in 17 s. lora is better than cox by .030 [.028, .032] (2,048 labels) in C-index (Nadeau and "
        "Bengio over 5 splits). Of 4 transformers beside their baselines, 1 is shown to be better "
        "(lora · 2,048 labels), 1 is shown to be worse (full · 128 labels) and 2 are equivalent (lora · 128 labels, "
        "full · 2,048 labels). No transformer is shown to be better than cox · 128 labels."
    )
