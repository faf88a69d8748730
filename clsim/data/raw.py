"""Splits as their files have them, with labels that are not ids yet; and the sources of training and of test images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clsim.data.folders import check_excluded, split_kind
from clsim.data.labels import UNDECLARED, Declared, Labels, Values, agreed, categories
from clsim.data.sources import Source, alike, cut, fingerprint_files, pick, shown
from clsim.errors import RequestError

NO_SPLITS = "no splits (train, test): a fifth of the images is for testing, by a hash of each image's name"


@dataclass(frozen=True)
class Wanted:
    """What a user asks for; everything may be left out."""

    image: str = ""  # the column, or array, of images; empty: the usual names
    label: str = ""  # that of labels
    domain: str = ""  # that of domains
    domains: tuple[str, ...] = ()  # the domains to read, in order; none: all
    domain_folders: bool | None = None  # whether there must be domains; none: look
    test_split: str = ""  # the split for testing; empty: test, or else val
    exclude: tuple[str, ...] = ()  # classes to leave out


@dataclass(frozen=True)
class Raw:
    """One split as its files have it. A data set's splits have one list of classes, so labels become ids together."""

    split: str  # its own name; empty if the files name none
    read: Callable[[int], bytes]  # the encoded bytes of image i
    names: Sequence[str]  # of the images, see `Source`
    labels: Sequence[tuple[Path, Values]]  # file by file
    what: str  # the name of labels in messages, e.g. "column 'label'"
    files: Sequence[Path]  # for the fingerprint, as are `settings`
    settings: tuple[str, ...] = ()
    declared: Declared = UNDECLARED
    domains: Sequence[tuple[Path, Values]] | None = None
    declared_domains: Declared = UNDECLARED
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def take(self, rows: NDArray[np.int64], split: str) -> "Raw":
        """Some rows (ascending) as a split of their own."""
        read, names = self.read, self.names
        return replace(
            self,
            split=split,
            read=lambda i: read(int(rows[i])),
            names=[names[i] for i in rows.tolist()],
            labels=_rows_of(self.labels, rows),
            settings=(*self.settings, split),
            domains=None if self.domains is None else _rows_of(self.domains, rows),
        )

    def source(self, labels: Labels, domains: Labels | None) -> Source:
        """The split with its labels as ids."""
        return Source(
            read=self.read,
            names=self.names,
            labels=labels.ids,
            class_names=labels.names,
            fingerprint=fingerprint_files(self.files, *self.settings, *labels.unusual),
            domains=None if domains is None else domains.ids,
            domain_names=() if domains is None else domains.names,
            split=self.split,
            left_out=self.left_out,
            notes=(*self.notes, *labels.notes),
        )


def _rows_of(parts: Sequence[tuple[Path, Values]], rows: NDArray[np.int64]) -> list[tuple[Path, Values]]:
    """Rows, counted over all files, of each file's values."""
    starts = np.cumsum([0, *(len(values) for _, values in parts)])
    cuts = np.searchsorted(rows, starts)
    found = []
    for (file, values), start, a, b in zip(parts, starts[:-1], cuts[:-1], cuts[1:], strict=True):
        if a < b:
            found.append((file, values[rows[a:b] - start]))
    return found


def by_column(raw: Raw, column: str, splits: Values) -> list[Raw]:
    """The splits that a column (N,) names; the whole if it has other values and another name than `split`."""
    names = [str(name) for name in dict.fromkeys(splits.tolist())]
    if not any(map(split_kind, names)) and alike(column) not in ("split", "splits"):
        return [replace(raw, notes=(*raw.notes, f"column {column!r} has no names of splits (train, test)"))]
    return [raw.take(np.flatnonzero(splits.astype(str) == name), name) for name in names]


def train_and_test(found: Sequence[Raw], wanted: Wanted, where: Path) -> tuple[Source, Source]:
    """Training and test images. Without several splits, a fifth is for testing, by a hash of each image's name.

    Raises RequestError if splits, classes or domains do not fit together, or not to what is wanted.
    """
    chosen = _chosen(found, wanted.test_split, where)
    for raw in chosen:
        if not len(raw.names):
            raise RequestError(f"{shown(raw.files[0])} has no images" + f" in {raw.split!r}" * bool(raw.split))
    declared = agreed([(raw.files[0], raw.declared) for raw in chosen], chosen[0].what)
    labels = _split_up(
        categories([part for raw in chosen for part in raw.labels], chosen[0].what, declared, ()), chosen
    )
    domains: Sequence[Labels | None] = [None] * len(chosen)
    if wanted.domain_folders is not False:
        domains = _domains(chosen, wanted, where)
    sources = [_only(raw.source(ids, places), wanted) for raw, ids, places in zip(chosen, labels, domains, strict=True)]
    check_excluded(wanted.exclude, *sources)
    if not all(len(source.labels) for source in sources):
        raise RequestError(f"no images of {shown(where)} are left without the excluded classes and other domains")
    others = tuple(raw.split for raw in found if raw.split not in {each.split for each in chosen})
    if others:
        sources[0] = replace(sources[0], left_out={**sources[0].left_out, "other splits": others})
    if len(sources) == 1:
        return cut(sources[0], where, NO_SPLITS)
    train, test = sources
    _same_classes(train, test, where)
    return train, test


