"""A run directory: its lock, and its removal, which may be interrupted anywhere."""

import contextlib
import errno
from pathlib import Path

import pytest

from clsim import rundir
from clsim.errors import RequestError

FILES = ("config.toml", "env.json", "events.jsonl", "matrix.json", "checksums.json", "summary.json")


def fill(directory):
    (directory / "checkpoint").mkdir(parents=True)
    for name in (*FILES, ".lock", "checkpoint/state.json", "checkpoint/state.a.safetensors"):
        (directory / name).write_text("x")


def names(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def test_only_the_lock_stays(tmp_path):
    fill(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    rundir.clear(tmp_path)
    assert names(tmp_path) == [".lock"]
    rundir.clear(tmp_path)


@pytest.mark.parametrize("stop", range(9))
def test_a_removal_that_is_interrupted_leaves_a_run_that_starts_again(tmp_path, monkeypatch, stop):
    fill(tmp_path)
    unlink, removed = Path.unlink, []

    def counted(path, **options):
        if len(removed) == stop:
            raise KeyboardInterrupt
        removed.append(path)
        unlink(path, **options)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "unlink", counted)
        rundir.clear(tmp_path)
    left = names(tmp_path)
    if stop:
        assert "summary.json" not in left, "it is not finished"
    if stop > 1:
        assert "checkpoint/state.json" not in left, "it has no checkpoint that misses its other files"
    else:
        assert {"events.jsonl", "checkpoint/state.a.safetensors"} <= set(left)


@pytest.mark.parametrize("name", ["summary.json", "events.jsonl", "checkpoint/state.json"])
def test_folders_in_the_place_of_files_go_too(tmp_path, name):
    fill(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name / "below").mkdir(parents=True)
    rundir.clear(tmp_path)
    assert names(tmp_path) == [".lock"]


def test_a_file_in_the_place_of_the_checkpoint(tmp_path):
    (tmp_path / "checkpoint").write_text("x")
    rundir.clear(tmp_path)
    assert names(tmp_path) == []


def test_a_lock_that_is_a_folder_locks(tmp_path):
    (tmp_path / ".lock" / "below").mkdir(parents=True)
    with rundir.alone_in(tmp_path):
        with pytest.raises(RequestError, match="another process is at work"), rundir.alone_in(tmp_path):
            pass
        rundir.clear(tmp_path)
    assert names(tmp_path) == [".lock", ".lock/below"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    for directory in (tmp_path / "runs", tmp_path / "runs" / "toy"):
        with pytest.raises(RequestError, match="there is a file in its place"), rundir.alone_in(directory):
            pass


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    # not a read-only folder: the superuser, who may run the tests, writes into it
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "new"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match="new"), rundir.alone_in(tmp_path / "new"):
        pass


def test_errors_of_the_work_are_not_the_locks(tmp_path):
    with pytest.raises(BlockingIOError, match="of the work"), rundir.alone_in(tmp_path):
        raise BlockingIOError("of the work")
