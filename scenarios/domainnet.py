"""DomainNet: 345 classes in six domains (Peng et al. 2019, arXiv:1812.01754)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clsim.data.domains import direction, domain_benchmark, every_pair
from clsim.data.readers import Hub
from clsim.data.streams import Benchmark, DataAccess, Scenario

HUB = Hub("wltjr1007/DomainNet", "ee20570ae7a29c51571e55a9a17983f7625295d6")
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


@dataclass(kw_only=True)
class DomainNet(Scenario):
    """DomainNet: about 586,000 images of 345 classes in six domains, with splits of its own.

    By default one domain after the other, by name; protocol=class has five experiences of 69 classes.
    """

    protocol: Literal["domain", "class", "pair", "targets"] = "domain"  # new domains or classes, or what to adapt to
    source: str = "real"  # the labelled domain (pair, targets)
    target: str = "sketch"  # the unlabelled domain (pair)
    sources: tuple[str, ...] = ()  # several labelled domains, in place of source
    targets: tuple[str, ...] = ()  # unlabelled domains, one after the other (targets); none: all but the source
    pairs: Literal["one", "all"] = "one"  # all: a run for every source and target (pair)
    shots: int | None = None  # labelled images of each class and domain, drawn by order_seed; none: all
    classes_per_experience: int = 69  # new classes in each experience (class); divides 345

    def build(self, data: DataAccess) -> Benchmark:
        """The images in the stream that `protocol` names."""
        train, test = (
            data.table(data.parquet("domainnet", split, "image", "label", "domain", hub=HUB), self.on_bad_image)
            for split in ("train", "test")
        )
        return domain_benchmark(self, train, test, classes_per_experience=self.classes_per_experience)

    def variant(self) -> str:
        return direction(self)

    def expanded(self) -> Sequence[Mapping[str, Any]]:
        return every_pair(self, DOMAINS)
