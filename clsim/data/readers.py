"""Readers of images: Parquet files as on the Hugging Face Hub, and folders of classes.

A reader finds encoded images and their labels; `ImageTable.decode` decodes them.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clsim.errors import RequestError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")


class Hub(NamedTuple):
    """A data set on the Hugging Face Hub."""

    repository: str
    revision: str  # a commit, so that the images never change
    folder: str = ""  # the folder to read if the repository has several sets


@dataclass(frozen=True)
class Source:
    """Encoded images, in the order of their files."""

    read: Callable[[int], bytes]  # the encoded bytes of image i
    names: Sequence[str]  # name of image i in error messages; its file's path if there is one
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    fingerprint: str
    domains: NDArray[np.int64] | None = None
    domain_names: tuple[str, ...] = ()

    def take(self, keep: NDArray[np.bool_]) -> "Source":
        """A source with only the images for which `keep` (N,) is true."""
        chosen = np.flatnonzero(keep)
        read, names = self.read, self.names
        return Source(
            read=lambda i: read(int(chosen[i])),
            names=[names[i] for i in chosen.tolist()],
            labels=self.labels[chosen],
            class_names=self.class_names,
            fingerprint=hashlib.blake2b(self.fingerprint.encode() + chosen.tobytes(), digest_size=16).hexdigest(),
            domains=None if self.domains is None else self.domains[chosen],
            domain_names=self.domain_names,
        )

    @staticmethod
    def join(sources: Sequence["Source"], prefixes: Sequence[str], as_domains: bool = False) -> "Source":
        """The sources one after another, with separate classes: class "3" of "mnist" becomes "mnist 3".

        With `as_domains` all sources have the same classes, and each source is a domain.
        """
        first_row = np.cumsum([0, *(len(source.labels) for source in sources)])
        first_class = np.cumsum([0, *(0 if as_domains else len(source.class_names) for source in sources)])

        def read(i: int) -> bytes:
            part = int(np.searchsorted(first_row, i, side="right")) - 1
            return sources[part].read(i - int(first_row[part]))

        pairs = list(zip(prefixes, sources, strict=True))
        class_names = tuple(f"{prefix} {name}" for prefix, source in pairs for name in source.class_names)
        if as_domains:
            class_names = sources[0].class_names
            for prefix, source in pairs:
                if source.class_names != class_names:
                    raise RequestError(f"the classes of {prefix!r} are not those of {prefixes[0]!r}")
        joined = "/".join(f"{prefix}:{source.fingerprint}" for prefix, source in pairs) + "/domains" * as_domains
        return Source(
            read=read,
            names=[f"{prefix}/{name}" for prefix, source in pairs for name in source.names],
            labels=np.concatenate([source.labels + first for source, first in zip(sources, first_class, strict=False)]),
            class_names=class_names,
            fingerprint=hashlib.blake2b(joined.encode(), digest_size=16).hexdigest(),
            domains=np.repeat(np.arange(len(sources)), np.diff(first_row)) if as_domains else None,
            domain_names=tuple(prefixes) if as_domains else (),
        )


def fingerprint_files(files: Sequence[Path], *more: str) -> str:
    """A hash of the files' contents, in order, and of all settings that change what is read from them."""
    digest = hashlib.blake2b("/".join(more).encode(), digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return digest.hexdigest()


def held_out(names: Sequence[str], share: float = 0.2) -> NDArray[np.bool_]:
    """(N,) true for about `share` of the names, by their hash: other images do not change the choice."""
    limit = int(share * 2**32)
    hashes = (hashlib.blake2b(name.encode(), digest_size=4).digest() for name in names)
    return np.array([int.from_bytes(h, "big") < limit for h in hashes], dtype=bool)


def parquet_files(data_dir: Path | None, folder: str, split: str, hub: Hub | None = None) -> list[Path]:
    """The files of one split: `data_dir/folder/split*.parquet`, or else the Hub's.

    If there are none, raises RequestError that explains where they were expected and how to get them.
    """
    if data_dir is not None:
        found = sorted((data_dir / folder).glob(f"{split}*.parquet"))
        if found:
            return found
        if not data_dir.is_dir():
            raise RequestError(f"no such data directory: {data_dir}")
    looked = f"no {folder}/{split}*.parquet in {data_dir}" if data_dir is not None else "no --data-dir is given"
    if hub is None:
        raise RequestError(f"{looked}; put the files of {folder!r} there")
    return _hub_files(hub, folder, split, looked)


def _hub_files(hub: Hub, folder: str, split: str, looked: str) -> list[Path]:
    from huggingface_hub import snapshot_download

    pattern = f"{hub.folder}/*{split}*.parquet" if hub.folder else f"*{split}*.parquet"
    try:
        root = Path(
            snapshot_download(hub.repository, repo_type="dataset", revision=hub.revision, allow_patterns=[pattern])
        )
    except Exception as error:  # the Hub's client raises many types, which all mean the same for a user
        raise RequestError(
            f"{looked}, and the Hub's {hub.repository} (revision {hub.revision}) is not available here "
            f"({type(error).__name__}): on a machine with network access run `hf download {hub.repository} "
            f"--repo-type dataset --revision {hub.revision}`, and put its {pattern} into {folder}/ below "
            f"--data-dir (or CLSIM_DATA_DIR)"
        ) from error
    files = sorted((root / hub.folder).rglob("*.parquet"))
    found = [path for path in files if split in path.name or split in path.parent.name]
    if not found:
        raise RequestError(f"{hub.repository} has no {pattern} at revision {hub.revision}")
    return found


def read_parquet(files: Sequence[Path], image: str, label: str, domain: str | None = None) -> Source:
    """Parquet files with an image column ({bytes, path}, or bytes) and an integer or string label column.

    Images are read on demand, fastest in the order of the files; only a few are in memory at a time.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pq.read_schema(files[0])
    for column in (column for column in (image, label, domain) if column is not None):
        if column not in schema.names:
            raise RequestError(f"{files[0]} has no column {column!r}; it has: {', '.join(schema.names)}")
    struct = pa.types.is_struct(schema.field(image).type)
    small = [column for column in (label, domain, f"{image}.path" if struct else None) if column is not None]
    # not read_table: only this function can read a part of a struct
    table = pa.concat_tables(pq.ParquetFile(file).read(columns=small) for file in files)
    if len(table) == 0:
        raise RequestError(f"{files[0]} has no rows")
    paths = [""] * len(table)
    if struct:
        paths = [path or "" for chunk in table[image].chunks for path in chunk.field("path").to_pylist()]
    labels, class_names = _categories(table[label], _declared_names(schema, label))
    domains: NDArray[np.int64] | None = None
    domain_names: tuple[str, ...] = ()
    if domain is not None:
        domains, domain_names = _categories(table[domain], _declared_names(schema, domain))
    stem = ", ".join(file.name for file in files[:1])
    return Source(
        read=_RowGroups(files, f"{image}.bytes" if struct else image).read,
        names=[path or f"row {i} of {stem}" for i, path in enumerate(paths)],
        labels=labels,
        class_names=class_names,
        fingerprint=fingerprint_files(files, image, label, domain or ""),
        domains=domains,
        domain_names=domain_names,
    )


class _RowGroups:
    """One column of bytes of several Parquet files, read a few rows at a time: a row group may be as large as a file.

    Reading in order is fast, and so is a jump to a later group; a jump back reads its group from the beginning.
    """

    AT_ONCE = 64  # rows
    BUFFER = 1 << 20  # bytes of a file; without one, Arrow reads the whole column of a group first

    def __init__(self, files: Sequence[Path], column: str) -> None:
        import pyarrow.parquet as pq

        self.column = column
        self.groups: list[tuple[Path, int]] = []
        counts = [0]
        for file in files:
            about = pq.read_metadata(file)
            for group in range(about.num_row_groups):
                self.groups.append((file, group))
                counts.append(about.row_group(group).num_rows)
        self.first = np.cumsum(counts)
        self.lock = threading.Lock()
        self.group = -1  # the group that is being read
        self.batches: Iterator[Any] = iter(())
        self.held: Any = ()  # rows of it that are in memory,
        self.start = 0  # and the number of the first of these rows

    def read(self, i: int) -> bytes:
        """The bytes in row i."""
        group = int(np.searchsorted(self.first, i, side="right")) - 1
        with self.lock:
            if group != self.group or i < self.start:
                self._enter(group)
            while i >= self.start + len(self.held):
                self.start += len(self.held)
                self.held = _flat(next(self.batches).column(0))
            image: bytes = self.held[i - self.start].as_py()
            return image

    def _enter(self, group: int) -> None:
        import pyarrow.parquet as pq

        file, number = self.groups[group]
        opened = pq.ParquetFile(file, buffer_size=self.BUFFER, pre_buffer=False)
        self.batches = opened.iter_batches(self.AT_ONCE, [number], [self.column], use_threads=False)
        self.group, self.start, self.held = group, int(self.first[group]), ()


def _flat(column: Any) -> Any:
    """The bytes of an image column that is a struct, or the column itself."""
    import pyarrow as pa

    return column.field("bytes") if pa.types.is_struct(column.type) else column


def _declared_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Category names from the schema's `huggingface` metadata (info.features.<column>.names), if declared."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = metadata.get("info", {}).get("features", {}).get(column, {}).get("names")
    return tuple(names) if names else None


def _categories(column: Any, declared: tuple[str, ...] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """A column of integers or strings -> ids (N,) and names; undeclared names are sorted."""
    values = column.to_numpy()
    if np.issubdtype(values.dtype, np.integer):
        names = declared or tuple(str(i) for i in range(int(values.max()) + 1))
        if values.min() < 0 or values.max() >= len(names):
            raise RequestError(f"labels run from {values.min()} to {values.max()}, but {len(names)} names are declared")
        return values.astype(np.int64), names
    if not all(isinstance(value, str) for value in values):
        raise RequestError(f"labels are whole numbers or strings without gaps, not {column.type}")
    names = declared or tuple(sorted(set(values)))
    strange = sorted(set(values) - set(names))
    if strange:
        raise RequestError(f"label {strange[0]!r} is not among the declared names: {', '.join(names)}")
    ids = {name: i for i, name in enumerate(names)}
    return np.array([ids[value] for value in values], dtype=np.int64), names


def subfolders(root: Path) -> list[Path]:
    """The folders directly in `root`, sorted by name; hidden ones (.git, .ipynb_checkpoints) are left out."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def read_folder(root: Path, domains: Sequence[str] = ()) -> Source:
    """Class folders: `root/class/*.png`, or `root/domain/class/*.png` for the domains named."""
    tops = [(i, root / name) for i, name in enumerate(domains)] or [(0, root)]
    for _, top in tops:
        if not top.is_dir():
            raise RequestError(f"no folder {top}")
    class_names = sorted({path.name for _, top in tops for path in subfolders(top)})
    found = [
        (path, label, domain)
        for domain, top in tops
        for label, name in enumerate(class_names)
        for path in sorted((top / name).glob("**/*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not found:
        raise RequestError(f"no images in class folders ({', '.join(IMAGE_SUFFIXES)}) below {root}")
    files = [path for path, _, _ in found]
    names = [path.relative_to(root).as_posix() for path in files]
    return Source(
        read=lambda i: files[i].read_bytes(),
        names=names,
        labels=np.array([label for _, label, _ in found], dtype=np.int64),
        class_names=tuple(class_names),
        fingerprint=fingerprint_files(files, *names),
        domains=np.array([domain for _, _, domain in found], dtype=np.int64) if domains else None,
        domain_names=tuple(domains),
    )
