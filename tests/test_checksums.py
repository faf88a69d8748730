"""Checksums: a file of a run that is not as the run left it is named, and never read as a result."""

import json
import shutil

import pytest

import clsim
from clsim import checksums, cli, compare, rundir
from clsim.errors import RequestError

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def whole(finished, tmp_path_factory):
    """A finished run that no test changes."""
    return finished("linear", tmp_path_factory.mktemp("whole"), epochs=1)


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it."""
    shutil.copytree(whole.directory, tmp_path / "run")
    return clsim.load(tmp_path / "run")


def flip_digit(file):
    data = file.read_bytes()
    place = next(i for i in range(len(data) // 2, len(data)) if data[i : i + 1].isdigit())
    file.write_bytes(data[:place] + (b"1" if data[place : place + 1] != b"1" else b"2") + data[place + 1 :])


def as_folder(file):
    file.unlink()
    file.mkdir()


DAMAGE = {
    "digit": flip_digit,
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "missing": lambda file: file.unlink(),
    "folder": as_folder,
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\n"),
}
READERS = {
    "config.toml": lambda run: clsim.load(run.directory),
    "matrix.json": lambda run: clsim.load(run.directory),
    "summary.json": lambda run: clsim.load(run.directory),
    "checksums.json": lambda run: clsim.load(run.directory),
    "events.jsonl": lambda run: clsim.load(run.directory).events,
    "checkpoint/state.json": lambda run: clsim.load(run.directory).class_names,
    "env.json": lambda run: clsim.load(run.directory)._predictor,
    "checkpoint/state.a.safetensors": lambda run: clsim.load(run.directory)._predictor,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_changed_file_is_never_read(run, name, damage):
    path = run.directory / name
    if not path.exists():  # the two names of the tensors' file take turns
        path = path.with_name("state.b.safetensors")
    DAMAGE[damage](path)
    if (name, damage) == ("summary.json", "missing"):
        with pytest.raises(RequestError, match="unfinished run; repeat its command"):
            READERS[name](run)
        return
    with pytest.raises(RequestError, match=r"--fresh makes it again$") as caught:
        READERS[name](run)
    assert path.name in str(caught.value) and "\n" not in str(caught.value)
    text, fine = checksums.verified([run.directory])
    assert not fine and path.name in text.splitlines()[0]


def test_every_file_is_covered_but_the_lock(run):
    files = json.loads((run.directory / rundir.CHECKSUMS).read_text())["files"]
    there = {path.relative_to(run.directory).as_posix() for path in run.directory.rglob("*") if path.is_file()}
    assert set(files) == there - {rundir.LOCK, rundir.CHECKSUMS}
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert checksums.verified([run.directory]) == (f"{run.directory}: whole", True)


def test_a_run_of_an_earlier_version_is_read_without_checksums(run, without_checksums):
    without_checksums(run)
    again = clsim.load(run.directory)
    assert again.matrix == run.matrix and again.events and again.class_names
    text, fine = checksums.verified([run.directory])
    assert fine and text.endswith("no checksums: made by an earlier version")


def test_compare_names_every_broken_run_and_makes_no_table(whole, tmp_path):
    for name in ("a", "b", "c"):
        shutil.copytree(whole.directory, tmp_path / name)
    assert compare.report([tmp_path])
    flip_digit(tmp_path / "a" / "matrix.json")
    (tmp_path / "c" / "summary.json").write_text("{")
    with pytest.raises(RequestError) as caught:
        compare.report([tmp_path])
    assert "a is broken: matrix.json" in str(caught.value) and "c is broken: summary.json" in str(caught.value)
    assert str(tmp_path / "b") not in str(caught.value)


def test_verify_exits_with_1_if_a_run_is_broken(run, capsys):
    assert cli.main(["verify", str(run.directory)]) == cli.DONE
    flip_digit(run.directory / "events.jsonl")
    assert cli.main(["verify", str(run.directory.parent)]) == cli.FAILED
    out = capsys.readouterr().out.splitlines()
    assert out[-2].endswith("BROKEN: events.jsonl was changed after the run finished") and out[-1].startswith("1 of 1")
    assert cli.main(["verify", str(run.directory / "nowhere")]) == cli.MISTAKE


@pytest.mark.parametrize("name", ["checkpoint/state.json", "checkpoint/state.*.safetensors", "events.jsonl"])
@pytest.mark.parametrize("damage", ["digit", "half", "empty", "zeros"])
def test_an_unfinished_run_goes_on_from_whole_files_only(plan, finished, broken_off, tmp_path, name, damage):
    def work(**fresh):
        return clsim.runner.run_all([plan("linear", tmp_path, epochs=1, checkpoint_minutes=0)], quiet=True, **fresh)[0]

    broken_off(4, work)
    (state,) = tmp_path.rglob("state.json")
    directory = state.parents[1]
    assert checksums.verified([directory]) == (f"{directory}: not finished, whole so far", True)
    (file,) = directory.glob(name)
    DAMAGE[damage](file)
    assert not checksums.verified([directory])[1]
    with pytest.raises(RequestError, match=r"--fresh") as caught:
        work()
    assert file.name in str(caught.value) and "\n" not in str(caught.value)
    assert work(fresh=True).metrics["average_accuracy"] is not None
