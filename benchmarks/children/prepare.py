"""From a parquet event table to tokens, once: ``python -m benchmarks.children.prepare ours|pandas RAW WORK``."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    side, raw, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    n_tokens, start_seconds = _ours(raw, work) if side == "ours" else _pandas(raw)
    print(json.dumps({"n_tokens": n_tokens, "start_cpu_seconds": start_seconds}))


def _ours(raw: Path, work: Path) -> tuple[int, float]:
    """Import to a checked MEDS dataset on disk, then what `ehrtrack pretrain` does before it trains."""
    from ehrtrack.data.events import open_dataset
    from ehrtrack.data.fitting import coverage, fit_vocabulary
    from ehrtrack.data.importing import import_dataset
    from ehrtrack.data.record_ends import record_cutoffs
    from ehrtrack.data.settings import VisitConfig, VocabularyConfig
    from ehrtrack.data.shards import open_work
    from ehrtrack.data.split_settings import SplitConfig
    from ehrtrack.data.store import build_store

    start_seconds = time.process_time()
    import_dataset("meds", raw, work / "meds", threads=int(os.environ["POLARS_MAX_THREADS"]))
    dataset = open_dataset(work / "meds")
    with open_work(work / "cache") as shards:
        cutoffs = record_cutoffs(dataset, SplitConfig(), shards)
        vocabulary = fit_vocabulary(dataset, cutoffs, VocabularyConfig(), shards)
        coverage(dataset, cutoffs, vocabulary, shards)
        store = build_store(dataset, cutoffs, vocabulary, VisitConfig(), work / "cache" / "stores", shards)
    return len(store.token), start_seconds


def _pandas(raw: Path) -> tuple[int, float]:
    from benchmarks.peers.pandas_preparation import tokenise

    start_seconds = time.process_time()
    return len(tokenise(raw)), start_seconds


if __name__ == "__main__":
    main()
