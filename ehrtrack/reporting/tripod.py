"""What the TRIPOD+AI statement asks a report of a prediction model to tell, and where this one does.

The 27 items are those of Collins et al. 2024 (BMJ 385:e078378), here in short words of our own; the statement has the
full ones.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from ehrtrack.reporting.document import Column, Prose, Section, Table

AUTHOR = "author must write"


@dataclass(frozen=True)
class Item:
    """An item.

    Attributes
    ----------
    number, part, asks : as in the statement, in short
    section : key of the section of this report that tells it; empty where only the author can
    where : what of it is told; or, without a section, what the author might begin with
    """

    number: str
    part: str
    asks: str
    section: str = ""
    where: str = ""


ITEMS = (
    Item("1", "Title", "that a prediction model is developed or evaluated, in whom, of which outcome"),
    Item("2", "Abstract", "a summary by the statement's list for abstracts"),
    Item("3a", "Introduction", "health care context, reasons for the model, existing models"),
    Item("3b", "Introduction", "target population, purpose, and intended users"),
    Item("3c", "Introduction", "known inequalities in health between groups"),
    Item("4", "Introduction", "objectives: development, evaluation or both", "answer", "the question of the study"),
    Item("5a", "Methods", "sources of data, and whether they stand for the target population", "provenance",
        "name and fingerprint of the data; their origin is for the author"),
    Item("5b", "Methods", "dates: of inclusion, and end of follow-up", "provenance",
        "rules of the cohort in the configuration; runs log no dates"),
    Item("6a", "Methods", "setting: kind, number and place of centres"),
    Item("6b", "Methods", "eligibility criteria", "subjects", "every step of the flow"),
    Item("6c", "Methods", "treatments received, and how they were handled"),
    Item("7", "Methods", "preparation of the data, alike in all groups", "provenance",
        "sections data and cohort of the configuration"),
    Item("8a", "Methods", "outcome, its horizon, how it was assessed, alike in all groups", "provenance",
        "cohort.outcome and horizon in the configuration; its meaning is for the author"),
    Item("8b", "Methods", "who assessed the outcome, where that takes judgement"),
    Item("8c", "Methods", "blinding of the outcome's assessment"),
    Item("9a", "Methods", "choice of predictors", "provenance", "every code that enough training subjects have"),
    Item("9b", "Methods", "definition of predictors, when and how they were measured", "provenance",
        "events up to the index date; vocabulary in the configuration"),
    Item("9c", "Methods", "who assessed predictors, where that takes judgement"),
    Item("10", "Methods", "how the size of the study was arrived at, for development and evaluation"),
    Item("11", "Methods", "missing data", "provenance",
        "what was not recorded is no event, and nothing is imputed; reasons are for the author"),
    Item("12a", "Methods", "how the data were used: development, evaluation, partition", "subjects",
        "subjects by split, and what pretraining read of them"),
    Item("12b", "Methods", "handling of predictors in the analysis", "provenance", "data.vocabulary, data.visits"),
    Item("12c", "Methods", "type of model, building steps, hyperparameters, internal validation", "results",
        "configurations compared; their settings under provenance"),
    Item("12d", "Methods", "heterogeneity between clusters such as hospitals or countries"),
    Item("12e", "Methods", "measures of performance, plots, and comparison of models", "differences",
        "discrimination, error, calibration, net benefit; method of each interval"),
    Item("12f", "Methods", "model updating, such as recalibration", "calibration",
        "recalibration is reported apart from raw predictions"),
    Item("12g", "Methods", "how predictions are computed, where a model is evaluated", "provenance",
        "run ids of logged models, which predict by `ehrtrack predict`"),
    Item("13", "Methods", "class imbalance: methods, and recalibration after them", "calibration",
        "no resampling of classes; calibration as observed"),
    Item("14", "Methods", "fairness: methods, and their reasons", "subgroups", "groups and gaps between them"),
    Item("15", "Methods", "output of the model, and thresholds", "decision",
        "risk, by thresholds of the decision curve"),
    Item("16", "Methods", "differences between development and evaluation data", "table-one", "Table 1 by split"),
    Item("17", "Methods", "ethical approval and consent"),
    Item("18a", "Open science", "funding, and the funders' part"),
    Item("18b", "Open science", "conflicts of interest"),
    Item("18c", "Open science", "where the protocol is", "provenance",
        "the study's file; a protocol is for the author"),
    Item("18d", "Open science", "registration of the study"),
    Item("18e", "Open science", "availability of the data"),
    Item("18f", "Open science", "availability of the code", "provenance", "commit and command"),
    Item("19", "Patient involvement", "involvement of patients and the public in the study"),
    Item("20a", "Results", "flow of participants, events and follow-up", "subjects", "flow, and follow-up by split"),
    Item("20b", "Results", "characteristics, overall and by data set", "table-one", "Table 1"),
    Item("20c", "Results", "distribution of important predictors in development and evaluation data", "table-one",
        "age, sex, events and visits; further ones are for the author"),
    Item("21", "Results", "subjects and events in each analysis", "results", "n of each configuration"),
    Item("22", "Results", "the full model, so that predictions can be made", "provenance",
        "logged models of the runs, with weights, vocabulary and time grid"),
    Item("23a", "Results", "performance with intervals, also in groups", "results",
        "main table, calibration, decision curves and subgroups"),
    Item("23b", "Results", "heterogeneity of performance between clusters"),
    Item("24", "Results", "results of model updating", "calibration", "where recalibration was fitted"),
    Item("25", "Discussion", "overall interpretation, fairness included"),
    Item("26", "Discussion", "limitations: representativeness, size, overfitting, missing data", "sanity",
        "verdicts of sanity, to begin with"),
    Item("27a", "Discussion", "use with input of poor quality or that is missing"),
    Item("27b", "Discussion", "interaction of users, and expertise needed"),
    Item("27c", "Discussion", "next steps of research, applicability, generalisability"),
)  # fmt: skip
"""In the order of the statement."""


def tripod_section(there: Collection[str], titles: dict[str, str]) -> Section:
    """Item by item, where it is told.

    Parameters
    ----------
    there : keys of the report's sections; an item of a section that this study has not is the author's
    titles : of the sections
    """
    rows = []
    for item in ITEMS:
        is_told = item.section in there
        rows.append(
            {
                "item": item.number,
                "part": item.part,
                "asks": item.asks,
                "section": item.section if is_told else "",
                "told": f"{titles[item.section]}: {item.where}" if is_told else AUTHOR,
            }
        )
    frame = pl.DataFrame(rows)
    n_items = len({item.number.rstrip("abcdefg") for item in ITEMS})
    n_told = frame.filter(pl.col("section") != "").height
    table = Table(
        "tripod",
        f"TRIPOD+AI, {n_items} items in {len(ITEMS)} parts: {n_told} are told here in whole or in part, "
        f"{len(ITEMS) - n_told} the author must write.",
        frame,
        (
            Column("item", lambda row: row["item"]),
            Column("of", lambda row: row["part"]),
            Column("asks for", lambda row: row["asks"]),
            Column(
                "where in this study",
                lambda row: row["told"],
                link=lambda row: f"#{row['section']}" if row["section"] else "",
                tone=lambda row: "plain" if row["section"] else "doubt",
            ),
        ),
        notes=("Collins GS et al. TRIPOD+AI statement. BMJ 2024;385:e078378. Items are in short words of our own.",),
    )
    said = "A study's runs tell what was done. What it is for, and what it means, they do not: those items are marked."
    return Section("tripod", "TRIPOD+AI", (Prose((said,)), table))
