"""Any tree of class folders as a stream."""

# it has one protocol more than its base class, and `domains` is a field of it
# mypy: disable-error-code="assignment, misc"

from dataclasses import dataclass
from typing import Literal

from clsim.data.domains import DomainScenario, domain_benchmark
from clsim.data.streams import Benchmark, ClassScenario, DataAccess, class_incremental
from clsim.errors import RequestError


@dataclass(kw_only=True)
class Folder(DomainScenario):
    """Your own images: --data-dir TREE with TREE/train/CLASS/*.png and TREE/test/CLASS/*.png.

    The splits have any usual name (Train, training, val, validation, testing, ...). A tree without them,
    TREE/CLASS/*.png, is split 80/20 by a hash of each file's path in TREE. With protocol=domain, pair or targets, there
    is a level of domain folders above the classes: TREE/DOMAIN/CLASS/*.png, TREE/train/DOMAIN/CLASS/*.png, or
    TREE/DOMAIN/train/CLASS/*.png; protocol=class and task read such a tree, too.
    """

    classes_per_experience: int = 10  # new classes in each experience (class and task); must divide their number
    protocol: Literal["class", "domain", "task", "pair", "targets"] = "class"  # classes, domains, or adaptation
    domains: tuple[str, ...] = ()  # domain folders in order of arrival; none: all, sorted by name
    domain_folders: bool | None = None  # whether domain folders are above the classes (class, task); none: look
    test_split: str = ""  # the split that is for testing, e.g. val; empty: test, or else val
    exclude: tuple[str, ...] = ()  # class folders to leave out, e.g. BACKGROUND_Google
    flip: bool = True  # whether a mirrored image keeps its class; false for digits and letters

    def __post_init__(self) -> None:
        """Raises RequestError for fields that have no effect, and if a source or a target is missing."""
        if self.protocol != "task":
            super().__post_init__()
        else:
            ClassScenario.__post_init__(self)
            if self.sources or self.targets or self.shots is not None:
                raise RequestError("sources, targets and shots are not for protocol=task")
        new_classes = self.protocol in ("class", "task")
        if self.domains and new_classes:
            raise RequestError(f"domains are for protocol=domain, not protocol={self.protocol}")
        if self.domain_folders is not None and not new_classes:
            raise RequestError(f"protocol={self.protocol} always has domain folders; leave domain_folders out")
        if self.protocol == "targets" and self.test_split:
            raise RequestError("protocol=targets tests on training images of the targets; leave test_split out")
        if self.pairs == "all" and not self.domains:
            raise RequestError("pairs=all needs the names of the domain folders: scenario.domains=A,B,C")
        if self.protocol in ("pair", "targets") and self.pairs == "one" and not (self.source or self.sources):
            raise RequestError(f"protocol={self.protocol} needs a domain with labels: scenario.source=DOMAIN")
        if self.protocol == "pair" and self.pairs == "one" and not (self.target or self.targets):
            raise RequestError("protocol=pair needs a domain without labels: scenario.target=DOMAIN")

    def build(self, data: DataAccess) -> Benchmark:
        """The tree's classes, or its domains, as experiences."""
        domain_folders = self.domain_folders if self.protocol in ("class", "task") else True
        sources = data.class_folders(self.domains, domain_folders, self.test_split, self.exclude)
        train, test = (data.table(source, self.on_bad_image) for source in sources)
        if self.protocol == "task":
            return class_incremental(self, train, test, self.classes_per_experience, "task", self.flip)
        return domain_benchmark(self, train, test, self.flip, self.classes_per_experience)
