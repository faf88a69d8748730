"""Trials that are worse than most before them end early, and in the same place when the search is repeated."""

import pytest

from clsim import loop, pruning, search, tuning
from clsim.engines import many
from clsim.search import Range
from clsim.tuning import Plan, Trial

REQUEST = {"scenario": "split_digits", "backbone": "vit_nano", "strategy": "linear", "epochs": 2, "threads": 1}
FIELDS = {"lr": "1e-7..1e-1", "scenario.train_per_class": "25", "scenario.test_per_class": "5"}


def after(curves, curve):
    """Whether a trial with this curve is hopeless after trials with those."""
    ask = search.TPE({"x": Range(0, 1, False)}, seed=0)
    for each in curves:
        ask.setting()
        ask.tell(each[-1], each)
    ask.setting()
    return ask.hopeless(curve)


def test_a_trial_is_hopeless_below_the_median_of_those_before():
    five = [[0.1, 0.5], [0.2, 0.4], [0.3, 0.3], [0.4, 0.2], [0.5, 0.1]]
    assert after(five, [0.29])
    assert not after(five, [0.31])
    assert not after(five, [0.29, 0.31]), "the median after two experiences is 0.3, too, and the best so far counts"
    assert not after(five[:4], [0.0]), "five trials go to the end"


def test_ended_trials_are_no_measure_for_those_after_them():
    ask = search.TPE({"x": Range(0, 1, False)}, seed=0)
    for accuracy in (0.1, 0.2, 0.3, 0.4):
        ask.setting()
        ask.tell(accuracy, [accuracy])
    ask.setting()
    ask.tell(None, [0.0], ended=True)
    ask.setting()
    assert not ask.hopeless([0.0]), "only four have come to the end"
    ask.tell(0.5, [0.0, 0.5])
    ask.setting()
    assert ask.hopeless([0.19]), "the median of 0.0 to 0.4 is 0.2"


def test_a_failure_and_an_end_are_told_apart_in_words():
    ended = pruning.Hopeless([0.5, 0.25])
    assert str(ended) == "25.0 % after experience 2, so it was ended"
    assert str(Trial({}, None, (), str(ended))) == str(ended)
    assert (str(Trial({}, None, ())), str(Trial({}, 0.5, ()))) == ("failed", "50.0 %")


def test_the_accuracies_of_a_run_that_has_not_begun(tmp_path):
    assert pruning.accuracies(tmp_path) == []


@pytest.mark.slow
def test_a_search_ends_trials_and_repeats_itself_without_learning(tmp_path, monkeypatch):
    said = []
    options, plan = REQUEST | {"out": str(tmp_path)}, Plan(how="tpe", trials=12)
    (first,) = tuning.tune(options, FIELDS, plan, tuning.runner(many.How(), said.append))
    ended = [trial for trial in first.trials if trial.ended]
    assert ended and not first.chosen.ended
    assert all(trial.score is None and trial.runs == () for trial in ended)
    assert sum("so it was ended" in text for text in said) == len(ended)
    for trial in ended:
        assert f"lr={trial.setting['lr']}: {trial.ended}" in first.note
    monkeypatch.setattr(loop.Loop, "_epochs", lambda *args, **kwargs: pytest.fail("it was learned before"))
    (again,) = tuning.tune(options, FIELDS, plan, tuning.runner(many.How()))
    assert again == first


def test_pairs_and_engines_end_no_trial(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(many, "run_all", lambda configs, engine: asked.append(configs) or ([], []))
    options = REQUEST | {"out": str(tmp_path)}
    with pytest.raises(ValueError, match="no setting could be trained"):
        (found,) = tuning.tune(options, FIELDS, Plan(how="tpe", trials=2), tuning.runner(many.How(jobs=2)))
        found.chosen  # noqa: B018
    assert len(asked) == 2
