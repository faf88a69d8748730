"""Hyper-parameters are chosen on validation images, by the same protocol for every strategy."""

import json

import pytest

from clsim import cli, tuning
from clsim.errors import RequestError
from clsim.results import Run, load
from clsim.tuning import Plan, Trial, Tuned

NANO = {"scenario": "split_digits", "backbone": "vit_nano", "epochs": 1, "seed": "0,1", "threads": 1}


def scored(score_of, seen):
    """A runner that trains nothing: `score_of(config)` is a run's score, None a failure."""

    def run(configs, hopeless=None):
        seen.extend(configs)
        scores = [score_of(config) for config in configs]
        return [
            None if score is None else Run(config.out, {}, {}, {"metrics": {"average_accuracy": score}})
            for config, score in zip(configs, scores, strict=True)
        ]

    return run


def test_the_best_setting_is_chosen_with_the_first_seed_on_the_first_experiences():
    seen = []
    runner = scored(lambda config: 1 - abs(config.strategy_fields["lr"] - 0.1), seen)
    options = NANO | {"strategy": "linear"}
    (tuned,) = tuning.tune(options, {"lr": "0.01|0.1|1.0", "momentum": "0.5", "optimizer": "sgd"}, Plan(2), runner)
    assert [(each.seed, each.validation, each.strategy_fields["momentum"]) for each in seen] == [(0, 2, 0.5)] * 3
    assert tuned.chosen.setting == {"lr": "0.1"}
    final = tuning.chosen_runs(options, {"lr": "0.01|0.1|1.0", "momentum": "0.5", "optimizer": "sgd"}, [tuned])
    assert [(each.seed, each.validation, each.strategy_fields["lr"]) for each in final] == [
        (0, None, 0.1),
        (1, None, 0.1),
    ]
    assert final[0].note == (
        "lr=0.1 was chosen by grid search among 3 settings with seed 0, by average accuracy on validation images "
        "(a fifth of the training images of the first 2 experiences; no test image was used): "
        "lr=0.01: 91.0 %; lr=0.1: 100.0 %; lr=1.0: 10.0 %"
    )


def test_every_strategy_has_its_own_choice():
    seen = []
    runner = scored(lambda config: config.strategy_fields["lr"] * (1 if config.strategy == "lora" else -1), seen)
    options = NANO | {"strategy": "linear,lora"}
    fields = {"lr": "0.1|0.2", "lora.rank": "2|4", "scenario.train_per_class": "5"}
    linear, lora = tuning.tune(options, fields, Plan("all"), runner)
    assert linear.chosen.setting == {"lr": "0.1"}
    assert lora.chosen.setting == {"lr": "0.2", "lora.rank": "2"}, "the first of equals"
    assert (len(linear.trials), len(lora.trials)) == (2, 4)
    assert {each.validation for each in seen} == {"all"}
    final = tuning.chosen_runs(options, fields, [linear, lora])
    assert [(each.strategy, each.strategy_fields["lr"]) for each in final] == [
        *([("linear", 0.1)] * 2),
        *([("lora", 0.2)] * 2),
    ]
    assert {each.scenario_fields["train_per_class"] for each in final} == {5}


def test_a_setting_that_fails_is_not_chosen():
    runner = scored(lambda config: None if config.strategy_fields["lr"] > 1 else 0.5, [])
    (tuned,) = tuning.tune(NANO | {"strategy": "linear"}, {"lr": "1e9|0.1"}, Plan(), runner)
    assert [trial.score for trial in tuned.trials] == [None, 0.5]
    assert tuned.chosen.setting == {"lr": "0.1"}
    assert "lr=1e9: failed" in tuned.note


def test_a_field_that_a_strategy_does_not_use_is_not_searched_for_it():
    seen = []
    options = NANO | {"strategy": "ncm,linear"}
    ncm, linear = tuning.tune(options, {"lr": "0.1|0.2"}, Plan(), scored(lambda config: 0.5, seen))
    assert (len(ncm.trials), len(linear.trials)) == (0, 2)
    with pytest.raises(RequestError, match="lr=0.1 has no effect on ncm: it takes no training steps"):
        tuning.tune(NANO | {"strategy": "ncm"}, {"lr": "0.1|0.2"}, Plan(), scored(lambda config: 0.5, seen))


def test_a_strategy_without_the_fields_is_not_tuned():
    seen = []
    options = NANO | {"strategy": "l2p,linear"}
    pools, linear = tuning.tune(options, {"l2p.top_k": "1|2"}, Plan(), scored(lambda config: 0.5, seen))
    assert len(pools.trials) == 2
    assert linear.trials == ()
    assert linear.note == ""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "nothing to choose from"),
        ({"lr": "0.1"}, "nothing to choose from"),
        ({"scenario.order_seed": "0|1"}, "belongs to the stream"),
        ({"rank": "1|2"}, "has the field 'rank'|no field 'rank'"),
        ({"lora.rank": "1|2"}, "no strategy 'lora'"),
        ({"lr": "0.1|fast"}, "fast"),
        ({"lr": "0.1..1"}, "a grid needs the values of lr"),
        ({"lr": "0.1|1", "backbone_lr": "0.5"}, "backbone_lr=0.5 has no effect on linear"),
    ],
)
def test_requests_without_sense(fields, words):
    with pytest.raises(RequestError, match=words):
        tuning.tune(NANO | {"strategy": "linear"}, fields, Plan(), scored(lambda config: 0.5, []))


