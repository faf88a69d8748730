"""Pictures of adaptation: of the right images and features, equal after resuming; heat maps over pairs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clsim import compare, config, runner
from clsim.data.streams import Experience
from clsim.errors import RunFailed
from clsim.outputs import Outputs
from clsim.recorders import comparison, pictures
from clsim.recorders.figures import grid_figure, map_figure, to_array
from clsim.recorders.pictures import SHOWN, _spread


def plan(strategy, out, **fields):
    backbone = "clip_nano" if strategy == "dapl" else "vit_nano"
    options = {"scenario": "glyph_pair", "strategy": strategy, "backbone": backbone, "out": out, "precision": "fp32"}
    small = {"scenario.train_per_class": "2", "scenario.test_per_class": "2", "epochs": "2", "batch_size": "20"}
    return config.plan(options, small | fields, None)


@pytest.fixture
def maps(monkeypatch):
    """The input of each map: ({title: points}, classes, domains)."""
    drawn = []
    monkeypatch.setattr(pictures, "map_figure", lambda *args: drawn.append(args) or map_figure(*args))
    return drawn


@pytest.mark.parametrize("strategy", ["dapl", "mcc"])
def test_a_run_on_a_pair_draws_itself(strategy, tmp_path, maps):
    (run,) = runner.run_all(plan(strategy, tmp_path), quiet=True)
    for name in ("confusion", "features"):
        assert (run.directory / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    ((points, classes, domains),) = maps
    assert list(points) == ["before", "after"] and all(each.shape == (80, 2) for each in points.values())
    assert not np.allclose(points["before"], points["after"])
    assert np.bincount(classes).tolist() == [4] * 20 and domains == ["real"] * 40 + ["sketch"] * 40
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run.directory))
    board.Reload()
    assert {"confusion", "features"} <= set(board.Tags()["images"])


def test_the_maps_of_an_interrupted_run_equal_those_of_a_whole_one(tmp_path, maps, broken_off):
    runner.run_all(plan("dann", tmp_path / "whole"), quiet=True)
    broken_off(1, lambda: runner.run_all(plan("dann", tmp_path / "broken"), quiet=True))
    assert not list((tmp_path / "broken").rglob("summary.json"))
    runner.run_all(plan("dann", tmp_path / "broken"), quiet=True)
    (whole, *_), (again, *_) = maps
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\3\4 and nothing"])
def test_outputs_kept_from_before_training_that_are_broken_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "before.npz").write_bytes(content)
    with pytest.raises(RunFailed, match=r"before\.npz is missing or broken .* --fresh"):
        pictures._stored(tmp_path / "before.npz")


def test_a_map_shows_at_most_shown_images(make_table):
    table = make_table(7, 100)
    rows = _spread(Experience(0, table, np.arange(700), tuple(range(7)), "all"))
    assert SHOWN / 2 < len(rows) <= SHOWN and set(table.labels[rows]) == set(range(7))


def test_images_with_equal_features_lie_on_one_point():
    assert pictures._flat(np.full((20, 3), -2.0, dtype=np.float32)).tolist() == [[0, 0]] * 20


@pytest.mark.parametrize(("features", "shown"), [("learn", 5), ("frozen", 3), (None, 3)])
def test_maps_show_features_or_else_logits(tmp_path, make_table, monkeypatch, features, shown):
    table, mapped, board = make_table(2, 4), [], SimpleNamespace(picture=lambda *args: None)
    monkeypatch.setattr(pictures, "_flat", lambda points: mapped.append(points) or points[:, :2])

    def outputs(rows):  # the loader below gives rows in place of images
        found = torch.from_numpy(rows).float()[:, None]
        learned = s.step if features == "learn" else 0
        return Outputs(found.expand(-1, 3) + s.step, found.expand(-1, 5) * (1 + learned) if features else None)

    class Rows:
        reads = ("features",)

        def unlabelled(self, rows, size):
            yield len(rows), np.append(rows, 6)  # the last image only fills the batch up

    target, source = (Experience(0, table, np.array(rows), (0, 1), "all") for rows in ([0, 5], [2, 7, 3]))
    pair = SimpleNamespace(test_stream=(target, None, source))
    drawn = pictures.Pictures(tmp_path, pair, {table.fingerprint: Rows()}, board)
    info = SimpleNamespace(class_names=table.class_names)
    s = SimpleNamespace(step=0, learner=torch.nn.Identity(), outputs=outputs, info=info, trained=1)
    s.confusion = np.eye(2, dtype=np.int64)
    drawn.before_training(s)
    s.step = 1
    drawn.before_training(s)  # of a resumed run: what was kept stays
    drawn.after_training(s)
    rows = np.array([[2.0], [7.0], [3.0], [0.0], [5.0]]).repeat(shown, axis=1)  # the source's images, then the target's
    assert np.array_equal(mapped[0], rows)
    assert np.array_equal(mapped[1], 2 * rows if features == "learn" else rows + 1)


def test_confusions_are_shares_of_a_class(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(pictures, "grid_figure", lambda *args: seen.append(args) or grid_figure(*args))
    (run,) = runner.run_all(plan("source_only", tmp_path), quiet=True)
    values, rows, columns, title, _ = seen[0]
    counts = np.array(run.matrix["confusion"]["target"])
    assert np.allclose(values, 100 * counts / 2) and "sketch" in title
    assert len(rows) == len(columns) == 20


def test_every_pair_as_a_heat_map(tmp_path):
    for source, target in (("real", "sketch"), ("sketch", "real"), ("real", "quickdraw")):
        fields = {"scenario.source": source, "scenario.target": target}
        runner.run_all(plan("source_only", tmp_path / "runs", **fields), quiet=True)
    groups = compare.group(compare.find([tmp_path / "runs"])[0])
    ((title, figure),) = comparison.pairs_figures(groups).items()
    assert "glyph_pair" in title and "source_only" in title
    shown = figure.axes[0].images[0].get_array().filled(np.nan)
    assert np.isnan(shown).sum() == 9 - 3
    found = {group.runs[0].scenario_settings["target"]: group.mean("target_accuracy") for group in groups}
    assert shown[1, 0] == pytest.approx(100 * found["quickdraw"]), "rows are sources, by name"
    files = comparison.draw(groups, tmp_path / "plot.png")
    assert [file.name for file in files] == ["plot.png", "plot-pairs.png"] and all(file.exists() for file in files)


def test_grids_of_any_size_have_names():
    figure = grid_figure(
        np.full((40, 2), 50.0), [f"row {i}" for i in range(40)], ["a", "b"], "title", ("row", "column")
    )
    assert to_array(figure).ndim == 3
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"row {i}" for i in range(0, 40, 2)]
