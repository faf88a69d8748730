"""Tables by name or path, for scenarios that can be made of any of them."""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from clsim.data.glyph_tables import glyph_table
from clsim.data.raw import Wanted
from clsim.data.readers import Hub, Source
from clsim.data.sources import train_and_test
from clsim.data.streams import DataAccess
from clsim.data.table import ImageTable
from clsim.errors import RequestError, unknown
from clsim.scenarios.five_datasets import SETS
from clsim.scenarios.split_cifar100 import HUB as CIFAR100
from clsim.scenarios.split_digits import digits


class Files(NamedTuple):
    """The location of a table's images; the table's name is the local folder."""

    image: str  # column of the images
    label: str  # column of the labels
    hub: Hub
    splits: bool = True  # false: one split, of which a fixed fifth is for testing


TABLES = {
    "cifar100": Files("img", "fine_label", CIFAR100),
    **{name: Files(image, "label", hub) for name, (image, hub) in SETS.items()},
    "usps": Files("image", "label", Hub("flwrlabs/usps", "main")),
    "pacs": Files("image", "label", Hub("flwrlabs/pacs", "main"), splits=False),
}
GLYPHS = {"train": 50, "test": 20}  # drawn pictures per class
NAMED = ("digits", "glyphs", *TABLES)
UNMIRRORED = ("digits", "mnist", "notmnist", "svhn", "usps")  # a mirrored digit or letter is a different one, or none


class Choice(Protocol):
    """A scenario whose table is chosen by these fields."""

    table: str
    image: str
    label: str
    test_split: str
    exclude: tuple[str, ...]
    flip: bool | None
    on_bad_image: Literal["stop", "skip"]


def require_known(choice: Choice) -> None:
    """Raises RequestError for a field that is for paths if the table is one of the names."""
    given = [name for name in ("image", "label", "test_split", "exclude") if getattr(choice, name)]
    if given and choice.table in NAMED:
        raise RequestError(f"{given[0]} is for a table that is a path, not for table={choice.table}")


def table_name(choice: Choice) -> str:
    """The table's name, or the last part of its path."""
    return choice.table if choice.table in NAMED else Path(choice.table).resolve().name


def mirrors(choice: Choice) -> bool:
    """Whether a mirrored image keeps its class."""
    return choice.table not in UNMIRRORED if choice.flip is None else choice.flip


def table_of(choice: Choice, data: DataAccess, split: str) -> ImageTable:
    """One split, "train" or "test", of the table. Raises RequestError if there is no such table."""
    if choice.table == "digits":
        return digits()[0 if split == "train" else 1]
    if choice.table == "glyphs":
        return glyph_table(range(100), ["real"], GLYPHS[split], test=split == "test")
    if choice.table not in NAMED:
        return data.table(_at_path(choice, data)[split == "test"], choice.on_bad_image)
    files = TABLES[choice.table]
    source = data.parquet(choice.table, split if files.splits else "train", files.image, files.label, hub=files.hub)
    if not files.splits:
        source = train_and_test(source)[split == "test"]
    return data.table(source, choice.on_bad_image)


def _at_path(choice: Choice, data: DataAccess) -> list[Source]:
    """Training and test images of a table that is a path, without domains."""
    path = Path(choice.table).expanduser()
    if not any(place.exists() for place in (path, (data.data_dir or path) / path)):
        raise RequestError(f"{unknown('table', choice.table, NAMED)}; and there is no such file or folder")
    wanted = Wanted(choice.image, choice.label, test_split=choice.test_split, exclude=choice.exclude)
    return [replace(source, domains=None, domain_names=()) for source in data.images(wanted, path)]
