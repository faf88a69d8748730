"""The shapes and fills of glyphs, as functions of the plane.

A shape is a signed distance to its edge: nearly exact close to it, negative inside. It fits into the unit circle. A
fill is a tone in [0, 1]. Coordinates (u to the right, v downwards) are arrays of any shape.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any  # NDArray of float32; NumPy's own annotations lose the type in arithmetic


def soft(x: Array) -> Array:
    """0 well below zero, 1 well above, a steep ramp between."""
    return np.clip(0.5 + x, 0, 1)


# shapes


def disc(u: Array, v: Array) -> Array:
    """A full circle."""
    return np.hypot(u, v) - np.float32(0.9)


def ring(u: Array, v: Array) -> Array:
    """A circle with a hole."""
    return np.abs(np.hypot(u, v) - np.float32(0.66)) - np.float32(0.3)


def square(u: Array, v: Array) -> Array:
    """Four sides."""
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.76)


def triangle(u: Array, v: Array) -> Array:
    """A triangle that stands on one side."""
    return np.maximum(np.abs(u) * np.float32(0.866) - v * np.float32(0.5), v) - np.float32(0.55)


def star(u: Array, v: Array) -> Array:
    """A five-pointed star: ten equal edges; the distance is to the edge in whose sector a point lies."""
    half = np.pi / 5
    angle = np.abs((np.arctan2(u, -v) + half) % (2 * half) - half)
    radius = np.hypot(u, v)
    outer, inner = np.array([1.0, 0.0]), 0.45 * np.array([np.cos(half), np.sin(half)])
    along = (inner - outer) / np.linalg.norm(inner - outer)
    # the edge's normal that points out of the star
    return ((radius * np.cos(angle) - 1.0) * along[1] - radius * np.sin(angle) * along[0]).astype(np.float32)


def cross(u: Array, v: Array) -> Array:
    """Two bars."""
    a, b = np.abs(u), np.abs(v)
    return np.minimum(np.maximum(a - 0.32, b - 0.92), np.maximum(a - 0.92, b - 0.32)).astype(np.float32)


def heart(u: Array, v: Array) -> Array:
    """A heart: a square that stands on a corner, with half a disc on each upper side."""
    a = np.abs(u)
    corner = (a + np.abs(v - 0.12) - 0.78) / np.sqrt(2)
    lobe = np.hypot(a - 0.39, v + 0.27) - 0.55
    return np.minimum(corner, lobe).astype(np.float32)


def moon(u: Array, v: Array) -> Array:
    """A crescent."""
    return np.maximum(np.hypot(u, v) - 0.95, 0.72 - np.hypot(u - 0.5, v)).astype(np.float32)


def arrow(u: Array, v: Array) -> Array:
    """An arrow that points up."""
    head = np.maximum(np.abs(u) * 0.8 - (v + 0.95) * 0.6, v + 0.05)
    shaft = np.maximum(np.abs(u) - 0.32, np.abs(v - 0.4) - 0.52)
    return np.minimum(head, shaft).astype(np.float32)


def hourglass(u: Array, v: Array) -> Array:
    """An hourglass: two triangles that touch at their tips."""
    return np.maximum((np.abs(u) - 0.12 - 0.72 * np.abs(v)) * 0.81, np.abs(v) - 0.88).astype(np.float32)


SHAPES_OF: dict[str, Callable[[Array, Array], Array]] = {
    "arrow": arrow,
    "cross": cross,
    "disc": disc,
    "heart": heart,
    "hourglass": hourglass,
    "moon": moon,
    "ring": ring,
    "square": square,
    "star": star,
    "triangle": triangle,
}


# fills


def plain(u: Array, v: Array) -> Array:
    """One tone."""
    return np.ones_like(u)


def striped(u: Array, v: Array) -> Array:
    """Straight vertical stripes."""
    return soft(2 * np.sin(u * np.float32(2 * np.pi / 0.46)))


def wavy(u: Array, v: Array) -> Array:
    """Wavy horizontal stripes."""
    return soft(2 * np.sin((v + 0.2 * np.sin(u * np.float32(2 * np.pi / 0.9))) * np.float32(2 * np.pi / 0.52)))


def dotted(u: Array, v: Array) -> Array:
    """Dots on a grid."""
    near = np.hypot(*((side / np.float32(0.48) - np.rint(side / np.float32(0.48))) for side in (u, v)))
    return soft(6 * (np.float32(0.31) - near))


def checked(u: Array, v: Array) -> Array:
    """A chessboard."""
    a, b = (np.sin(side * np.float32(np.pi / 0.37) + np.float32(np.pi / 2)) for side in (u, v))
    return soft(4 * a * b)


def ringed(u: Array, v: Array) -> Array:
    """Concentric circles."""
    return soft(2 * np.cos(np.hypot(u, v) * np.float32(2 * np.pi / 0.42)))


def rayed(u: Array, v: Array) -> Array:
    """Rays from the centre."""
    return soft(3 * np.hypot(u, v) * np.sin(np.arctan2(v, u) * 6))


def split(u: Array, v: Array) -> Array:
    """One tone on the left, another on the right."""
    return soft(8 * u)


def hatched(u: Array, v: Array) -> Array:
    """Thin diagonal lines that cross."""
    lines = np.maximum(np.cos((u + v) * np.float32(2 * np.pi / 0.62)), np.cos((u - v) * np.float32(2 * np.pi / 0.62)))
    return soft(3 * (lines - np.float32(0.72)))


PATTERNS: dict[str, Callable[[Array, Array], Array]] = {
    "checked": checked,
    "dotted": dotted,
    "hatched": hatched,
    "plain": plain,
    "rayed": rayed,
    "ringed": ringed,
    "split": split,
    "striped": striped,
    "wavy": wavy,
}
