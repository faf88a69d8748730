"""Fields of strategies that are set and have no effect are refused in one line; fields that have one are not."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from clsim import config, plugins, runner
from clsim.errors import RequestError
from clsim.field_values import field_types
from clsim.strategy import OF_STEPS

TOY = f"{Path(__file__).with_name('toy.py')}:Toy"
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
        ("l2p", {"lr": 0.001}, "lr_base=0.06 sets the rate for a batch of 256"),  # the default's value, but not used
        ("l2p", {"lr_base": 0.1, "lr": 0.001}, "lr_base=0.1 sets the rate for a batch of 256"),
        ("l2p", {"voters": 8}, "each image selects its prompts"),
        ("l2p", {"vote_ties": "topk"}, "each image selects its prompts"),
        ("coda_prompt", {"clip_over": "all"}, "clip_grad=0 sets no limit"),
        ("linear", {"transforms": "tensorflow"}, "it learns from features of whole images"),
        ("finetune", {"warmup_epochs": 2, "schedule": "cosine"}, "warmup_epochs=2 leaves none of 2 epochs for it"),
        ("linear", {"backbone_lr": 0.1}, "no such weights are trained"),
        ("linear", {"head_lr": 0.5, "backbone_lr": 0.5}, "no such weights are trained"),
        ("coop", {"head_lr": 0.5}, "no such weights are trained"),
        ("dapl", {"mask": "all"}, "its softmax is over all prompts"),
        ("mcc", {"trade_off": 2.0}, "this stream has no unlabelled target"),
    ],
)
def test_fields_that_others_make_useless(strategy, fields, why, plan, tmp_path):
    with pytest.raises(RequestError, match=f"has no effect on {strategy}: {why}"):
        check(plan(strategy, tmp_path, **fields))


@pytest.mark.parametrize(("strategy", "part"), [("ncm", "er:50"), ("zero_shot", "er_per_class:5")])
def test_a_memory_that_is_never_replayed_is_refused(strategy, part, plan, tmp_path):
    with pytest.raises(RequestError, match=f"--with {part} has no effect on {strategy}: it takes no training steps"):
        check(plan(strategy, tmp_path, **{"with": part}))


@pytest.mark.parametrize(
    ("strategy", "part", "scenario"),
    [("joint", "ewc:10", {}), ("joint", "er:50", {}), ("linear", "lwf:1", {"protocol": "pair"})],
)
def test_a_part_that_needs_an_earlier_experience_is_said_to_have_none(strategy, part, scenario, plan, tmp_path, capsys):
    assert runner.run_all([plan(strategy, tmp_path, scenario, **{"with": part})], dry_run=True) == []
    assert f"--with {part} has no effect on {strategy}: it learns one experience" in capsys.readouterr().out


def test_a_part_passes_with_a_strategy_that_it_changes(plan, tmp_path, capsys):
    asked = [plan(name, tmp_path, **{"with": "er:50"}) for name in ("ncm", "linear")]
    assert runner.run_all(asked, dry_run=True) == []
    assert "--with er:50 has no effect on ncm: it takes no training steps" in capsys.readouterr().out
    without_boundaries = plan("linear", tmp_path, {"ordered": True, "boundary": False}, **{"with": "er:50"})
    assert runner.run_all([without_boundaries], dry_run=True) == []
    assert "--with" not in capsys.readouterr().out


def test_the_term_of_a_part_may_use_the_mask(plan, tmp_path, finished):
    """DER's cross-entropy is over the classes of the mask, also where the strategy's own loss has no mask."""
    check(plan("dapl", tmp_path, mask="all", **{"with": "der"}))
    losses = [
        finished("dapl", tmp_path, mask=mask, **{"with": "der"}).events["step"]["loss"] for mask in ("seen", "all")
    ]
    assert losses[0][:6].tolist() == losses[1][:6].tolist(), "nothing is replayed in the first experience"
    assert losses[0].tolist() != losses[1].tolist()


def test_rates_of_head_and_backbone_count_where_any_experience_trains_such_weights(plan, tmp_path):
    check(plan("linear", tmp_path, head_lr=0.5))
    check(plan("finetune", tmp_path, head_lr=0.5, backbone_lr=0.5))
    check(plan("linear", tmp_path, backbone_lr=0.5), plan("finetune", tmp_path, backbone_lr=0.5))
    file = tmp_path / "own.py"
    file.write_text('''
from dataclasses import dataclass
from clsim.strategies.finetune import Finetune

@dataclass(kw_only=True)
class Own(Finetune):
    """The head first, and the backbone in the last experience only."""

    def begin(self, learner, experience):
        learner.images.requires_grad_(experience.index == 2)
''')
    (run,) = runner.run_all([plan(f"{file}:Own", tmp_path, backbone_lr=0.5)], quiet=True)
    assert run.summary["strategy"] == "own"


def given(strategies, out, *fields, preset=None):
    options = {"scenario": TOY, "strategy": strategies, "backbone": "vit_nano", "out": out, "preset": preset}
    return config.plan(options, list(fields))


def test_a_field_given_to_one_strategy_is_not_used_by_another(tmp_path):
    check(*given("ncm,linear", tmp_path, "lr=0.1"))
    with pytest.raises(RequestError, match="lr=0.1 has no effect on ncm"):
        check(*given("ncm,linear", tmp_path, "ncm.lr=0.1"))
    check(*given("ncm,linear", tmp_path, "linear.lr=0.1"))


def test_what_only_other_strategies_use_is_said(tmp_path, capsys):
    runner.run_all(given("l2p,linear", tmp_path, "lr=0.01", preset="official"), dry_run=True)
    told = capsys.readouterr().out
    assert "lr=0.01 has no effect on l2p: lr_base=0.03 sets the rate for a batch of 256 images" in told
    assert "linear has no preset 'official': it runs with its defaults" in told
    first, second = given("l2p,linear", tmp_path, preset="official")
    assert (first.preset, second.preset) == ("official", None)
    assert config.RunConfig.from_toml(second.to_toml()) == second, "a run without the preset is read back"


def test_epochs_of_a_stream_that_comes_once_are_said_to_be_one(tmp_path, capsys):
    runner.run_all(given("linear", tmp_path, "epochs=3", "scenario.ordered=true"), dry_run=True)
    assert "epochs=3 has no effect: the images of this stream arrive once" in capsys.readouterr().out
    runner.run_all(given("linear", tmp_path, "scenario.ordered=true"), dry_run=True)
    assert "has no effect" not in capsys.readouterr().out


def test_a_file_of_settings_is_not_refused_and_the_command_line_is(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(f"scenario = '{TOY}'\nbackbone = 'vit_nano'\n[strategy]\nname = 'ncm'\nlr = 0.5\n")
    check(*config.plan({"out": tmp_path}, [], file))
    with pytest.raises(RequestError, match="momentum=0.5 has no effect on ncm"):
        check(*config.plan({"out": tmp_path}, ["momentum=0.5"], file))


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
    check(config.RunConfig.from_toml(asked.to_toml()))


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


OWN = """
import dataclasses
from dataclasses import dataclass
from clsim.strategies.ncm import Ncm
from clsim.strategies.linear import Linear