def _chosen(found: Sequence[Raw], test_split: str, where: Path) -> list[Raw]:
    """The split for training and that for testing; one if there is only one."""
    names = [raw.split for raw in found]
    there = f"{shown(where)} has the splits {', '.join(names)}"
    if len(found) == 1 and not test_split:
        return list(found)
    if len(found) == 1:
        raise RequestError(f"test_split={test_split}: {shown(where)} has no splits (train, test)")
    kinds: dict[str, Raw] = {}
    for raw in found:
        kind = split_kind(raw.split)
        if kind in kinds and kind:
            raise RequestError(f"{shown(where)} has {kinds[kind].split!r} and {raw.split!r}, which are one split")
        kinds[kind] = raw
    if "train" not in kinds:
        raise RequestError(f"{there}; which is for training? It must be named 'train' (or training)")
    if not test_split:
        test = kinds.get("test") or kinds.get("val")
        if test is None:
            raise RequestError(f"{there}; name the one for testing: scenario.test_split=NAME")
        return [kinds["train"], test]
    kind = split_kind(test_split)
    by_name = {raw.split: raw for raw in found}
    return [kinds["train"], kinds[kind] if kind in kinds and kind else by_name[pick("split", test_split, names)]]


def _split_up(labels: Labels, chosen: Sequence[Raw]) -> list[Labels]:
    """Joint labels -> those of each split; the notes are in the first."""
    ends = np.cumsum([len(raw.names) for raw in chosen])
    parts = np.split(labels.ids, ends[:-1])
    return [labels._replace(ids=ids, notes=() if i else labels.notes) for i, ids in enumerate(parts)]


def _domains(chosen: Sequence[Raw], wanted: Wanted, where: Path) -> Sequence[Labels | None]:
    """The domains of each split, None if there are none."""
    parts = [part for raw in chosen for part in raw.domains or ()]
    lacking = [raw for raw in chosen if raw.domains is None]
    if lacking and (wanted.domain_folders or wanted.domains or wanted.domain or parts):
        raise RequestError(
            f"{shown(lacking[0].files[0])} has no domains; this needs a column of domains (scenario.domain=COLUMN)"
        )
    if not parts:
        return [None] * len(chosen)
    what = "the column of domains"
    declared = agreed([(raw.files[0], raw.declared_domains) for raw in chosen], what)
    return _split_up(categories(parts, what, declared, ()), chosen)


def _only(source: Source, wanted: Wanted) -> Source:
    """The source without excluded classes, and with the wanted domains in their order."""
    if wanted.domains:
        names = [pick("domain", name, source.domain_names) for name in wanted.domains]
        if len(set(names)) < len(names):
            raise RequestError(f"{', '.join(names)}: each domain can be named once")
        assert source.domains is not None
        place = np.array([names.index(name) if name in names else -1 for name in source.domain_names])
        kept = source.take(place[source.domains] >= 0)
        assert kept.domains is not None
        source = replace(kept, domains=place[kept.domains], domain_names=tuple(names))
    unwanted = {alike(name) for name in wanted.exclude}
    keep = np.array([alike(name) not in unwanted for name in source.class_names])
    if keep.all():
        return source
    kept = source.take(keep[source.labels])
    gone = tuple(name for name, stays in zip(source.class_names, keep, strict=True) if not stays)
    return replace(
        kept,
        labels=(np.cumsum(keep) - 1)[kept.labels],
        class_names=tuple(name for name, stays in zip(source.class_names, keep, strict=True) if stays),
        left_out={**kept.left_out, "excluded classes": gone},
    )


def _same_classes(train: Source, test: Source, where: Path) -> None:
    """Raises RequestError if a class has images in only one of the splits."""
    for one, other in ((train, test), (test, train)):
        odd = sorted(set(one.labels.tolist()) - set(other.labels.tolist()))
        if odd:
            raise RequestError(
                f"{shown(where)}: class {one.class_names[odd[0]]!r} has images in {one.split!r}, but none in "
                f"{other.split!r}; scenario.exclude leaves a class out"
            )