def test_options_have_one_value():
    for option, words in (("epochs", "write epochs=a|b"), ("backbone", "only fields of strategies are searched")):
        with pytest.raises(RequestError, match=words.replace("|", r"\|")):
            tuning.tune(
                NANO | {"strategy": "linear", option: "1|2"}, {"lr": "1|2"}, Plan(), scored(lambda config: 0, [])
            )


def test_a_field_of_one_strategy_is_before_that_of_all():
    seen = []
    fields = {"linear.lr": "0.1", "lr": "0.3|0.4"}
    options = NANO | {"strategy": "linear,lora"}
    linear, lora = tuning.tune(options, fields, Plan(), scored(lambda config: 0.5, seen))
    assert (linear.trials, len(lora.trials)) == ((), 2)
    final = tuning.chosen_runs(options, fields, [linear, lora])
    assert [(each.strategy_fields["lr"], each.note is None) for each in final[::2]] == [(0.1, True), (0.3, False)]


def test_a_preset_that_only_some_strategies_have():
    options = NANO | {"strategy": "l2p,linear", "preset": "paper", "epochs": None}
    pools, linear = tuning.tune(options, {"lr_base": "0.1|0.2"}, Plan(), scored(lambda config: 0.5, []))
    assert (len(pools.trials), linear.trials) == (2, ())
    final = tuning.chosen_runs(options, {"lr_base": "0.1|0.2"}, [pools, linear])
    assert [each.preset for each in final] == ["paper", "paper", None, None]


def test_a_strategy_in_a_file_by_a_relative_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom strategies.linear import Linear\n\n\n"
        "@dataclass(kw_only=True)\nclass Mine(Linear):\n    scale: float = 1.0  # a field\n\n"
        "    def build(self, backbone, info):\n"
        "        assert self.scale > 0\n        return super().build(backbone, info)\n"
    )
    monkeypatch.chdir(tmp_path)
    (tuned,) = tuning.tune(
        NANO | {"strategy": "mine.py:Mine"}, {"scale": "1|2"}, Plan(), scored(lambda config: 0.5, [])
    )
    assert [trial.setting for trial in tuned.trials] == [{"scale": "1"}, {"scale": "2"}]


def test_a_run_that_was_finished_before_has_no_note_of_the_choice(tmp_path):
    (wanted,) = tuning.chosen_runs(
        NANO | {"strategy": "linear", "seed": 0, "note": "new"}, {}, [Tuned("linear", (), 0, Plan())]
    )
    old, new = (Run(tmp_path, {}, {}, {"notes": {"note": text}}) for text in ("old", "new"))
    assert tuning.without_note([wanted], [new]) == tuning.without_note([wanted], [None]) == []
    assert tuning.without_note([wanted], [old]) == [
        f"{tmp_path} was finished before: its notes do not have this choice"
    ]


def test_tpe_asks_with_the_scores_before():
    seen = []
    runner = scored(lambda config: -abs(config.strategy_fields["lr"] - 0.01), seen)
    plan = Plan(how="tpe", trials=25)
    (tuned,) = tuning.tune(NANO | {"strategy": "linear"}, {"lr": "1e-4..1"}, plan, runner)
    assert len(seen) == 25
    assert 0.003 < float(tuned.chosen.setting["lr"]) < 0.03


def test_what_was_tried_is_written(tmp_path):
    trials = (Trial({"lr": "0.1"}, 0.5, ("a",)), Trial({"lr": "1"}, None, ()))
    fields = {"lr": "0.1|1"}
    options = NANO | {"strategy": "linear", "out": str(tmp_path)}
    tuned = Tuned("linear", trials, 0, Plan())
    file, again, other = (
        tuning.record(tuned, tuning.chosen_runs(options, fields, [tuned]), options | more, fields)
        for more in ({}, {}, {"epochs": 2})
    )
    assert file == again != other
    assert (file.parent, file.name[:20]) == (tmp_path / "tuning", "split_digits-linear-")
    assert json.loads(file.read_text()) == {
        "strategy": "linear",
        "search": "grid",
        "experiences": 3,
        "seed": 0,
        "figure": "average_accuracy on validation images",
        "trials": [
            {"setting": {"lr": "0.1"}, "score": 0.5, "runs": ["a"], "ended": ""},
            {"setting": {"lr": "1"}, "score": None, "runs": [], "ended": ""},
        ],
        "chosen": {"lr": "0.1"},
    }


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_command(tmp_path, capsys, jobs):
    command = f"tune --strategy linear --backbone vit_nano --epochs 1 --seed 0,1 --jobs {jobs} --threads 1".split()
    command += ["weight_decay=0|1e30", "optimizer=sgd", "lr=0.1", "scenario.train_per_class=5", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "chosen: weight_decay=0" in printed.out
    assert "failed" in printed.out + printed.err
    final = [load(each.parent) for each in sorted((tmp_path / "split_digits").rglob("summary.json"))]
    assert [run.summary["seed"] for run in final] == [0, 1]
    for run in final:
        assert run.summary["notes"]["note"].startswith(
            "weight_decay=0 was chosen by grid search among 2 settings with seed 0"
        )
    (trial,) = [load(each.parent) for each in (tmp_path / "split_digits.validation").rglob("summary.json")]
    assert len(trial.matrix["total"]) == 3
    assert trial.summary["notes"]["note"] == "trial: weight_decay=0"
