"""PACS: seven classes in four styles (Li et al. 2017, arXiv:1710.03077)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clsim.data.domains import cut, direction, domain_benchmark, every_pair
from clsim.data.readers import Hub
from clsim.data.streams import Benchmark, DataAccess, Scenario

HUB = Hub("flwrlabs/pacs", "main")  # "main" is not pinned: its commit could not be looked up
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")


@dataclass(kw_only=True)
class Pacs(Scenario):
    """PACS: 9,991 images of 7 classes as photos, paintings, cartoons and sketches.

    One split, of which a fixed fifth is for testing. By default one domain after the other, by name.
    """

    protocol: Literal["domain", "pair", "targets"] = "domain"  # new domains, or what to adapt to
    source: str = "photo"  # the labelled domain (pair, targets)
    target: str = "sketch"  # the unlabelled domain (pair)
    sources: tuple[str, ...] = ()  # several labelled domains, in place of source
    targets: tuple[str, ...] = ()  # unlabelled domains, one after the other (targets); none: all but the source
    pairs: Literal["one", "all"] = "one"  # all: a run for every source and target (pair)
    shots: int | None = None  # labelled images of each class and domain, drawn by order_seed; none: all

    def build(self, data: DataAccess) -> Benchmark:
        """The images in the stream that `protocol` names."""
        source = data.parquet("pacs", "train", "image", "label", "domain", hub=HUB)
        return domain_benchmark(self, *cut(data, source, self.on_bad_image))

    def variant(self) -> str:
        return direction(self)

    def expanded(self) -> Sequence[Mapping[str, Any]]:
        return every_pair(self, DOMAINS)
