"""EWC, LwF and DER++ as --with names them, and in runs. Their formulas are in test_parts_in_steps.py."""

import pytest
import torch

from clsim import checkpoint, config, plugins, runner
from clsim.errors import RequestError
from clsim.named_parts import named_part
from clsim.parts.ewc import Ewc

ALL = "ewc:10,lwf:0.5,der:0.1:0.5:12,er:6"


# on the command line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ewc:1:2", "write ewc:STRENGTH or ewc,strength=VALUE"),
        ("ewc:-1", "ewc:-1: strength must be a number of at least 0, not -1.0"),
        ("ewc:nan", "ewc:nan: strength must be a number, not 'nan'"),
        ("lwf:x", "lwf:x: alpha must be a number, not 'x'"),
        ("der:1:1", "der:1:1: write der:ALPHA:BETA:SIZE or der,alpha=VALUE"),
        ("der:1:1:0", "der:1:1:0: .*at least 1 image"),
        ("der:1:-1:5", "beta must be a number of at least 0, not -1.0"),
        ("der,alpha=1,bets=2", r"no field 'bets' \(did you mean 'beta'\?\); there are: alpha, beta, size"),
        ("ewcc:1", "did you mean 'ewc'"),
    ],
)
def test_mistakes_in_parts(text, words):
    with pytest.raises(RequestError, match=words):
        named_part(text)


def test_a_method_without_a_loss_takes_no_regulariser(tmp_path):
    with pytest.raises(RequestError, match="ewc:10 adds to the training loss, but ncm learns without one"):
        plan("ncm", tmp_path, "er:5,ewc:10")
    assert plan("ncm", tmp_path, "er:5").parts == ("er:5",)


# in runs


SMALL = {"train_per_class": "6", "test_per_class": "3", "classes_per_experience": "5"}


def plan(strategy, out, parts, precision="fp32"):
    backbone = "clip_nano" if plugins.load("strategies", strategy)().needs_text else "vit_nano"
    options = {"strategy": strategy, "backbone": backbone, "precision": precision, "with": parts, "threads": 1}
    fields = {f"scenario.{name}": value for name, value in SMALL.items()} | {"epochs": "2", "batch_size": "16"}
    (only,) = config.plan(options | {"out": out}, fields, None)
    return only


def finished(*args, **fields):
    (run,) = runner.run_all([plan(*args, **fields)], quiet=True)
    return run


def final(run):
    return checkpoint.load(run.directory / "checkpoint")["learner"]


@pytest.mark.parametrize("name", ["finetune", "linear"])
def test_zero_weight_terms_are_no_ops_and_others_are_not(name, tmp_path):
    plain, zero = finished(name, tmp_path, ()), finished(name, tmp_path, "ewc:0,lwf:0,der:0:0:12")
    assert all(torch.equal(tensor, final(zero)[key]) for key, tensor in final(plain).items())
    for part in ("ewc:10", "lwf:1", "der:1:0:12", "der:0:1:12"):
        other = final(finished(name, tmp_path, part))
        assert not torch.equal(final(plain)["head.weight"], other["head.weight"]), part


@pytest.mark.parametrize("name", ["finetune", "linear", "l2p"])
def test_bfloat16(name, tmp_path):
    run = finished(name, tmp_path, ALL, precision="bf16")
    assert all(torch.isfinite(tensor).all() for tensor in final(run).values() if tensor.is_floating_point())


def test_stiff_springs_hold_what_was_learned(tmp_path):
    """Against the anchor after the first of two experiences, weighed by importance."""
    strain = {}
    for part in ("ewc:0", "ewc:1000"):
        anchors = []

        class Note(Ewc):
            def after_training_exp(self, s, anchors=anchors):
                if self.anchor:
                    energy = [(self.fisher[k] * (p - self.anchor[k]) ** 2).sum() for k, p in learned(s)]
                    anchors.append(torch.stack(energy).sum().item())
                super().after_training_exp(s)

        def learned(s):
            return [(name, p.detach()) for name, p in s.learner.named_parameters() if p.requires_grad]

        strain[part] = anchors
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("clsim.parts.ewc.Ewc", Note)
            finished("linear", tmp_path, part)
    assert 0 < strain["ewc:1000"][0] < 0.2 * strain["ewc:0"][0]
