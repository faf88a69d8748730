"""The scenario plug-ins: on small files of the right schema anywhere, on real images where they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clsim import config, plugins, runner
from clsim.data.protocols import BaseToNew
from clsim.data.streams import DataAccess
from clsim.errors import RequestError
from clsim.scenarios import transfer
from clsim.scenarios._tables import TABLES
from clsim.scenarios.five_datasets import SETS, FiveDatasets
from clsim.scenarios.folder import Folder
from clsim.scenarios.split_cifar100 import SplitCifar100
from clsim.scenarios.split_digits import SplitDigits
from clsim.scenarios.split_glyphs import SplitGlyphs
from clsim.scenarios.transfer import Transfer

SIZES = {
    "svhn": (32, 32, 3),
    "mnist": (28, 28),
    "cifar10": (32, 32, 3),
    "notmnist": (28, 28),
    "fashion_mnist": (28, 28),
}


def access(data_dir, cache_dir, side=32):
    return DataAccess(data_dir, cache_dir, side)


def pictures(count, shape=(6, 6, 3), seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8))


def every_row_once(stream):
    rows = np.concatenate([experience.rows for experience in stream])
    return sorted(rows.tolist()) == list(range(len(stream[0].table)))


def test_split_digits(cache_dir):
    benchmark = SplitDigits().build(access(None, cache_dir))
    assert len(benchmark.train_table) + len(benchmark.test_table) == 1797
    assert 0.15 < len(benchmark.test_table) / 1797 < 0.25
    assert benchmark.train_table.images.shape[1:] == (3, 8, 8)
    assert benchmark.train_table.images.max() == 255
    assert benchmark.info.class_names == tuple("0123456789")
    assert [len(experience.classes) for experience in benchmark.train_stream] == [2] * 5
    assert every_row_once(benchmark.train_stream) and every_row_once(benchmark.test_stream)
    assert (benchmark.protocol, benchmark.flip) == ("class", False)
    train, test = ({image.tobytes() for image in t.images} for t in (benchmark.train_table, benchmark.test_table))
    assert not train & test


def test_split_digits_fields(cache_dir):
    scenario = SplitDigits(
        classes_per_experience=5, protocol="task", order_seed=-1, train_per_class=9, test_per_class=4
    )
    benchmark = scenario.build(access(None, cache_dir))
    assert [experience.classes for experience in benchmark.test_stream] == [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]
    assert [experience.task_label for experience in benchmark.test_stream] == [0, 1]
    assert [len(experience.rows) for experience in benchmark.train_stream] == [45, 45]
    assert [len(experience.rows) for experience in benchmark.test_stream] == [20, 20]
    with pytest.raises(RequestError, match=r"classes_per_experience=3 does not divide 10 .* one of 1, 2, 5, 10 does"):
        SplitDigits(classes_per_experience=3).build(access(None, cache_dir))


def test_split_digits_in_a_base_of_six_and_pilots_order(cache_dir):
    benchmark = SplitDigits(base_classes=6, order="pilot1993").build(access(None, cache_dir))
    # RandomState(1993).permutation(10) is 4 2 7 6 0 3 5 8 9 1
    assert [e.classes for e in benchmark.train_stream] == [(0, 2, 3, 4, 6, 7), (5, 8), (1, 9)]
    assert [e.classes for e in benchmark.test_stream] == [e.classes for e in benchmark.train_stream]
    assert every_row_once(benchmark.train_stream) and every_row_once(benchmark.test_stream)
    with pytest.raises(RequestError, match=r"divide the 5 classes that base_classes=5 leaves evenly; one of 1, 5 does"):
        SplitDigits(base_classes=5).build(access(None, cache_dir))


def test_the_last_experience_is_smaller_where_this_is_asked_for(cache_dir):
    for fields, sizes in (({"classes_per_experience": 4}, [4, 4, 2]), ({"base_classes": 5}, [5, 2, 2, 1])):
        with pytest.raises(RequestError, match="or scenario.uneven=true makes the last experience smaller"):
            SplitDigits(**fields).build(access(None, cache_dir))
        benchmark = SplitDigits(uneven=True, **fields).build(access(None, cache_dir))
        assert [len(e.classes) for e in benchmark.train_stream] == sizes
        assert every_row_once(benchmark.train_stream) and every_row_once(benchmark.test_stream)
    with pytest.raises(RequestError, match="classes_per_experience=0 does not divide 10 classes evenly; .* does$"):
        SplitDigits(uneven=True, classes_per_experience=0).build(access(None, cache_dir))


def test_split_glyphs_in_a_base_of_fifty(cache_dir):
    scenario = SplitGlyphs(base_classes=50, train_per_class=1, test_per_class=1)
    benchmark = scenario.build(access(None, cache_dir))
    assert [len(e.rows) for e in benchmark.train_stream] == [50, 10, 10, 10, 10, 10]


@pytest.mark.parametrize(
    "name", ["split_digits", "split_cifar100", "split_glyphs", "folder", "domainnet", "office_home"]
)
def test_scenarios_that_bring_new_classes_list_base_classes_and_order(name):
    described = {field.name: field for field in plugins.describe("scenarios", name).fields}
    assert (described["base_classes"].default, described["order"].default) == ("None", "'random'")
    assert "PILOT" in described["order"].meaning


def test_a_run_with_uneven_groups_weighs_images_by_experience(tmp_path):
    options = {"scenario": "split_digits", "strategy": "ncm", "backbone": "vit_nano", "out": tmp_path}
    fields = {"scenario.base_classes": "6", "scenario.classes_per_experience": "2", "scenario.test_per_class": "5"}
    (run,) = runner.run_all(config.plan(options, fields, None), quiet=True)
    assert run.matrix["total"] == [30, 10, 10]
    correct = run.matrix["correct"][-1]
    assert run.metrics["sample_accuracy"] == pytest.approx(sum(correct) / 50)


def test_split_digits_is_the_same_every_time(cache_dir):
    first, again = (SplitDigits().build(access(None, cache_dir)) for _ in range(2))
    assert first.train_table.fingerprint == again.train_table.fingerprint
    assert [e.classes for e in first.train_stream] == [e.classes for e in again.train_stream]


def test_split_cifar100_reads_fine_labels(tmp_path, write_parquet):
    names = [f"thing {i}" for i in range(100)]
    for split, count in (("train", 2), ("test", 1)):
        labels = list(range(100)) * count
        file = tmp_path / "cifar100" / f"{split}-00000-of-00001.parquet"
        write_parquet(file, pictures(len(labels)), labels, names, image="img", label="fine_label")
    benchmark = SplitCifar100().build(access(tmp_path, tmp_path / "cache"))
    assert [len(experience.rows) for experience in benchmark.train_stream] == [20] * 10
    assert [len(experience.rows) for experience in benchmark.test_stream] == [10] * 10
    assert benchmark.info.class_names == tuple(names)
    assert benchmark.flip
    published = SplitCifar100(base_classes=50, order="pilot1993").build(access(tmp_path, tmp_path / "cache"))
    assert [len(experience.classes) for experience in published.train_stream] == [50, 10, 10, 10, 10, 10]
    ten = SplitCifar100(order="pilot1993").build(access(tmp_path, tmp_path / "cache")).train_stream[0]
    assert ten.classes == (8, 23, 56, 65, 68, 74, 76, 78, 84, 90)


@pytest.mark.data
@pytest.mark.slow
def test_split_cifar100_is_all_there(data_dir, cache_dir):
    benchmark = SplitCifar100().build(access(data_dir, cache_dir))
    assert (len(benchmark.train_table), len(benchmark.test_table)) == (50_000, 10_000)
    assert benchmark.train_table.images.shape[1:] == (3, 32, 32)
    assert [len(experience.rows) for experience in benchmark.train_stream] == [5000] * 10
    assert [len(experience.rows) for experience in benchmark.test_stream] == [1000] * 10
    assert [len(experience.classes) for experience in benchmark.train_stream] == [10] * 10
    assert every_row_once(benchmark.train_stream)
    assert benchmark.info.class_names[0] == "apple"


@pytest.fixture
def five(tmp_path, write_parquet) -> Path:
    """Small files with the columns and image sizes of the five sets."""
    for seed, (name, (image, _)) in enumerate(SETS.items()):
        names = [f"{'letter' if name == 'notmnist' else 'kind'} {i}" for i in range(10)]
        for split, count in (("train", 3), ("test", 2)):
            images = pictures(10 * count, SIZES[name], seed)
            file = tmp_path / name / f"{split}-00000-of-00001.parquet"
            write_parquet(file, images, list(range(10)) * count, names, image=image)
    return tmp_path


def test_five_datasets(five):
    benchmark = FiveDatasets().build(access(five, five / "cache"))
    names = ["svhn", "mnist", "cifar10", "notmnist", "fashion_mnist"]
    assert [experience.name for experience in benchmark.train_stream] == names
    assert [experience.classes for experience in benchmark.test_stream] == [
        tuple(range(start, start + 10)) for start in range(0, 50, 10)
    ]
    assert [len(experience.rows) for experience in benchmark.train_stream] == [30] * 5
    assert [len(experience.rows) for experience in benchmark.test_stream] == [20] * 5
    assert benchmark.info.class_names[3] == "svhn kind 3"
    assert benchmark.info.class_names[30] == "notmnist letter 0"
    assert benchmark.train_table.images.shape[1:] == (3, 32, 32)  # 28x28 brought to the largest
    assert (benchmark.protocol, benchmark.flip) == ("class", False)


def test_part_of_the_five_datasets_in_another_order(five):
    benchmark = FiveDatasets(sets=("notmnist", "mnist")).build(access(five, five / "cache"))
    assert [experience.name for experience in benchmark.train_stream] == ["notmnist", "mnist"]
    assert benchmark.info.num_classes == 20
    assert benchmark.train_table.images.shape[1:] == (3, 28, 28)


def test_sets_that_are_not_there():
    with pytest.raises(
        RequestError, match=r"no set 'minst' \(did you mean 'mnist'\?\); there are: cifar10, fashion_mnist"
    ):
        FiveDatasets(sets=("minst",))
    with pytest.raises(RequestError, match="each set once, and at least one, not mnist, mnist"):
        FiveDatasets(sets=("mnist", "mnist"))
    with pytest.raises(RequestError, match="at least one, not none"):
        FiveDatasets(sets=())


@pytest.mark.data
def test_two_of_the_five_datasets_on_real_images(data_dir, cache_dir):
    benchmark = FiveDatasets(sets=("mnist", "notmnist")).build(access(data_dir, cache_dir))
    assert [len(experience.rows) for experience in benchmark.train_stream] == [8000, 8000]
    assert [len(experience.rows) for experience in benchmark.test_stream] == [2000, 2000]
    assert benchmark.info.class_names[:1] + benchmark.info.class_names[-1:] == ("mnist 0", "notmnist J")


def plant(tree, names, encode, count, seed=0):
    """Class folders with `count` images each."""
    for i, name in enumerate(names):
        (tree / name).mkdir(parents=True)
        for j, image in enumerate(pictures(count, seed=100 * seed + i)):
            (tree / name / f"{j}.png").write_bytes(encode(image))


def test_folder_with_splits(tmp_path, encode):
    plant(tmp_path / "tree" / "train", ["ant", "bee", "cow", "dog"], encode, 3)
    plant(tmp_path / "tree" / "test", ["ant", "bee", "cow", "dog"], encode, 2, seed=1)
    data = access(tmp_path / "tree", tmp_path / "cache")
    benchmark = Folder(classes_per_experience=2).build(data)
    assert benchmark.info.class_names == ("ant", "bee", "cow", "dog")
    assert [len(experience.rows) for experience in benchmark.train_stream] == [6, 6]
    assert [len(experience.rows) for experience in benchmark.test_stream] == [4, 4]
    assert benchmark.flip and not Folder(classes_per_experience=2, flip=False).build(data).flip
    task = Folder(classes_per_experience=1, protocol="task").build(data)
    assert [experience.task_label for experience in task.train_stream] == [0, 1, 2, 3]
    with pytest.raises(RequestError, match=r"classes_per_experience=10 does not divide 4 classes .* 1, 2, 4 does"):
        Folder().build(data)
    uneven = Folder(base_classes=3, classes_per_experience=1, protocol="task", order_seed=-1).build(data)
    assert [experience.classes for experience in uneven.train_stream] == [(0, 1, 2), (3,)]
    for field in ({"base_classes": 2}, {"order": "pilot1993"}, {"uneven": True}):
        with pytest.raises(RequestError, match=f"{next(iter(field))} is for streams .* protocol=domain has none"):
            Folder(protocol="domain", **field)


def test_folder_without_splits_is_cut_by_the_files_paths(tmp_path, encode):
    plant(tmp_path / "tree", ["ant", "bee"], encode, 60)
    data = access(tmp_path / "tree", tmp_path / "cache")
    benchmark = Folder(classes_per_experience=1).build(data)
    assert len(benchmark.train_table) + len(benchmark.test_table) == 120
    assert 10 <= len(benchmark.test_table) <= 40
    before = {image.tobytes() for image in benchmark.test_table.images}
    # further images leave those that were there on their sides
    plant(tmp_path / "tree", ["bee/more"], encode, 5, seed=1)
    grown = Folder(classes_per_experience=1).build(data)
    assert len(grown.train_table) + len(grown.test_table) == 125
    assert before <= {image.tobytes() for image in grown.test_table.images}


def test_folder_with_half_a_split(tmp_path, encode):
    plant(tmp_path / "tree" / "train", ["ant"], encode, 1)
    with pytest.raises(RequestError, match="has a folder 'train', but needs both 'train' and 'test'"):
        Folder(classes_per_experience=1).build(access(tmp_path / "tree", tmp_path / "cache"))


def test_folder_with_a_class_that_is_not_tested(tmp_path, encode):
    plant(tmp_path / "tree" / "train", ["ant", "bee"], encode, 1)
    plant(tmp_path / "tree" / "test", ["ant"], encode, 1)
    with pytest.raises(RequestError, match="class 'bee' is in only one of them"):
        Folder(classes_per_experience=1).build(access(tmp_path / "tree", tmp_path / "cache"))


def test_folder_of_domains(tmp_path, encode):
    for seed, domain in enumerate(["Real World", "Art", "Clipart"]):
        plant(tmp_path / "tree" / domain, ["ant", "bee"], encode, 30, seed)
    data = access(tmp_path / "tree", tmp_path / "cache")
    benchmark = Folder(protocol="domain", domains=("clipart", "real_world")).build(data)
    assert [experience.domain for experience in benchmark.train_stream] == ["Clipart", "Real World"]
    assert [experience.classes for experience in benchmark.train_stream] == [(0, 1), (0, 1)]
    assert len(benchmark.train_table) + len(benchmark.test_table) == 120
    by_name = Folder(protocol="domain").build(data)
    assert by_name.info.domain_names == ("Art", "Clipart", "Real World")
    with pytest.raises(RequestError, match=r"no domain 'photo'.*there are: Art, Clipart, Real World"):
        Folder(protocol="domain", domains=("photo",)).build(data)
    with pytest.raises(RequestError, match="domains are for protocol=domain, not protocol=class"):
        Folder(domains=("Art",))


def test_folder_of_domains_with_splits(tmp_path, encode):
    for split, count in (("train", 4), ("test", 2)):
        for domain in ("photo", "sketch"):
            plant(tmp_path / "tree" / split / domain, ["ant", "bee"], encode, count)
    benchmark = Folder(protocol="domain").build(access(tmp_path / "tree", tmp_path / "cache"))
    assert [len(experience.rows) for experience in benchmark.train_stream] == [8, 8]
    assert [len(experience.rows) for experience in benchmark.test_stream] == [4, 4]


def counts(experience):
    return np.bincount(experience.labels, minlength=10).tolist()


def test_transfer_deals_a_thousand_images_evenly(cache_dir):
    benchmark = Transfer().build(access(None, cache_dir))
    (train,), (test,) = benchmark.train_stream, benchmark.test_stream
    assert counts(train) == [100] * 10 and len(set(train.rows.tolist())) == 1000
    assert len(test.rows) == len(benchmark.test_table) == len(SplitDigits().build(access(None, cache_dir)).test_table)
    assert (train.classes, benchmark.protocol, benchmark.flip) == (tuple(range(10)), "class", False)
    assert sorted(counts(*Transfer(train=57).build(access(None, cache_dir)).train_stream)) == [5] * 3 + [6] * 7


def test_transfer_to_glyphs(cache_dir):
    benchmark = Transfer(table="glyphs").build(access(None, cache_dir))
    assert np.bincount(*[each.labels for each in benchmark.train_stream]).tolist() == [10] * 100
    assert (len(benchmark.test_stream[0].rows), benchmark.flip) == (2000, True)
    assert len(set(benchmark.info.class_names)) == 100


def test_transfer_tunes_on_training_images_alone(cache_dir, monkeypatch):
    final = Transfer().build(access(None, cache_dir))
    asked, table = [], transfer.table_of
    monkeypatch.setattr(transfer, "table_of", lambda how, data, split: asked.append(split) or table(how, data, split))
    tune = Transfer(split="tune").build(access(None, cache_dir))
    assert asked == ["train"]
    (train,), (test,) = tune.train_stream, tune.test_stream
    assert counts(train) == [80] * 10 and counts(test) == [20] * 10
    assert sorted([*train.rows, *test.rows]) == final.train_stream[0].rows.tolist()
    assert test.table.fingerprint == final.train_table.fingerprint
    assert (Transfer().variant(), Transfer(split="tune").variant()) == ("digits", "digits-tune")


def test_transfer_with_classes_of_different_size(tmp_path, write_parquet):
    labels = [0] * 2 + [1] * 9 + [2] * 9
    for split in ("train", "test"):
        write_parquet(tmp_path / "usps" / f"{split}-0.parquet", pictures(20), labels)
    data = access(tmp_path, tmp_path / "cache")
    assert counts(*Transfer(table="usps", train=12).build(data).train_stream)[:3] == [2, 5, 5]
    assert counts(*Transfer(table="usps", train=None).build(data).train_stream)[:3] == [2, 9, 9]
    assert counts(*Transfer(table="usps", train_per_class=3).build(data).train_stream)[:3] == [2, 3, 3]
    assert counts(*Transfer(table="usps", train=6, test_per_class=1).build(data).test_stream)[:3] == [1, 1, 1]
    with pytest.raises(RequestError, match="train is 1 to 20, the training images of usps, not 1000"):
        Transfer(table="usps").build(data)
    with pytest.raises(RequestError, match="2 training images are too few for the 3 classes"):
        Transfer(table="usps", train=2).build(data)


def test_transfer_has_every_table_in_its_field():
    described = {field.name: field for field in plugins.describe("scenarios", "transfer").fields}
    assert set(described["table"].meaning.replace(",", "").split()) - {"or", "PATH"} == {"digits", "glyphs", *TABLES}


def test_transfer_cuts_a_table_without_splits(tmp_path, write_parquet):
    labels = ["dog", "cat"] * 60
    write_parquet(tmp_path / "pacs" / "train-0.parquet", pictures(120), labels)
    benchmark = Transfer(table="pacs", train=None).build(access(tmp_path, tmp_path / "cache"))
    assert len(benchmark.train_table) + len(benchmark.test_table) == 120
    assert 10 <= len(benchmark.test_table) <= 40
    train, test = ({image.tobytes() for image in t.images} for t in (benchmark.train_table, benchmark.test_table))
    assert not train & test


@pytest.mark.data
def test_transfer_on_real_images(data_dir, cache_dir):
    for name in sorted(set(TABLES) - {"cifar100", "cifar10"}):  # those two take a minute to decode
        if (data_dir / name).is_dir():
            benchmark = Transfer(table=name).build(access(data_dir, cache_dir))
            each = counts(*benchmark.train_stream)
            assert sum(each) == 1000 and max(each) - min(each[: benchmark.info.num_classes]) <= 1
            assert benchmark.flip == (name == "pacs")


def test_transfer_resumes_between_epochs(tmp_path, monkeypatch):
    from clsim import checkpoint, config, runner

    def finished(out):
        options = {"scenario": "transfer", "strategy": "finetune", "backbone": "vit_nano", "out": out, "threads": 1}
        (run,) = runner.run_all(config.plan(options, {"scenario.train": 40, "epochs": 3}, None), quiet=True)
        return run, checkpoint.load(run.directory / "checkpoint")["learner"]

    whole, weights = finished(tmp_path / "whole")
    assert whole.directory.parts[-3] == "transfer.digits" and whole.metrics["forgetting"] is None
    saves = []

    def save(*args):
        checkpoint_save(*args)
        saves.append(1)
        if len(saves) == 2:
            raise KeyboardInterrupt

    checkpoint_save = checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(runner.checkpoint, "save", save)
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path / "broken")
    resumed, again = finished(tmp_path / "broken")
    assert resumed.matrix == whole.matrix and resumed.metrics == whole.metrics
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.items())
    assert resumed.events["step"]["step"].tolist() == whole.events["step"]["step"].tolist()


def test_transfer_shots(cache_dir):
    tables = [
        Transfer(table="digits", shots=4, order_seed=seed).build(access(None, cache_dir)).train_stream[0]
        for seed in (0, 0, 1)
    ]
    assert np.bincount(tables[0].labels).tolist() == [4] * 10
    assert tables[0].rows.tolist() == tables[1].rows.tolist() != tables[2].rows.tolist()


def test_transfer_base_to_new(cache_dir):
    scenario = Transfer(table="digits", shots=4, base_to_new=True)
    benchmark = scenario.build(access(None, cache_dir))
    (learned,), (base, new) = benchmark.train_stream, benchmark.test_stream
    assert learned.classes == base.classes == (0, 1, 2, 3, 4) and new.classes == (5, 6, 7, 8, 9)
    assert set(learned.labels) == set(base.labels) == set(base.classes) and set(new.labels) == set(new.classes)
    assert len(base.rows) + len(new.rows) == len(base.table)
    assert isinstance(benchmark.rules, BaseToNew) and not set(learned.classes) & set(new.classes)
    assert scenario.variant() == "digits-base-to-new"
    with pytest.raises(RequestError, match="split=tune is for train=N"):
        Transfer(split="tune", shots=4)


@pytest.mark.parametrize("strategy, blind", [("zero_shot", False), ("coop", False), ("linear", True)])
def test_base_to_new_runs(strategy, blind, tmp_path):
    options = {"scenario": "transfer", "strategy": strategy, "backbone": "clip_nano", "out": tmp_path}
    fields = {"epochs": "1", "scenario.base_to_new": "true", "scenario.shots": "1", "scenario.test_per_class": "4"}
    (run,) = runner.run_all(config.plan(options, fields, None), quiet=True)
    assert run.matrix["total"] == [20, 20] and run.matrix["experiences"] == ["base", "new"]
    correct = run.matrix["correct"][-1]
    assert run.metrics["base_accuracy"] == correct[0] / 20
    assert run.metrics["new_accuracy"] == (None if blind else correct[1] / 20)
    assert (run.metrics["harmonic_mean"] is None) == blind
