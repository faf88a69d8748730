"""One run on several processes: shares by hand, every strategy against one process, refusals, and what fails."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pair
import pytest
import torch
from conftest import TOY
from torch import nn

import clsim
from clsim import checkpoint, cli, parallel, plugins, rng
from clsim.data.batches import Batch, Loader
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec
from clsim.data.whole import WholeImages
from clsim.engines import devices, many
from clsim.errors import RequestError, RunFailed
from clsim.outputs import Outputs
from clsim.parallel import Several, Share
from clsim.parts.adaptation import AdaptingOutputs

pytestmark = pytest.mark.usefixtures("without_pictures")

CPU = torch.device("cpu")


# shares


def test_shares_are_neighbours_and_the_last_image_stands_in():
    assert [Share(5, 3, rank).places.tolist() for rank in (0, 1)] == [[0, 1, 2], [3, 4, 4]]
    assert [Share(1, 1, rank).places.tolist() for rank in (0, 1, 2)] == [[0], [0], [0]]
    assert Several(1, 2).share(5) == Share(5, 3, 1)
    assert Several(2, 3).share(7) == Share(7, 3, 2)


@pytest.mark.parametrize("count, each", [(6, 3), (5, 3), (1, 1), (2, 1), (3, 2)])
def test_a_column_of_a_share_is_what_its_places_say(count, each):
    column = torch.arange(2 * count).view(count, 2)
    for rank in (0, 1):
        share = Share(count, each, rank)
        assert share.of(column).tolist() == column[torch.from_numpy(share.places)].tolist()
        assert share.of(column.numpy()).tolist() == share.of(column).tolist()


def test_shares_of_two_batches_differ_in_length_if_the_batches_do():
    world = Several(0, 2)
    assert world.share(8, unlike=world.share(7)) == Share(8, 5, 0)
    assert world.share(7, unlike=world.share(7)) == Share(7, 4, 0)
    assert world.share(9, unlike=world.share(7)) == Share(9, 5, 0)


def test_evaluation_is_divided_in_whole_batches():
    rows = np.arange(150)
    assert [len(Several(rank, 2).portion(rows, 64)) for rank in (0, 1)] == [128, 22]
    assert [len(Several(rank, 3).portion(rows[:60], 64)) for rank in (0, 1, 2)] == [60, 0, 0]
    assert np.concatenate([Several(rank, 4).portion(rows, 16) for rank in range(4)]).tolist() == rows.tolist()


def test_a_single_process_has_nothing_to_do():
    world = parallel.current()
    assert (world.rank, world.size, world.share(8)) == (0, 1, None)
    values = torch.arange(4)
    assert parallel.across(values) is values and parallel.own(values) is values


def test_own_is_the_share_of_every_column_and_of_the_replayed_images():
    labels, rows = torch.arange(5), np.arange(10, 15)
    target = Batch(torch.zeros(2, 3, 4, 4), features=torch.arange(3.0)[:, None], share=Share(3, 2, 1))
    images = torch.zeros(3, 3, 4, 4)
    batch = Batch(images, torch.ones(5, 2), labels, rows, replayed=2, task=1, target=target, share=Share(5, 3, 1))
    assert len(batch) == 5 and len(batch.target) == 3
    own = batch.own()
    assert len(own) == 3 and own.images is images and own.task == 1 and own.share is None
    assert own.labels.tolist() == [3, 4, 4] and own.rows.tolist() == [13, 14, 14] and len(own.features) == 3
    assert own.replayed == 3 and replace(batch, share=Share(5, 3, 0)).own().replayed == 0
    assert own.target.features.tolist() == [[2], [2]] and len(own.target) == 2


@pytest.mark.parametrize("transforms", ["smooth", "torchvision", "tensorflow"])
@pytest.mark.parametrize("several_sizes", [False, True])
def test_a_share_has_the_crops_of_the_whole_batch_and_decodes_only_its_own(several_sizes, transforms, make_table):
    table = make_table(size=12)
    if several_sizes:
        sizes = np.array([[12, 12 + i % 5] for i in range(len(table))])
        content = np.random.default_rng(0).integers(0, 256, 3 * sizes.prod(axis=1).sum(), dtype=np.uint8)
        table = ImageTable(WholeImages(content, sizes, 12), table.labels, table.class_names, "sizes")
    loader, rows = Loader(table, InputSpec(8), {"images"}, CPU), np.array([7, 3, 30, 4, 11])
    how = Augmentation(0.3, True, transforms)
    whole = loader.train(rows, how, rng.generator(0, "x"), replayed=1)
    asked = []
    seen = replace(table)
    object.__setattr__(seen, "whole", lambda rows: asked.append(rows.tolist()) or table.whole(rows))
    loader = Loader(seen, InputSpec(8), {"images"}, CPU)
    for share in (Share(5, 3, 0), Share(5, 3, 1)):
        batch = loader.train(rows, how, rng.generator(0, "x"), replayed=1, share=share)
        assert torch.equal(batch.images, share.of(whole.images))
        assert torch.equal(batch.labels, whole.labels) and batch.rows.tolist() == rows.tolist() and batch.replayed == 1
    assert asked == [[7, 3, 30], [4, 11, 11]]


# gradients


class Pools(nn.Module):
    """Two linear maps with batch normalisation between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()

    def forward(self, x):
        return self.layers(x)


