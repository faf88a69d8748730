"""PACS: seven classes in four styles (Li et al. 2017, arXiv:1710.03077)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from clsim.data.domains import DomainScenario, domain_benchmark, train_test_split
from clsim.data.readers import Hub
from clsim.data.streams import Benchmark, DataAccess

HUB = Hub("flwrlabs/pacs", "main")  # "main" is not pinned: its commit could not be looked up


@dataclass(kw_only=True)
class Pacs(DomainScenario):
    """PACS: 9,991 images of 7 classes as photos, paintings, cartoons and sketches.

    One split, of which a fixed fifth is for testing. By default one domain after another, sorted by name.
    """

    domains: ClassVar[tuple[str, ...]] = ("photo", "art_painting", "cartoon", "sketch")
    protocol: Literal["domain", "pair", "targets"] = "domain"  # new domains, or adaptation
    source: str = "photo"
    target: str = "sketch"

    def build(self, data: DataAccess) -> Benchmark:
        """The images in the stream of `protocol`."""
        source = data.parquet("pacs", "train", "image", "label", "domain", hub=HUB)
        return domain_benchmark(self, *train_test_split(data, source, self.on_bad_image))
