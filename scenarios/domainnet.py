"""DomainNet: 345 classes in six domains (Peng et al. 2019, arXiv:1812.01754)."""

from dataclasses import dataclass
from typing import ClassVar

from clsim.data.domains import DomainScenario, domain_benchmark
from clsim.data.readers import Hub
from clsim.data.streams import Benchmark, DataAccess

HUB = Hub("wltjr1007/DomainNet", "ee20570ae7a29c51571e55a9a17983f7625295d6")


@dataclass(kw_only=True)
class DomainNet(DomainScenario):
    """DomainNet: about 586,000 images of 345 classes in six domains, with its own splits.

    By default one domain after another, sorted by name; protocol=class has five experiences of 69 classes.
    """

    domains: ClassVar[tuple[str, ...]] = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    source: str = "real"
    target: str = "sketch"
    classes_per_experience: int = 69  # new classes in each experience (class); must divide 345 (minus base_classes)

    def build(self, data: DataAccess) -> Benchmark:
        """The images in the stream of `protocol`."""
        train, test = (
            data.table(data.parquet("domainnet", split, "image", "label", "domain", hub=HUB), self.on_bad_image)
            for split in ("train", "test")
        )
        return domain_benchmark(self, train, test, classes_per_experience=self.classes_per_experience)
