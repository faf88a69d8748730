"""A scenario with a protocol of its own: ``clsim run --scenario docs/examples/turned_digits.py:TurnedDigits``."""

from dataclasses import dataclass, replace

import numpy as np

from clsim import Scenario
from clsim.data.protocols import Protocol
from clsim.data.streams import Benchmark, DataAccess, domain_incremental
from clsim.data.table import ImageTable
from clsim.scenarios.split_digits import digits


class MetDomains(Protocol):
    """As in domain-incremental learning, but a domain is tested only after it was learned."""

    name = "met domains"

    def tests_ahead(self, scores_unseen: bool) -> bool:
        return False


@dataclass(kw_only=True)
class TurnedDigits(Scenario):
    """Handwritten digits, upright, then turned."""

    quarters: int = 1  # quarter turns of the second domain

    def build(self, data: DataAccess) -> Benchmark:
        train, test = (self.both(table) for table in digits())
        return replace(domain_incremental(self, train, test, flip=False), protocol=MetDomains())

    def both(self, table: ImageTable) -> ImageTable:
        upright, count = table.pixels(np.arange(len(table))), len(table)
        images = np.concatenate([upright, np.rot90(upright, self.quarters, axes=(2, 3))])
        domains, names = np.repeat([0, 1], count), ("upright", "turned")
        return ImageTable.from_arrays(images, np.tile(table.labels, 2), table.class_names, domains, names)
