"""Every field of a scenario changes its stream, or is refused: over all registered scenarios, and for scenarios that
leave fields out."""

import json
from dataclasses import dataclass, fields
from typing import get_args, get_type_hints

import numpy as np
import pytest

import clsim
from clsim import plugins
from clsim.data import effects
from clsim.data.streams import Benchmark, DataAccess, Scenario, class_incremental
from clsim.data.table import ImageTable
from clsim.errors import RequestError
from clsim.field_values import defaults
from clsim.scenarios.five_datasets import SETS
from clsim.scenarios.glyph_domains import GlyphDomains
from clsim.scenarios.glyph_pair import GlyphPair
from clsim.scenarios.split_digits import SplitDigits

# fields that let a scenario run on the small files below, and a second value of each field; by the field's name
GLYPHS = {"train_per_class": 3, "test_per_class": 2}
SMALLER = {"split_glyphs": GLYPHS, "glyph_domains": GLYPHS, "glyph_pair": {"train_per_class": 3}}
SMALLER |= {"transfer": {"train": 35}}
OTHER = {
    "train_per_class": 2, "test_per_class": 1, "order_seed": 3, "on_bad_image": "skip", "base_classes": 4,
    "order": "pilot1993", "classes_per_experience": 1, "source": 1, "target": 2, "sources": (0, 1), "targets": (2, 1),
    "pairs": "all", "shots": 2, "domains": (2, 0), "domain_folders": False, "test_split": "val", "exclude": ("c0",),
    "flip": False, "sets": ("mnist", "svhn"), "classes": "seen", "domain": "sketch", "table": "usps", "train": 15,
    "split": "tune", "base_to_new": True, "uneven": True, "image": "label", "label": "img",
    "schedule": "gaussian", "tasks": 2, "disjoint": 0, "blurry": 50, "width": 0.5, "eval_every": 10,
}  # fmt: skip


def protocols(cls):
    """The values of the field `protocol`; none for a scenario without the field."""
    hints = get_type_hints(cls)
    return get_args(hints["protocol"]) if "protocol" in hints else (None,)


