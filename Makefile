# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install demo test docs faults check clean

help:
	@echo "make demo    install, then the main job on embedded data (a few minutes)"
	@echo "make test    install, then all tests"
	@echo "make docs    the documentation as a site: build/docs/index.html"
	@echo "make faults  kill runs at 60 random points (SEED=1), take their server away; docs/reliability.md"
	@echo "make check   format, lint, types, import order"
	@echo "make clean   remove what the demo made: data/gi_bleed, mlflow.db, mlruns, .ehrtrack"

install: $(VENV)/installed

# pip takes the torch build for this platform: CPU, CUDA or MPS.
$(VENV)/installed: requirements.lock pyproject.toml
	@echo "== installing into $(VENV) (a few minutes the first time)"
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, this is ' + sys.version)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: install
	mlflow run . --env-manager local --experiment-name gi_bleed

test: install
	OMP_NUM_THREADS=1 python -m pytest -n 2 --no-loadscope-reorder

docs: install
	NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict
	@echo "build/docs/index.html"

SEED ?= 1
faults: install
	OMP_NUM_THREADS=1 python tests/faults/harness.py --seed $(SEED) --kills 60 --report docs/reliability.md
	OMP_NUM_THREADS=1 python tests/faults/outages.py --seed $(SEED) --rounds 5 --report docs/reliability.md
	OMP_NUM_THREADS=1 python tests/faults/trials.py --seed $(SEED) --kills 3 --report docs/reliability.md

check: install
	ruff format --check .
	ruff check .
	mypy
	lint-imports

clean:
	rm -rf data/gi_bleed mlflow.db mlruns mlartifacts .ehrtrack
