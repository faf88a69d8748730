"""tests/benchmarks/tables.py, on digits in place of CIFAR-100."""

import importlib.util
import sys
from pathlib import Path

import pytest

from clsim import tuning
from clsim.errors import RequestError
from clsim.results import Run


@pytest.fixture
def tables(monkeypatch):
    file = Path(__file__).parent / "benchmarks" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "tables", module)  # where its dataclasses look for their module
    spec.loader.exec_module(module)
    monkeypatch.setattr(
        module, "TRANSFER", {"scenario": "transfer", "scenario.train": "50", "scenario.test_per_class": "5"}
    )
    small = {"scenario.train_per_class": "5", "scenario.test_per_class": "3", "scenario.classes_per_experience": "5"}
    monkeypatch.setattr(module, "SPLIT", {"scenario": "split_digits", **small})
    return module


def call(tables, out, *words):
    tables.main(["--out", str(out), "--backbone", "vit_nano", "--threads", "1", "--seeds", "0,1", *words])


def rows(text):
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line for line in lines}


@pytest.mark.slow
def test_both_tables_with_resume_and_rows_for_what_is_missing(tables, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "TUNERS", ("linear", "not_there_yet"))
    monkeypatch.setattr(tables, "STREAM_ONLY", ("l2p",))
    call(tables, tmp_path, "--epochs", "1")
    text = capsys.readouterr().out
    transfer, split = text.split("Split CIFAR-100, 1 epochs, seeds 0,1:")
    assert "skipped: there is no such strategy yet" in "".join(rows(transfer)["`not_there_yet`"])
    linear = rows(transfer)["`linear`"]
    assert float(linear[1]) in (1e-3, 3e-3, 9e-3) and "±" in linear[2] and linear[3:5] == ["330", "1.19"]
    assert rows(transfer)["`ncm`"][1].strip() == "" and rows(transfer)["`ncm`"][3] == "0", "no rate to choose"
    assert rows(split)["`ncm`"][5] == "0" and {"`l2p`", "`finetune mask=current`"} < set(rows(split))
    assert "`l2p`" not in rows(transfer)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    tuned = [path for path in made if ".validation" in str(path)]
    assert len(tuned) == 3 and len(made) == 3 + 2 * 2 + 4 * 2
    call(tables, tmp_path, "--epochs", "1")
    assert capsys.readouterr().out == text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")} == made


def test_the_rate_is_chosen_on_training_images_by_the_first_seed(tables, tmp_path, monkeypatch):
    asked = []

    def run(configs, hopeless=None):
        asked.extend(configs)
        made = Run(tmp_path, {}, {}, {"metrics": {"average_accuracy": 0.5}})
        return [None if each.strategy_fields["lr"] < 2e-3 else made for each in configs]

    options = {"scenario": "transfer", "out": str(tmp_path), "seed": "5,6"}
    bench = tables.Bench(options, {}, run, tuning.Plan("all"))
    _, chosen = bench.runs(tables.Method("linear"))
    assert chosen == {"lr": "0.003"}, "the lower one of equals"
    trials, final = asked[:3], asked[3:]
    assert [(each.seed, each.validation, each.strategy_fields["lr"]) for each in trials] == [
        (5, "all", 1e-3),
        (5, "all", 3e-3),
        (5, "all", 9e-3),
    ]
    assert [each.validation for each in final] == [None, None]
    assert [(each.seed, each.strategy_fields["lr"]) for each in final] == [(5, 3e-3), (6, 3e-3)]
    monkeypatch.setattr(tables, "RATES", (0.1, 0.2))
    with pytest.raises(RequestError, match="no setting could be trained"):
        bench.runs(tables.Method("linear"))


def test_rates_are_those_of_the_field_that_a_method_has(tables):
    assert tables.Method("l2p").rates == {"lr_base": "0.02|0.06|0.18"}
    assert tables.Method("finetune", {"lr": "0.3"}).rates == {"lr": "0.1|0.3|0.9"}
    assert tables.Method("ncm").rates == {}


def test_only_takes_names_of_the_tables(tables, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(tables, tmp_path, "--only", "lorra")
    assert "--only lorra" in capsys.readouterr().err