CASES = [
    (name, protocol) for name in plugins.names("scenarios") for protocol in protocols(plugins.load("scenarios", name))
]


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_parquet, encode):
    """Small files for every scenario that reads some: by the scenario's name."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)

    def image():
        return draw.integers(0, 256, (6, 6, 3), dtype=np.uint8)

    def parquet(folder, splits, domains=None, classes=6, per_cell=12, **columns):
        for split in splits:
            cells = [(c, d) for d in domains or (None,) for c in range(classes) for _ in range(per_cell)]
            written = {} if domains is None else {"domains": [d for _, d in cells]}
            names = [str(i) for i in range(classes)]
            file = root / folder / f"{split}-00000-of-00001.parquet"
            write_parquet(file, [image() for _ in cells], [c for c, _ in cells], names, **written, **columns)

    both = ("train", "test")
    parquet("cifar100", both, image="img", label="fine_label", per_cell=4)
    for name, (column, _) in SETS.items():
        parquet(name, both, classes=10, per_cell=4, image=column)
    parquet("usps", both, classes=10, per_cell=4)
    for name in ("office_home", "domainnet", "pacs"):
        cls = plugins.load("scenarios", name)
        parquet(
            name, both if name == "domainnet" else ("train",), cls.domains, per_cell=30 if name != "domainnet" else 4
        )
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for domain in ("a", "b", "c"):
            for c in range(7):
                folder = root / "tree" / split / domain / f"c{c}"
                folder.mkdir(parents=True)
                for i in range(count):
                    (folder / f"{i}.png").write_bytes(encode(image()))
    return lambda name: DataAccess(root / "tree" if name == "folder" else root, root / "cache", 8)


def stream(benchmark: Benchmark):
    """Everything of a benchmark that a run sees."""

    def shown(each):
        target = None if each.unlabelled is None else each.unlabelled.tolist()
        return each.table.fingerprint, each.rows.tolist(), each.classes, each.name, each.task_label, target

    streams = [[shown(each) for each in part] for part in (benchmark.train_stream, benchmark.test_stream)]
    return json.dumps([*streams, benchmark.rules.name, benchmark.flip, benchmark.eval_every])


def made(cls, data, seed=0, **given):
    scenario = cls(**given)
    return effects.made(scenario, data, seed, defaults(cls), "it")


def domains_of(name, cls):
    return ("a", "b", "c") if name == "folder" else getattr(cls, "domains", ())


@pytest.mark.parametrize(("name", "protocol"), CASES)
def test_every_field_changes_the_stream_or_is_refused(name, protocol, data):
    cls, access = plugins.load("scenarios", name), data(name)
    own = {each.name for each in fields(cls)} - {"protocol"}
    base = SMALLER.get(name, {}) | ({} if protocol is None else {"protocol": protocol})
    by_class = protocol in ("class", "task")
    if "classes_per_experience" in own and by_class:
        base |= {"classes_per_experience": {"split_glyphs": 10, "folder": 1}.get(name, 2)}
    if name == "folder" and protocol in ("pair", "targets"):
        base |= {"source": "a", "target": "b"} if protocol == "pair" else {"source": "a"}
    whole = stream(made(cls, access, **base))
    assert stream(made(cls, access, **base)) == whole, "a stream is the same every time"
    silent = []
    for field in sorted(own):
        value = OTHER[field]
        if field in ("source", "target", "sources", "targets", "domains") and domains_of(name, cls):
            places = value if isinstance(value, tuple) else (value,)
            named = tuple(domains_of(name, cls)[place] for place in places)
            value = named if isinstance(value, tuple) else named[0]
        if field == "classes_per_experience" and by_class:
            value = 5 if base[field] == 10 else base[field] * 2 if name != "folder" else 7
        if field == "flip" and name in ("transfer", "online"):
            value = True  # their table is digits, which are not mirrored unless this is asked for
        given = base | {field: value}
        if field == "uneven" and by_class:
            given |= {"classes_per_experience": base["classes_per_experience"] * 2 if name != "folder" else 2}
            given |= {"classes_per_experience": 30} if name == "split_glyphs" else {}
            with pytest.raises(RequestError, match="evenly"):
                made(cls, access, **given | {"uneven": False})
        try:
            changed = [given | more for more in cls(**given).expanded()]
            if all(stream(made(cls, access, **each)) == whole for each in changed):
                silent.append(f"{field}={value}")
        except RequestError as error:
            assert "\n" not in str(error)
    assert silent == []


@dataclass(kw_only=True)
class Given(Scenario):
    """A stream that is fixed in `build`, as from Avalanche: it reads no field."""

    extra: int = 1  # read by nobody

    def build(self, data: DataAccess) -> Benchmark:
        labels = np.repeat(np.arange(4), 6)
        images = np.arange(24, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 3, 8, 8), np.uint8)
        table = ImageTable.from_arrays(images, labels, tuple("abcd"))
        return class_incremental(Scenario(order_seed=-1), table, table, 2)


def test_images_per_class_are_honoured_where_build_leaves_them_out(data):
    cut = made(Given, None, train_per_class=2, test_per_class=1)
    assert [np.bincount(each.labels, minlength=4).tolist() for each in cut.train_stream] == [[2, 2, 0, 0], [0, 0, 2, 2]]
    assert [len(each.rows) for each in cut.test_stream] == [2, 2]
    again = made(Given, None, train_per_class=100)
    assert [len(each.rows) for each in again.train_stream] == [12, 12], "more than there are is no mistake"
    with pytest.raises(RequestError, match="images per class must be at least 1, not 0"):
        made(Given, None, train_per_class=0)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("order_seed", 3, "the order of this stream is fixed"),
        ("order_seed", "seed", "the order of this stream is fixed"),
        ("on_bad_image", "skip", "no image files are decoded"),
        ("extra", 2, "a stream of protocol class does not use it"),
    ],
)
def test_other_fields_that_build_leaves_out_are_refused_by_name(field, value, why):
    with pytest.raises(RequestError, match=f"scenario.{field}={value} has no effect on it: {why}"):
        made(Given, None, **{field: value})
    assert made(Given, None, **{field: defaults(Given)[field]})


AVALANCHE = '''
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from clsim.avalanche import from_avalanche
from clsim.data.streams import Scenario


class Items(list):
    def __init__(self, items):
        super().__init__(items)
        self.targets = [label for _, label in items]

    def eval(self):
        return self


def part(*classes, shade):
    squares = [(torch.full((1, 8, 8), (label + i / 10) / 5 + shade), label) for label in classes for i in range(6)]
    return SimpleNamespace(dataset=Items(squares))


@dataclass(kw_only=True)
class Squares(Scenario):
    """Squares, two classes at a time."""

    def build(self, data):
        parts = [[part(0, 1, shade=shade), part(2, 3, shade=shade)] for shade in (0.0, 0.02)]
        return from_avalanche(SimpleNamespace(train_stream=parts[0], test_stream=parts[1]))
'''


def test_a_run_from_avalanche_honours_its_fields_or_refuses_them(tmp_path):
    (tmp_path / "squares.py").write_text(AVALANCHE)

    def run(**given):
        fields = {f"scenario.{name}": value for name, value in given.items()}
        name = f"{tmp_path}/squares.py:Squares"
        return clsim.run(scenario=name, strategy="ncm", backbone="vit_nano", out=tmp_path / "runs", **fields)

    whole, cut = run(), run(train_per_class=2, test_per_class=3)
    assert whole.matrix["total"] == [12, 12] and cut.matrix["total"] == [6, 6]
    assert whole.directory != cut.directory
    (learned,) = json.loads((cut.directory / "env.json").read_text())["found"][:1]
    assert (learned["images"], learned["used"]) == (24, 8)
    with pytest.raises(RequestError, match="scenario.order_seed=3 has no effect on squares: the order of this stream"):
        run(order_seed=3)
    assert len(list((tmp_path / "runs").rglob("summary.json"))) == 2


def test_a_build_that_returns_something_else_is_refused():
    class Wrong(Given):
        def build(self, data):
            return [1, 2]

    with pytest.raises(RequestError, match="Wrong.build must return a Benchmark, not list"):
        made(Wrong, None)


# the order that is drawn


def test_domains_and_sets_arrive_in_the_order_that_is_drawn(data):
    first = made(GlyphDomains, None)
    assert [each.domain for each in first.train_stream] == list(GlyphDomains().domains) == list(first.info.domain_names)
    drawn = made(GlyphDomains, None, order_seed=3)
    order = np.random.default_rng(3).permutation(6)
    assert [each.domain for each in drawn.train_stream] == [GlyphDomains().domains[i] for i in order]
    assert drawn.info.domain_names == tuple(each.domain for each in drawn.test_stream)
    assert [each.index for each in drawn.train_stream] == list(range(6))
    targets = made(GlyphPair, None, protocol="targets", order_seed=1)
    assert sorted(each.domain for each in targets.train_stream) == sorted(set(GlyphPair.domains) - {"real"})
    assert [each.domain for each in targets.train_stream] != [d for d in GlyphPair.domains if d != "real"]


def test_the_runs_seed_draws_the_order(data):
    orders = {
        seed: [each.classes for each in made(SplitDigits, None, seed, order_seed="seed").train_stream]
        for seed in (0, 1, 7)
    }
    assert len({str(order) for order in orders.values()}) == 3
    for seed, order in orders.items():
        fixed = made(SplitDigits, None, 99, order_seed=seed)
        assert [each.classes for each in fixed.train_stream] == order
    with pytest.raises(RequestError, match="order_seed=seed stands for the seed of a run"):
        SplitDigits(order_seed="seed").build(None)
    with pytest.raises(RequestError, match="order=pilot1993 is one fixed order, which order_seed=seed does not change"):
        SplitDigits(order="pilot1993", order_seed="seed")


def test_a_run_whose_seed_draws_the_order_resumes_and_has_a_directory_for_each_seed(
    plan, finished, broken_off, same_run, tmp_path
):
    def run(folder, seed=1, order="seed"):
        return finished("linear", tmp_path / folder, {"order_seed": order}, seed=seed, checkpoint_minutes=0)

    whole = run("whole")
    broken_off(4, lambda: run("broken"))
    again = run("broken")
    same_run(whole, again)
    assert again.directory.name == whole.directory.name
    others = [run("whole", seed=2), run("whole", order=1)]
    assert len({each.directory for each in (whole, *others)}) == 3
    assert others[0].matrix["classes"] != whole.matrix["classes"] == others[1].matrix["classes"]
    assert whole.config["scenario"]["order_seed"] == "seed"
    assert json.loads((whole.directory / "env.json").read_text())["class_order"][0]
    assert whole.predict(np.zeros((2, 3, 8, 8), np.uint8)).shape == (2,)
