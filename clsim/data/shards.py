"""Files of data sets by name: their splits, and whether all shards of a split are there."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clsim.data.folders import split_kind, subfolders
from clsim.data.sources import shown
from clsim.errors import RequestError

# what follows the name of a split in that of a file: train-00000-of-00002-0123456789abcdef.parquet, train_1.parquet
SHARD = re.compile(r"([-_.]?(?P<index>\d+))?(-of-(?P<count>\d+))?(-[0-9a-f]{8,})?\.[a-z]+(\.gz)?$")


class SplitFiles(NamedTuple):
    """The files of one split, in order."""

    split: str  # its own name; empty if the files are not named after splits
    files: tuple[Path, ...]


class Grouped(NamedTuple):
    """Files by split, and those that belong to none."""

    splits: tuple[SplitFiles, ...]
    others: tuple[Path, ...]


def files_below(folder: Path, *suffixes: str, deeper: bool = True) -> list[Path]:
    """The files in a folder, or else in its folders of splits (or `data`), or in the one folder that has some.

    Raises RequestError if several folders have some.
    """

    def inside(place: Path) -> list[Path]:
        named = (path for path in sorted(place.iterdir()) if not path.name.startswith("."))
        return [path for path in named if path.name.lower().endswith(suffixes)]

    found = inside(folder)
    below = subfolders(folder)
    found += [file for each in below if split_kind(each.name) or each.name == "data" for file in inside(each)]
    if found:
        return found
    places = {each: files_below(each, *suffixes, deeper=False) for each in below} if deeper else {}
    places = {place: files for place, files in places.items() if files}
    if len(places) > 1:
        names = ", ".join(shown(place) for place in places)
        raise RequestError(f"several folders have data files: {names}; name one of them")
    return next(iter(places.values()), [])


def split_of(file: Path, folder: Path) -> str:
    """The split that a file's name has in it, or that of its folder below `folder`; empty if there is none."""
    words = [word for word in re.split(r"[\W\d_]+", _stem(file)) if word]
    above = file.parent.name if file.parent != folder else ""
    return next((word for word in words if split_kind(word)), above if split_kind(above) else "")


def _stem(file: Path) -> str:
    """The name of a file without the number of its shard."""
    match = SHARD.search(file.name)
    stem = file.name[: match.start()] if match else file.name
    if match and match[0][0].isdigit() and stem and not split_kind(stem):
        return file.stem  # cifar10.npz and cifar100.npz are not two shards
    return stem


def by_split(files: Sequence[Path], folder: Path) -> Grouped:
    """Files by the split that their names, or the names of their folders, contain; training comes first.

    A file with a longer name (train_noisy_labels.csv) belongs to a split only if no file has the plain name. Raises
    RequestError if there are two sets of files for a split, or if a shard is missing.
    """
    sets: dict[str, dict[tuple[str, Path, str], list[Path]]] = {}  # kind of split -> its sets of files
    for file in files:
        split = split_of(file, folder)
        sets.setdefault(split_kind(split), {}).setdefault((split, file.parent, _stem(file)), []).append(file)
    found, others = [], []
    for kind, one in sorted(sets.items(), key=lambda item: item[0] != "train"):
        plain = [key for key in one if not key[2] or key[2] == key[0]] if kind else []
        chosen = plain if len(plain) == 1 else list(one)
        if not kind and len(sets) > 1:
            others += [file for group in one.values() for file in group]
            continue
        if len(chosen) > 1:
            first, second = (one[key][0] for key in chosen[:2])
            what = f"for the split {kind!r}" if kind else "that are named after no split"
            raise RequestError(f"{shown(first)} and {shown(second)} are two sets of files {what}; keep or name one")
        split, _, _ = chosen[0]
        others += [file for key, group in one.items() if key != chosen[0] for file in group]
        check_shards(one[chosen[0]], split)
        found.append(SplitFiles(split, tuple(one[chosen[0]])))
    return Grouped(tuple(found), tuple(others))


def check_shards(files: Sequence[Path], split: str) -> None:
    """Raises RequestError if a file of a split is missing (one of three), or if there are two sets of files."""
    sets: dict[tuple[str, bool], dict[int, Path]] = {}
    for file in files:
        match = SHARD.search(file.name)
        assert match is not None  # for the Hub's files, the part behind any prefix
        index, count = match["index"], match["count"]
        one = sets.setdefault((count or "", index is None), {})
        same = one.get(int(index or 0))
        if same is not None or len(sets) > 1:
            first = same or next(iter(next(iter(sets.values())).values()))
            raise RequestError(
                f"{file.parent} has two sets of files of the split {split!r}: {first.name} and {file.name}; keep one"
            )
        one[int(index or 0)] = file
    for (count, _), one in sets.items():
        first_index = 0 if count and 0 in one else min(one)
        last = first_index + int(count) - 1 if count else max(one)
        if count and first_index > 1:
            first_index, last = 0, int(count) - 1
        if last > 100_000:
            continue  # dates, not numbers of files
        missing = sorted(set(range(first_index, last + 1)) - set(one))
        if missing:
            which = f"{missing[0]:05d}-of-{count}" if count else str(missing[0])
            raise RequestError(
                f"a file of the split {split!r} is missing in {next(iter(one.values())).parent}: "
                f"number {which} ({len(one)} of {len(one) + len(missing)} are there)"
            )
