"""Runs on disk: killed, interrupted, repeated, changed; from the command line and from Python."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import clsim
from clsim import checkpoint, config, provenance, runner
from clsim.errors import RequestError, RunFailed

pytestmark = pytest.mark.usefixtures("without_pictures")

SMALL = {"scenario.train_per_class": 10, "scenario.test_per_class": 5, "epochs": 2, "batch_size": 8}

KILLER = '''
import os, signal
from dataclasses import dataclass
from pathlib import Path
from clsim.strategies.finetune import Finetune

@dataclass(kw_only=True)
class Killer(Finetune):
    """Fine-tuning that kills its own process once, at a given step."""

    at: int = 12  # the step

    def after_update(self, s):
        alive = Path(__file__).with_name("killed")
        if s.step == self.at and not alive.exists():
            alive.touch()
            os.kill(os.getpid(), signal.SIGKILL)
'''


def small(**options):
    return clsim.run(**({"backbone": "vit_nano", "precision": "fp32"} | SMALL | options))


def weights(run):
    return checkpoint.load(run.directory / "checkpoint")["learner"]


def command(*words, cwd):
    fields = [f"{name}={value}" for name, value in SMALL.items()]
    line = [sys.executable, "-m", "clsim", "run", "--backbone", "vit_nano", "--precision", "fp32", *fields, *words]
    # jobs that a shell starts in the background ignore Ctrl-C, and what they start inherits that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(line, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The run of a process that nobody killed."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "killer.py").write_text(KILLER)
    process = command("--strategy", f"{folder}/killer.py:Killer", "--threads", "2", "at=1000", cwd=folder)
    _, err = process.communicate()
    assert process.returncode == 0, err
    (summary,) = folder.rglob("summary.json")
    return clsim.load(summary.parent)


# with a checkpoint after every step, a run goes on in the middle of an epoch
@pytest.mark.parametrize(("at", "minutes"), [(1, 10), (7, 0), (12, 10), (29, 0)])
def test_killed_at_any_moment_it_ends_bit_identical(at, minutes, unbroken, tmp_path):
    (tmp_path / "killer.py").write_text(KILLER)
    words = ("--strategy", f"{tmp_path}/killer.py:Killer", "--threads", "2", f"at={at}")
    words += ("--checkpoint-minutes", str(minutes))
    first = command(*words, cwd=tmp_path)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert not list(tmp_path.rglob("summary.json"))
    if minutes == 0:
        (folder,) = tmp_path.rglob("checkpoint")
        assert checkpoint.load(folder)["step"] >= at - 2
    second = command(*words, cwd=tmp_path)
    _, err = second.communicate()
    assert second.returncode == 0, err
    (summary,) = (tmp_path / "runs").rglob("summary.json")
    broken = clsim.load(summary.parent)
    assert broken.matrix == unbroken.matrix and broken.metrics == unbroken.metrics
    assert all(torch.equal(weights(broken)[name], tensor) for name, tensor in weights(unbroken).items())
    assert broken.events["step"]["step"].tolist() == unbroken.events["step"]["step"].tolist()
    assert broken.events["step"]["loss"].tolist() == unbroken.events["step"]["loss"].tolist()


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(tmp_path):
    process = command("--strategy", "finetune", "--checkpoint-minutes", "0", "epochs=200", cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("state.json")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "same command" in err and "Traceback" not in err
    assert list(tmp_path.rglob("state.json")) and not list(tmp_path.rglob("summary.json"))


SLOW = '''
import time
from dataclasses import dataclass
from torch import nn
from clsim.strategies.finetune import Finetune

class Slow(nn.Module):
    """A learner that needs a second for each batch of evaluation."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        if not self.training:
            print("evaluating", flush=True)
            time.sleep(1)
        return self.inner(batch)

@dataclass(kw_only=True)
class SlowEvaluation(Finetune):
    """Fine-tuning with it."""

    def build(self, backbone, info):
        return Slow(super().build(backbone, info))