def gradients(world, counts):
    """`gradient` for batches of several sizes."""
    return [gradient(world, count) for count in counts]


def gradient(world, count):
    """The value, the gradients and the buffers after a loss that looks across the batch, with a penalty on a weight."""
    torch.manual_seed(0)
    x, learner, share = torch.randn(count, 3, dtype=torch.float64), Pools(), world.share(count)
    world.prepare("Pools", learner)
    with world.computing(learner, share):
        outputs = Outputs(learner(x if share is None else share.of(x)))
    logits = world.whole(outputs, [] if share is None else [share]).logits
    loss = logits[0, 0] * logits[-1, 1] + (logits.T @ logits).square().mean() + learner.layers[0].weight.square().sum()
    loss.backward()
    world.average_gradients(learner.parameters())
    return [loss.detach(), *[p.grad for p in learner.parameters()], *[b.double() for b in learner.buffers()]]


@pytest.mark.slow
def test_gradients_are_those_of_one_process():
    counts = (7, 6, 5, 3, 2)
    alone = gradients(parallel.World(), counts)
    for size in (2, 3):
        for found in pair.together(gradients, counts, size=size):
            for ours, theirs in zip(found, alone, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def mixed(world):
    """Outputs for a batch of seven images and a target of eight."""
    share = world.share(7)
    beside = world.share(8, unlike=share)
    source, target = share.of(torch.arange(7.0)[:, None]), beside.of(torch.arange(8.0)[:, None])
    found = world.whole(AdaptingOutputs(source, source, source=source, target=target), [share, beside])
    return [found.logits[:, 0], found.target[:, 0], torch.tensor(found.source is found.logits)]


@pytest.mark.slow
def test_outputs_for_a_target_are_told_from_those_for_the_batch():
    for logits, target, once in pair.together(mixed):
        assert logits.tolist() == list(range(7)) and target.tolist() == list(range(8)) and once


# every strategy

TRAINED = [name for name in plugins.names("strategies") if plugins.load("strategies", name)().has_gradients]
PARTS = ["ewc:0.1", "lwf:0.5", "der:0.1:0.5:6", "er:4"]
# plain SGD moves a weight as far as its gradient says; Adam divides by the gradient's size, and what is zero but for
# rounding (the bias of attention's keys) would move by rounding times the rate over rounding. Twelve images in batches
# of eleven: the last batch has one, so the second process has none of its own.
STEPS = {"optimizer": "sgd", "batch_size": 11, "epochs": 1, "warmup_epochs": 0}
PAIR = {"scenario": {"protocol": "pair"}}


def cases():
    """By name, the strategy and its settings."""
    found = {f"{name} with parts": (name, {"with": PARTS}) for name in TRAINED}
    # batch normalisation divides by the spread within a batch, which multiplies rounding where the batch is small
    found["mlp with parts"] = (
        "mlp",
        {"with": PARTS, "batch_size": 20, "lr": 1e-4, "scenario": {"train_per_class": 24}},
    )
    # their default tuner, an adapter, has drop-out
    closed = {"with": PARTS, "tuner": "ssf", "lr": 1e-3}
    found["aper with parts"] = ("aper", closed)
    # without a penalty, the solution multiplies rounding by the condition of so few images
    found["ranpac with parts"] = ("ranpac", closed | {"penalty": 10.0})
    found |= {f"{name} on a pair": (name, PAIR) for name in ("dann", "cdan", "mcc", "dapl", "source_only")}
    found |= {"dann on images": ("dann", {**PAIR, "tune": "all"}), "mcc on images": ("mcc", {**PAIR, "tune": "all"})}
    found |= {f"l2p {preset}": ("l2p", {"preset": preset}) for preset in ("port", "official")}
    found["l2p votes"] = (
        "l2p",
        {"selection_train": "batch", "selection_test": "batch", "diversity": True, "epochs": 2},
    )
    ordered = {"scenario": {"protocol": "domain", "ordered": True, "boundary": False}}
    found["er without boundaries"] = ("er", {**ordered, "memory": 5})
    found["views"] = ("coop", {"views": 2})
    return found


@pytest.fixture(scope="module")
def runs(plan, tmp_path_factory):
    """By name, what one process found, and what each of two found."""
    out = tmp_path_factory.mktemp("runs")
    configs = [plan(name, out, device="cpu", threads=1, **(STEPS | given)) for name, given in cases().values()]
    alone = [pair.ended(config) for config in configs]
    return dict(zip(cases(), zip(alone, *pair.together(pair.all_ended, configs), strict=True), strict=True))


def distance(ours, theirs, relative):
    """The largest difference of two tensors; `relative`: to their largest value, if that is above 1."""
    if not ours.numel():
        return 0.0
    scale = max(1.0, theirs.double().nan_to_num(posinf=0).abs().max().item()) if relative else 1.0
    return (ours.double() - theirs.double()).nan_to_num().abs().max().item() / scale


@pytest.mark.slow
@pytest.mark.parametrize("name", list(cases()))
def test_two_processes_end_as_one_does(runs, name):
    (correct, alone), *both = runs[name]
    assert len(alone["losses"]) >= 2
    for counts, found in both:
        assert counts == correct and found.keys() == alone.keys()
        for key, value in found.items():
            assert torch.equal(value.nan_to_num(), both[0][1][key].nan_to_num()), f"{key} differs between the processes"
            # Fisher information is squared gradients of single images: what it adds to the losses is compared
            if "fisher" not in key:
                sums = key == "losses" or key.startswith(("part", "classifier"))
                assert distance(value, alone[key], relative=sums) < 1e-5, key


# whole runs

DIES = """
import os
from dataclasses import dataclass
import torch
from clsim import parallel
from clsim.strategies.finetune import Finetune


@dataclass(kw_only=True)
class Dies(Finetune):
    at: int = 4  # step

    def loss(self, s):
        loss = super().loss(s)
        if s.step == self.at and parallel.current().rank == 1:
            how = open(__file__.replace("dies.py", "how")).read()
            if how == "kill":
                os.kill(os.getpid(), 9)
            if how == "disk":
                raise OSError("no space in the second process")
            if how == "differ":
                s.learner.head.bias.data += 1
        return loss
"""
DROPS = """
import torch
from dataclasses import dataclass
from clsim.strategies.linear import Linear


@dataclass(kw_only=True)
class Drops(Linear):
    def build(self, backbone, info):
        learner = super().build(backbone, info)
        learner.drop = torch.nn.Dropout(0.1)
        return learner


@dataclass(kw_only=True)
class Draws(Linear):
    def build(self, backbone, info):
        learner = super().build(backbone, info)
        learner.head.register_forward_pre_hook(lambda module, given: (given[0] + torch.rand(()),))
        return learner
"""


@pytest.fixture(scope="module")
def dies(tmp_path_factory):
    """A function that says how the second process ends, and returns the strategy."""
    folder = tmp_path_factory.mktemp("dies")
    (folder / "dies.py").write_text(DIES)

    def how(text):
        (folder / "how").write_text(text)
        return f"{folder / 'dies.py'}:Dies"

    return how


def close(run, other, weights):
    """Whether two runs have the same counts, and nearly the same weights and losses."""
    assert run.matrix == other.matrix
    ours, theirs = weights(run), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-5)
    np.testing.assert_allclose(run.events["step"]["loss"], other.events["step"]["loss"], rtol=0, atol=1e-5)
    return True


