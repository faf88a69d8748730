"""Pictures as SVG text. Their colours are CSS classes of the page, which fit its light, dark and printed form.

A picture is 360 units wide, about the width of a phone, so that its text is never scaled down to less than it can be
read. Values are in %, unless a title says otherwise.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360.0, 250.0
LEFT, TOP, BOTTOM = 46.0, 14.0, 208.0  # of the plot
CHARACTER = 6.6  # average width of a character of the 12-unit font, of a wide one
BOLD = 7.6  # the same of a bold one
LINE = 14.0  # least distance of two labels, from top to top
MOST_LABELS = 14  # of curves; of more, none: the legend has all names
LONGEST = 16  # characters of a name in a picture
COLOURS = 8  # classes s0 to s7 of the page

# colours of viridis at equal distances, from 0 to 100 % (van der Walt and Smith 2015)
VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")


Box = tuple[float, float, float, float]  # left, top, right, bottom


class Curve(NamedTuple):
    """A line with a band: places with x, a mean, and half the width of its interval, None where there is none.

    `label` is its name in the picture, where there is less room than for `name`.
    """

    name: str
    label: str
    places: Sequence[tuple[float, float, float | None]]
    series: int


class Point(NamedTuple):
    """A point with an interval for each axis, half its width; None where there is none. `label` as in Curve."""

    name: str
    label: str
    x: float
    y: float
    x_half: float | None
    y_half: float | None
    series: int


class Axis(NamedTuple):
    """From values to units of the picture: `low` is at `start`, `high` at `end`; with `log`, both are exponents of 10.

    `zero`: where values of 0 are on a logarithmic axis.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False
    zero: float | None = None

    def at(self, value: float) -> float:
        """The position of a value; a value beyond an end is at this end."""
        if self.log and value <= 0:
            return self.start if self.zero is None else self.zero
        share = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def linear(values: Sequence[float], start: float, end: float, least: float = -math.inf, most: float = math.inf) -> Axis:
    """An axis with round ends around the values, with 3 to 6 ticks, and within `least` and `most`."""
    low, high = max(min(values), least), min(max(values), most)
    rough = max(high - low, 1e-9 + abs(high) * 1e-3, 1.0) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = (first - 1, last) if high >= most else (first, last + 1)
    ticks = [(number * step, f"{number * step:g}") for number in range(first, last + 1)]
    return Axis(ticks[0][0], ticks[-1][0], start, end, ticks)


