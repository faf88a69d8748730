"""Office-Home: everyday objects in four domains (Venkateswara et al. 2017, arXiv:1706.07522)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clsim.data.domains import cut, direction, domain_benchmark, every_pair
from clsim.data.readers import Hub
from clsim.data.streams import Benchmark, DataAccess, Scenario

HUB = Hub("flwrlabs/office-home", "main")  # "main" is not pinned: its commit could not be looked up
DOMAINS = ("Art", "Clipart", "Product", "Real World")


@dataclass(kw_only=True)
class OfficeHome(Scenario):
    """Office-Home: 15,588 images of 65 classes in Art, Clipart, Product and Real World.

    One split, of which a fixed fifth is for testing. By default unsupervised adaptation from Art to Clipart.
    """

    protocol: Literal["domain", "class", "pair", "targets"] = "pair"  # new domains or classes, or what to adapt to
    source: str = "Art"  # the labelled domain (pair, targets)
    target: str = "Clipart"  # the unlabelled domain (pair)
    sources: tuple[str, ...] = ()  # several labelled domains, in place of source
    targets: tuple[str, ...] = ()  # unlabelled domains, one after the other (targets); none: all but the source
    pairs: Literal["one", "all"] = "one"  # all: a run for every source and target (pair)
    shots: int | None = None  # labelled images of each class and domain, drawn by order_seed; none: all
    classes_per_experience: int = 13  # new classes in each experience (class); divides 65

    def build(self, data: DataAccess) -> Benchmark:
        """The images in the stream that `protocol` names."""
        source = data.parquet("office_home", "train", "image", "label", "domain", hub=HUB)
        train, test = cut(data, source, self.on_bad_image)
        return domain_benchmark(self, train, test, classes_per_experience=self.classes_per_experience)

    def variant(self) -> str:
        return direction(self)

    def expanded(self) -> Sequence[Mapping[str, Any]]:
        return every_pair(self, DOMAINS)
