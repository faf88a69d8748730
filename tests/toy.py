"""Toy: a scenario of a few pictures that are made in memory, under any protocol. The tests' runs are on it."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from clsim.data.domains import DomainScenario, adaptation
from clsim.data.streams import Benchmark, DataAccess, class_incremental, domain_incremental
from clsim.data.table import ImageTable
from clsim.errors import RequestError

CLASSES = ("circle", "square", "star", "cross", "ring", "wave")
DOMAINS = ("day", "fog", "night")


def table(per_class: int, domains: int, seed: int) -> ImageTable:
    """`per_class` pictures of 8x8 pixels of each class and domain: noise, and a bright field where its class has it."""
    draw = np.random.default_rng(seed)
    count = domains * len(CLASSES) * per_class
    labels = np.tile(np.repeat(np.arange(len(CLASSES)), per_class), domains)
    domain = np.repeat(np.arange(domains), len(labels) // domains)
    images = draw.integers(0, 100, (count, 3, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        y, x = divmod(int(label), 3)
        image[:, 4 * y : 4 * y + 3, 3 * x - (x == 2) :][..., :3] += 150
    images = np.where(domain[:, None, None, None] == 1, images // 2 + 60, images)
    images = np.where(domain[:, None, None, None] == 2, 255 - images, images).astype(np.uint8)
    named = (domain, DOMAINS[:domains]) if domains > 1 else ()
    return ImageTable.from_arrays(images, labels, CLASSES, *named)


@dataclass(kw_only=True)
class Toy(DomainScenario):
    """Six classes of pictures made in memory: three experiences, or three domains."""

    domains: ClassVar[tuple[str, ...]] = DOMAINS
    protocol: Literal["class", "task", "domain", "pair", "targets"] = "class"
    source: str = "day"
    target: str = "night"
    train_per_class: int = 6  # training images of each class and domain
    test_per_class: int = 4  # test images of each class and domain
    ordered: bool = False  # whether images are learned once, in the order in which they arrive
    boundary: bool = True  # whether methods are told where an experience begins and ends

    def build(self, data: DataAccess) -> Benchmark:
        domains = 1 if self.protocol in ("class", "task") else len(DOMAINS)
        tables = table(self.train_per_class, domains, 0), table(self.test_per_class, domains, 1)
        if self.protocol in ("pair", "targets"):
            made = adaptation(self, *tables)
        elif self.protocol == "domain":
            made = domain_incremental(self, *tables)
        else:
            made = class_incremental(self, *tables, 2, self.protocol)
        if not self.boundary and not self.ordered:
            raise RequestError("a stream without boundaries is ordered")
        stream = [replace(each, ordered=self.ordered, boundary=self.boundary) for each in made.train_stream]
        return replace(made, train_stream=tuple(stream))