@pytest.mark.slow
def test_a_run_ends_the_same_whichever_number_of_processes_begins_and_continues_it(
    plan, finished, broken_off, dies, weights, tmp_path
):
    given = {"optimizer": "sgd", "device": "cpu", "threads": 1, "checkpoint_minutes": 0, "with": ["er:4"]}
    strategy = dies("nothing")
    alone = finished(strategy, tmp_path / "one", **given)
    environment = json.loads((alone.directory / "env.json").read_text())
    assert environment["processes"] == 1

    broken_off(5, lambda: finished(strategy, tmp_path / "two", **given))
    (run,) = devices.run_all([plan(strategy, tmp_path / "two", **given)], 2, quiet=True)
    assert json.loads((run.directory / "env.json").read_text())["processes"] == 2
    assert run.directory.name == alone.directory.name, "the number of processes is not in the hash"
    assert close(run, alone, weights)

    strategy = dies("kill")
    with pytest.raises(RunFailed, match="^process 2 of 2 was killed by SIGKILL"):
        devices.run_all([plan(strategy, tmp_path / "three", **given)], 2, quiet=True)
    (folder,) = (tmp_path / "three").rglob("checkpoint")
    assert checkpoint.load(folder)["step"] == 4
    assert close(finished(strategy, tmp_path / "three", **given), alone, weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how, says",
    [("disk", "no space in the second process"), ("differ", "head.bias is not the same in all 2 processes")],
)
def test_the_failure_of_one_process_ends_all_with_its_reason(how, says, plan, dies, tmp_path):
    with pytest.raises(RunFailed, match=f"^{says}"):
        devices.run_all([plan(dies(how), tmp_path, device="cpu", threads=1)], 2, quiet=True)
    assert not list(tmp_path.rglob("summary.json"))


