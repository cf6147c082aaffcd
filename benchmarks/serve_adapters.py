"""Memory of `ehrtrack serve` by the number of models: adapters on one base, and models that stand alone.

    python -m benchmarks.serve_adapters
    python -m benchmarks.serve_adapters --size medium --models 1 8

A base with random weights and LoRA adapters of it, which are random too, are registered in a database of their own. For
each number of models a server is started anew, each of its models answers some requests, and then its resident memory
is read. The same is done with the adapters merged into their base.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.serve_load import N_CODES, ask, make_body, start_server

N_REQUESTS = 40
"""Of each model, before memory is read."""


def register_models(folder: Path, size: str, n_models: int) -> dict[str, list[str]]:
    """References of the adapters of one base, and of the same models standing alone."""
    import torch
    from mlflow import MlflowClient

    from ehrtrack.config import parse_config
    from ehrtrack.data.vocabulary import NEVER_TOKENS, SPECIAL_TOKENS, Vocabulary
    from ehrtrack.files import sha256_of
    from ehrtrack.models.behrt import Behrt, EhrModel
    from ehrtrack.models.heads import HazardHead
    from ehrtrack.pipeline.adapted import BaseRecord
    from ehrtrack.pipeline.model_files import ADAPTER_WEIGHTS, WEIGHTS
    from ehrtrack.pipeline.model_folder import write_checksums, write_model_folder
    from ehrtrack.strategies.base import Base, strategy_of
    from ehrtrack.survival.time_grid import TimeGrid
    from ehrtrack.tracking.client.registry import log_and_register_model
    from ehrtrack.training.checkpoint import weights_fingerprint

    cohort = {
        "index": {"rule": "date", "date": "2020-01-01"},
        "outcome": {"codes": ["OUTCOME"]},
        "horizon_days": 365,
    }
    told = {"study": "memory", "data": {"path": "none"}, "cohort": cohort, "model": {"size": size}}
    config = parse_config(told | {"strategy": {"name": "lora"}, "runtime": {"cache": str(folder / "cache")}})
    codes = tuple(f"CODE//{number}" for number in range(N_CODES))
    vocabulary = Vocabulary((*SPECIAL_TOKENS, *codes), {}, exclude=NEVER_TOKENS)
    grid = TimeGrid(tuple(np.linspace(0, 365, 13).tolist()))
    torch.manual_seed(0)
    encoder = Behrt(config.model, len(vocabulary))
    client = MlflowClient()

    def logged(model: Path) -> str:
        run_id = client.create_run("0").info.run_id
        client.log_artifacts(run_id, str(model), "model")
        client.set_terminated(run_id)
        return str(run_id)

    def written(name: str, model: torch.nn.Module) -> Path:
        target = folder / name
        write_model_folder(target, config=config, vocabulary=vocabulary, fingerprints={}, model=model, grid=grid)
        return target

    def head() -> HazardHead:
        return HazardHead(encoder.width, torch.full((grid.n_intervals,), -3.0))

    base = written("base", EhrModel(encoder, head()))
    uri, fingerprint = f"runs:/{logged(base)}/model", weights_fingerprint(encoder.state_dict())
    found: dict[str, list[str]] = {"adapters": [], "alone": []}
    for number in range(n_models):
        strategy = strategy_of(config.strategy)
        fresh = Behrt(config.model, len(vocabulary))
        fresh.load_state_dict(encoder.state_dict())
        adapted = strategy.apply(EhrModel(fresh, head()))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.02)
        alone = written(f"alone{number}", strategy.merge(adapted))
        adapter = written(f"adapter{number}", strategy.merge(adapted))
        strategy.save_adapter(adapted, adapter, base=Base("pretrained", uri, fingerprint))
        record = BaseRecord(
            uri, fingerprint, sha256_of(base / WEIGHTS), (base / WEIGHTS).stat().st_size, adapter_run="none"
        )
        (adapter / WEIGHTS).unlink()
        record.write(adapter)
        write_checksums(adapter)
        for kind, model in (("adapters", adapter), ("alone", alone)):
            name = f"{kind}{number}"
            found[kind].append(log_and_register_model(logged(model), model, name).uri)
        sizes = {"base_mb": record.n_bytes / 1e6, "adapter_mb": (adapter / ADAPTER_WEIGHTS).stat().st_size / 1e6}
        if not number:
            print(json.dumps({name: round(of, 3) for name, of in sizes.items()}), flush=True)
    return found


async def ask_each(port: int, names: Sequence[str], bodies: Sequence[bytes]) -> None:
    """Some requests to each model, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for name in names:
        for body in bodies:
            told = json.dumps(json.loads(body) | {"model": name}).encode()
            status = await ask(reader, writer, told)
            if status != 200:
                raise SystemExit(f"model {name} answered with {status}")
    writer.close()
    await writer.wait_closed()


def measure(references: Sequence[str], bodies: Sequence[bytes]) -> dict[str, Any]:
    """Resident memory of a server with these models, when it is ready and after each has answered."""
    named = [f"m{number}={reference}" for number, reference in enumerate(references)]
    process, port = start_server(named[0], named[1:])
    try:
        server = psutil.Process(process.pid)
        ready = server.memory_info().rss / 1e6
        asyncio.run(ask_each(port, [name.partition("=")[0] for name in named], bodies))
        return {"ready_rss_mb": round(ready, 1), "rss_mb": round(server.memory_info().rss / 1e6, 1)}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main() -> None:
    """Measure, and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--size", default="small", help="of the encoder")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    bodies = [make_body(rng, 60) for _ in range(N_REQUESTS)]
    with tempfile.TemporaryDirectory(prefix="serve-adapters-") as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
        os.environ["EHRTRACK_HOME"] = str(folder / "home")
        os.chdir(folder)
        references = register_models(folder, options.size, max(options.models))
        for turn in range(options.rounds):
            for n_models in options.models:
                for kind, of_kind in references.items():
                    row = {"round": turn, "kind": kind, "models": n_models} | measure(of_kind[:n_models], bodies)
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