def logarithmic(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis of whole powers of 10 around the values above 0. Where a value is 0, it has a place at the start."""
    above = [value for value in values if value > 0]
    zero = start + 10 if len(above) < len(values) else None
    low = math.floor(math.log10(min(above))) if above else 0
    high = max(math.ceil(math.log10(max(above))), low + 1) if above else 1
    every = -(-(high - low) // 6)
    ticks = [(10.0**power, short(10.0**power)) for power in range(low, high + 1, every)]
    if zero is not None:
        ticks.insert(0, (0.0, "0"))
    return Axis(low, high, start if zero is None else start + 36, end, ticks, True, zero)


def short(value: float) -> str:
    """``1200000`` -> ``1.2M``."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def name_of(text: str, longest: int = LONGEST) -> str:
    """The text, cut to `longest` characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


# pictures


def curves(found: Sequence[Curve], x_title: str, y_title: str, whole: bool = False) -> str:
    """Lines over x with bands, and their names at the right ends; `whole`: x has only whole numbers."""
    labelled = len(found) <= MOST_LABELS
    widest = max(len(each.label) for each in found) if labelled else 0
    right = WIDTH - 12 - widest * BOLD
    lows, highs = ([y + sign * (half or 0) for each in found for _, y, half in each.places] for sign in (-1, 1))
    y = linear(lows + highs, BOTTOM, TOP, 0, 100)
    across = [place[0] for each in found for place in each.places]
    x = _whole(across, LEFT + 8, right) if whole else linear(across, LEFT, right)
    parts = [_frame(x, y, x_title, y_title, right)]
    for each in found:  # first, so that no band covers a line
        upper, lower = ([(x.at(a), y.at(b + sign * (half or 0))) for a, b, half in each.places] for sign in (1, -1))
        if any(half for _, _, half in each.places):
            band = f'<polygon points="{_path(upper + lower[::-1])}" class="band"/>'
            parts.append(f"<g {_series(each.series)}>{band}</g>")
    for each in found:
        line = [(x.at(a), y.at(b)) for a, b, _ in each.places]
        dots = "".join(f'<circle cx="{_n(a)}" cy="{_n(b)}" r="2.5" class="dot"/>' for a, b in line)
        stroke = f'<polyline points="{_path(line)}" class="line"/>'
        parts.append(f"<g {_series(each.series)}><title>{escape(each.name)}</title>{stroke}{dots}</g>")
    if labelled:
        wanted = [y.at(each.places[-1][1]) for each in found]
        for each, height in zip(found, spread(wanted, TOP, BOTTOM), strict=True):
            text = escape(each.label)
            parts.append(f'<text x="{_n(right + 6)}" y="{_n(height + 4)}" {_series(each.series, "name")}>{text}</text>')
    return _picture(parts, f"{y_title} over {x_title}: {', '.join(each.name for each in found)}")


def scatter(
    points: Sequence[Point],
    x_title: str,
    y_title: str,
    log: bool = False,
    least: float = 0.0,
    percentages: bool = False,
) -> str:
    """Points with intervals and names; `log`: x is logarithmic; `least`: the smallest possible y.

    `percentages`: x is one, too.
    """
    right = WIDTH - 20
    heights = [each.y + sign * (each.y_half or 0) for each in points for sign in (-1, 1)]
    y = linear(heights, BOTTOM, TOP, least, 100)
    places = [each.x + sign * (each.x_half or 0) for each in points for sign in (-1, 1)]
    limits = (0.0, 100.0) if percentages else ()
    x = logarithmic([each.x for each in points], LEFT, right) if log else linear(places, LEFT, right, *limits)
    parts = [_frame(x, y, x_title, y_title, right)]
    dots, all_lines = [], []
    for each in points:
        at, height = x.at(each.x), y.at(each.y)
        lines = []
        if each.y_half is not None:
            lines.append((at, y.at(each.y + each.y_half), at, y.at(each.y - each.y_half)))
        if each.x_half is not None:
            lines.append((x.at(each.x - each.x_half), height, x.at(each.x + each.x_half), height))
        dots.append((at - 5, height - 5, at + 5, height + 5))
        all_lines += lines
        tip = f"{each.name}: {x_title} {short(each.x) if log else f'{each.x:.1f}'}, {y_title} {each.y:.1f}"
        dot = f'<circle cx="{_n(at)}" cy="{_n(height)}" r="4.5" class="dot"/>'
        bars = "".join(map(_bar, lines))
        parts.append(f"<g {_series(each.series)}><title>{escape(tip)}</title>{bars}{dot}</g>")
    parts += _names([(each, x.at(each.x), y.at(each.y)) for each in points], dots, all_lines)
    return _picture(parts, f"{y_title} against {x_title}: {', '.join(each.name for each in points)}")


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str,
    column_title: str,
    most: float = 100.0,
) -> str:
    """(R,C) percentages as coloured cells, with numbers where these fit; None: an empty cell.

    Colours go from 0 to `most`.
    """
    cell = 34.0 if len(columns) <= 10 else 24.0 if len(columns) <= 20 else max(6.0, 480 / len(columns))
    shown_rows, shown_columns = ([name_of(name) for name in names] for names in (rows, columns))
    upright = max(map(len, shown_columns)) * CHARACTER <= cell
    left = 20 + max(map(len, shown_rows)) * CHARACTER + 4
    top = 18 + (16 if upright else max(map(len, shown_columns)) * CHARACTER + 6)
    width, height = left + cell * len(columns) + 4, top + cell * len(rows) + 4
    width = max(width, len(column_title) * CHARACTER + left)
    parts = []
    every = 1 if cell >= 12 else math.ceil(12 / cell)
    for number, name in enumerate(shown_columns):
        at = left + (number + 0.5) * cell
        if number % every == 0:
            turned = "" if upright else f' transform="rotate(-90 {_n(at + 4)} {_n(top - 5)})"'
            side = 'text-anchor="middle"' if upright else ""
            parts.append(
                f'<text x="{_n(at if upright else at + 4)}" y="{_n(top - 5)}" {side}{turned}>{escape(name)}</text>'
            )
    for number, name in enumerate(shown_rows):
        if number % every == 0:
            height_of = top + (number + 0.5) * cell + 4
            parts.append(f'<text x="{_n(left - 5)}" y="{_n(height_of)}" text-anchor="end">{escape(name)}</text>')
    parts += [f'<text x="{_n(left)}" y="12" class="muted">{escape(column_title)}</text>']
    middle = max(top + cell * len(rows) / 2, len(row_title) * CHARACTER / 2 + 4)
    parts += [_upright(12, middle, row_title)]
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            tip = f"{rows[i]}, {columns[j]}"
            parts.append(_cell((left + j * cell, top + i * cell), cell, value, most, tip))
    height = max(height, middle + len(row_title) * CHARACTER / 2 + 4)
    return _picture(parts, f"{row_title} by {column_title}", width, height)


def _cell(place_of: tuple[float, float], size: float, value: float | None, most: float, tip: str) -> str:
    """A cell of a heat map."""
    x, y = place_of
    gap = 1.0 if size > 12 else 0.0
    place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(size - gap)}" height="{_n(size - gap)}"'
    if value is None:
        return f'<rect {place} class="empty"><title>{escape(tip)}: not tested</title></rect>'
    rect = f'<rect {place} fill="{colour(value / most)}"><title>{escape(tip)}: {value:.1f} %</title></rect>'
    if size < 24:
        return rect
    ink = "dark" if value > 0.55 * most else "light"  # viridis is light from about there
    text = f"{value:.1f}" if size >= 34 else f"{value:.0f}"
    at = f'x="{_n(x + (size - gap) / 2)}" y="{_n(y + (size - gap) / 2 + 4)}"'
    return f'{rect}<text {at} text-anchor="middle" class="number {ink}">{text}</text>'


def colour(share: float) -> str:
    """A share of the whole scale, from 0 to 1, as a colour of VIRIDIS: ``#rrggbb``."""
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    index = min(int(place), len(VIRIDIS) - 2)
    low, high = ([int(each[i : i + 2], 16) for i in (1, 3, 5)] for each in VIRIDIS[index : index + 2])
    return "#" + "".join(f"{round(a + (b - a) * (place - index)):02x}" for a, b in zip(low, high, strict=True))


def spread(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Heights near the wanted ones, in the same order, at least LINE apart and between `top` and `bottom`."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    found = [0.0] * len(wanted)
    last = top - LINE
    for i in order:
        last = found[i] = max(wanted[i], last + LINE)
    last = max(bottom, top + LINE * (len(wanted) - 1)) + LINE
    for i in reversed(order):
        last = found[i] = min(found[i], last - LINE)
    return found


# pieces


def _whole(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis from the first to the last whole number, with up to 10 ticks."""
    low, high = min(values), max(values)
    every = math.ceil((high - low + 1) / 10)
    ticks = [(float(number), str(number)) for number in range(int(low), int(high) + 1, every)]
    return Axis(low, max(high, low + 1), start, end - 4, ticks)


def _frame(x: Axis, y: Axis, x_title: str, y_title: str, right: float) -> str:
    """Grid lines, ticks and titles."""
    parts = []
    for value, text in y.ticks:
        at = _n(y.at(value))
        parts.append(f'<line x1="{_n(LEFT)}" y1="{at}" x2="{_n(right)}" y2="{at}" class="rule"/>')
        parts.append(f'<text x="{_n(LEFT - 5)}" y="{_n(y.at(value) + 4)}" text-anchor="end">{text}</text>')
    for value, text in x.ticks:
        at = _n(x.at(value))
        parts.append(f'<line x1="{at}" y1="{_n(BOTTOM)}" x2="{at}" y2="{_n(BOTTOM + 4)}" class="tick"/>')
        parts.append(f'<text x="{at}" y="{_n(BOTTOM + 17)}" text-anchor="middle">{text}</text>')
    middle = max((LEFT + right) / 2, len(x_title) * CHARACTER / 2 + 4)
    parts.append(
        f'<text x="{_n(middle)}" y="{_n(BOTTOM + 36)}" text-anchor="middle" class="muted">{escape(x_title)}</text>'
    )
    return "".join([*parts, _upright(12, (TOP + BOTTOM) / 2, y_title)])


PLACES = (  # of a point's name: to the right, below, and where the text is anchored; the best first
    *((8, 4, "start"), (-8, 4, "end"), (7, -7, "start"), (7, 15, "start"), (-7, -7, "end"), (-7, 15, "end")),
    *((0, -10, "middle"), (0, 20, "middle"), (7, -20, "start"), (7, 28, "start"), (-7, -20, "end"), (-7, 28, "end")),
)


def _names(placed: Sequence[tuple[Point, float, float]], dots: Sequence[Box], lines: Sequence[Box]) -> list[str]:
    """The points' labels, each where it covers no dot, no other label and few lines; left out where it would."""
    taken = list(dots)
    parts = []
    for each, at, height in placed:
        width = len(each.label) * BOLD
        boxes = {}
        for dx, dy, anchor in PLACES:
            start = at + dx - {"start": 0, "end": width, "middle": width / 2}[anchor]
            box = (start, height + dy - 10, start + width, height + dy + 3)
            if box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 0 and box[3] <= BOTTOM:
                boxes[dx, dy, anchor] = box
        free = {place: box for place, box in boxes.items() if not any(_overlap(box, other) for other in taken)}
        if free:
            covered = {place: sum(_overlap(box, line) for line in lines) for place, box in free.items()}
            dx, dy, anchor = best = min(covered, key=lambda place: covered[place])
            taken.append(boxes[best])
            place = f'x="{_n(at + dx)}" y="{_n(height + dy)}" text-anchor="{anchor}"'
            parts.append(f"<text {place} {_series(each.series, 'name')}>{escape(each.label)}</text>")
    return parts


def _overlap(box: Box, other: Box) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def _bar(ends: Box) -> str:
    x1, y1, x2, y2 = ends
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="bar"/>'


def _upright(x: float, y: float, text: str) -> str:
    """Text from the bottom to the top, around a point."""
    place = f'x="{_n(x)}" y="{_n(y)}" text-anchor="middle" transform="rotate(-90 {_n(x)} {_n(y)})"'
    return f'<text {place} class="muted">{escape(text)}</text>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _series(number: int, more: str = "") -> str:
    """The classes of a series' elements."""
    return f'class="{f"s{number % COLOURS} {more}".strip()}"'


def _n(value: float) -> str:
    """A coordinate with one decimal at most."""
    return f"{value:.1f}".removesuffix(".0")


def _picture(parts: Sequence[str], label: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    """The parts as an SVG element; `label` describes it to those who cannot see it."""
    size = f'viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" height="{_n(height)}"'
    return f'<svg {size} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