'''


def test_ctrl_c_stops_an_evaluation_at_once(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    words = ("--strategy", f"{tmp_path}/slow.py:SlowEvaluation", "scenario.test_per_class=150")
    process = command(*words, cwd=tmp_path)
    while process.stdout.readline() not in ("evaluating\n", ""):
        pass
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "same command" in err and "Traceback" not in err
    assert time.monotonic() - began < 5, "two seconds, and more only on a busy machine"


def test_a_finished_run_is_read_back_and_fresh_starts_anew(tmp_path, monkeypatch):
    first = small(strategy="linear", out=tmp_path)
    written = (first.directory / "summary.json").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(runner.Job, "_run", lambda *args: pytest.fail("it was finished"))
        assert small(strategy="linear", out=tmp_path).metrics == first.metrics
    again = small(strategy="linear", out=tmp_path, fresh=True)
    assert again.directory == first.directory
    assert (again.directory / "summary.json").stat().st_mtime_ns > written


def test_a_run_made_by_two_versions_of_the_code_says_so_whenever_it_is_read(tmp_path, broken_off, finished, capsys):
    def work():
        return finished("linear", tmp_path, checkpoint_minutes=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clsim.provenance.code_digest", lambda: "0123456789ab")
        broken_off(4, work)
    now = provenance.code_digest()
    broken_off(4, work)
    run = work()
    assert capsys.readouterr().err.count("was started by other code of clsim; use --fresh") == 2
    assert run.summary["code"] == f"0123456789ab+{now}"
    assert run.code_note is not None and "repeat with --fresh" in run.code_note
    assert json.loads((run.directory / "env.json").read_text())["code"] == run.summary["code"]


GREETING = """
from dataclasses import dataclass
from clsim.strategies.linear import Linear

@dataclass(kw_only=True)
class Greeting(Linear):
    def before_training(self, s):
        s.log("hello", 1.0)
"""


def test_what_is_logged_before_training_is_in_the_journal_once(tmp_path, broken_off, finished):
    (tmp_path / "greeting.py").write_text(GREETING)

    def work():
        return finished(f"{tmp_path}/greeting.py:Greeting", tmp_path, checkpoint_minutes=0)

    broken_off(1, work)
    broken_off(3, work)
    assert work().events["log"]["name"].tolist() == ["hello"]


def test_two_processes_never_work_in_one_directory(tmp_path):
    run = small(strategy="linear", out=tmp_path)
    with runner.alone_in(run.directory):
        assert small(strategy="linear", out=tmp_path).metrics == run.metrics, "reading is free"
        with pytest.raises(RequestError, match="another process is at work in .*linear"):
            small(strategy="linear", out=tmp_path, fresh=True)
    assert small(strategy="linear", out=tmp_path, fresh=True).metrics == run.metrics


def test_a_new_start_that_was_killed_begins_again(tmp_path, finished, monkeypatch, same_run):
    def work(**given):
        return finished("linear", tmp_path, **given)

    whole = work()
    for stop in (1, 3, 5):
        unlink, removed = Path.unlink, []

        def counted(path, unlink=unlink, removed=removed, stop=stop, **options):
            if path.is_relative_to(whole.directory):
                removed.append(path)
                if len(removed) > stop:
                    raise KeyboardInterrupt
            unlink(path, **options)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "unlink", counted)
            runner.run_one(config.RunConfig.from_toml((whole.directory / "config.toml").read_text()), fresh=True)
        same_run(work(), whole)


REMOVER = """
import shutil
from dataclasses import dataclass
from pathlib import Path
from clsim import config
from clsim.strategies.linear import Linear

@dataclass(kw_only=True)
class Remover(Linear):
    what: str = "nothing"

    def after_update(self, s):
        if s.step == 5 and self.what == "cache":
            shutil.rmtree(config.cache_dir())
        if s.step == 5 and self.what in ("removed", "moved"):
            for folder in Path(__file__).parent.rglob("vit_nano-s0-*"):
                folder.rename(folder.parent / "moved") if self.what == "moved" else shutil.rmtree(folder)
"""


@pytest.mark.parametrize("what", ["removed", "moved"])
def test_a_run_directory_that_goes_meanwhile_is_named_and_nothing_is_written_in_its_place(tmp_path, finished, what):
    (tmp_path / "remover.py").write_text(REMOVER)
    with pytest.raises((RunFailed, OSError), match=r"vit_nano-s0-") as caught:
        finished(f"{tmp_path}/remover.py:Remover", tmp_path, what=what)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("summary.json")) and not list(tmp_path.rglob("vit_nano-s0-*/config.toml"))


def test_a_cache_that_is_removed_while_a_run_goes_on(tmp_path, finished, monkeypatch, weights):
    (tmp_path / "remover.py").write_text(REMOVER)
    name = f"{tmp_path}/remover.py:Remover"
    monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path / "cache"))
    run = finished(name, tmp_path, what="cache")
    monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path / "another"))
    other = finished(name, tmp_path / "other", what="nothing")
    assert run.matrix == other.matrix
    assert all(torch.equal(tensor, weights(other)[key]) for key, tensor in weights(run).items())


def test_another_configuration_gets_another_directory(tmp_path):
    runs = [
        small(strategy="linear", out=tmp_path),
        small(strategy="linear", out=tmp_path, lr=0.01),
        small(strategy="linear", out=tmp_path, seed=1),
        small(strategy="linear", out=tmp_path, **{"scenario.order_seed": 3}),
        small(strategy="linear", out=tmp_path, precision="bf16"),
        small(strategy="linear", out=tmp_path, **{"with": "er:10"}),
    ]
    assert len({run.directory for run in runs}) == len(runs)
    assert runs[0].matrix["classes"] != runs[3].matrix["classes"]


def test_rehearsal_is_a_part_that_any_strategy_takes(tmp_path):
    plain, rehearsed = (
        small(strategy="linear", out=tmp_path),
        small(strategy="linear", out=tmp_path, **{"with": "er:40"}),
    )
    assert rehearsed.summary["cost"]["memory_bytes"] == 40 * 3 * 8 * 8
    assert plain.summary["cost"]["memory_bytes"] == 0
    # a head of 10 classes on 32 features, of four bytes each, kept for five experiences
    assert plain.summary["cost"]["stored_bytes_per_experience"] == 4 * 330 / 5
    assert rehearsed.summary["cost"]["stored_bytes_per_experience"] == (4 * 330 + 40 * 3 * 8 * 8) / 5
    prompted = small(strategy="l2p", out=tmp_path, **{"with": "er_per_class:2"})
    assert prompted.summary["cost"]["memory_bytes"] == 20 * 3 * 8 * 8


def test_a_failed_run_keeps_its_last_checkpoint_and_goes_on(tmp_path, monkeypatch):
    from clsim.strategies.linear import Linear

    def spoil(self, s):
        if s.step == 9:
            s.loss = s.loss * float("inf")

    with monkeypatch.context() as patch:
        patch.setattr(Linear, "before_backward", spoil, raising=False)
        with pytest.raises(RunFailed, match="step 9"):
            small(strategy="linear", out=tmp_path)
    (state,) = tmp_path.rglob("state.json")
    assert json.loads(state.read_text())["tree"]["trained"] == 1
    assert small(strategy="linear", out=tmp_path).metrics["average_accuracy"] is not None


def test_weights_of_another_learner_are_refused(tmp_path, without_checksums):
    run = small(strategy="linear", out=tmp_path)
    images = np.zeros((1, 3, 8, 8), np.uint8)
    assert run.predict(images).shape == (1,)
    folder = run.directory / "checkpoint"
    state = checkpoint.load(folder)
    state["learner"]["old.weight"] = state["learner"].pop("head.weight")
    checkpoint.save(folder, state)
    with pytest.raises(RequestError, match=r"is broken: checkpoint/state\.json was changed .* --fresh makes it again"):
        clsim.load(run.directory).predict(images)
    without_checksums(run)
    with pytest.raises(RequestError, match=r"another learner \(head.weight\)"):
        clsim.load(run.directory).predict(images)
    (run.directory / "summary.json").unlink()
    with pytest.raises(RequestError, match=r"another learner \(head.weight\)"):
        small(strategy="linear", out=tmp_path)
    assert small(strategy="linear", out=tmp_path, fresh=True).metrics == run.metrics


def test_a_full_disk_is_never_taken_for_a_finished_run(tmp_path, monkeypatch):
    def full(path, text):
        if path.name == "summary.json":
            path.with_name("summary.json.part").write_text(text[:20])
            raise OSError(28, "No space left on device")
        return write(path, text)

    write = checkpoint.write_text
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            small(strategy="ncm", out=tmp_path)
    (directory,) = [path.parent for path in tmp_path.rglob("config.toml")]
    with pytest.raises(RequestError, match="unfinished"):
        clsim.load(directory)
    assert small(strategy="ncm", out=tmp_path).directory == directory


def test_seeds_and_strategies_make_a_list(tmp_path):
    runs = small(strategy="ncm,linear", seed="0,1", out=tmp_path)
    assert [(run.summary["strategy"], run.summary["seed"]) for run in runs] == [
        ("ncm", 0), ("ncm", 1), ("linear", 0), ("linear", 1),
    ]  # fmt: skip
    assert runs[0].matrix == runs[1].matrix, "ncm draws nothing, and the class order has a seed of its own"


def test_events_come_back_as_arrays(tmp_path):
    run = small(strategy="linear", out=tmp_path)
    loss = clsim.load(run.directory).events["step"]["loss"]
    assert loss.dtype == np.float64 and len(loss) == 5 * 2 * 3


def test_the_callers_settings_and_random_state_are_left_alone(tmp_path):
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small(strategy="l2p", out=tmp_path, threads=threads + 1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_local_weights_and_those_that_cannot_be_had(tmp_path):
    from safetensors.torch import save_file

    from clsim.backbones.load import load_backbone

    tower = load_backbone("vit_nano").image
    changed = {name: tensor + 1 for name, tensor in tower.vit.state_dict().items()} | {"head.weight": torch.zeros(3)}
    save_file(changed, tmp_path / "changed.safetensors")
    torch.save({"state_dict": changed}, tmp_path / "changed.pth")
    for name in ("changed.safetensors", "changed.pth"):
        loaded = load_backbone("vit_nano", tmp_path / name).image
        assert torch.equal(loaded.vit.cls_token, tower.vit.cls_token + 1)
    save_file({"cls_token": torch.zeros(1)}, tmp_path / "poor.safetensors")
    for path, words in (
        (tmp_path / "poor.safetensors", "lacks"),
        (tmp_path / "none.safetensors", "no weights file"),
        (Path(__file__), "cannot read weights"),
    ):
        with pytest.raises(RequestError, match=words):
            load_backbone("vit_nano", path)


@pytest.mark.filterwarnings("ignore")  # the Hub's client warns of what it cannot reach
def test_a_timm_model_without_a_network_names_both_ways_out(monkeypatch):
    import timm

    from clsim.backbones.load import load_backbone

    create = timm.create_model

    def unreachable(*args, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("no network")
        return create(*args, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(RequestError, match="with network access.*--weights FILE"):
        load_backbone("vit_tiny_patch16_224.augreg_in21k")
    with pytest.raises(RequestError, match="did you mean 'vit_micro'"):
        load_backbone("vit_mikro")


def test_timm_towers_take_local_weights(tmp_path):
    import timm
    from safetensors.torch import save_file

    from clsim.backbones.load import load_backbone

    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    save_file(model.state_dict(), tmp_path / "tiny.safetensors")
    backbone = load_backbone("vit_tiny_patch16_224.augreg_in21k", tmp_path / "tiny.safetensors")
    assert torch.equal(backbone.image.vit.pos_embed, model.pos_embed)
    assert backbone.image.pixels.size == 224 and backbone.image.pixels.stored_side == 256


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("strategy", ["partial", "linear,partial"])
def test_a_strategy_that_does_not_fit_is_refused_before_anything_is_run(tmp_path, strategy, dry_run):
    configs = config.plan({"strategy": strategy, "backbone": "vit_nano", "out": tmp_path}, {"blocks": 3}, None)
    with pytest.raises(RequestError, match="blocks=3 is more than the 2"):
        runner.run_all(configs, quiet=True, dry_run=dry_run)
    assert not list(tmp_path.iterdir())


def test_dry_run_writes_nothing(tmp_path, capsys):
    configs = config.plan({"strategy": "ncm", "backbone": "vit_nano", "out": tmp_path / "runs"}, {}, None)
    assert runner.run_all(configs, dry_run=True) == []
    assert not (tmp_path / "runs").exists()
    assert "vit_nano-s0-" in capsys.readouterr().out


def test_a_dry_run_of_several_shows_all_settings_once_and_then_what_differs(tmp_path, capsys):
    asked = {"strategy": "linear,ncm,er", "seed": "0-2", "backbone": "vit_nano", "out": tmp_path}
    configs = config.plan(asked, {"linear.weight_decay": 0.5}, None)
    runner.run_all(configs, dry_run=True, quiet=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 80 and sum(line.startswith("[strategy]") for line in lines) == 1
    folders = [line for line in lines if line.startswith(str(tmp_path))]
    assert len(set(folders)) == 9 and "weight_decay = 0.5" in lines
    assert lines[lines.index(folders[1]) + 1] == "  other than the first: seed = 1"
    last = lines[lines.index(folders[8]) + 1]
    assert last.startswith('  other than the first: seed = 2, strategy.name = "er", ')
    assert "strategy.weight_decay = 0.0" in last and "strategy.memory = 500" in last and "strategy.momentum" not in last


def test_environment_is_written_down(tmp_path):
    run = small(strategy="ncm", out=tmp_path)
    env = json.loads((run.directory / "env.json").read_text())
    assert torch.__version__.startswith(env["packages"]["torch"])
    assert env["precision"] == "fp32" and len(env["class_order"]) == 5
    assert os.sep not in env["weights"]


def test_the_bank_costs_every_run_the_same_whoever_fills_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path / "cache"))
    first, second = (small(strategy="linear", out=tmp_path, seed=seed) for seed in (0, 1))
    assert first.summary["bank_seconds"] == second.summary["bank_seconds"] > 0
    untrained = small(strategy="ncm", out=tmp_path)
    assert untrained.summary["bank_seconds"] == first.summary["bank_seconds"]
    assert untrained.summary["cost"]["images_per_second"] is None, "it takes no steps"
    assert small(strategy="finetune", out=tmp_path).summary["bank_seconds"] == 0
    assert first.figures["bank_seconds"] == first.summary["bank_seconds"], "comparisons have a column for it"


def test_ncm_and_linear_fill_one_bank_with_the_same_bits(tmp_path, monkeypatch):
    found = []
    for first, second in (("ncm", "linear"), ("linear", "ncm")):
        monkeypatch.setenv("CLSIM_CACHE_DIR", str(tmp_path / first))
        for strategy in (first, second):
            run = small(strategy=strategy, out=tmp_path / first, precision="bf16")
            if strategy == "linear":
                found.append(run.events["step"]["loss"].tolist())
    assert found[0] == found[1]
