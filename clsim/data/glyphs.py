"""Glyphs: an unlimited set of small labelled pictures, drawn by arithmetic; no file is read.

100 classes are 10 shapes in 10 fills ("striped star"), drawn in six domains that mirror DomainNet's (Peng et al. 2019,
arXiv:1812.01754). Size, place, rotation, colours, light and clutter vary. A picture depends only on its class, domain,
index and seed; the same NumPy on the same machine gives the same bits.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clsim.data.glyph_forms import PATTERNS, SHAPES_OF, soft

Array = Any  # NDArray of float32; NumPy's own annotations lose the type in arithmetic

SIZE = 32  # pixels of a side
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
SHAPES = tuple(SHAPES_OF)
FILLS = (*PATTERNS, "hollow")
# classes held out from clip_micro: two fills of each shape and two shapes of each fill (3 and 10 are coprime)
HELD_OUT = frozenset(10 * shape + (3 * shape + 5 * half) % 10 for shape in range(10) for half in range(2))


def class_names() -> tuple[str, ...]:
    """The 100 names; class c has shape c // 10 and fill c % 10."""
    return tuple(f"{fill} {shape}" for shape in SHAPES for fill in FILLS)


def render(
    classes: NDArray[np.integer], domains: NDArray[np.integer], indices: NDArray[np.integer], seed: int
) -> NDArray[np.uint8]:
    """(N,) classes, domains and indices -> (N,3,32,32) pictures.

    Raises ValueError for unknown classes and domains.
    """
    classes, domains, indices = (np.asarray(a, dtype=np.int64) for a in (classes, domains, indices))
    if any(np.any((ids < 0) | (ids >= count)) for ids, count in ((classes, 100), (domains, len(DOMAINS)))):
        raise ValueError(f"glyphs have classes 0 to 99 and domains 0 to {len(DOMAINS) - 1}")
    images = np.empty((len(classes), 3, SIZE, SIZE), dtype=np.uint8)

    def draw(rows: NDArray[np.int64]) -> None:
        domain = DOMAINS[domains[rows[0]]]
        chance = Chance.of(classes[rows], domains[rows], indices[rows], seed)
        canvas = PAINTERS[domain](Glyph.posed(classes[rows], chance, domain), chance)
        images[rows] = np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)

    order = np.argsort(domains, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(domains[order])) + 1) if len(order) else []
    # small enough for the processor's cache; NumPy releases the GIL
    chunks = [group[i : i + 32] for group in groups for i in range(0, len(group), 32)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(draw, chunks))
    return images


