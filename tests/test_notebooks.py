"""clsim.notebooks: `clsim.compare(...)` as an object, and what notebooks show; nothing is written as it is."""

import builtins
import subprocess
import sys
import types
from dataclasses import replace

import pytest

import clsim
from clsim import compare, notebooks
from clsim.errors import RequestError

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture(scope="module")
def runs(finished, tmp_path_factory):
    """Three finished runs, two of them with the same settings."""
    out = tmp_path_factory.mktemp("runs")
    return [finished("linear", out, epochs=1, seed=seed) for seed in (0, 1)] + [finished("ncm", out)]


def test_compare_is_a_function_and_a_module(runs):
    code = (
        "import sys, clsim; clsim.compare; assert 'clsim.compare' in sys.modules; from clsim import compare as a;"
        "import clsim.compare as b; from clsim.compare import report; assert a is b is clsim.compare and report;"
        f"assert len(clsim.compare({str(runs[0].directory)!r}).groups) == 1; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert isinstance(compare, types.ModuleType) and "clsim.compare" in repr(compare)


def test_runs_and_directories_in_any_nesting_are_compared_once_each(runs):
    first, second, third = runs
    out = first.directory.parents[2]
    expected = clsim.compare(out)
    assert [(each.strategy, len(each.runs)) for each in expected.groups] in (
        [("linear", 2), ("ncm", 1)],
        [("ncm", 1), ("linear", 2)],
    )
    for given in ([first, [second, str(third.directory)]], [out, first], [runs]):
        found = clsim.compare(*given)
        assert found.records() == expected.records()
    assert len(clsim.compare([first, second]).groups) == 1
    with pytest.raises(RequestError, match="no directory"):
        clsim.compare("nowhere")


def test_records_have_every_metric_of_every_run(runs):
    (row,) = clsim.compare(runs[:2]).records()
    long = clsim.compare(runs[:2]).records(long=True)
    assert [each["seed"] for each in long] == [0, 1]
    for each, run in zip(long, runs, strict=False):
        assert each["directory"] == str(run.directory) and each["config_hash"] == run.summary["config_hash"]
        for name, value in run.metrics.items():
            assert value is None or each[f"{name}_percent"] == pytest.approx(100 * value, abs=1e-4)
    accuracies = [each["average_accuracy_percent"] for each in long]
    assert row["average_accuracy_percent"] == pytest.approx(sum(accuracies) / 2, abs=1e-3)
    assert row["sample_accuracy_percent"] is not None and row["seeds"] == 2


def test_pandas_gets_the_records_and_is_asked_for_where_it_is_missing(runs, monkeypatch):
    table = clsim.compare(runs)
    fake = types.ModuleType("pandas")
    fake.DataFrame = types.SimpleNamespace(from_records=lambda rows: ("frame", rows))
    monkeypatch.setitem(sys.modules, "pandas", fake)
    assert table.to_pandas() == ("frame", table.records())
    assert table.to_pandas(long=True) == ("frame", table.records(long=True))
    monkeypatch.delitem(sys.modules, "pandas")
    whole = builtins.__import__

    def without(name, *more):
        if name == "pandas":
            raise ImportError(name)
        return whole(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError, match="needs pandas: pip install pandas"):
        table.to_pandas()


def test_plot_is_a_figure_with_a_point_for_each_group(runs):
    figure = clsim.compare(runs).plot()
    (axes,) = figure.axes
    assert "average accuracy" in axes.get_title() or "accuracy" in axes.get_ylabel()
    assert {"linear", "ncm"} <= {text.get_text() for text in axes.texts}
    with pytest.raises(RequestError, match="no finished run to draw"):
        notebooks.Comparison(()).plot()


def test_html_shows_the_numbers_and_escapes_every_text(runs):
    run = runs[0]
    html = run._repr_html_()
    assert f"{100 * run.metrics['average_accuracy']:.1f} %" in html and "linear vit_nano, seed 0" in html
    assert "<td>lr</td>" in html and "forward transfer" not in html  # undefined for it
    summary = run.summary | {"strategy": "<script>alert(1)</script>", "backbone": "a&b"}
    bad = replace(run, summary=summary, config=run.config | {"note": "<b>", "preset": "<i>"})
    for text in (bad._repr_html_(), clsim.compare(bad)._repr_html_()):
        assert "<script>" not in text and "&lt;script&gt;" in text and "a&amp;b" in text and "<i>" not in text
    table = clsim.compare(runs)._repr_html_()
    assert table.count("<tr>") == 3 and table.count("<th>average accuracy %</th>") == 1


def test_unfinished_runs_are_named_not_compared(runs, tmp_path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.toml").write_text("seed = 0\n")
    assert clsim.compare(tmp_path)._repr_html_() == f"<p>no finished run; not finished: {tmp_path / 'begun'}</p>"
    assert clsim.compare(tmp_path, runs)._repr_html_().endswith(f"<p>not finished: {tmp_path / 'begun'}</p>")
