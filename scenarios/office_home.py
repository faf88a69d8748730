"""Office-Home: everyday objects in four domains (Venkateswara et al. 2017, arXiv:1706.07522)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from clsim.data.domains import DomainScenario, domain_benchmark, train_test_split
from clsim.data.readers import Hub
from clsim.data.streams import Benchmark, DataAccess

HUB = Hub("flwrlabs/office-home", "main")  # "main" is not pinned: its commit could not be looked up


@dataclass(kw_only=True)
class OfficeHome(DomainScenario):
    """Office-Home: 15,588 images of 65 classes in Art, Clipart, Product and Real World.

    One split, of which a fixed fifth is for testing. By default unsupervised adaptation from Art to Clipart.
    """

    domains: ClassVar[tuple[str, ...]] = ("Art", "Clipart", "Product", "Real World")
    protocol: Literal["domain", "class", "pair", "targets"] = "pair"  # new domains, new classes, or adaptation
    source: str = "Art"
    target: str = "Clipart"
    classes_per_experience: int = 13  # new classes in each experience (class); must divide 65 (minus base_classes)

    def build(self, data: DataAccess) -> Benchmark:
        """The images in the stream of `protocol`."""
        source = data.parquet("office_home", "train", "image", "label", "domain", hub=HUB)
        train, test = train_test_split(data, source, self.on_bad_image)
        return domain_benchmark(self, train, test, classes_per_experience=self.classes_per_experience)
