"""Digit domains: handwritten digits from three sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clsim.data.domains import direction, domain_benchmark, every_pair
from clsim.data.readers import Hub, Source
from clsim.data.streams import Benchmark, DataAccess, Scenario
from clsim.data.table import ImageTable
from clsim.scenarios.five_datasets import SETS
from clsim.scenarios.split_digits import digits

USPS = Hub("flwrlabs/usps", "main")  # "main" is not pinned: its commit could not be looked up
DOMAINS = ("mnist", "usps", "digits")


@dataclass(kw_only=True)
class DigitDomains(Scenario):
    """Ten digits as MNIST, USPS and scikit-learn have them, 28x28, 16x16 and 8x8 pixels, brought to one size.

    MNIST and USPS have splits of their own; of scikit-learn's a fixed fifth is for testing. No mirrored images.
    """

    protocol: Literal["domain", "pair", "targets"] = "domain"  # new domains, or what to adapt to
    source: str = "mnist"  # the labelled domain (pair, targets)
    target: str = "usps"  # the unlabelled domain (pair)
    sources: tuple[str, ...] = ()  # several labelled domains, in place of source
    targets: tuple[str, ...] = ()  # unlabelled domains, one after the other (targets); none: all but the source
    pairs: Literal["one", "all"] = "one"  # all: a run for every source and target (pair)
    shots: int | None = None  # labelled images of each class and domain, drawn by order_seed; none: all

    def build(self, data: DataAccess) -> Benchmark:
        """The images in the stream that `protocol` names."""
        own = dict(zip(("train", "test"), digits(), strict=True))
        train, test = (data.table(self._joined(data, split, own[split]), self.on_bad_image) for split in own)
        return domain_benchmark(self, train, test, flip=False)

    def _joined(self, data: DataAccess, split: str, own: ImageTable) -> Source:
        """One split of every set, one after the other."""
        mnist, usps = (
            data.parquet(name, split, "image", "label", hub=hub)
            for name, hub in (("mnist", SETS["mnist"][1]), ("usps", USPS))
        )
        return Source.join((mnist, usps, own.encoded()), DOMAINS, as_domains=True)

    def variant(self) -> str:
        return direction(self)

    def expanded(self) -> Sequence[Mapping[str, Any]]:
        return every_pair(self, DOMAINS)
