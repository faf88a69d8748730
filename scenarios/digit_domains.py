"""Digit domains: handwritten digits from three sources."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from clsim.data.domains import DomainScenario, domain_benchmark
from clsim.data.readers import Hub, Source
from clsim.data.streams import Benchmark, DataAccess
from clsim.data.table import ImageTable
from clsim.scenarios.five_datasets import SETS
from clsim.scenarios.split_digits import digits

USPS = Hub("flwrlabs/usps", "main")  # "main" is not pinned: its commit could not be looked up


@dataclass(kw_only=True)
class DigitDomains(DomainScenario):
    """Ten digits from MNIST, USPS and scikit-learn (28x28, 16x16 and 8x8 pixels), resized to one size.

    MNIST and USPS have their own splits; of scikit-learn's digits a fixed fifth is for testing. No mirrored images.
    """

    domains: ClassVar[tuple[str, ...]] = ("mnist", "usps", "digits")
    protocol: Literal["domain", "pair", "targets"] = "domain"  # new domains, or adaptation
    source: str = "mnist"
    target: str = "usps"

    def build(self, data: DataAccess) -> Benchmark:
        """The images in the stream of `protocol`."""
        own = dict(zip(("train", "test"), digits(), strict=True))
        train, test = (
            data.table(self._joined(data, split, own[split]), self.on_bad_image, one_size=True) for split in own
        )
        return domain_benchmark(self, train, test, flip=False)

    def _joined(self, data: DataAccess, split: str, own: ImageTable) -> Source:
        """One split of every set, one set after another."""
        mnist, usps = (
            data.parquet(name, split, "image", "label", hub=hub)
            for name, hub in (("mnist", SETS["mnist"][1]), ("usps", USPS))
        )
        return Source.join((mnist, usps, own.encoded()), self.domains, as_domains=True)
