"""What is written aside: whole or not at all, and nothing of a killed writer stays; a living one keeps its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from simulated import Population, write_dataset

from ehrtrack.data.aside import folder_aside, make_cache, scratch_folder, written_aside
from ehrtrack.errors import ConfigError

WRITER = """
import sys
from pathlib import Path
from ehrtrack.data import aside
with getattr(aside, sys.argv[1])(Path(sys.argv[2])) as path:
    inside = path / "records" if path.is_dir() else path
    inside.write_text("of subjects")
    print(path, flush=True)
    sys.stdin.read()
"""


def writer(function: str, target: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that writes aside, and what it writes; it goes on until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, function, str(target)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def close(process: subprocess.Popen[str]) -> None:
    process.communicate()
    process.wait()


@pytest.mark.parametrize("function", ["folder_aside", "written_aside"])
def test_what_a_killed_writer_left_goes_with_the_next_and_what_a_living_one_writes_stays(
    function: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, left = writer(function, tmp_path / "out")
    living, its_own = writer(function, tmp_path / "out")
    other, of_another = writer(function, tmp_path / "other")
    killed.send_signal(signal.SIGKILL)
    close(killed)
    assert left.exists()
    with {"folder_aside": folder_aside, "written_aside": written_aside}[function](tmp_path / "out") as path:
        assert not left.exists()
        assert its_own.exists()
        assert of_another.exists()
        assert f"removed {left}, left by a process that was killed" in capsys.readouterr().err
        if not path.is_dir():
            path.write_text("mine")
    close(living)
    close(other)
    assert (living.returncode, other.returncode) == (0, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "other"}


def test_a_link_is_not_followed_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / ".out-link").symlink_to(tmp_path / "kept")
    os.mkfifo(tmp_path / ".out-pipe")
    with scratch_folder(tmp_path, ".out-"):
        pass
    assert (tmp_path / "kept").is_dir()


@pytest.mark.parametrize("command", ["import", "simulate"])
def test_what_a_killed_import_or_simulation_left_goes_with_the_next(command: str, tmp_path: Path) -> None:
    """By the signal that nothing survives, as soon as the first records are on the disk."""
    if command == "import":
        write_dataset(tmp_path / "in", Population(n_subjects=5))
        words = ["import", "meds", str(tmp_path / "in"), str(tmp_path / "out")]
        hidden = ".out-importing-*"
    else:
        words = ["simulate", "--subjects", "50", "--world", "target-site", str(tmp_path / "out")]
        hidden = ".out-simulating-*"
    stopped = (
        "import sys; from pathlib import Path; from ehrtrack.cli import main\n"
        "def stop(event, words, out=Path(sys.argv[-1])):\n"
        f"    if event == 'os.mkdir' and any(out.parent.glob({hidden + '/*'!r})): import os; os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(stop); main(sys.argv[1:])"
    )
    killed = subprocess.run([sys.executable, "-c", stopped, *words], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(hidden)
    done = subprocess.run([sys.executable, "-m", "ehrtrack", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"removed {left}, left by a process that was killed" in done.stderr
    assert not list(tmp_path.glob(hidden))


def unusable(tmp_path: Path, kind: str) -> Path:
    if kind == "a file":
        (tmp_path / "cache").write_text("")
        return tmp_path / "cache"
    if kind == "below a file":
        (tmp_path / "file").write_text("")
        return tmp_path / "file" / "cache"
    return Path("/dev/null") if kind == "a device" else tmp_path / ("c" * 300)


@pytest.mark.parametrize("kind", ["a file", "below a file", "a device", "a long name"])
def test_a_cache_that_cannot_be_written_to_is_told_before_any_work(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.cache is '.*', where nothing can be written \(.*\); set it to"):
        make_cache(unusable(tmp_path, kind))


def test_a_cache_that_is_made_is_kept_out_of_git_and_another_folder_is_left_alone(tmp_path: Path) -> None:
    make_cache(tmp_path / "a" / "cache")
    make_cache(tmp_path / "a" / "cache")
    assert [file.name for file in (tmp_path / "a" / "cache").iterdir()] == [".gitignore"]
    assert (tmp_path / "a" / "cache" / ".gitignore").read_text() == "*\n"
    make_cache(tmp_path)
    assert not (tmp_path / ".gitignore").exists()
