"""Streams over domains: sources and targets, sequences of targets, every pair, few labels; the scenarios on them."""

import numpy as np
import pytest

from clsim import config, runner
from clsim.data.domains import domain_benchmark
from clsim.data.streams import DataAccess, few_shot
from clsim.data.table import ImageTable
from clsim.errors import RequestError
from clsim.scenarios.digit_domains import DigitDomains
from clsim.scenarios.domainnet import DomainNet
from clsim.scenarios.glyph_pair import GlyphPair
from clsim.scenarios.office_home import OfficeHome
from clsim.scenarios.pacs import Pacs


@pytest.fixture
def tables():
    """Five images to train on and two to test with, of each of two classes in each of three domains."""
    made = []
    for count in (5, 2):
        labels, domains = np.tile(np.repeat(np.arange(2), count), 3), np.repeat(np.arange(3), 2 * count)
        images = np.random.default_rng(count).integers(0, 256, (6 * count, 3, 8, 8), dtype=np.uint8)
        made.append(ImageTable.from_arrays(images, labels, ("a", "b"), domains, ("Art", "Clip Art", "Photo")))
    return made


def of(experience, column="domains"):
    return set(getattr(experience.table, column)[experience.rows].tolist())


def test_several_sources_are_one_labelled_source(tables):
    scenario = GlyphPair(sources=("photo", "art"), target="clip_art")
    benchmark = domain_benchmark(scenario, *tables)
    (learned,) = benchmark.train_stream
    assert of(learned) == {0, 2} and set(learned.table.domains[learned.unlabelled]) == {1}
    assert [of(column) for column in benchmark.test_stream] == [{1}, {1}, {0, 2}]
    assert benchmark.info.domain_names == ("Photo + Art", "Clip Art")
    assert scenario.variant() == "photo+art-clip_art"


def test_a_sequence_of_targets(tables):
    benchmark = domain_benchmark(GlyphPair(protocol="targets", source="photo"), *tables)
    assert [e.name for e in benchmark.train_stream] == ["Photo > Art", "Photo > Clip Art"]
    assert [of(e) for e in benchmark.train_stream] == [{2}, {2}], "the source's labels, every time"
    for learned, tested in zip(benchmark.train_stream, benchmark.test_stream, strict=True):
        assert np.array_equal(learned.unlabelled, tested.rows), "transductive"
        assert (learned.table.labels[learned.unlabelled] == -1).all() and of(tested, "labels") == {0, 1}
    assert benchmark.protocol == "targets"
    only = domain_benchmark(GlyphPair(protocol="targets", source="photo", targets=("clip art",)), *tables)
    assert [e.domain for e in only.train_stream] == ["Clip Art"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"sources": ("art", "photo"), "target": "Photo"}, "'Photo' is both source and target"),
        ({"protocol": "targets", "source": "art", "targets": ("photo", "art")}, "'Art' is both"),
        ({"protocol": "targets", "source": "art", "targets": ("photo", "Photo")}, "once"),
        ({"source": "art", "target": "sketch"}, "no domain 'sketch'; there are: Art, Clip Art, Photo"),
        ({"source": "art", "target": "photo", "shots": 0}, "shots must be at least 1"),
        ({"source": "art", "target": "photo", "targets": ("clip art",)}, "targets is for protocol=targets"),
    ],
)
def test_domains_that_do_not_fit(tables, fields, message):
    with pytest.raises(RequestError, match=message):
        domain_benchmark(GlyphPair(**fields), *tables)


