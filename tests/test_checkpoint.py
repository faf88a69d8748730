"""Checkpoints: what goes in comes out, and whatever goes wrong the last whole state is still there."""

import json

import pytest
import torch

from clsim import checkpoint

TREE = {
    "weights": {"a": torch.arange(6.0).view(2, 3), "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)},
    "optimizer": {"state": {0: {"step": torch.tensor(3.0), "momentum": None}, 7: {"step": 4}}, "groups": [{"lr": 0.1}]},
    "rows": torch.tensor([5, 2**40]),
    "mask": torch.tensor([True, False]),
    "nothing": {},
    "counts": [[1, None], [2, 3]],
    "text": "é",
    "pair": (1, torch.zeros(0)),
}


def same(found, expected):
    """Equal trees; a tuple comes back as a list."""
    if isinstance(expected, torch.Tensor):
        return found.dtype == expected.dtype and torch.equal(found, expected)
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return type(found) is type(expected) and found == expected


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_tree_comes_back(tmp_path):
    checkpoint.save(tmp_path / "new", TREE)
    assert same(checkpoint.load(tmp_path / "new"), TREE)
    assert files(tmp_path / "new") == ["state.a.safetensors", "state.json"]


def test_a_tree_without_tensors(tmp_path):
    checkpoint.save(tmp_path, {"step": 3, 5: [None]})
    assert checkpoint.load(tmp_path) == {"step": 3, 5: [None]}


def test_shared_and_transposed_tensors(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    checkpoint.save(tmp_path, {"base": base, "again": base, "turned": base.T, "row": base[1]})
    found = checkpoint.load(tmp_path)
    assert torch.equal(found["again"], base)
    assert torch.equal(found["turned"], base.T)
    assert torch.equal(found["row"], base[1])


def test_what_was_saved_is_a_copy(tmp_path):
    weights = torch.nn.Parameter(torch.ones(3))
    checkpoint.save(tmp_path, [weights])
    with torch.no_grad():
        weights.zero_()
    assert torch.equal(checkpoint.load(tmp_path)[0], torch.ones(3))
    assert not checkpoint.load(tmp_path)[0].requires_grad


def test_the_newest_state_replaces_the_one_before(tmp_path):
    for step in range(4):
        checkpoint.save(tmp_path, {"step": step, "x": torch.full((2,), float(step))})
        found = checkpoint.load(tmp_path)
        assert found["step"] == step
        assert found["x"].tolist() == [step, step]
        assert len(files(tmp_path)) == 2


def test_states_by_name_lie_side_by_side(tmp_path):
    checkpoint.save(tmp_path, {"x": torch.zeros(1)}, "first")
    checkpoint.save(tmp_path, {"x": torch.ones(1)}, "second")
    assert checkpoint.load(tmp_path, "first")["x"].item() == 0
    assert checkpoint.load(tmp_path, "second")["x"].item() == 1


def test_no_state(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path)


# where a kill or a full disk can stop a save: while the tensors are written, and before the index is
@pytest.mark.parametrize("stopped_at", ["save_file", "write_text"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_stops_midway_leaves_the_state_before(tmp_path, monkeypatch, stopped_at, error):
    checkpoint.save(tmp_path, {"x": torch.zeros(2)})
    whole = getattr(checkpoint, stopped_at)

    def stop(*arguments):
        if stopped_at == "save_file":
            arguments[1].write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr(checkpoint, stopped_at, stop)
    with pytest.raises(type(error)):
        checkpoint.save(tmp_path, {"x": torch.ones(2)})
    assert checkpoint.load(tmp_path)["x"].tolist() == [0, 0]

    monkeypatch.setattr(checkpoint, stopped_at, whole)
    for value in (2.0, 3.0):  # and the next saves are not disturbed by what lies about
        checkpoint.save(tmp_path, {"x": torch.full((2,), value)})
        assert checkpoint.load(tmp_path)["x"].tolist() == [value, value]
    assert len(files(tmp_path)) == 2


def test_killed_after_the_index_was_written(tmp_path):
    checkpoint.save(tmp_path, {"x": torch.zeros(2)})
    old = (tmp_path / "state.a.safetensors").read_bytes()
    checkpoint.save(tmp_path, {"x": torch.ones(2)})
    (tmp_path / "state.a.safetensors").write_bytes(old)  # as if there had been no time to take it away
    assert checkpoint.load(tmp_path)["x"].tolist() == [1, 1]
    checkpoint.save(tmp_path, {"x": torch.full((2,), 2.0)})
    assert checkpoint.load(tmp_path)["x"].tolist() == [2, 2]
    assert files(tmp_path) == ["state.a.safetensors", "state.json"]


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    checkpoint.write_text(path, "first")
    assert path.read_text() == "first"

    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write_text(path, "second")
    assert path.read_text() == "first"


def test_no_pickle(tmp_path):
    class Custom:
        pass

    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, {"x": Custom()})
    assert not (tmp_path / "state.json").exists()
    checkpoint.save(tmp_path, {"x": 1})
    assert json.loads((tmp_path / "state.json").read_text())["tree"] == {"x": 1}


def test_lists_of_plain_values_are_kept_without_a_call_for_each(tmp_path, monkeypatch):
    calls = 0
    strip = checkpoint._strip

    def counted(*args):
        nonlocal calls
        calls += 1
        return strip(*args)

    monkeypatch.setattr(checkpoint, "_strip", counted)
    tree = {"rows": [[j if j <= i else None for j in range(100)] for i in range(100)], "mixed": [1, (2.5, "a", True)]}
    checkpoint.save(tmp_path / "state", tree)
    assert checkpoint.load(tmp_path / "state") == tree | {"mixed": [1, [2.5, "a", True]]}
    assert calls < 200, "a row of counts is saved after each of many experiences"
