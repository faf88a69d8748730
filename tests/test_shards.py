"""Files of data sets: which split they belong to, and what is missing."""

import pytest

from clsim.data.shards import by_split, files_below
from clsim.errors import RequestError


def grouped(tmp_path, *names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = by_split(files_below(tmp_path, ".csv", ".tar", ".tar.gz"), tmp_path)
    splits = {each.split: [str(file.relative_to(tmp_path)) for file in each.files] for each in found.splits}
    return splits, [file.name for file in found.others]


@pytest.mark.parametrize(
    ("names", "splits", "others"),
    [
        (["train.csv", "test.csv"], {"train": ["train.csv"], "test": ["test.csv"]}, []),
        (["Train_list.csv", "my-val.csv"], {"Train": ["Train_list.csv"], "val": ["my-val.csv"]}, []),
        (["set-train-0.tar", "set-train-1.tar"], {"train": ["set-train-0.tar", "set-train-1.tar"]}, []),
        (["train/a.tar", "test/b.tar.gz"], {"train": ["train/a.tar"], "test": ["test/b.tar.gz"]}, []),
        (["data/train-0.tar", "data/val-0.tar"], {"train": ["data/train-0.tar"], "val": ["data/val-0.tar"]}, []),
        (["only/train-0.tar"], {"train": ["only/train-0.tar"]}, []),
        (["train.csv", "train_noisy.csv"], {"train": ["train.csv"]}, ["train_noisy.csv"]),
        (["train.csv", "classes.csv", "test.csv"], {"train": ["train.csv"], "test": ["test.csv"]}, ["classes.csv"]),
        (["00000.tar", "00001.tar"], {"": ["00000.tar", "00001.tar"]}, []),
        (["cifar10.csv"], {"": ["cifar10.csv"]}, []),
        ([".hidden.csv", "all.csv"], {"": ["all.csv"]}, []),
    ],
)
def test_files_belong_to_the_split_in_their_name(tmp_path, names, splits, others):
    assert grouped(tmp_path, *names) == (splits, others)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train-0.tar", "train-2.tar"], "a file of the split 'train' is missing in .*: number 1 "),
        (["00000.tar", "00002.tar"], "a file of the split '' is missing in .*: number 1 "),
        (["train-00000-of-00002.tar"], "is missing in .*: number 00001-of-00002"),
        (
            ["train_a.csv", "train_b.csv"],
            "train_a.csv and .*train_b.csv are two sets of files for the split 'train'; keep",
        ),
        (
            ["cifar10.csv", "cifar100.csv"],
            "cifar10.csv and .*cifar100.csv are two sets of files that are named after no",
        ),
        (["a/x.csv", "b/x.csv"], "several folders have data files: .*a, .*b; name one of them"),
    ],
)
def test_missing_and_double_files_are_named(tmp_path, names, message):
    with pytest.raises(RequestError, match=message):
        grouped(tmp_path, *names)
