"""The examples of docs/extending/: applied to a copy of the package, and as a package of their own by entry points."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simulated import HORIZON_DAYS, Population, write_dataset

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "extending"
STUDY = """
study = "simulated"
data = { path = "study", vocabulary = { min_subjects = 2 } }
cohort.horizon_days = HORIZON
cohort.index = { rule = "first_code", codes = ["INDEX$"] }
cohort.outcome = { codes = ["OUTCOME$"] }
baseline = { name = "exponential", n_candidates = 2 }
runtime = { cache = "cache", device = "cpu" }
""".replace("HORIZON", f"{HORIZON_DAYS:g}")
NAMES = {"objective": "weibull", "baseline": "exponential", "source": "i2b2", "strategy": "last-layers"}
FACTS = {
    "objective": "fresh_head or rebuilt or total_is_the_mean or curves_that_fall",
    "baseline": "falling_probability or json_brings_back or strong_effect",
    "source": "valid_meds or after_death",
    "strategy": "frozen_tensor or trainable_tensor or merged or why_not",
}
"""Which contract tests are run here; `make test` in a copy to which an example was applied runs them all."""
N_PASSED = {"objective": 5, "baseline": 3, "source": 2, "strategy": 6}
MOST_FILES = {"objective": 3, "baseline": 1, "source": 1, "strategy": 1}


def run(arguments: list[str], folder: Path, *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def apply(example: str, folder: Path) -> None:
    done = run(["git", "apply", str(EXAMPLES / f"{example}.patch")], folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", list(NAMES))
def test_an_example_is_as_few_files_as_promised_and_all_are_new(example: str) -> None:
    touched = [line.split(" b/")[1] for line in (EXAMPLES / f"{example}.patch").read_text().splitlines()
               if line.startswith("diff --git")]  # fmt: skip
    assert len([name for name in touched if name.startswith("ehrtrack/")]) <= MOST_FILES[example]
    assert not any((ROOT / name).exists() for name in touched)


def test_the_contract_tests_accept_the_examples(tmp_path: Path) -> None:
    """All of them in one copy and one process: each is of new files alone, and so applies whatever else was applied."""
    for name in ("ehrtrack", "tests/contracts"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    for name in ("pyproject.toml", "tests/conftest.py", "tests/simulated.py", "tests/undrawn.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for example in NAMES:
        apply(example, tmp_path)
    packages = [{"strategy": "strategies"}.get(example, f"{example}s") for example in NAMES]
    chosen = " or ".join(f"{NAMES[example]} and ({facts})" for example, facts in FACTS.items())
    words = ["-rA", "-k", chosen, *(f"tests/contracts/test_{package}.py" for package in packages)]
    done = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words], tmp_path, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = [line for line in done.stdout.splitlines() if line.startswith("PASSED")]
    assert {example: sum(f"[{name}" in line for line in passed) for example, name in NAMES.items()} == N_PASSED


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip leaves it: a package with a baseline, a source and a strategy that breaks, and its dist-info."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "copied").mkdir()
    for example in ("baseline", "source"):
        apply(example, folder / "copied")
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "__init__.py").write_text("")
    (folder / "elsewhere" / "broken.py").write_text("import no_such_library\n")
    shutil.move(folder / "copied/ehrtrack/baselines/exponential.py", folder / "elsewhere/regression.py")
    shutil.move(folder / "copied/ehrtrack/data/sources/i2b2.py", folder / "elsewhere/star.py")
    info = folder / "elsewhere-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[ehrtrack.baselines]\nexponential = elsewhere.regression:Exponential\ncox = elsewhere.regression:Exponential\n"
        "misnamed = elsewhere.regression:Exponential\n"
        "[ehrtrack.sources]\ni2b2 = elsewhere.star:I2b2\n[ehrtrack.strategies]\nbroken = elsewhere.broken:Broken\n"
    )
    return folder


WRONG = (
    ("strategies", "broken", "strategy 'broken' of the package elsewhere 1.2 cannot be imported from "
                             "elsewhere.broken:Broken: ModuleNotFoundError: No module named 'no_such_library'"),
    ("baselines", "cox", "baseline 'cox' is there more than once: in EHRTrack itself and in "
                         "elsewhere.regression:Exponential of the package elsewhere 1.2"),
    ("baselines", "misnamed", "is no class with settings of that name; it needs Config = a subclass of"),
)  # fmt: skip
PROGRAM = f"""
import sys
from ehrtrack import errors, plugins
print('exponential' in plugins.names('baselines'), 'broken' in plugins.names('strategies'))
print('elsewhere' in sys.modules, plugins.settings('baselines', 'exponential')().penalties[0])
print('torch' in sys.modules, plugins.settings('strategies', 'lora')().rank)
for package, name in {[wrong[:2] for wrong in WRONG]}:
    try:
        plugins.settings(package, name)
    except errors.EhrtrackError as error:
        print(' '.join(str(error).splitlines()))
"""


@pytest.fixture(scope="module")
def answers(outside: Path) -> list[str]:
    """What a process says, line by line, in which that package is installed."""
    done = run([sys.executable, "-c", PROGRAM], outside, outside, ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_package_outside_adds_choices_which_are_imported_only_when_asked_for(answers: list[str]) -> None:
    assert answers[:2] == ["True True", "False 0.0001"]
    assert answers[2].endswith(" 8")


@pytest.mark.parametrize("number", range(len(WRONG)), ids=[f"{package}-{name}" for package, name, _ in WRONG])
def test_what_cannot_be_used_is_told_by_name(answers: list[str], number: int) -> None:
    assert len(answers) == 3 + len(WRONG)
    assert WRONG[number][2] in answers[3 + number]


def test_a_baseline_and_a_source_from_outside_go_through_the_commands(outside: Path, local_store: Path) -> None:
    tmp_path = local_store
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "patient_dimension.csv").write_text(
        "patient_num,birth_date,death_date,sex_cd\n1,1950-01-01,,F\n2,1960-01-01,2010-05-05,M\n"
    )
    (raw / "observation_fact.csv").write_text(
        "encounter_num,patient_num,concept_cd,start_date,nval_num,tval_char\n10,1,ICD10:I21,2009-01-01,,\n"
        "11,2,LOINC:718-7,2009-01-01,11.5,\n"
    )
    main = [sys.executable, "-m", "ehrtrack"]
    done = run([*main, "import", "i2b2", str(raw), str(tmp_path / "meds")], tmp_path, outside, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    write_dataset(tmp_path / "study", Population(n_subjects=300))
    (tmp_path / "study.toml").write_text(STUDY)
    done = run([*main, "baseline", "--config", "study.toml"], tmp_path, outside, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    kept = json.loads(next(tmp_path.rglob("baseline.json")).read_text())
    assert kept.keys() == {"columns", "effects", "intercept", "last_day", "facts"}
    assert kept["facts"]["n_candidates"] == 2
