"""Measures rows of one module: ``python -m benchmarks.children.row MODULE NAME...``; a line of JSON for each."""

from __future__ import annotations

import argparse
import importlib
import json

from benchmarks.__main__ import ANSWER
from benchmarks._row import NOT_MEASURED, NotMeasured, NotThereYet
from benchmarks._timing import FULL, QUICK


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    module = importlib.import_module(options.module)
    for name in options.names:
        answer: dict[str, object] = {"name": name}
        try:
            measured = module.measure(name, QUICK if options.quick else FULL)
            answer |= {"value": float(measured.value), "details": measured.details}
        except NotThereYet as reason:
            answer["reason"] = f"not there yet: {reason}"
        except NotMeasured as reason:
            answer["reason"] = f"{NOT_MEASURED}{reason}"
        print(f"\n{ANSWER}{json.dumps(answer)}", flush=True)


if __name__ == "__main__":
    main()
