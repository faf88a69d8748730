"""What a run found: its images, classes, domains and splits, and what was left out, as a record and as lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from clsim.data.benchmark import Benchmark
    from clsim.data.sources import Found
    from clsim.data.table import ImageTable

ALL = 10  # names that are always shown; of more names, as many as fit into WIDTH characters
WIDTH = 90
NAMED = 3  # files or folders that are named for each reason they were left out
Record = dict[str, Any]


def record(benchmark: Benchmark, found: Mapping[str, Found]) -> list[Record]:
    """One JSON object for each table of the benchmark; `found`: by a table's fingerprint, where a reader made it.

    `images` are those of the table, `used` those that the stream learns or tests. `sizes`: stored height and width of
    the smallest and of the largest. `classes` and `domains` count images. `left_out`: reason -> count and first names.
    """
    tables: dict[str, ImageTable] = {}
    for table in benchmark.tables:  # a pair has one table twice: without and with the labels of the target
        known = tables.get(table.fingerprint)
        if known is None or table.labels.min() > known.labels.min():
            tables[table.fingerprint] = table
    return [_of_table(benchmark, table, found.get(key)) for key, table in tables.items()]


def _of_table(benchmark: Benchmark, table: ImageTable, found: Found | None) -> Record:
    learned = [each for each in benchmark.train_stream if each.table.fingerprint == table.fingerprint]
    tested = [each for each in benchmark.test_stream if each.table.fingerprint == table.fingerprint]
    rows = [each.rows for each in (*learned, *tested)]
    rows += [each.unlabelled for each in learned if each.unlabelled is not None]
    domains = {} if table.domains is None else _counts(table.domain_names, table.domains)
    left_out = {} if found is None else found.left_out
    sizes = getattr(table.images, "sizes", np.array([table.images.shape[2:]]))  # (N,2) of whole images
    area = sizes.prod(axis=1)
    return {
        "part": " and ".join(["training"] * bool(learned) + ["test"] * bool(tested)),
        "split": "" if found is None else found.split,
        "images": len(table),
        "used": len(np.unique(np.concatenate(rows))),
        "sizes": [sizes[area.argmin()].tolist(), sizes[area.argmax()].tolist()],
        "classes": _counts(table.class_names, table.labels[table.labels >= 0]),
        "domains": domains,
        "left_out": {why: {"count": len(names), "first": list(names[:NAMED])} for why, names in left_out.items()},
        "skipped": str(table.skipped) if table.skipped else "",
        "notes": [] if found is None else list(found.notes),
    }


def _counts(names: Sequence[str], labels: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, count in zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True):
        counts[name] = counts.get(name, 0) + count  # a data set may declare one name twice
    return counts


def lines(records: Sequence[Record]) -> list[str]:
    """The records for people: one line for the classes, one for each table, and one for each thing to know."""
    classes = list(dict.fromkeys(name for each in records for name in each["classes"]))
    text = [f"{len(classes)} {_plural('class', len(classes))}: {_names(classes)}"]
    for each in records:
        few, most = min(each["classes"].values()), max(each["classes"].values())
        per_class = f"{few:,}" if few == most else f"{few:,} to {most:,}"
        sizes = " to ".join(dict.fromkeys(f"{height} x {width}" for height, width in each["sizes"]))
        split = f" (split {each['split']!r})" if each["split"] else ""
        line = f"{each['part']} images{split}: {each['images']:,} of {sizes} pixels, {per_class} a class"
        text.append(line + (f"; {each['used']:,} of them are used" if each["used"] < each["images"] else ""))
        if each["domains"]:
            counts = [f"{name} {count:,}" for name, count in each["domains"].items()]
            text.append(f"  {len(counts)} {_plural('domain', len(counts))}: {_names(counts)}")
        for why, out in each["left_out"].items():
            more = ", ..." if out["count"] > len(out["first"]) else ""
            text.append(f"  left out, {why}: {out['count']:,} ({', '.join(out['first'])}{more})")
        if each["skipped"]:
            text.append(f"  cannot be decoded: {each['skipped']}")
        text += [f"  {note}" for note in each["notes"]]
    return text


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}{'es' if word.endswith('s') else 's'}"


def _names(names: Sequence[str]) -> str:
    """All names if they are few, else the first and how many more there are."""
    shown = 0
    while shown < len(names) and (len(names) <= ALL or len(", ".join(names[: shown + 1])) <= WIDTH):
        shown += 1
    shown = max(shown, 1)
    rest = f" and {len(names) - shown} more" if shown < len(names) else ""
    return ", ".join(names[:shown]) + rest
