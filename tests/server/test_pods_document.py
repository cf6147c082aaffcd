"""docs/pods.md, followed word by word: two loopback ports are laptop and pod, and the run ends on the server.

The commands are those of the document. What cannot run in a test is replaced, by name, in `Places.replaced`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from running_servers import clean_environment, needs_login, passable_folder
from simulated import Population, write_dataset
from tunnel import tunnel

from ehrtrack.server.processes import free_port

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "pods.md"
READY_SECONDS = 330


def commands(place: str) -> str:
    """The shell blocks of the sections of a place, such as "laptop", in their order."""
    sections = re.split(r"^## ", DOCUMENT.read_text(), flags=re.MULTILINE)[1:]
    here = [section for section in sections if section.splitlines()[0].endswith(f"({place})")]
    return "".join(block for section in here for block in re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S))


@dataclass(frozen=True)
class Places:
    """A laptop and a pod: folders and ports of this machine."""

    laptop: Path
    pod: Path
    data: Path
    laptop_port: int
    pod_port: int

    def replaced(self, text: str) -> str:
        """The document's commands with what this machine has instead; each is there, or the document has changed."""
        replacements = [
            # installed: the running environment
            ('pip install -e ".[server]"', ":"),
            # a free port, and a start that the next line does not wait for
            (
                "ehrtrack server --folder ~/runs",
                f"{sys.executable} -m ehrtrack server --folder ~/runs --port {self.laptop_port}",
            ),
            # another folder for another machine; its end of the tunnel has a port of its own
            (
                "scp ~/runs/pod.env root@POD:",
                f"sed s/:{self.laptop_port}$/:{self.pod_port}/ ~/runs/pod.env > {self.pod}/pod.env",
            ),
            # the tunnel: see `tunnel.py`
            ("ssh -N -R 5000:127.0.0.1:5000 root@POD", ":"),
            # this checkout; and an environment that is installed already
            ("git clone REPOSITORY ehrtrack", f"git clone --quiet {ROOT} ehrtrack && {self._make_environment()}"),
            ("ehrtrack import meds PATH", f"ehrtrack import meds {self.data}"),
            # minutes, not hours
            ('model = { size = "small" }', 'model = { size = "tiny" }\ntrain = { epochs = 1, batch_tokens = 2048 }'),
        ]
        for written, instead in replacements:
            if written in text:
                text = text.replace(written, instead)
        return text

    def _make_environment(self) -> str:
        """What `make install` makes, out of the running environment."""
        return f"cp -r {self.pod}/venv ehrtrack/.venv && touch ehrtrack/.venv/installed"


def make_environment(folder: Path) -> None:
    """A folder like a virtual environment's, whose programs are the running environment's."""
    (folder / "bin").mkdir(parents=True)
    programs = {"python": "", "ehrtrack": "-m ehrtrack", "mlflow": "-m mlflow"}
    for name, words in programs.items():
        file = folder / "bin" / name
        file.write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        file.chmod(0o755)
    (folder / "bin" / "activate").write_text('PATH="$PWD/.venv/bin:$PATH"; export PATH PYTHONPATH="$PWD"\n')


def run(text: str, folder: Path, environment: dict[str, str]) -> str:
    """What commands say; they end well."""
    done = subprocess.run(
        ["sh", "-eu", "-c", text], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@contextmanager
def serving(text: str, folder: Path, environment: dict[str, str]) -> Iterator[list[str]]:
    """Run a command that does not end, and wait until it says that it is ready; gives what it said."""
    process = subprocess.Popen(
        ["sh", "-c", f"exec {text}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    watchdog = threading.Timer(READY_SECONDS, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            said.append(line.rstrip("\n"))
            if said[-1].startswith("  it listens on this machine only"):
                break
        else:
            pytest.fail("the server ended:\n" + "\n".join(said))
        watchdog.cancel()
        yield said
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate(timeout=60)


@needs_login
@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("make"), reason="needs a git checkout and make")
def test_the_document_ends_with_the_run_on_the_server() -> None:
    with passable_folder() as folder:
        places = Places(folder / "laptop", folder / "pod", folder / "meds", free_port(), free_port())
        write_dataset(places.data, Population(n_subjects=60, first_subject=730_000_001))
        places.pod.mkdir()
        places.laptop.mkdir(mode=0o711)
        make_environment(places.pod / "venv")
        environment = clean_environment() | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        at_laptop = environment | {"HOME": str(places.laptop), "PYTHONPATH": str(ROOT)}
        at_pod = {name: value for name, value in environment.items() if name != "PYTHONPATH"} | {
            "HOME": str(places.pod)
        }

        install, serve, *rest = places.replaced(commands("laptop")).splitlines()
        run(install, ROOT, at_laptop)
        with serving(serve, places.laptop, at_laptop) as said, tunnel(places.pod_port, places.laptop_port):
            assert any(f"ssh -N -R {places.laptop_port}:127.0.0.1:{places.laptop_port}" in line for line in said)
            run("\n".join(rest), places.laptop, at_laptop)
            told = run(places.replaced(commands("pod")), places.pod, at_pod)

            subjects = [line.split()[1] for line in told.splitlines() if re.match("(ok|warn|fail) ", line)]
            assert subjects[:4] == ["address", "server", "host", "login"]
            assert not re.search("^fail ", told, re.MULTILINE)
            run_id = re.search(r"pretrain run ([0-9a-f]{32})", told)
            assert run_id is not None
            assert "nothing to send" in told  # `ehrtrack sync`
            login = dict(line.split("=", 1) for line in (places.laptop / "runs" / "pod.env").read_text().splitlines())
            auth = (login["MLFLOW_TRACKING_USERNAME"], login["MLFLOW_TRACKING_PASSWORD"])
            assert login["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{places.laptop_port}"
            api = f"{login['MLFLOW_TRACKING_URI']}/api/2.0/mlflow"
            found = requests.get(f"{api}/runs/get", params={"run_id": run_id[1]}, auth=auth, timeout=60).json()["run"]
            assert (found["info"]["status"], found["info"]["lifecycle_stage"]) == ("FINISHED", "active")
            tags = {tag["key"]: tag["value"] for tag in found["data"]["tags"]}
            assert (tags["ehrtrack.study"], tags["ehrtrack.kind"]) == ("mystudy", "pretrain")
            files = requests.get(
                f"{api}/artifacts/list", params={"run_id": run_id[1], "path": "model"}, auth=auth, timeout=60
            )
            assert "model/model.safetensors" in {file["path"] for file in files.json()["files"]}
        assert not list((places.pod / "ehrtrack" / ".ehrtrack" / "journal").glob("*"))


def test_every_replacement_is_of_words_that_the_document_has() -> None:
    places = Places(Path("laptop"), Path("pod"), Path("data"), 1, 2)
    left = places.replaced(commands("laptop") + commands("pod"))
    assert [word for word in ("REPOSITORY", "POD", "PATH data", "pip install", "ssh ", "scp ") if word in left] == []
    doctor = re.search(r"^```text\n(.*?)^```", DOCUMENT.read_text(), re.M | re.S)
    assert doctor is not None
    assert doctor[1].count("ok   ") == 11
