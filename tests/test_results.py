"""Reading finished runs: settings are parsed line by line, and each file is read once."""

import tomllib
from pathlib import Path

import pytest

from clsim import checksums, results, rundir
from clsim.compare import group
from clsim.errors import RequestError

PLAIN = 'seed = 3\nlr = 1e-05\nout = "a\\n#[x]"\nparts = []\nnames = ["a", "b"]\n\n[scenario]\nname = "toy" # it\n'


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"{PLAIN}[strategy]\nname = true\nseed = 4\n",
        "a = [\n  1,\n  2,\n]\nb = 3\n",
        'a = """\nb = 1\n"""\n',
        "a.b = 1\na.c = 2\n",
        "a = {b = 1}\n",
        "a = [[1], [2]]\n",
        "[a]\nb = 1\n[a.c]\nd = 2\n",
        "[[a]]\nb = 1\n[[a]]\nb = 2\n",
        "# only this\n",
        "",
    ],
)
def test_settings_are_what_tomllib_reads(text):
    assert results.settings_of(text) == tomllib.loads(text)
    assert results.settings_of(text) == tomllib.loads(text), "the second time from the lines that are known"


@pytest.mark.parametrize("text", ["a = 1\na = 2\n", "[a]\nb = 1\n[a]\nc = 1\n", "a = 1\n[a]\n", "a\n", "a = 1\n]\n"])
def test_settings_that_are_no_toml_stay_an_error(text):
    with pytest.raises(tomllib.TOMLDecodeError):
        results.settings_of(text)


def test_settings_of_two_files_share_nothing():
    one, other = results.settings_of(PLAIN), results.settings_of(PLAIN)
    one["names"].append("c")
    one["scenario"]["name"] = "another"
    assert other == tomllib.loads(PLAIN)


def test_contents_are_compared_with_the_checksums(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / rundir.CHECKSUMS).write_text(checksums.text_for(tmp_path, {}))
    assert checksums.contents(tmp_path, "a") == {"a": b"one"}
    (tmp_path / "a").write_bytes(b"two")
    with pytest.raises(RequestError, match="a was changed after the run finished"):
        checksums.contents(tmp_path, "a")
    (tmp_path / "a").unlink()
    with pytest.raises(RequestError, match="a is missing"):
        checksums.contents(tmp_path, "a")
    (tmp_path / rundir.CHECKSUMS).unlink()
    assert checksums.contents(tmp_path, "a") == {}, "a run of an earlier version: who needs the file says so"


def test_many_runs_are_named_without_comparing_each_with_each():
    compared = 0

    class Counted(int):
        def __ne__(self, other):
            nonlocal compared
            compared += 1
            return int(self) != int(other)

        __hash__ = int.__hash__

    def run(seed, size):
        summary = {"scenario": "toy", "strategy": "er", "backbone": "vit_nano", "seed": seed, "config_hash": f"{size}"}
        summary |= {"metrics": {"average_accuracy": 1 / size}, "cost": {}}
        config = {"scenario": {"name": "toy"}, "strategy": {"name": "er", "size": Counted(size)}}
        return results.Run(Path(f"{size}-{seed}"), config, {}, summary)

    groups = group([run(seed, size) for size in range(1, 201) for seed in (0, 1)])
    assert [each.strategy for each in groups] == [f"er size={size}" for size in range(1, 201)]
    assert all(len(each.runs) == 2 for each in groups)
    assert compared < 1000
