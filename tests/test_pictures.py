"""Pictures of adaptation: drawn by a run, of the right images, and again after resuming; heat maps over pairs."""

import numpy as np
import pytest

from clsim import compare, config, runner
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
    """What each map was drawn from: ({title: points}, classes, domains)."""
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


def test_what_was_before_is_kept_over_an_interruption(tmp_path, maps, broken_off):
    runner.run_all(plan("dann", tmp_path / "whole"), quiet=True)
    broken_off(1, lambda: runner.run_all(plan("dann", tmp_path / "broken"), quiet=True))
    assert not list((tmp_path / "broken").rglob("summary.json"))
    runner.run_all(plan("dann", tmp_path / "broken"), quiet=True)
    (whole, *_), (again, *_) = maps
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_only_so_many_images_are_on_a_map(make_table):
    from clsim.data.streams import Experience

    table = make_table(7, 100)
    rows = _spread(Experience(0, table, np.arange(700), tuple(range(7)), "all"))
    assert SHOWN / 2 < len(rows) <= SHOWN and set(table.labels[rows]) == set(range(7))


def test_images_that_a_learner_does_not_tell_apart_lie_on_one_point():
    assert pictures._flat(np.full((20, 3), -2.0, dtype=np.float32)).tolist() == [[0, 0]] * 20


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
