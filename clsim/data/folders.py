"""Trees of class folders as people have them: with splits or without, with domains, litter and links."""

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clsim.data.sources import Source, alike, cut, fingerprint_files, pick, shown, twins
from clsim.data.wordnet import readable
from clsim.errors import RequestError, unknown

# read where Pillow reads them: AVIF and WebP are not in every build of it
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
LITTER = ("__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information")
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
HELD_OUT = "no folders of splits (train, test): a fifth of the images is for testing, by a hash of each file's path"


class Top(NamedTuple):
    """A folder of class folders, and the domain that it belongs to (empty: there are no domains)."""

    domain: str
    path: Path


class LeftOut(defaultdict[str, list[str]]):
    """Reason -> names of what is left out for it."""

    def __init__(self) -> None:
        super().__init__(list)


def clean_name(path: Path) -> str:
    """A path's last part in NFC: macOS stores names as NFD. Raises RequestError if it is not UTF-8."""
    try:
        name = os.fsencode(path.name).decode()  # also where the locale is not UTF-8
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the name {os.fsencode(path.name)!r} in {shown(path.parent)} is not UTF-8; rename it"
        ) from error
    return unicodedata.normalize("NFC", name)


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or made by an operating system."""
    return name.startswith(".") or name.lower() in LITTER


def image_suffixes() -> frozenset[str]:
    """The suffixes of files that are read, in lower case."""
    from PIL import Image

    return frozenset(IMAGE_SUFFIXES) & Image.registered_extensions().keys()


def subfolders(root: Path) -> list[Path]:
    """The folders directly in `root`, sorted by name; hidden ones (.git, .ipynb_checkpoints) are left out."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not is_litter(path.name))


