"""Write one dataset of two hospitals' stays: one has the labels and is split, the other is read by pretraining.

python projects/icu_two_hospitals/merge.py data/physionet2012_a data/sepsis2019b data/icu_two_hospitals
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from ehrtrack.data.split_settings import SplitConfig
from ehrtrack.data.splits import assign_splits

COLUMNS = ["subject_id", "time", "code", "numeric_value"]
OF_THE_OTHER = SplitConfig(train=0.97, validation=0.02)
"""Nobody of the other hospital tests: who would, trains."""


def main() -> None:
    """Copy the events of both, each hospital in a file of its own, and write who is in which split."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labelled", type=Path, help="the dataset whose subjects have labels")
    parser.add_argument("other", type=Path, help="the dataset that is read without labels")
    parser.add_argument("out", type=Path, help="the dataset to write")
    parser.add_argument("--train", type=float, default=0.48)
    parser.add_argument("--validation", type=float, default=0.12)
    given = parser.parse_args()

    events = [
        pl.read_parquet(folder / "data" / "*.parquet", columns=COLUMNS) for folder in (given.labelled, given.other)
    ]
    split_of = SplitConfig(train=given.train, validation=given.validation), OF_THE_OTHER
    subjects = [table["subject_id"].unique().sort() for table in events]
    own, others = (
        pl.DataFrame({"subject_id": of, "split": assign_splits(of, split)})
        for of, split in zip(subjects, split_of, strict=True)
    )
    if not own.join(others, on="subject_id", how="semi").is_empty():
        raise SystemExit("merge: both datasets have a subject of the same subject_id; give those of one other numbers")
    if given.out.exists():
        raise SystemExit(f"merge: {given.out} is there already; remove it, or name another folder")
    for name in ("data", "metadata"):
        (given.out / name).mkdir(parents=True)
    for number, table in enumerate(events):
        table.write_parquet(given.out / "data" / f"{number}.parquet")
    others = others.with_columns(pl.col("split").replace({"test": "train"}))
    table = pl.concat([own, others]).with_columns(pl.col("split").replace({"validation": "tuning", "test": "held_out"}))
    table.write_parquet(given.out / "metadata" / "subject_splits.parquet")
    print(table.group_by("split").len().sort("split"))


if __name__ == "__main__":
    main()