def test_shots_are_drawn_by_order_seed_and_leave_the_target_whole(tables):
    drawn = []
    for order_seed in (0, 0, 1, -1):
        benchmark = domain_benchmark(GlyphPair(source="art", target="photo", shots=2, order_seed=order_seed), *tables)
        (learned,) = benchmark.train_stream
        assert np.bincount(learned.labels).tolist() == [2, 2] and len(learned.unlabelled) == 10
        assert (np.delete(learned.table.labels, learned.rows) == -1).all(), "labels that were not drawn are hidden, too"
        drawn.append(learned.rows.tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[3] == [0, 1, 5, 6], "the first ones"


def test_shots_in_streams_of_domains_and_classes(tables):
    domains = domain_benchmark(Pacs(shots=3), *tables)
    assert [np.bincount(e.labels).tolist() for e in domains.train_stream] == [[3, 3]] * 3
    assert [len(e.rows) for e in domains.test_stream] == [4] * 3
    classes = domain_benchmark(OfficeHome(protocol="class", shots=1), *tables, classes_per_experience=1)
    assert [len(e.rows) for e in classes.train_stream] == [3, 3], "of each domain"
    with pytest.raises(RequestError, match="sources and targets are for protocol=pair"):
        domain_benchmark(Pacs(sources=("art",)), *tables)


@pytest.mark.parametrize(("field", "value"), [("base_classes", 1), ("order", "pilot1993")])
@pytest.mark.parametrize(
    ("kind", "protocol"), [(Pacs, "domain"), (OfficeHome, "pair"), (GlyphPair, "targets"), (DigitDomains, "domain")]
)
def test_class_orders_are_refused_where_no_new_classes_arrive(kind, protocol, field, value):
    with pytest.raises(RequestError, match=f"{field} is for streams .* protocol={protocol} has none"):
        kind(protocol=protocol, **{field: value})


def test_a_stream_of_classes_takes_base_classes(tables):
    scenario = OfficeHome(protocol="class", base_classes=1, order_seed=3)
    benchmark = domain_benchmark(scenario, *tables, classes_per_experience=1)
    assert [e.classes for e in benchmark.train_stream] == [(1,), (0,)], "default_rng(3).permutation(2)"
    whole = OfficeHome(protocol="class", base_classes=2)
    assert [e.classes for e in domain_benchmark(whole, *tables, classes_per_experience=1).test_stream] == [(0, 1)]


def test_a_fixed_class_order_leaves_order_seed_to_the_shots(tables):
    drawn = []
    for order_seed in (0, 3):  # seed 3 alone would put class 1 first
        scenario = OfficeHome(protocol="class", order="pilot1993", order_seed=order_seed, shots=2)
        benchmark = domain_benchmark(scenario, *tables, classes_per_experience=1)
        assert [e.classes for e in benchmark.train_stream] == [(0,), (1,)], "RandomState(1993).permutation(2)"
        drawn.append([e.rows.tolist() for e in benchmark.train_stream])
    assert drawn[0] != drawn[1]
    with pytest.raises(RequestError, match="order_seed=1 does not change"):
        OfficeHome(protocol="class", order="pilot1993", order_seed=1)


def test_shots_beyond_a_class_take_all_of_it(tables):
    rows = np.arange(10)
    assert few_shot(tables[0], rows, 7, 0).tolist() == rows.tolist()


# every pair in one command


def plan(out, **fields):
    options = {"scenario": "glyph_pair", "strategy": "dann", "backbone": "vit_nano", "out": out, "precision": "fp32"}
    small = {"scenario.train_per_class": "2", "scenario.test_per_class": "1", "epochs": "1", "batch_size": "20"}
    return config.plan(options, small | fields, None)


def test_every_pair_is_a_run_of_its_own(tmp_path):
    configs = plan(tmp_path, **{"scenario.pairs": "all"})
    pairs = [(c.scenario_fields["source"], c.scenario_fields["target"]) for c in configs]
    assert len(set(pairs)) == len(pairs) == 30 and all(a != b for a, b in pairs)
    assert all(c.scenario_fields["pairs"] == "one" for c in configs), "the same run as when it is asked for alone"
    (alone,) = plan(tmp_path, **{"scenario.source": "clipart", "scenario.target": "real"})
    assert alone in configs


def test_every_pair_needs_one_source(tmp_path):
    with pytest.raises(RequestError, match="pairs=all is for protocol=pair"):
        plan(tmp_path, **{"scenario.pairs": "all", "scenario.protocol": "targets"})


def test_pairs_of_office_home_have_directories_of_their_own(tmp_path):
    options = {"scenario": "office_home", "strategy": "source_only,dann", "out": tmp_path}
    configs = config.plan(options, {"scenario.pairs": "all"}, None)
    assert len(configs) == 24
    names = {c.directory(c.make_scenario().variant(), "x").parts[-3] for c in configs}
    assert len(names) == 12 and {"office_home.Art-Real_World", "office_home.Product-Clipart"} <= names


# a sequence of targets, run


def test_a_sequence_of_targets_resumes_bit_identical(tmp_path, broken_off):
    # it has no test images of its own: 10 is the default
    fields = {"scenario.protocol": "targets", "scenario.targets": "sketch,quickdraw", "scenario.test_per_class": "10"}
    (whole,) = runner.run_all(plan(tmp_path / "whole", **fields), quiet=True)
    assert whole.directory.parts[-3] == "glyph_pair.real-sketch-quickdraw"
    assert len(whole.matrix["correct"]) == 3 and whole.matrix["total"] == [40, 40]
    assert whole.metrics["forgetting"] is not None
    broken_off(1, lambda: runner.run_all(plan(tmp_path / "broken", **fields), quiet=True))
    assert not list((tmp_path / "broken").rglob("summary.json"))
    (again,) = runner.run_all(plan(tmp_path / "broken", **fields), quiet=True)
    assert again.matrix == whole.matrix and again.metrics == whole.metrics


# scenarios


def access(data_dir):
    return DataAccess(data_dir, data_dir / "cache", 32)


def write_home(write_parquet, folder, domains, names, per_cell, file="train-00000-of-00001.parquet", declared=True):
    """`per_cell` pictures of every class in every domain."""
    cells = [(d, c) for d in domains for c in range(len(names)) for _ in range(per_cell)]
    images = list(np.random.default_rng(0).integers(0, 256, (len(cells), 6, 6, 3), dtype=np.uint8))
    labels = [c for _, c in cells]
    where = [d for d, _ in cells]
    return write_parquet(folder / file, images, labels, names if declared else None, domains=where)


def test_office_home_is_cut_by_file_and_adapts_by_default(tmp_path, write_parquet):
    names = [f"thing {i}" for i in range(65)]
    write_home(write_parquet, tmp_path / "office_home", OfficeHome.domains, names, 4)
    benchmark = OfficeHome().build(access(tmp_path))
    assert benchmark.protocol == "pair" and benchmark.info.num_classes == 65
    assert benchmark.info.domain_names == ("Art", "Clipart")
    train, test = benchmark.train_table, benchmark.test_stream[1].table
    assert len(train) + len(test) == 4 * 65 * 4 and 0.15 < len(test) / 1040 < 0.25
    classes = OfficeHome(protocol="class").build(access(tmp_path))
    assert [len(e.classes) for e in classes.train_stream] == [13] * 5
    domains = OfficeHome(protocol="domain").build(access(tmp_path))
    assert [e.name for e in domains.train_stream] == sorted(OfficeHome.domains)
    assert OfficeHome().variant() == "Art-Clipart" and OfficeHome(protocol="domain").variant() == ""
    with pytest.raises(RequestError, match="no domain 'Sketch'; there are: Art, Clipart, Product, Real World"):
        OfficeHome(target="Sketch").build(access(tmp_path))


def test_domainnet_has_splits_of_its_own(tmp_path, write_parquet):
    names = [f"thing {i}" for i in range(345)]
    for split, count in (("train", 2), ("test", 1)):
        write_home(write_parquet, tmp_path / "domainnet", ("real", "sketch"), names, count, f"{split}-0.parquet")
    benchmark = DomainNet().build(access(tmp_path))
    assert (benchmark.protocol, [e.name for e in benchmark.train_stream]) == ("domain", ["real", "sketch"])
    assert [len(e.rows) for e in benchmark.train_stream] == [690, 690]
    assert [len(e.rows) for e in benchmark.test_stream] == [345, 345]
    classes = DomainNet(protocol="class").build(access(tmp_path))
    assert [len(e.classes) for e in classes.train_stream] == [69] * 5
    uneven = DomainNet(protocol="class", base_classes=145, classes_per_experience=100).build(access(tmp_path))
    assert [len(e.classes) for e in uneven.train_stream] == [145, 100, 100]


def test_digit_domains_bring_three_sets_to_one_size(tmp_path, write_parquet):
    names = [str(i) for i in range(10)]
    for folder, side in (("mnist", 28), ("usps", 16)):
        for split in ("train", "test"):
            images = list(np.random.default_rng(side).integers(0, 256, (20, side, side), dtype=np.uint8))
            write_parquet(tmp_path / folder / f"{split}-0.parquet", images, list(range(10)) * 2, names)
    benchmark = DigitDomains().build(access(tmp_path))
    assert [e.name for e in benchmark.train_stream] == ["mnist", "usps", "digits"]
    assert benchmark.train_table.images.shape[1:] == (3, 28, 28) and not benchmark.flip
    assert len(benchmark.train_table) + len(benchmark.test_table) == 1797 + 80
    assert benchmark.info.class_names == tuple(names)
    pair = DigitDomains(protocol="pair").build(access(tmp_path))
    assert pair.info.domain_names == ("mnist", "usps")


def test_digit_domains_need_the_same_classes(tmp_path, write_parquet):
    for folder, names in (("mnist", [str(i) for i in range(10)]), ("usps", list("abcdefghij"))):
        for split in ("train", "test"):
            images = list(np.zeros((10, 8, 8), dtype=np.uint8))
            write_parquet(tmp_path / folder / f"{split}-0.parquet", images, list(range(10)), names)
    with pytest.raises(RequestError, match="the classes of 'usps' are not those of 'mnist'"):
        DigitDomains().build(access(tmp_path))


def test_missing_data_says_how_to_get_it(tmp_path):
    (tmp_path / "office_home").mkdir()
    with pytest.raises(RequestError, match=r"no office_home/train\*.parquet in .*flwrlabs/office-home"):
        OfficeHome().build(access(tmp_path))


def test_a_missing_column_is_named(tmp_path, write_parquet):
    write_parquet(tmp_path / "pacs" / "train-0.parquet", list(np.zeros((2, 6, 6, 3), np.uint8)), [0, 1], ["a", "b"])
    with pytest.raises(RequestError, match="no column 'domain'; it has: image, label"):
        Pacs().build(access(tmp_path))


@pytest.mark.data
def test_pacs_is_all_there(data_dir, cache_dir):
    benchmark = Pacs().build(DataAccess(data_dir, cache_dir, 32))
    assert [e.name for e in benchmark.train_stream] == ["art_painting", "cartoon", "photo", "sketch"]
    assert sum(len(e.rows) for e in (*benchmark.train_stream, *benchmark.test_stream)) == 9991
    assert benchmark.info.class_names == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    per_domain = [len(a.rows) + len(b.rows) for a, b in zip(benchmark.train_stream, benchmark.test_stream, strict=True)]
    assert per_domain == [2048, 2344, 1670, 3929], "Li et al. 2017, table 1"
