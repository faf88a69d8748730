"""Glyph domains: an embedded stream of new domains, drawn as they are needed."""

from dataclasses import dataclass
from typing import Literal

from clsim.data.glyph_tables import chosen_classes, train_and_test
from clsim.data.streams import Benchmark, DataAccess, Scenario, domain_incremental
from clsim.errors import RequestError

# roughly from near to far from photographs
ORDER = ("real", "painting", "clipart", "infograph", "sketch", "quickdraw")


@dataclass(kw_only=True)
class GlyphDomains(Scenario):
    """Drawn 32x32 pictures of the same classes, in one domain after another; nothing to download."""

    train_per_class: int = 20  # training images of each class and domain; any number
    test_per_class: int = 10  # test images of each class and domain; any number
    classes: Literal["all", "seen", "held_out"] = "held_out"  # of the 100; held_out: 20 that clip_micro never saw
    domains: tuple[str, ...] = ORDER  # in order of arrival

    def __post_init__(self) -> None:
        if not self.domains or len(set(self.domains)) < len(self.domains):
            raise RequestError("domains must have at least one domain, and each only once")

    def build(self, data: DataAccess) -> Benchmark:
        """One experience for each domain."""
        chosen = chosen_classes(self.classes)
        train, test = train_and_test(chosen, self.domains, self.train_per_class, self.test_per_class)
        return domain_incremental(self, train, test)