@pytest.mark.slow
def test_random_numbers_in_the_learner_are_refused(plan, tmp_path):
    (tmp_path / "drops.py").write_text(DROPS)
    drops, draws = (
        plan(f"{tmp_path / 'drops.py'}:{name}", tmp_path / "out", device="cpu") for name in ("Drops", "Draws")
    )
    with pytest.raises(RequestError, match="^Drops: its drop has drop-out"):
        devices.run_all([drops], 2, quiet=True)
    assert not list((tmp_path / "out").rglob("env.json"))
    with pytest.raises(RunFailed, match="^Headed.forward draws random numbers"):
        devices.run_all([draws], 2, quiet=True)


@pytest.mark.slow
def test_python_and_both_command_lines_make_the_same_run(tmp_path, capfd, weights):
    asked = {"scenario": TOY, "strategy": "l2p", "backbone": "vit_nano", "device": "cpu", "threads": 1, "epochs": 1}
    one = clsim.run(**asked, out=tmp_path / "one")
    two = clsim.run(**asked, out=tmp_path / "two", devices=2)
    assert close(two, one, weights)
    assert capfd.readouterr().out == ""
    words = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    given = ["run", *words, "--out", str(tmp_path / "three"), "--devices", "2"]
    assert cli.main(given) == 0
    shown = capfd.readouterr().out
    assert shown.count("after experience 3/3") == 1 and shown.count("average accuracy") == 1, "the first process prints"
    assert cli.main(given) == 0, "a finished run is read"
    assert capfd.readouterr().out.count("average accuracy") == 1

    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "clsim"]
    command = [*start, "run", *words, "--out", str(tmp_path / "four")]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("after experience 3/3") == 1 and shown.stdout.count("average accuracy") == 1
    (directory,) = (path.parent for path in (tmp_path / "four").rglob("summary.json"))
    assert json.loads((directory / "env.json").read_text())["processes"] == 2
    assert close(clsim.load(directory), one, weights)


# refusals


@pytest.mark.parametrize("other", [{"jobs": 2}, {"jobs": "auto"}, {"ray": ""}, {"slurm": {"time": "5"}}])
def test_one_run_is_divided_or_several_are_made(other):
    with pytest.raises(RequestError, match="^--devices divides one run, --jobs, --ray and --slurm make several"):
        many.How(devices=2, **other).engine([])


def test_what_torchrun_started_starts_no_processes(monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    cli.main(["run", "--devices", "2"])
    assert ended == [2]
    assert capsys.readouterr().err == "clsim: error: --devices: torchrun has started the processes already\n"


@pytest.mark.parametrize(
    "device, says",
    [("cuda:1", "a GPU for each"), ("mps", "a GPU for each"), ("cuda", "^2 processes need 2 GPUs; torch finds 1")],
)
def test_each_process_needs_a_device(device, says, monkeypatch):
    parallel.require_device(device)
    monkeypatch.setattr(parallel, "_world", Several(0, 2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    parallel.require_device("cpu")
    with pytest.raises(RequestError, match=says):
        parallel.require_device(device)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # the other process is on another machine
    if device == "cuda":
        parallel.require_device(device)


@pytest.mark.parametrize(
    "module", [nn.Dropout(0.1), nn.LSTM(2, 2, 2, dropout=0.1), nn.MultiheadAttention(2, 1, dropout=0.1)]
)
def test_drop_out_of_every_kind_is_found_unless_it_is_off(module):
    world, learner = Several(0, 2), nn.ModuleDict({"part": module})
    with pytest.raises(RequestError, match="^Mine: its part has drop-out"):
        world.prepare("Mine", learner)
    setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
    world.prepare("Mine", learner)


def test_outputs_have_a_row_for_each_image():
    with pytest.raises(RunFailed, match=r"^Outputs.logits must have one row for each image .* its shape is \(4, 2\)"):
        Several(0, 2).whole(Outputs(torch.zeros(4, 2)), [Share(5, 3, 0)])
