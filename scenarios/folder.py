"""Any tree of class folders as a stream."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clsim.data.readers import Source, held_out, subfolders
from clsim.data.streams import (
    Benchmark,
    ClassScenario,
    DataAccess,
    class_incremental,
    domain_incremental,
    matching_name,
)
from clsim.errors import RequestError


@dataclass(kw_only=True)
class Folder(ClassScenario):
    """Your own images: --data-dir TREE with TREE/train/CLASS/*.png and TREE/test/CLASS/*.png.

    A tree without train and test folders, TREE/CLASS/*.png, is split 80/20 by a hash of each file's path in TREE.
    With protocol=domain, there is a level of domain folders above the classes: TREE/DOMAIN/CLASS/*.png.
    """

    classes_per_experience: int = 10  # new classes in each experience (class and task); must divide their number
    protocol: Literal["class", "domain", "task"] = "class"  # new classes; new domains; classes with the task given
    domains: tuple[str, ...] = ()  # domain folders in order of arrival; none: all, sorted by name
    flip: bool = True  # whether a mirrored image keeps its class; false for digits and letters

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol == "domain":
            self.refuse_class_fields("protocol=domain has none")
        if self.domains and self.protocol != "domain":
            raise RequestError(f"domains are for protocol=domain, not protocol={self.protocol}")

    def build(self, data: DataAccess) -> Benchmark:
        """The tree's classes, or its domains, as experiences."""
        train, test = (data.table(source, self.on_bad_image) for source in self._splits(data))
        if self.protocol == "domain":
            return domain_incremental(self, train, test, self.flip)
        return class_incremental(self, train, test, self.classes_per_experience, self.protocol, self.flip)

    def _splits(self, data: DataAccess) -> tuple[Source, Source]:
        """Training and test images."""
        tree = data.tree()
        given = [split for split in ("train", "test") if (tree / split).is_dir()]
        if len(given) == 1:
            raise RequestError(f"{tree} has a folder {given[0]!r}, but needs both 'train' and 'test'")
        if given:
            train, test = (data.folder(split, domains=self._domains(tree / split)) for split in given)
            return train, test
        source = data.folder(domains=self._domains(tree))
        testing = held_out(source.names)
        return source.take(~testing), source.take(testing)

    def _domains(self, root: Path) -> tuple[str, ...]:
        """The names of the domain folders in `root`, in order; none in the other protocols."""
        if self.protocol != "domain":
            return ()
        there = [path.name for path in subfolders(root)]
        return tuple(matching_name("domain", name, there) for name in self.domains or there)
