"""Fields of strategies that are set and have no effect are refused in one line; fields that have one are not."""

from types import SimpleNamespace

import pytest

from clsim import plugins, runner
from clsim.errors import RequestError
from clsim.field_values import field_types
from clsim.strategy import OF_STEPS

VALUES = {
    "optimizer": "sgd", "lr": 0.5, "head_lr": 2.0, "backbone_lr": 2.0, "schedule": "cosine", "warmup_epochs": 1,
    "warmup_lr": 0.5, "momentum": 0.5, "weight_decay": 0.5, "clip_grad": 0.5, "mask": "all", "label_smoothing": 0.5,
    "crop_min": 0.5, "drop_last": True, "crop_interpolation": "bicubic",
}  # fmt: skip


def check(*asked):
    assert runner.run_all(list(asked), dry_run=True, quiet=True) == []


@pytest.mark.parametrize("field", OF_STEPS)
@pytest.mark.parametrize("strategy", ["ncm", "zero_shot"])
def test_methods_without_training_steps_take_none_of_their_settings(strategy, field, plan, tmp_path):
    with pytest.raises(
        RequestError, match=f"{field}={VALUES[field]} has no effect on {strategy}: it takes no training"
    ):
        check(plan(strategy, tmp_path, **{field: VALUES[field]}))


def test_a_field_of_several_strategies_needs_one_that_uses_it(plan, tmp_path):
    check(plan("ncm", tmp_path, lr=0.5), plan("linear", tmp_path, lr=0.5))
    with pytest.raises(RequestError, match="crop_min=0.5 has no effect on (ncm|zero_shot)"):
        check(plan("ncm", tmp_path, crop_min=0.5), plan("zero_shot", tmp_path, crop_min=0.5))
    check(plan("ncm", tmp_path, epochs=1, batch_size=8))


@pytest.mark.parametrize(
    ("strategy", "fields", "why"),
    [
        ("linear", {"crop_min": 0.5}, "it learns from features of whole images"),
        ("linear", {"momentum": 0.5}, "optimizer=adam has none"),
        ("finetune", {"warmup_lr": 0.5}, "warmup_epochs is 0"),
        ("l2p", {"preset": "official", "lr": 0.5}, "lr_base=0.03 sets the rate for a batch of 256"),
        ("l2p", {"lr": 0.5}, "lr_base=0.06 sets the rate for a batch of 256"),
        ("dapl", {"mask": "all"}, "its softmax is over all prompts"),
        ("mcc", {"trade_off": 2.0}, "this stream has no unlabelled target"),
    ],
)
def test_fields_that_others_make_useless(strategy, fields, why, plan, tmp_path):
    with pytest.raises(RequestError, match=f"has no effect on {strategy}: {why}"):
        check(plan(strategy, tmp_path, **fields))


def test_fields_with_an_effect_pass(plan, tmp_path):
    check(plan("linear", tmp_path, optimizer="sgd", momentum=0.5, warmup_epochs=1, warmup_lr=0.5))
    check(plan("finetune", tmp_path, crop_min=0.5))
    check(plan("mcc", tmp_path, {"protocol": "pair"}, trade_off=2.0))
    check(plan("coop", tmp_path, views=2, crop_min=0.5))
    for name in ("l2p", "dualprompt", "coda_prompt", "s_prompts"):
        asked = plan(name, tmp_path, lr_base=0.0, lr=0.5)
        check(asked)
        assert asked.make_strategy().learning_rate == 0.5


def test_the_rate_of_prompt_pools_is_the_one_that_is_given(plan, tmp_path):
    asked = plan("l2p", tmp_path, lr_base=0.128, batch_size=64, lr=0.001)  # lr is the default's value
    assert asked.make_strategy().learning_rate == 0.032


def test_a_runs_own_config_is_never_refused(plan, tmp_path):
    asked = plan("ncm", tmp_path, lr=0.5)
    with pytest.raises(RequestError, match="lr=0.5 has no effect on ncm"):
        check(asked)
    assert runner.run_all([asked], dry_run=True, quiet=True, refuse_unused=False) == []


def test_an_optimizer_of_ones_own_may_read_every_field_of_one(plan, tmp_path):
    (tmp_path / "helper.py").write_text(
        "import torch\n\ndef sgd(how, learner):\n    return torch.optim.SGD("
        "learner.parameters(), how.lr, momentum=how.momentum)\n"
    )
    file = tmp_path / "own.py"
    file.write_text('''
from dataclasses import dataclass
from clsim.strategies.linear import Linear

@dataclass(kw_only=True)
class Own(Linear):
    """A linear head with an optimizer from another file."""

    def configure_optimizer(self, learner):
        from helper import sgd

        return sgd(self, learner)
''')
    check(plan(f"{file}:Own", tmp_path, momentum=0.5))


def test_a_closed_form_that_reads_a_rate_may_be_given_one(plan, tmp_path):
    file = tmp_path / "own.py"
    file.write_text('''
from dataclasses import dataclass
from clsim.strategies.ncm import Ncm

@dataclass(kw_only=True)
class Own(Ncm):
    """A closed form that uses the weight decay as its ridge."""

    def fit(self, s):
        self.ridge = self.weight_decay
        super().fit(s)
''')
    check(plan(f"{file}:Own", tmp_path, weight_decay=0.5))
    with pytest.raises(RequestError, match="lr=0.5 has no effect on own"):
        check(plan(f"{file}:Own", tmp_path, lr=0.5))


@pytest.mark.parametrize("name", plugins.names("strategies"))
def test_the_fields_named_are_fields(name):
    cls, info = plugins.load("strategies", name), SimpleNamespace(has_target=False)
    for preset in ("", *cls.presets):
        values = {key: value for key, value in cls.presets.get(preset, {}).items() if key != "backbone"}
        assert set(cls(**values).unused(info)) <= field_types(cls).keys()


@pytest.mark.parametrize(("strategy", "preset"), [("l2p", "official"), ("l2p", "port"), ("zero_shot", "clip7")])
def test_the_values_of_presets_are_never_refused(strategy, preset, plan, tmp_path):
    check(plan(strategy, tmp_path, preset=preset))