# random numbers


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each value: the finaliser of splitmix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class Chance:
    """Random numbers for N pictures: each is a hash of the picture's key and a counter."""

    keys: NDArray[np.uint64]  # (N,)
    drawn: int = 0

    @classmethod
    def of(
        cls, classes: NDArray[np.int64], domains: NDArray[np.int64], indices: NDArray[np.int64], seed: int
    ) -> "Chance":
        """The random numbers of these pictures."""
        key = mixed(np.full(len(classes), seed, dtype=np.uint64))
        for part in (classes, domains, indices):
            key = mixed(key + np.uint64(0x9E3779B97F4A7C15) + part.astype(np.uint64))
        return cls(key)

    def take(self, *shape: int) -> Array:
        """The next (N, *shape) numbers, uniform in [0, 1)."""
        count = int(np.prod(shape, dtype=np.int64))
        numbers = np.arange(self.drawn, self.drawn + count, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
        self.drawn += count
        bits = mixed(self.keys[:, None] + numbers) >> np.uint64(40)
        return (bits.astype(np.float32) / np.float32(1 << 24)).reshape(len(self.keys), *shape)

    def between(self, low: float, high: float, *shape: int) -> Array:
        """The same in [low, high), with axes of length one appended, to broadcast with pictures."""
        values = np.float32(low) + np.float32(high - low) * self.take(*shape)
        return values if shape else values[:, None, None]

    def smooth(self, cells: int) -> Array:
        """(N,32,32) smooth noise in [0, 1) on a grid of `cells` cells per side."""
        weights = _blend(cells)
        return weights @ self.take(cells + 1, cells + 1) @ weights.T

    def grain(self) -> Array:
        """(N,32,32) noise in [-1, 1), independent for each pixel."""
        return 2 * self.take(SIZE, SIZE) - 1


def _blend(cells: int) -> Array:
    """(32, cells + 1) weights of the grid points for each pixel, linear between grid points."""
    place = np.arange(SIZE, dtype=np.float32)[:, None] * (cells / (SIZE - 1))
    return np.clip(1 - np.abs(place - np.arange(cells + 1, dtype=np.float32)), 0, None).astype(np.float32)


# form


@dataclass
class Glyph:
    """N glyphs on the pixel grid, before they have colours."""

    distance: Array  # (N,32,32) to the edge in pixels, negative inside
    tone: Array  # (N,32,32) 1 where the fill has its first colour, 0 where its second
    hollow: NDArray[np.bool_]  # (N,1,1)
    u: Array  # (N,32,32) coordinates of the shape, 1 at its border
    v: Array

    @classmethod
    def posed(cls, classes: NDArray[np.int64], chance: Chance, domain: str) -> "Glyph":
        """Glyphs of these classes with the domain's size, place and wobble."""
        pose = POSES[domain]
        radius, angle = chance.between(*pose.radius), chance.between(-0.35, 0.35)
        x0, y0 = (15.5 + chance.between(-pose.shift, pose.shift) for _ in range(2))
        y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
        x, y = x - x0, y - y0
        if pose.wobble:
            x, y = (side + pose.wobble * 2 * (chance.smooth(pose.waves) - 0.5) for side in (x, y))
        stretch = chance.between(0.9, 1.1)
        u = (np.cos(angle) * x + np.sin(angle) * y) / (radius * stretch)
        v = (np.cos(angle) * y - np.sin(angle) * x) / (radius / stretch)
        distance, tone = np.empty_like(u), np.ones_like(u)
        shapes, fills = np.divmod(classes, 10)
        for shape in np.unique(shapes):
            rows = shapes == shape
            distance[rows] = SHAPES_OF[SHAPES[shape]](u[rows], v[rows])
        for fill in np.unique(fills):
            rows = fills == fill
            if FILLS[fill] != "hollow":
                tone[rows] = PATTERNS[FILLS[fill]](u[rows], v[rows])
        hollow = (fills == FILLS.index("hollow"))[:, None, None]
        distance = np.where(hollow, np.abs(distance + 0.1) - 0.1, distance)  # a band along the edge
        return cls(distance * radius, tone, hollow, u, v)

    @property
    def inside(self) -> Array:
        """(N,32,32) fraction of each pixel that the glyph covers."""
        return np.clip(0.5 - self.distance, 0, 1)

    def edge(self, width: Array | float) -> Array:
        """(N,32,32) fraction of each pixel that a line of this width along the edge covers."""
        return np.clip(0.5 + width / 2 - np.abs(self.distance), 0, 1)


@dataclass(frozen=True)
class Pose:
    """How a domain places its glyphs; in pixels."""

    radius: tuple[float, float]
    shift: float
    wobble: float = 0.0  # how far lines deviate, in pixels
    waves: int = 4  # number of waves of this deviation


POSES = {
    "clipart": Pose((11.0, 13.5), 1.5),
    "infograph": Pose((8.5, 10.0), 1.0),
    "painting": Pose((11.0, 13.5), 1.5, wobble=1.4, waves=5),
    "quickdraw": Pose((11.5, 13.5), 1.0, wobble=1.9, waves=4),
    "real": Pose((10.0, 13.5), 2.5),
    "sketch": Pose((11.0, 13.5), 1.5, wobble=0.7, waves=5),
}


# colour


def colour(hue: Array, saturation: Array, value: Array) -> Array:
    """(N,1,1) hue, saturation and value in [0, 1] -> (N,3,1,1) RGB."""
    shift = np.array([5, 3, 1], dtype=np.float32)[:, None, None]
    k = (shift + 6 * hue[:, None]) % 6
    rgb: Array = value[:, None] * (1 - saturation[:, None] * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb


def lay(canvas: Array, paint: Array | float, cover: Array) -> Array:
    """(N,3,32,32) canvas with paint over it where `cover` (N,32,32) is 1."""
    painted: Array = canvas + (paint - canvas) * cover[:, None]
    return painted


def blurred(canvas: Array) -> Array:
    """(N,3,32,32) with each pixel the 1-2-1 weighted mean of its neighbours along both axes."""
    for axis in (2, 3):
        edged = np.pad(canvas, [(0, 0), (0, 0), *((1, 1) if a == axis else (0, 0) for a in (2, 3))], mode="edge")
        one, other = (np.take(edged, range(i, i + SIZE), axis=axis) for i in (0, 2))
        canvas = (one + 2 * canvas + other) / 4
    return canvas


def _two_colours(chance: Chance, saturation: tuple[float, float]) -> tuple[Array, Array, Array]:
    """A dark and a light colour of different hues, in random order, and the hue between them."""
    hue = chance.between(0, 1)
    dark = colour(hue, chance.between(*saturation), chance.between(0.15, 0.42))
    light = colour((hue + chance.between(0.3, 0.7)) % 1, chance.between(*saturation), chance.between(0.85, 1.0))
    swap = (chance.take() < 0.5)[:, None, None, None]
    return np.where(swap, light, dark), np.where(swap, dark, light), (hue + 0.15) % 1


# domains: a Glyph and chance -> (N,3,32,32) canvas in [0, 1]


def paint_clipart(glyph: Glyph, chance: Chance) -> Array:
    """Flat colours on a pale background, with an outline."""
    first, second, hue = _two_colours(chance, (0.7, 1.0))
    canvas = np.broadcast_to(colour(hue, chance.between(0, 0.2), chance.between(0.9, 1)), (len(first), 3, SIZE, SIZE))
    canvas = lay(canvas, second + (first - second) * glyph.tone[:, None], glyph.inside)
    return lay(canvas, 0.05, glyph.edge(1.6))


def paint_real(glyph: Glyph, chance: Chance) -> Array:
    """Lit from one side, with a shadow, on a textured background."""
    first, second, hue = _two_colours(chance, (0.3, 0.9))
    ground = colour(hue, chance.between(0.1, 0.5), chance.between(0.5, 0.72))
    texture = 0.6 * chance.smooth(3) + 0.4 * chance.smooth(9) - 0.5
    canvas = ground + 0.5 * texture[:, None]
    canvas = _clutter(canvas, chance, blobs=2)
    angle = chance.between(0, 2 * np.pi)
    towards = glyph.u * np.cos(angle) + glyph.v * np.sin(angle)
    shadow = np.clip(0.5 - (glyph.distance - 1.5 + 2 * towards) / 3, 0, 1) * 0.5
    canvas = lay(canvas, 0.0, shadow)
    paint = second + (first - second) * glyph.tone[:, None]
    canvas = lay(canvas, paint * (1 + 0.35 * towards[:, None]), glyph.inside)
    return canvas * chance.between(0.75, 1.15)[:, None] + 0.035 * chance.grain()[:, None]


def paint_painting(glyph: Glyph, chance: Chance) -> Array:
    """Patches of broken colour with soft borders, warm and blurred."""
    first, second, hue = _two_colours(chance, (0.4, 0.8))
    ground = colour(hue, chance.between(0.2, 0.6), chance.between(0.5, 0.85))
    canvas = lay(ground + 0.35 * (chance.smooth(7)[:, None] - 0.5), second, 0.35 * soft(3 * (chance.smooth(5) - 0.55)))
    paint = second + (first - second) * glyph.tone[:, None]
    canvas = lay(canvas, paint + 0.35 * (chance.smooth(9)[:, None] - 0.5), np.clip(0.5 - glyph.distance / 1.6, 0, 1))
    warm = np.array([1.05, 0.98, 0.85], dtype=np.float32)[:, None, None]
    return blurred(np.clip(canvas, 0, 1)) * warm + 0.03 * chance.grain()[:, None]


def paint_sketch(glyph: Glyph, chance: Chance) -> Array:
    """Pencil on paper: an outline, and the fill in grey strokes."""
    paper, lead = chance.between(0.9, 1.0), chance.between(0.1, 0.35)
    strokes = 0.65 + 0.35 * np.sin((glyph.u - glyph.v) * chance.between(14, 20) + 2 * np.pi * chance.between(0, 1))
    grain = 0.75 + 0.25 * chance.grain()
    fill = np.where(glyph.hollow, 0, glyph.tone) * glyph.inside * chance.between(0.55, 0.8) * strokes
    cover = np.maximum(fill, glyph.edge(chance.between(1.2, 1.8))) * grain
    return lay(np.broadcast_to(paper[:, None], (len(paper), 3, SIZE, SIZE)), lead[:, None], cover)


def paint_quickdraw(glyph: Glyph, chance: Chance) -> Array:
    """Black wobbly strokes on white, the fill in strokes of the same pen."""
    fill = np.where(glyph.hollow, 0, soft(4 * (glyph.tone - 0.6))) * glyph.inside
    cover = np.maximum(fill, glyph.edge(chance.between(1.6, 2.2)))
    return lay(np.ones((len(cover), 3, SIZE, SIZE), dtype=np.float32), 0.0, cover)


def paint_infograph(glyph: Glyph, chance: Chance) -> Array:
    """A flat glyph next to bars and lines of text."""
    first, second, hue = _two_colours(chance, (0.5, 0.9))
    canvas = np.broadcast_to(colour(hue, chance.between(0, 0.15), chance.between(0.92, 1)), (len(first), 3, SIZE, SIZE))
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    upper = chance.take(SIZE)[:, None, :] < 0.72  # letters and gaps
    lines = ((y % 3 < 1) & ((y < 5) | (y > 27)))[None] & upper & (x < chance.between(18, 31))
    canvas = lay(canvas, 0.25, lines.astype(np.float32))
    heights = np.repeat(chance.between(3, 22, 2), 2, axis=1)[:, None, :]  # two columns of two pixels on each side
    left = chance.between(0, 1) < 0.5
    place = np.where(left, x, SIZE - 1 - x)
    column = np.clip(place, 0, 3).astype(np.int64)
    tall = np.take_along_axis(np.broadcast_to(heights, (len(heights), SIZE, 4)), column, axis=2)
    bars = (place < 4) & (SIZE - 5 - y < tall) & (y < SIZE - 5)
    canvas = lay(canvas, first, 0.85 * bars)
    canvas = lay(canvas, 1.0, np.clip(1.5 - glyph.distance / 1.5, 0, 1))
    return lay(canvas, second + (first - second) * glyph.tone[:, None], glyph.inside)


def _clutter(canvas: Array, chance: Chance, blobs: int) -> Array:
    """A few soft blobs of any colour."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    for _ in range(blobs):
        x0, y0, radius = chance.between(0, SIZE), chance.between(0, SIZE), chance.between(2, 5)
        paint = colour(chance.between(0, 1), chance.between(0.2, 0.7), chance.between(0.3, 0.9))
        canvas = lay(canvas, paint, np.clip(radius - np.hypot(x - x0, y - y0), 0, 1) * 0.7)
    return canvas


PAINTERS: dict[str, Callable[[Glyph, Chance], Array]] = {
    "clipart": paint_clipart,
    "infograph": paint_infograph,
    "painting": paint_painting,
    "quickdraw": paint_quickdraw,
    "real": paint_real,
    "sketch": paint_sketch,
}
