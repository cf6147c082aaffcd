"""Pretraining: an objective that takes its targets from the records of the training subjects themselves."""

from __future__ import annotations

from collections.abc import Mapping

from ehrtrack import plots
from ehrtrack.config import RunConfig, check_objective
from ehrtrack.data.batch import Batches
from ehrtrack.data.description import describe_dataset
from ehrtrack.data.store import mean_age
from ehrtrack.models.behrt import EhrModel
from ehrtrack.models.encoders import new_encoder
from ehrtrack.models.record_columns import Levels
from ehrtrack.objectives.base import PretrainingObjective, TrainingFacts, pretraining_objective
from ehrtrack.objectives.settings import PretrainingSettings
from ehrtrack.pipeline.description_page import description_page
from ehrtrack.pipeline.embeddings import start_from_embeddings
from ehrtrack.pipeline.fit import Feed, feed, set_up, train
from ehrtrack.pipeline.logged_model import log_model
from ehrtrack.pipeline.prepare import Records, prepare_records, settle
from ehrtrack.pipeline.pretraining_records import SAID
from ehrtrack.pipeline.probing import Probing
from ehrtrack.pipeline.report import conclude, encoder_matrices, judge_encoder, judge_training, learning_matrices
from ehrtrack.pipeline.run import ALONE, Place, RecipeResult, Resumption, describe, open_run
from ehrtrack.runlog import VALIDATION
from ehrtrack.strategies.base import parameter_table
from ehrtrack.tracking.names import PRETRAINING_RECORDS
from ehrtrack.training.loop import FitResult
from ehrtrack.training.memory import CPU_BATCH_TOKENS
from ehrtrack.training.probe import Probe
from ehrtrack.training.ranks import Ranks, join_ranks
from ehrtrack.training.sanity import learned_codes

DESCRIPTION = "data/description.html"
SECTIONS = ("study", "data", "model", "objective", "init", "train", "runtime")


def pretrain(config: RunConfig, *, place: Place = ALONE, resume: Resumption | None = None) -> RecipeResult:
    """Pretrain an encoder and log it with its vocabulary.

    Parameters
    ----------
    place : of the run among others
    resume : the run to resume from its last snapshot

    Raises
    ------
    EhrtrackError
        If the configuration, the data or the tracking server cannot be used.
    """
    check_objective(config, "pretraining")
    ranks = join_ranks(config.runtime.device)
    config = settle(config)
    records = ranks.main_first(lambda: prepare_records(config))
    objective, plain = untrained(config, records)
    start = encoder_matrices(plain)
    model = set_up(plain, config, ranks)

    fingerprints = records.fingerprints()
    with open_run(
        config,
        kind="pretrain",
        sections=SECTIONS if config.cohort is None else (*SECTIONS, "cohort"),
        place=place,
        ranks=ranks,
        resume=resume,
        fingerprints=fingerprints,
    ) as run:
        run.log_fingerprints(fingerprints)
        run.logger.set_tags({PRETRAINING_RECORDS: SAID[config.pretraining_records]})
        run.log_parameters(parameter_table(model))
        run.logger.log_table(records.coverage, "vocabulary_coverage.csv")
        if ranks.is_main:
            run.logger.log_text(description_page(describe_dataset(records.dataset)), DESCRIPTION)
        batches = feed(config, records, model, objective, ranks)
        probing = _probing(config, records, batches, model, ranks)
        probing.select(objective)
        result = train(run, model, objective, batches, ranks, beside=probing.after)
        log_model(run, records, fingerprints, model=model)
        with run.judging():
            probed = probing.of_kept(result)
            if fresh := {name: value for name, value in probed.items() if name not in result.kept}:
                run.logger.log_metrics(fresh, step=result.kept_epoch)
            run.log_loss(result)
            run.logger.log_figure(
                plots.losses_beside_trivial(result.history, objective.trivial, kept_epoch=result.kept_epoch),
                f"plots/{config.objective.name}.png",
            )
            verdicts = [
                learned_codes(result.kept | probed, objective.trivial),
                judge_training(result),
                *judge_encoder(start, model.cpu(), learning_matrices(model), is_pretrained=False),
            ]
            conclude(
                run.logger, _summary(config, records, result, objective.trivial, probing.summary(probed)), verdicts
            )
            return run.finished(result.kept | probed)


def untrained(config: RunConfig, records: Records) -> tuple[PretrainingObjective, EhrModel]:
    """The objective, and a new encoder with its head."""
    facts = TrainingFacts(
        records.token_counts(),
        records=_training_records(config, records),
        levels=Levels.of(records.vocabulary),
        scales_days=config.model.readout_days,
        mean_age=_mean_age(config, records),
        n_members=config.model.members,
    )
    objective = pretraining_objective(config.objective, facts)
    encoder = new_encoder(config.model, Levels.of(records.vocabulary), may_lack_age=config.data.may_lack_age)
    start_from_embeddings(config, records, encoder.embeddings.code)
    return objective, EhrModel(encoder, objective.make_head(encoder.width))


def _mean_age(config: RunConfig, records: Records) -> float | None:
    return mean_age(records.store, records.rows["train"]) if config.data.may_lack_age else None


def _probing(config: RunConfig, records: Records, batches: Feed, model: EhrModel, ranks: Ranks) -> Probing:
    """What asks how much the states of the model foretell."""
    assert isinstance(config.objective, PretrainingSettings), "which kind it is was checked"

    def make() -> Probe:
        return Probe(
            batches.split("train"),
            batches.split("validation"),
            levels=Levels.of(records.vocabulary),
            scales_days=config.model.readout_days,
            mean_age=_mean_age(config, records),
            seed=config.runtime.seed,
        )

    return Probing(config.objective, model, make, ranks)


def _training_records(config: RunConfig, records: Records) -> Batches:
    """The training subjects' records, through windows as in training, from which objectives count rates."""
    return Batches(
        records.store,
        records.rows["train"],
        CPU_BATCH_TOKENS,
        config.data.max_tokens,
        has_random_windows=True,
    )


def _summary(
    config: RunConfig, records: Records, result: FitResult, trivial: Mapping[str, str], probe: Mapping[str, str]
) -> str:
    best = result.kept
    return describe(
        f"Pretraining of a {config.model.title} encoder ({config.objective.name})",
        {
            "validation loss": f"{best['val/loss']:.3f}",
            **{loss.removeprefix(f"{VALIDATION}/"): _beside(best, loss, other) for loss, other in trivial.items()},
            **probe,
            "records": SAID[config.pretraining_records],
            "subjects (train, validation)": f"{len(records.rows['train']):,}, {len(records.rows['validation']):,}",
            "tokens, vocabulary": f"{len(records.store.token):,}, {len(records.vocabulary):,}",
            "kept epoch": f"{result.kept_epoch} of {len(result.history)} ({result.stop_reason})",
        },
    )


def _beside(best: Mapping[str, float], loss: str, trivial: str) -> str:
    """A loss beside the trivial predictor's."""
    name = trivial.removeprefix(f"{VALIDATION}/").removesuffix("_loss").replace("_", " ")
    return f"{best[loss]:.3f}, {name} predictor {best[trivial]:.3f}"
