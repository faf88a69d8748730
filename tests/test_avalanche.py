"""Streams there and back again; an Avalanche strategy on one of ours, one of ours on an Avalanche benchmark."""

import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import clsim
from clsim.avalanche import from_avalanche, to_avalanche
from clsim.data.protocols import TaskIncremental
from clsim.data.streams import Benchmark, Scenario, class_incremental, domain_incremental
from clsim.data.table import ImageTable
from clsim.data.transforms import InputSpec, evaluation
from clsim.errors import RequestError

AS_STORED = InputSpec(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop=1.0)  # values in [0, 1]


@pytest.fixture(scope="module", autouse=True)
def _import_avalanche():
    """Its imports warn of what its dependencies will drop; what it says later is an error here as elsewhere."""
    with warnings.catch_warnings(action="ignore"):
        import avalanche.benchmarks
        import avalanche.training.supervised  # noqa: F401


@pytest.fixture
def stream(make_table):
    """Six classes of 8x8 noise, two at a time, in an order other than 0, 1, 2 ..."""

    def make(protocol: str = "class", **fields) -> Benchmark:
        train, test = make_table(6, 5, 8, seed=1), make_table(6, 3, 8, seed=2)
        return class_incremental(Scenario(**fields), train, test, 2, protocol=protocol)

    return make


@pytest.fixture
def two_domains(make_table):
    """Three classes in two domains."""

    def table(seed: int) -> ImageTable:
        day, night = (make_table(3, 4, 8, seed=seed + i) for i in range(2))
        images, labels = (np.concatenate(pair) for pair in ((day.images, night.images), (day.labels, night.labels)))
        domains = np.repeat(np.arange(2), len(day))
        return ImageTable(images, labels, day.class_names, str(seed), domains, ("day", "night"))

    return domain_incremental(Scenario(), table(0), table(2))


class Items(list):
    """What `from_avalanche` asks of a data set, without Avalanche."""

    def __init__(self, items, eval_items=None):
        super().__init__(items)
        self.targets = [label for _, label in items]
        self.eval_items = items if eval_items is None else eval_items

    def eval(self):
        return Items(self.eval_items)


def stand_in(train, test):
    """A benchmark of such data sets, one experience for each list of items."""
    experiences = [[SimpleNamespace(dataset=Items(items)) for items in stream] for stream in (train, test)]
    return SimpleNamespace(train_stream=experiences[0], test_stream=experiences[1])


def assert_same_stream(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.index, a.classes, a.task_label) == (b.index, b.classes, b.task_label)
        assert a.labels.tolist() == b.labels.tolist()
        assert np.array_equal(a.table.images[a.rows], b.table.images[b.rows])
        assert a.table.class_names == b.table.class_names


@pytest.mark.parametrize("protocol", ["class", "task"])
def test_there_and_back_again(protocol, stream):
    ours = stream(protocol)
    back = from_avalanche(to_avalanche(ours, AS_STORED), protocol, ours.info.class_names)
    assert_same_stream(back.train_stream, ours.train_stream)
    assert_same_stream(back.test_stream, ours.test_stream)
    assert [e.rows.tolist() for e in back.train_stream] == [e.rows.tolist() for e in ours.train_stream]
    assert np.array_equal(back.train_table.images, ours.train_table.images)
    assert back.info == ours.info


def test_a_stream_cut_down_keeps_its_images(stream):
    ours = stream(train_per_class=2, order_seed=5)
    back = from_avalanche(to_avalanche(ours, AS_STORED), class_names=ours.info.class_names, flip=False)
    assert_same_stream(back.train_stream, ours.train_stream)
    assert len(back.train_table) == 12
    assert not back.flip


def test_each_experience_is_a_domain(two_domains):
    back = from_avalanche(to_avalanche(two_domains, AS_STORED), "domain")
    assert [e.classes for e in back.train_stream] == [(0, 1, 2), (0, 1, 2)]
    assert [e.domain for e in back.test_stream] == ["experience 0", "experience 1"]
    assert back.info.domain_names == ("experience 0", "experience 1")
    assert back.info.class_names == ("0", "1", "2")
    assert back.train_table.domains.tolist() == two_domains.train_table.domains.tolist()
    for found, expected in zip(back.train_stream, two_domains.train_stream, strict=True):
        assert np.array_equal(found.table.images[found.rows], expected.table.images[expected.rows])


