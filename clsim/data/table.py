"""ImageTable: labelled images of one size, decoded once and kept in a memory-mapped file."""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clsim.data.readers import Source
from clsim.errors import RequestError


@dataclass(frozen=True)
class ImageTable:
    """N images of one size with their labels.

    Rows stand by domain, then class, then in a fixed shuffled order, so that a table cut down to k
    images a class reads runs of neighbouring rows, and shares whole blocks of the feature bank.
    """

    images: NDArray[np.uint8]  # (N, 3, H, W), memory-mapped where it came from files
    labels: NDArray[np.int64]  # (N,)
    class_names: tuple[str, ...]
    fingerprint: str
    domains: NDArray[np.int64] | None = None  # (N,)
    domain_names: tuple[str, ...] = ()
    skipped: int = 0  # images left out because they could not be decoded

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_arrays(
        cls,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        class_names: tuple[str, ...],
        domains: NDArray[np.int64] | None = None,
        domain_names: tuple[str, ...] = (),
    ) -> "ImageTable":
        """A table of (N, 3, H, W) uint8 images that are in memory already."""
        order = _row_order(labels, domains)
        images, labels = np.ascontiguousarray(images[order]), labels[order]
        domains = None if domains is None else domains[order]
        content = images.tobytes() + labels.tobytes() + (b"" if domains is None else domains.tobytes())
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        return cls(images, labels, class_names, digest, domains, domain_names)

    def encoded(self) -> Source:
        """The images as lossless files, to be joined with those of other sources."""
        from PIL import Image

        def read(i: int) -> bytes:
            stream = io.BytesIO()
            Image.fromarray(np.asarray(self.images[i]).transpose(1, 2, 0)).save(stream, "PNG")
            return stream.getvalue()

        names = [f"image {i}" for i in range(len(self))]
        return Source(read, names, self.labels, self.class_names, self.fingerprint, self.domains, self.domain_names)

    @classmethod
    def decode(cls, source: Source, side: int, cache_dir: Path, on_bad_image: str = "stop") -> "ImageTable":
        """The source's images as RGB, from the cache if they were decoded before.

        If every image fits into `side` x `side` pixels, the table has the largest height and width found; if one does
        not, it is `side` x `side`. An image of another size is scaled to cover that, and its centre is cut out.
        An image that cannot be decoded raises RequestError with its name, or is left out and counted where
        `on_bad_image` is "skip".
        """
        folder = cache_dir / "tables" / f"{source.fingerprint}-{side}-{on_bad_image}"
        if not (folder / "table.json").exists():
            _decode_into(folder, source, side, on_bad_image)
        meta = json.loads((folder / "table.json").read_text())
        return cls(
            images=np.load(folder / "images.npy", mmap_mode="r"),
            labels=np.load(folder / "labels.npy"),
            class_names=tuple(meta["class_names"]),
            fingerprint=folder.name,
            domains=np.load(folder / "domains.npy") if meta["domain_names"] else None,
            domain_names=tuple(meta["domain_names"]),
            skipped=meta["skipped"],
        )


def _row_order(labels: NDArray[np.int64], domains: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The order of an ImageTable's rows, from the order of its source."""
    shuffled = np.random.default_rng(0).permutation(len(labels))
    keys = (labels[shuffled],) if domains is None else (labels[shuffled], domains[shuffled])
    return shuffled[np.lexsort(keys)]


def _decode_into(folder: Path, source: Source, side: int, on_bad_image: str) -> None:
    """Write a table beside `folder` and rename it there, whole: a broken attempt is never taken for a table."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    order = _row_order(source.labels, source.domains)
    beside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        kept = _write_images(beside / "images.npy", source, order, side, on_bad_image)
        rows = order[kept]
        np.save(beside / "labels.npy", source.labels[rows])
        if source.domains is not None:
            np.save(beside / "domains.npy", source.domains[rows])
        meta = {
            "class_names": source.class_names,
            "domain_names": source.domain_names,
            "skipped": len(order) - len(rows),
        }
        (beside / "table.json").write_text(json.dumps(meta))
        try:
            beside.rename(folder)
        except OSError:
            if not (folder / "table.json").exists():  # not another process that was there first
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_images(
    file: Path, source: Source, order: NDArray[np.int64], side: int, on_bad_image: str
) -> NDArray[np.int64]:
    """Decode in `order` into an .npy file; the positions in `order` that could be decoded."""
    sizes = {size for size in _in_threads(source, order, _size, on_bad_image) if size is not None}
    if not sizes:
        raise RequestError("none of the images can be decoded")
    height, width = (max(lengths) for lengths in zip(*sizes, strict=True))
    if max(height, width) > side:
        height = width = side
    kept = []
    with file.open("wb") as stream:
        # the count is not known before the last image: the header is written again, at the same length, at the end
        _npy_header(stream, (len(order), 3, height, width))
        decoded = _in_threads(source, order, lambda data: _decode(data, height, width), on_bad_image)
        for position, image in enumerate(decoded):
            if image is not None:
                stream.write(image.tobytes())
                kept.append(position)
        if not kept:
            raise RequestError("none of the images can be decoded")
        stream.seek(0)
        _npy_header(stream, (len(kept), 3, height, width))
        stream.flush()
        os.fsync(stream.fileno())
    return np.array(kept, dtype=np.int64)


def _npy_header(stream, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    """A version 1.0 .npy header of fixed length 128 for a uint8 array."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    stream.write(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n")


def _in_threads(source: Source, order: NDArray[np.int64], work, on_bad_image: str) -> Iterator:  # type: ignore[no-untyped-def, type-arg]
    """`work` on each image's bytes, in order; None for a bad one that is skipped. Codecs run outside the GIL."""

    def one(row: int):  # type: ignore[no-untyped-def]
        try:
            return work(source.read(row))
        except Exception as error:  # Pillow raises many kinds for broken files
            if on_bad_image == "skip":
                return None
            what = f"cannot decode image {source.names[row]} ({error}); on_bad_image=skip leaves it out"
            raise RequestError(what) from error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(order), 4096):  # bounded: a pool holds every result until it is taken
            yield from pool.map(one, order[start : start + 4096].tolist())


def _size(data: bytes) -> tuple[int, int]:
    """(height, width), from the header alone."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


def _decode(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Encoded bytes -> (3, height, width): as it is, or its shorter side resized and its centre cut out."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB")
    if rgb.size != (width, height):
        rgb = ImageOps.fit(rgb, (width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb).transpose(2, 0, 1)
