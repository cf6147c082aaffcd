"""What is written aside: whole or not at all, and nothing of a killed writer stays; a living one keeps its own."""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from simulated import Population, write_dataset

from ehrtrack.errors import ConfigError
from ehrtrack.files import flush, folder_aside, publish, scratch_folder, written_aside
from ehrtrack.home import make_cache

WRITER = """
import sys
from pathlib import Path
from ehrtrack import files
with getattr(files, sys.argv[1])(Path(sys.argv[2])) as path:
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


def calls_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of the disk, in order: which names are flushed, and what is renamed to what."""
    calls: list[str] = []
    fsync, replace, rename = os.fsync, Path.replace, Path.rename

    def flushed(descriptor: int) -> None:
        calls.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def moved(move: Callable[..., Path]) -> Callable[..., Path]:
        def call(path: Path, target: Path) -> Path:
            calls.append(f"{path.name} -> {target.name}")
            return move(path, target)

        return call

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", moved(replace))
    monkeypatch.setattr(Path, "rename", moved(rename))
    return calls


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the names of descriptors are read there")
def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of(monkeypatch)
    with written_aside(tmp_path / "a.json") as aside:
        aside.write_text("whole")
        assert calls == []
    assert calls == [f"flush {aside.name}", f"{aside.name} -> a.json", f"flush {tmp_path.name}"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the names of descriptors are read there")
def test_all_of_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = calls_of(monkeypatch)
    with folder_aside(tmp_path / "out") as aside:
        (aside / "data").mkdir()
        (aside / "data" / "0.parquet").write_text("rows")
    assert calls[-2:] == [f"{aside.name} -> out", f"flush {tmp_path.name}"]
    assert sorted(calls[:-2]) == sorted([f"flush {aside.name}", "flush data", "flush 0.parquet"])


def _write_half(file: Path) -> None:
    file.write_text("hal")
    raise OSError("half of it")


def test_a_file_that_was_not_finished_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(OSError, match="half"), written_aside(tmp_path / "a.txt") as aside:
        _write_half(aside)
    assert (tmp_path / "a.txt").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_only_its_owner_can_read_a_private_file_also_while_it_is_written(tmp_path: Path) -> None:
    with written_aside(tmp_path / "key", mode=0o600) as aside:
        assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    with written_aside(tmp_path / "table.csv") as aside:
        assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "table.csv").stat().st_mode) == 0o644


@pytest.mark.parametrize("knows_links", [True, False])
def test_the_first_of_two_writers_is_kept_where_that_is_asked(
    knows_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not knows_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    for text in ("first", "second"):
        with written_aside(tmp_path / "key", keeps_first=True) as aside:
            aside.write_text(text)
    assert (tmp_path / "key").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_folder_takes_the_place_of_an_empty_one_and_of_no_other(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for text in ("first", "second"):
        with scratch_folder(tmp_path, ".out-") as aside:
            (aside / "records").write_text(text)
            if text == "first":
                publish(aside, tmp_path / "out")
            else:
                with pytest.raises(OSError, match="not empty"):
                    publish(aside, tmp_path / "out")
    assert (tmp_path / "out" / "records").read_text() == "first"


@pytest.mark.parametrize(("reason", "is_told"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_disk_that_keeps_no_lists_of_names_will_do_and_one_that_fails_is_told(
    reason: int, is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(reason, os.strerror(reason))))
    with pytest.raises(OSError, match=re.escape(os.strerror(reason))):
        flush(tmp_path / "file")
    with pytest.raises(OSError, match=re.escape(os.strerror(reason))) if is_told else nullcontext():
        flush(tmp_path)