def test_the_same_images_dealt_out_differently_are_another_stream(stream):
    tables = {
        from_avalanche(to_avalanche(stream(order_seed=seed), AS_STORED)).train_table.fingerprint for seed in (0, 0, 1)
    }
    assert len(tables) == 2


def test_avalanche_sees_what_evaluation_sees(stream):
    ours = stream("task")
    pixels = InputSpec(size=4)
    theirs = to_avalanche(ours, pixels)
    assert [e.classes_in_this_experience for e in theirs.train_stream] == [set(e.classes) for e in ours.train_stream]
    assert [e.task_labels for e in theirs.test_stream] == [[0], [1], [2]]
    experience = ours.train_stream[1]
    images, labels, tasks = zip(*theirs.train_stream[1].dataset, strict=True)
    expected = evaluation(torch.from_numpy(np.take(experience.table.images, experience.rows, axis=0)), pixels)
    assert images[0].shape == (3, 4, 4)
    assert torch.allclose(torch.stack(images), expected, atol=1e-6)
    assert list(labels) == experience.labels.tolist()
    assert set(tasks) == {1}


def test_avalanche_has_no_place_for_unlabelled_images(stream):
    ours = stream()
    first = replace(ours.train_stream[0], unlabelled=np.arange(3))
    with pytest.raises(RequestError, match="no place for the unlabelled images of 'classes"):
        to_avalanche(replace(ours, train_stream=(first, *ours.train_stream[1:])), AS_STORED)


