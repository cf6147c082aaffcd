"""The numbers that a run's sanity is judged by, and the verdict on the run's page."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ehrtrack.evaluation.report import Report
from ehrtrack.models.behrt import EhrModel, encoder_weights
from ehrtrack.runlog import KEPT, TEST, TRAINING, VALIDATION, RunLogger
from ehrtrack.strategies.base import Strategy
from ehrtrack.training import sanity
from ehrtrack.training.loop import FitResult
from ehrtrack.training.sanity import Verdict

CODES = "embeddings.code.weight"
Weights = dict[str, Tensor]


def encoder_matrices(model: EhrModel) -> Weights:
    """A copy of the encoder's matrices, by name; biases and norms begin at 0 and 1 and are left out."""
    return {name: w.detach().clone() for name, w in encoder_weights(model).items() if w.dim() >= 2}


def learning_matrices(model: nn.Module, strategy: Strategy | None = None) -> set[str]:
    """Names of the encoder's matrices that are to learn, whether themselves or through the strategy's adapter."""
    learning, prefix = set(), strategy.adapter_prefix if strategy else ""
    for name, parameter in model.named_parameters():
        path = name.split(".")
        if parameter.requires_grad and parameter.dim() >= 2 and "encoder" in path:
            inner = [p for p in path[path.index("encoder") + 1 :] if p not in ("modules_to_save", "default")]
            adapter = [number for number, part in enumerate(inner) if prefix and part.startswith(prefix)]
            learning.add(".".join([*inner[: adapter[0]], "weight"] if adapter else inner))
    return learning


def judge_encoder(start: Weights, end: EhrModel, learning: set[str], *, is_pretrained: bool) -> list[Verdict]:
    """Whether what was to learn has moved, and codes mean something.

    Parameters
    ----------
    start : matrices before training
    end : the model after it, with adapters merged
    learning : names of those that were to learn
    """
    after = encoder_weights(end)
    changes = {name: float((after[name] - w).norm() / w.norm().clamp(min=1e-12)) for name, w in start.items()}
    of_codes = sanity.embeddings(changes[CODES], is_pretrained=is_pretrained)
    return [sanity.moved({name: changes[name] for name in sorted(learning)}), of_codes] if learning else [of_codes]


def judge_training(result: FitResult) -> Verdict:
    """Whether the kept weights are overfitted."""
    training, validation = ([epoch[f"{part}/loss"] for epoch in result.history] for part in (TRAINING, VALIDATION))
    return sanity.overfit(training, validation, result.kept_epoch)


def judge_risks(reports: dict[str, Report]) -> list[Verdict]:
    """Whether risks are better than Kaplan-Meier's on validation subjects, and calibrated on test subjects.

    Whether the test subjects are enough for every measure, and for any judgement at all, are verdicts of their own.
    """
    test = reports[TEST]
    reasons = [test.left_out[measure] for measure in ("c_index", "c_index_interval") if measure in test.left_out]
    return [
        sanity.learned_risk(reports[KEPT].intervals["log_likelihood_gain"]),
        sanity.calibrated(test.intervals.get("calibration_slope"), test.metrics.get("ici")),
        sanity.measured(test.left_out),
        *(sanity.unjudged(reason) for reason in reasons[:1]),
    ]


def conclude(logger: RunLogger, summary: str, verdicts: Sequence[Verdict]) -> None:
    """Set the run's description, with the verdict in it, and the tags ``sanity.*``; print what is not ok."""
    logger.set_tags(sanity.to_tags(verdicts))
    logger.set_description(summary + sanity.to_markdown(verdicts))
    for verdict in verdicts:
        if verdict.state != "ok":
            print(f"sanity  {verdict.state}  {verdict.check}: {verdict.reason}", flush=True)
