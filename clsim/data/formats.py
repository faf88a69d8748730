"""Data sets of any format that clsim knows: it looks at what a file or folder is, and reads it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from clsim.data import arrow, cifar, idx, listed, npz, svhn, webdataset
from clsim.data.folders import has_class_folders, read_tree, subfolders
from clsim.data.raw import Raw, Wanted, by_column, train_and_test
from clsim.data.readers import (
    Hub,
    columns_of,
    local_files,
    parquet_files,
    parquet_schema,
    parquet_split,
    read_parquet,
    schema_columns,
)
from clsim.data.shards import SplitFiles, by_split, files_below, split_of
from clsim.data.sources import Source, shown
from clsim.errors import RequestError

KNOWN = (
    "class folders of images, Parquet, Hugging Face's save_to_disk, torchvision's CIFAR, MNIST and SVHN, "
    ".npz, WebDataset's .tar, and a .csv or .jsonl of paths and labels"
)


class _Format(NamedTuple):
    suffixes: tuple[str, ...]
    read: Callable[[Sequence[SplitFiles], Wanted, Path], list[Raw]]  # the splits, what is wanted, their folder


def read_any(path: Path, wanted: Wanted) -> tuple[Source, Source]:
    """Training and test images of a file or folder, whatever it is. Raises RequestError that names what is wrong."""
    try:
        if not path.exists():
            raise RequestError(f"no such file or folder: {shown(path)}")
        if path.is_dir() and has_class_folders(path):
            return _tree(path, wanted)
        found = _read(path, wanted)
        return _tree(path, wanted) if found is None else train_and_test(found, wanted, path)
    except OSError as error:
        raise RequestError(f"cannot read {error.filename or shown(path)}: {error.strerror or error}") from error


def is_data_file(path: Path) -> bool:
    """Whether a path is a file of a known format, by its name."""
    return path.is_file() and _format_of(path) is not None


def _format_of(file: Path) -> _Format | None:
    return next((each for each in FORMATS if file.name.lower().endswith(each.suffixes)), None)


def _tree(path: Path, wanted: Wanted) -> tuple[Source, Source]:
    _refuse_columns(wanted, f"{shown(path)} is a folder of class folders")
    if not subfolders(path):
        raise RequestError(f"{shown(path)} has no data set in it; clsim reads {KNOWN}")
    return read_tree(path, wanted.domains, wanted.domain_folders, wanted.test_split, wanted.exclude)


def _refuse_columns(wanted: Wanted, why: str) -> None:
    for field in ("image", "label", "domain"):
        if getattr(wanted, field):
            raise RequestError(f"scenario.{field} names a column, but {why}")


def _read(path: Path, wanted: Wanted) -> list[Raw] | None:
    """The splits of a file or folder; None for a folder in which no format is recognised."""
    if not path.is_dir():
        kind = _format_of(path)
        if kind is None:
            raise RequestError(f"{shown(path)} is of no known format; clsim reads {KNOWN}")
        return kind.read([SplitFiles("", (path,))], wanted, path.parent)
    saved = arrow.saved_files(path)
    if saved:
        return arrow.read_arrow(saved, wanted)
    downloads = _downloads(path)
    formats = []
    for each in FORMATS[:-1]:
        # torchvision leaves the archives that it has unpacked
        files = [file for file in files_below(path, *each.suffixes) if file.name not in cifar.ARCHIVES]
        formats += [(each, files)] if files else []
    if len(downloads) + len(formats) > 1:
        names = ", ".join([*(shown(place) for place, _ in downloads), *(shown(files[0]) for _, files in formats)])
        raise RequestError(f"{shown(path)} has several data sets: {names}; give the path of one")
    if downloads:
        _refuse_columns(wanted, f"{shown(downloads[0][0])} has none")
        return downloads[0][1]()
    if not formats:
        formats = [(FORMATS[-1], lists)] if (lists := _lists(path, wanted)) else []
    if not formats:
        return None
    kind, files = formats[0]
    grouped = by_split(files, path)
    found = kind.read(grouped.splits, wanted, path)
    if grouped.others:
        others = {"files of no split": tuple(map(shown, grouped.others))}
        found[0] = replace(found[0], left_out={**found[0].left_out, **others})
    return found


def _lists(path: Path, wanted: Wanted) -> list[Path]:
    """The lists of images. A file that looks like one by its name alone is read, too, so that its error is seen."""
    files = files_below(path, *listed.SUFFIXES, deeper=False)
    return [file for file in files if listed.is_list(file, wanted) or split_of(file, path)] or files


def _downloads(path: Path) -> list[tuple[Path, Callable[[], list[Raw]]]]:
    """What torchvision downloaded: into this folder, or else into folders in it."""
    for places in ([path], subfolders(path)):
        found: list[tuple[Path, Callable[[], list[Raw]]]] = []
        for place in places:
            raw = idx.idx_in(place)
            if cifar.cifar_in(place):
                found.append((place, lambda place=place: cifar.read_cifar(place)))  # type: ignore[misc]
            if raw:
                found.append((raw, lambda raw=raw: idx.read_idx(raw)))  # type: ignore[misc]
            if svhn.svhn_in(place):
                found.append((place, lambda place=place: svhn.read_svhn(place)))  # type: ignore[misc]
        if found:
            return found
    return []


def _parquet(groups: Sequence[SplitFiles], wanted: Wanted, _: Path) -> list[Raw]:
    found = []
    for split, files in groups:
        columns = schema_columns(files[0], parquet_schema(files[0]), wanted)
        raw = parquet_split(files, columns.image, columns.label, columns.domain, split)
        raw = replace(raw, notes=(*raw.notes, columns.note))
        if columns.split is None:
            found.append(raw)
        else:
            found += by_column(raw, columns.split, columns_of(files, columns.split))
    return found


FORMATS = (
    _Format((".parquet",), _parquet),
    _Format((".arrow",), lambda groups, wanted, _: arrow.read_arrow(groups, wanted)),
    _Format((".npz",), lambda groups, wanted, _: npz.read_npz(groups, wanted)),
    _Format(webdataset.SUFFIXES, lambda groups, wanted, _: webdataset.read_tars(groups, wanted)),
    _Format((*listed.SUFFIXES, ".json"), listed.read_lists),  # the last: lists may be next to all others
)


# data sets that scenarios know by name


def read_named(
    data_dir: Path | None, folder: str, split: str, image: str, label: str, domain: str | None, hub: Hub | None
) -> Source:
    """One split of a data set by its name, which is its folder in `data_dir`: Parquet files, or `save_to_disk`'s, or
    torchvision's download; or else the Hub's files."""
    if data_dir is not None and not local_files(data_dir / folder, split)[0]:
        read = _local(data_dir, folder, Wanted(image, label, domain or "", domain_folders=domain is not None))
        if read is not None:
            return dict(zip(("train", "test"), read(), strict=True))[split]
    files, others, counterpart = parquet_files(data_dir, folder, split, hub), [], []
    if data_dir is not None and files[0].parent == data_dir / folder:
        others = local_files(data_dir / folder, split)[1]
        # both splits have one list of classes, also if their labels have gaps
        counterpart = local_files(data_dir / folder, "test" if split == "train" else "train")[0]
    source = read_parquet(files, image, label, domain, counterpart)
    left_out = {f"not a file of the split {split!r}": tuple(map(str, others))} if others else {}
    return replace(source, split=split, left_out=left_out)


def has_named(data_dir: Path, folder: str, split: str) -> bool:
    """Whether `read_named` finds this split in `data_dir`; no image is read. Raises RequestError for shards missing."""
    return bool(local_files(data_dir / folder, split)[0]) or _local(data_dir, folder, Wanted()) is not None


def _local(data_dir: Path, folder: str, wanted: Wanted) -> Callable[[], tuple[Source, Source]] | None:
    """What reads a named data set in another format than Parquet; None if there is none."""
    own = data_dir / folder
    saved = arrow.saved_files(own)
    if len(saved) > 1:  # scenarios cut a single split in ways of their own
        return lambda: train_and_test(arrow.read_arrow(saved, wanted), wanted, own)
    for place in (data_dir, own):
        if folder in cifar.FOLDERS:
            names = (place, place / cifar.FOLDERS[folder])
            there = [each for each in names if cifar.cifar_in(each) == folder and each.is_dir()]
            if there:
                return lambda: train_and_test(cifar.read_cifar(there[0]), Wanted(), there[0])
        if folder in idx.FOLDERS:
            raws = [raw for each in (own, place / idx.FOLDERS[folder]) if (raw := idx.idx_in(each))]
            if raws:
                return lambda: train_and_test(idx.read_idx(raws[0]), Wanted(), raws[0])
        if folder == "svhn" and svhn.svhn_in(place):
            return partial(_svhn, place)
    return None


def _svhn(place: Path) -> tuple[Source, Source]:
    return train_and_test(svhn.read_svhn(place), Wanted(), place)
