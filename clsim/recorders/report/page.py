"""The page of a report: the texts of its tables, and the template's output."""

from dataclasses import dataclass
from typing import Any

from clsim.listing import size_text
from clsim.metrics import SINCE_LEARNED, mean_and_interval
from clsim.recorders.report import checks, pictures
from clsim.recorders.report.data import Report, Row, Stream
from clsim.recorders.report.paired import Difference, difference
from clsim.version import VERSION

MOST_NAMES = 8  # in the question
MOST_REFERENCES = 50  # with more, the page would have too many differences
LOWER_IS_BETTER = ("forgetting", SINCE_LEARNED)
COSTS = (  # heading, figure, form
    ("trainable parameters", "trainable_parameters", "{:,.0f}"),
    ("stored per experience", "stored_bytes_per_experience", "size"),
    ("memory kept", "memory_bytes", "size"),
    ("seconds", "seconds", "{:,.1f}"),
    ("training images/s", "images_per_second", "{:,.0f}"),
)


@dataclass(frozen=True)
class Cell:
    """A cell of the table of results; `order`: what the table is sorted by, None for "-"."""

    text: str
    order: float | None
    measure: str = ""  # of a metric, to which the page adds differences


def render(report: Report, reload_seconds: int = 0) -> str:
    """The report as one HTML file that loads nothing. With `reload_seconds`, a browser reads it again and again."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # late: only this command needs it
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("clsim.recorders.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    streams = [_stream(stream) for stream in report.streams]
    text = environment.get_template("page.html.j2").render(
        streams=streams, unfinished=report.unfinished, version=VERSION, reload_seconds=reload_seconds, svg=Markup
    )
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")  # names of files that are not UTF-8


def _stream(stream: Stream) -> dict[str, Any]:
    """What the template shows of a stream."""
    rows, measures = stream.rows, stream.measures
    names, values = checks.settings(rows)
    return {
        "name": stream.name,
        "question": question(stream),
        "answer": answer(stream),
        "warnings": checks.warnings(rows) + checks.code_notes(rows),
        "numbered": stream.numbered,
        "measures": [(name.replace("_", " "), "↓" if name in LOWER_IS_BETTER else "↑") for name in measures],
        "costs": [heading for heading, _, _ in COSTS],
        "rows": [(row, [*(_metric(row, name) for name in measures), *_costs(row)]) for row in rows],
        "differences": differences(stream),
        "references": rows[:MOST_REFERENCES],
        "figures": pictures.figures(stream),
        "setting_names": names,
        "settings": values,
        "remarks": [(row.name, text) for row in rows for text in row.remarks],
        "facts": checks.provenance(rows),
    }


def question(stream: Stream) -> str:
    """What is compared, and on what, in one sentence."""
    rows = stream.rows
    names = [row.name for row in rows]
    first = stream.measures[0].replace("_", " ") if stream.measures else "accuracy"
    backbones = dict.fromkeys(run.summary["backbone"] for row in rows for run in row.runs)
    protocols = dict.fromkeys(str(run.summary.get("protocol", "unknown")) for row in rows for run in row.runs)
    seeds = sorted({seed for row in rows for seed in row.seeds})
    count = len(rows[0].runs[0].matrix["total"])
    where = f"on {stream.name} ({'/'.join(protocols)} protocol, {count} test {'set' if count == 1 else 'sets'})"
    how = f"with {', '.join(backbones)}, {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    if len(names) == 1:
        return f"Which {first} does {names[0]} reach {where} {how}?"
    if len(names) > MOST_NAMES:
        return f"Which of {len(names)} methods has the highest {first} {where} {how}?"
    return f"Which has the highest {first} {where} {how}: {', '.join(names[:-1])} or {names[-1]}?"


def answer(stream: Stream) -> str:
    """The first row and its paired difference to the second, in one or two sentences."""
    if not stream.measures or not stream.rows[0].group.values(stream.measures[0]):
        return "No run has a result for this."
    first, measure = stream.rows[0], stream.measures[0]
    text = f"{first.name}: {percent(first.group.values(measure))} %."
    if len(stream.rows) == 1:
        return text
    second = stream.rows[1]
    found = difference(first.group.by_seed(measure), second.group.by_seed(measure))
    if found is None:
        return f"{text} It has no seed in common with {second.name}, the second."
    text += f" The difference from {second.name}, the second, is {points(found)} points"
    if found.half is None:
        return f"{text}, from one pair of runs with the same seed: there is no interval."
    pairs = f"the 95 % interval over {found.pairs} pairs of runs with the same seed"
    return f"{text}; {pairs} {'does not contain 0' if found.clear else 'contains 0: the order may be chance'}."


def differences(stream: Stream) -> list[list[list[list[Any]]]]:
    """For each metric, reference and row: the text of the paired difference, and whether its interval excludes 0.

    References are the first MOST_REFERENCES rows.
    """
    found = []
    for name in stream.measures:
        values = [row.group.by_seed(name) for row in stream.rows]
        references = values[:MOST_REFERENCES]
        found.append([[_shown(each, reference) for each in values] for reference in references])
    return found


def _shown(values: dict[int, float], reference: dict[int, float]) -> list[Any]:
    if not values or not reference:
        return ["", False]
    if values is reference:
        return ["reference", False]
    found = difference(values, reference)
    return ["no common seed", False] if found is None else [points(found), found.clear]


def points(found: Difference) -> str:
    """``+3.2 ± 1.1``: percentage points, with a sign; ``+3.2`` without an interval."""
    mean = f"{100 * found.mean:+.1f}"
    mean = mean[1:] if float(f"{100 * found.mean:.1f}") == 0 else mean
    return mean if found.half is None else f"{mean} ± {100 * found.half:.1f}"


def percent(values: list[float]) -> str:
    """``81.2 ± 1.4``: mean and half the width of the 95 % interval, in %."""
    mean, half = mean_and_interval(values)
    text = f"{100 * mean:.1f}"
    return text if half is None else f"{text} ± {100 * half:.1f}"


def _metric(row: Row, name: str) -> Cell:
    values = row.group.values(name)
    return Cell(percent(values), sum(values) / len(values), name) if values else Cell("-", None, name)


def _costs(row: Row) -> list[Cell]:
    """The binomial interval of the test set, and the means of the costs."""
    half = row.group.by_test_set
    cells = [Cell("-" if half is None else f"± {100 * half:.1f}", half)]
    for _, name, form in COSTS:
        value = row.group.mean(name)
        text = "-" if value is None else size_text(value) if form == "size" else form.format(value)
        cells.append(Cell(text, value))
    return cells