def _files(folder: Path, tree: Path, left_out: LeftOut, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The image files in a folder and the folders below it. Links are followed inside `tree` (resolved) only."""
    suffixes = image_suffixes()
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        name = shown(path)
        try:
            mode = path.stat().st_mode
        except OSError:  # also a link that leads back to itself
            left_out["links to nothing"].append(name)
            continue
        if is_litter(path.name):
            left_out["hidden files, and files of an operating system"].append(name)
        elif not path.resolve().is_relative_to(tree):
            left_out["links out of the tree"].append(name)
        elif stat.S_ISDIR(mode):
            if path.resolve() in above:
                left_out["links to a folder that they are in"].append(name)
            else:
                yield from _files(path, tree, left_out, above)
        elif not stat.S_ISREG(mode):
            left_out["neither files nor folders"].append(name)
        elif path.suffix.lower() not in suffixes:
            left_out[f"not read as images ({shown(Path(path.suffix.lower() or 'without a suffix'))})"].append(name)
        else:
            yield path


def _class_folders(tops: Sequence[Top], tree: Path, exclude: Sequence[str], left_out: LeftOut) -> dict[Path, str]:
    """Class folders and their class names, in order of their names.

    Raises RequestError for classes that readers cannot distinguish, and for splits in place of classes.
    """
    every: dict[Path, str] = {}
    for top in tops:
        if not top.path.is_dir():
            raise RequestError(f"no folder {shown(top.path)}")
        for path in subfolders(top.path):
            if not path.resolve().is_relative_to(tree):
                left_out["links out of the tree"].append(shown(path))
            elif path.resolve() == tree or path.resolve() in tree.parents or path.resolve() == top.path.resolve():
                left_out["links to a folder that they are in"].append(shown(path))
            else:
                every[path] = clean_name(path)
        for path in sorted(top.path.iterdir()):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not is_litter(path.name):
                left_out["images in no class folder"].append(shown(path))
    unwanted = {alike(name) for name in exclude}
    for path, name in list(every.items()):
        if name in exclude or (alike(name) in unwanted and not set(exclude) & set(every.values())):
            left_out["excluded classes"].append(shown(path))
            del every[path]
    for path, name in every.items():
        if split_kind(name):
            raise RequestError(f"{shown(path)}: {name!r} is the name of a split, and not of a class")
        if len(find_splits(path)) > 1:
            raise RequestError(f"{shown(path)} has folders of splits in it; a class folder must be in a split's folder")
    same = twins(sorted(set(every.values())))
    if same:
        raise RequestError(
            f"the class names {same[0][0]!r} and {same[0][1]!r} differ only by case, or by '_' and a blank, in "
            f"{shown(tree)}; rename one of the folders, or exclude a class with scenario.exclude"
        )
    return every


def read_folder(
    root: Path,
    domains: Sequence[str] = (),
    *,
    tops: Sequence[Top] = (),
    exclude: Sequence[str] = (),
    tree: Path | None = None,
) -> Source:
    """Class folders: `root/class/*.png`, or `root/domain/class/*.png` for the domains named.

    `tops` are the folders of class folders, if they are elsewhere below `root`. `tree` is where links may lead, and
    where class-name files are looked for (none: root). Raises RequestError if there are no images, and for names that
    cannot be used.
    """
    tops = tops or [Top(name, root / name) for name in domains] or [Top("", root)]
    tree, left_out = (tree or root).resolve(), LeftOut()
    folders = _class_folders(tops, tree, exclude, left_out)
    class_names = sorted(set(folders.values()))
    label = {name: i for i, name in enumerate(class_names)}
    domain_names = tuple(dict.fromkeys(top.domain for top in tops)) if tops[0].domain else ()
    found = [
        (path, label[folders[folder]], domain_names.index(top.domain) if domain_names else 0)
        for top in tops
        for folder in sorted((f for f in folders if f.parent == top.path), key=lambda f: (folders[f], f))
        for path in sorted(_files(folder, tree, left_out, (tree, top.path.resolve())))
    ]
    if not found:
        raise _nothing(root, left_out, bool(domain_names))
    files = [path for path, _, _ in found]
    names = [_name(path, root) for path in files]
    words = readable(class_names, (root, tree))
    named = [] if words == class_names else ["class names", *words]  # so that a stored table has these names
    return Source(
        read=lambda i: files[i].read_bytes(),
        names=names,
        labels=np.array([label for _, label, _ in found], dtype=np.int64),
        class_names=tuple(words),
        fingerprint=fingerprint_files(files, *names, *named),
        domains=np.array([domain for _, _, domain in found], dtype=np.int64) if domain_names else None,
        domain_names=domain_names,
        left_out={why: tuple(items) for why, items in left_out.items()},
    )


def _name(path: Path, root: Path) -> str:
    folders = [root / folder for folder in path.relative_to(root).parents][-2::-1]
    return "/".join(map(clean_name, (*folders, path)))


def _nothing(root: Path, left_out: LeftOut, with_domains: bool) -> RequestError:
    """The error for a tree without images, with what was left out."""
    reasons = "; ".join(f"{len(names)} {why}, e.g. {names[0]}" for why, names in left_out.items())
    suffixes = ", ".join(sorted(image_suffixes()))
    where = f"in class folders ({suffixes}) below {shown(root)}"
    if with_domains:
        where += ", which is read as DOMAIN/CLASS/*.png"
    return RequestError(f"no images {where}" + f"; left out: {reasons}" * bool(reasons))


# splits and domains


def split_kind(name: str) -> str:
    """ "train", "val" or "test" for a usual name of a split; empty for other names."""
    return next((kind for kind, names in SPLITS.items() if name.lower() in names), "")


def find_splits(folder: Path) -> dict[str, Path]:
    """Kind of split -> its folder in `folder`. Raises RequestError if two folders are of one kind."""
    found: dict[str, Path] = {}
    for path in subfolders(folder):
        kind = split_kind(path.name)
        if kind in found:
            raise RequestError(
                f"{shown(folder)} has {found[kind].name!r} and {path.name!r}, which are names of one split; rename one"
            )
        if kind:
            found[kind] = path
    return found


def choose_splits(folder: Path, test_split: str) -> tuple[Path, Path] | None:
    """The folders of training and of test images in `folder`; None if it has no splits.

    Without `test_split` it is `test`, or else `val`. Raises RequestError if only one of the two is there.
    """
    found = find_splits(folder)
    if not found:
        if test_split:
            raise RequestError(f"test_split={test_split}: {shown(folder)} has no folders of splits (train, test)")
        return None
    if "train" not in found or len(found) == 1:
        only = next(iter(found.values())).name
        wanted = "both 'train' and 'test'" if len(found) == 1 else "'train', too"
        raise RequestError(f"{shown(folder)} has a folder {only!r}, but needs {wanted}")
    if not test_split:
        return found["train"], found.get("test") or found["val"]
    kind = split_kind(test_split)
    if kind in found:
        return found["train"], found[kind]
    others = {path.name: path for path in subfolders(folder)}
    return found["train"], others[pick("split", test_split, list(others))]


def has_domain_folders(folder: Path) -> bool:
    """Whether the folders in `folder` look like domains: all have folders alone, and mostly the same ones."""
    inner = []
    for path in subfolders(folder):
        below = {clean_name(each) for each in subfolders(path) if not split_kind(each.name)}
        below |= {clean_name(each) for split in find_splits(path).values() for each in subfolders(split)}
        if any(each.suffix.lower() in IMAGE_SUFFIXES and not is_litter(each.name) for each in path.iterdir()):
            return False
        inner.append(below)
    if len(inner) < 2 or not all(inner):
        return False
    shared = set.intersection(*inner)
    return len(shared) >= 2 and 2 * len(shared) >= len(set.union(*inner))


def has_class_folders(folder: Path) -> bool:
    """Whether at least two folders, other than of splits, have images: in the folder, or in its folders of splits."""
    tops = [path for path in subfolders(folder) if split_kind(path.name)] or [folder]
    return any(sum(map(_has_images, subfolders(top))) >= 2 for top in tops)


def _has_images(folder: Path) -> bool:
    """Whether there is an image in a folder or below it."""
    return any(Path(name).suffix.lower() in IMAGE_SUFFIXES for _, _, names in os.walk(folder) for name in names)


def _domain_folders(folder: Path, domains: Sequence[str]) -> list[Top]:
    """The domain folders that are named, or all, sorted by name."""
    there = {clean_name(path): path for path in subfolders(folder)}
    same = twins(sorted(there))
    if same:
        raise RequestError(
            f"the domains {same[0][0]!r} and {same[0][1]!r} in {shown(folder)} differ only by case, or "
            "by '_' and a blank; rename one of them"
        )
    names = [pick("domain", name, sorted(there)) for name in domains] or sorted(there)
    if len(set(names)) < len(names):
        raise RequestError(f"{', '.join(names)}: each domain can be named once")
    return [Top(name, there[name]) for name in names]


def read_tree(
    tree: Path,
    domains: Sequence[str] = (),
    domain_folders: bool | None = False,
    test_split: str = "",
    exclude: Sequence[str] = (),
) -> tuple[Source, Source]:
    """Training and test images of a tree of class folders; without splits, a fifth is for testing, by file hash.

    With `domain_folders` there is a level of domain folders above the classes, and `domains` are the ones to read, in
    order (none: all); None looks whether there is one. Splits may be above the domains or in each of them. Raises
    RequestError for a tree that cannot be read as such.
    """
    splits = choose_splits(tree, test_split) if find_splits(tree) else None
    notes = []
    if domain_folders is None and has_domain_folders(splits[0] if splits else tree):
        domain_folders = True
        notes.append(
            "all folders have the same folders in them, so they are read as domains, not as classes; "
            "scenario.domain_folders=false reads them as classes"
        )
    if splits:
        parts = [
            read_folder(part, tops=_domain_folders(part, domains) if domain_folders else (), exclude=exclude, tree=tree)
            for part in splits
        ]
        return _pair(parts[0], parts[1], splits, notes, _unused(tree, splits), exclude)
    tops = _domain_folders(tree, domains) if domain_folders else []
    inner = [choose_splits(top.path, test_split) for top in tops]
    if not any(inner):
        choose_splits(tree, test_split)  # refuses a test_split
        source = read_folder(tree, tops=tops, exclude=exclude).noted(*notes)
        check_excluded(exclude, source)
        return cut(source, tree, HELD_OUT)
    chosen = []
    for top, pair in zip(tops, inner, strict=True):
        if pair is None:
            raise RequestError(f"the domain {top.domain!r} has no folders of splits (train, test), but others have")
        chosen.append(pair)
    parts = [
        read_folder(
            tree, tops=[Top(top.domain, pair[i]) for top, pair in zip(tops, chosen, strict=True)], exclude=exclude
        )
        for i in (0, 1)
    ]
    unused = [each for top, pair in zip(tops, chosen, strict=True) for each in _unused(top.path, pair)]
    return _pair(parts[0], parts[1], chosen[0], notes, unused, exclude)


def _unused(folder: Path, splits: tuple[Path, Path]) -> list[str]:
    return [shown(path) for path in subfolders(folder) if path not in splits]


def check_excluded(exclude: Sequence[str], *sources: Source) -> None:
    """Raises RequestError for a name that no excluded class has."""
    gone = [name for source in sources for name in source.left_out.get("excluded classes", ())]
    done = {alike(name) for path in gone for name in (path, Path(path).name)}
    for name in exclude:
        if alike(name) not in done:
            raise unknown("class to exclude", name, {each for source in sources for each in source.class_names})


def _pair(
    train: Source,
    test: Source,
    splits: tuple[Path, Path],
    notes: Sequence[str],
    unused: Sequence[str],
    exclude: Sequence[str],
) -> tuple[Source, Source]:
    """The two sources with the names of their splits. Raises RequestError if class names differ by case alone."""
    same = twins([*train.class_names, *test.class_names])
    if same:
        raise RequestError(
            f"class {same[0][0]!r} of {splits[0].name!r} is {same[0][1]!r} in {splits[1].name!r}; "
            "rename one of the folders"
        )
    check_excluded(exclude, train, test)
    if unused:
        train = replace(train, left_out={**train.left_out, "folders next to the splits": tuple(unused)})
    return train.noted(*notes, split=splits[0].name), test.noted(split=splits[1].name)