@dataclass(kw_only=True)
class Other(Linear):
    def build(self, backbone, info):
        self.lr_scale, self.momentum
        return super().build(backbone, info)

@dataclass(kw_only=True)
class Own(Ncm):
    lr_base: float = 0.1  # a name that begins like another one's

    def fit(self, s):
        scores = s.learner.masked_fill, self.lr_base
        BODY
"""


@pytest.mark.parametrize(
    ("body", "used"),
    [
        ("pass", set()),
        ("self.momentum = 1", set()),  # written, not read
        ("self.momentum * 2", {"momentum"}),
        ("getattr(self, 'momentum')", {"momentum"}),
        ("[getattr(self, name) for name in ('momentum', 'lr')]", {"momentum", "lr"}),
        ("vars(self)", set(OF_STEPS)),
        ("dataclasses.asdict(self)", set(OF_STEPS)),
        ("s.elsewhere(self)", set(OF_STEPS)),  # it may read any field
        ("isinstance(self, Ncm)", set()),
    ],
)
def test_a_closed_form_uses_the_fields_that_its_code_reads_by_their_whole_names(body, used, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN.replace("BODY", body))
    own = plugins.load("strategies", f"{file}:Own")
    assert set(OF_STEPS) - own().unused(SimpleNamespace(has_target=False)).keys() == used