@pytest.mark.filterwarnings("ignore:No loggers specified")
def test_an_avalanche_strategy_on_our_stream():
    """Every class is a pixel that lights up: a linear model learns two at a time, and Naive forgets the first two."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    labels = np.repeat(np.arange(4), 8)
    images = np.zeros((32, 3, 8, 8), dtype=np.uint8)
    images[np.arange(32), :, labels, labels] = 255
    table = ImageTable.from_arrays(images, labels, tuple("abcd"))
    theirs = to_avalanche(class_incremental(Scenario(order_seed=-1), table, table, 2), AS_STORED)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=4,
        train_epochs=1,
        eval_mb_size=16,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]),
    )
    rows = []
    for experience in theirs.train_stream:
        strategy.train(experience)
        found = strategy.eval(theirs.test_stream)
        rows.append([v for k, v in sorted(found.items()) if k.startswith("Top1_Acc_Exp")])
    assert rows[0] == [1.0, 0.0]
    assert rows[1][1] == 1.0


def test_our_strategy_on_an_avalanche_benchmark(tmp_path):
    (tmp_path / "mine.py").write_text('''
from dataclasses import dataclass

import torch
from avalanche.benchmarks import class_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset

from clsim.avalanche import from_avalanche
from clsim.data.streams import Scenario


class Squares(torch.utils.data.Dataset):
    """Grey squares, the lighter the higher the class."""

    targets = [i % 4 for i in range(24)]

    def __len__(self):
        return 24

    def __getitem__(self, i):
        return torch.full((1, 8, 8), self.targets[i] / 3), self.targets[i]


@dataclass(kw_only=True)
class Mine(Scenario):
    """Squares, two classes at a time."""

    def build(self, data):
        data_sets = {name: as_classification_dataset(Squares()) for name in ("train", "test")}
        return from_avalanche(class_incremental_benchmark(data_sets, num_experiences=2, class_order=[2, 0, 3, 1]))
''')
    run = clsim.run(scenario=f"{tmp_path}/mine.py:Mine", strategy="ncm", backbone="vit_nano", out=tmp_path)
    assert run.matrix["classes"] == [["0", "2"], ["1", "3"]]
    assert run.matrix["total"] == [12, 12]
    assert run.matrix["correct"][0] == [12, None]


def test_images_of_every_kind():
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    colour = torch.from_numpy(noise).permute(2, 0, 1)
    grey = colour[:1]
    items = [(Image.fromarray(noise), 0), (colour, 0), (colour / 255, 0), (grey, 0), (grey / 255, 0)]
    items.append((Image.fromarray(noise[..., 0]), 0))
    found = from_avalanche(stand_in([items], [items]))
    assert found.train_table.images.shape == (6, 3, 4, 6)
    for image in found.train_table.images[:3]:
        assert np.array_equal(image, colour.numpy())
    for image in found.train_table.images[3:]:
        assert np.array_equal(image, grey.expand(3, 4, 6).numpy())


def test_floats_are_rounded():
    """0.999 of 255 is 254.7, 0.25 of it 63.75."""
    items = [(torch.full((3, 8, 8), 0.999), 0), (torch.full((3, 8, 8), 0.25), 0)]
    found = from_avalanche(stand_in([items], [items]))
    assert found.train_table.images[:, 0, 0, 0].tolist() == [255, 64]


def test_augmentation_is_left_out():
    black, white = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    benchmark = stand_in([[(black, 0)]], [[(black, 0)]])
    benchmark.train_stream[0].dataset = Items([(white, 0)], eval_items=[(black, 0)])
    assert from_avalanche(benchmark).train_table.images.max() == 0


def test_augmentation_of_avalanche_is_left_out(stream):
    ours = stream()
    theirs = to_avalanche(ours, AS_STORED)
    for experience in theirs.train_stream:
        experience._dataset = type(experience.dataset)(
            [experience.dataset], transform_groups={"train": (torch.zeros_like, None), "eval": (None, None)}
        )
    assert theirs.train_stream[0].dataset[0][0].max() == 0
    back = from_avalanche(theirs, class_names=ours.info.class_names)
    assert_same_stream(back.train_stream, ours.train_stream)


GREY = torch.full((3, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([(GREY - 1, 0)], "outside [0, 1]: leave normalisation out"),
        ([(GREY * torch.nan, 0)], "outside [0, 1]"),
        ([(GREY, 0), (torch.ones(3, 8, 9), 0)], "images of (8, 8) and (8, 9) pixels: resize"),
        ([(torch.ones(64), 0)], "(1 or 3,H,W), not (64,)"),
        ([(torch.ones(4, 8, 8), 0)], "(1 or 3,H,W), not (4, 8, 8)"),
        ([(GREY.long(), 0)], "uint8 or float, not torch.int64"),
        ([(GREY, -1)], "labels run from -1 to -1"),
        ([(GREY, 2)], "labels run from 2 to 2, but 2 names are given"),
    ],
)
def test_what_cannot_be_read_is_said(items, message):
    with pytest.raises(RequestError) as error:
        from_avalanche(stand_in([items], [items]), class_names=("a", "b"))
    assert message in str(error.value)


def test_experiences_must_pair_up():
    with pytest.raises(RequestError, match="2 training experiences need as many test experiences, one each, not 1"):
        from_avalanche(stand_in([[(GREY, 0)], [(GREY, 1)]], [[(GREY, 0)]]))


def test_unknown_protocol():
    with pytest.raises(RequestError, match="no protocol 'tasks' .did you mean 'task'"):
        from_avalanche(stand_in([[(GREY, 0)]], [[(GREY, 0)]]), "tasks")


def test_a_protocol_with_a_target_is_refused():
    with pytest.raises(RequestError, match="pair needs unlabelled images of a target"):
        from_avalanche(stand_in([[(GREY, 0)]], [[(GREY, 0)]]), "pair")


def test_a_protocol_of_ones_own_decides_whether_the_task_is_told(stream):
    class Named(TaskIncremental):
        name = "named"

    back = from_avalanche(to_avalanche(stream("task"), AS_STORED), Named())
    assert back.info.protocol == "named"
    assert [experience.task_label for experience in back.test_stream] == [0, 1, 2]


@pytest.mark.parametrize("how", [{"ordered": True}, {"boundary": False}])
def test_what_avalanche_cannot_keep_from_its_strategies_is_refused(how, stream):
    ours = stream()
    first = replace(ours.train_stream[0], **how)
    with pytest.raises(RequestError, match="Avalanche shuffles the images of .classes 2 3., and shows where"):
        to_avalanche(replace(ours, train_stream=(first, *ours.train_stream[1:])), AS_STORED)


def test_avalanche_is_imported_only_when_asked_for():
    code = "import sys, clsim.avalanche; sys.exit('avalanche' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
