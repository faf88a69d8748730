"""Glyph pair: embedded unsupervised adaptation from one drawn domain to another."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from clsim.data.domains import DomainScenario, adaptation
from clsim.data.glyph_tables import chosen_classes, train_and_test
from clsim.data.glyphs import DOMAINS
from clsim.data.streams import Benchmark, DataAccess


@dataclass(kw_only=True)
class GlyphPair(DomainScenario):
    """Drawn 32x32 pictures: a labelled source domain, an unlabelled target domain; nothing to download."""

    domains: ClassVar[tuple[str, ...]] = DOMAINS
    protocol: Literal["pair", "targets"] = "pair"  # one target, or several, one after another
    source: str = "real"  # the labelled domain: clipart, infograph, painting, quickdraw, real, sketch
    target: str = "sketch"
    train_per_class: int = 20  # training images of each class and domain; any number
    test_per_class: int = 10  # test images of each class and domain; any number
    classes: Literal["all", "seen", "held_out"] = "held_out"  # of the 100; held_out: 20 that clip_micro never saw

    def build(self, data: DataAccess) -> Benchmark:
        """The target's training images are unlabelled."""
        domains = (*(self.sources or (self.source,)), self.target) if self.protocol == "pair" else DOMAINS
        # only a pair has test images
        tests = self.test_per_class if self.protocol == "pair" else 1
        return adaptation(self, *train_and_test(chosen_classes(self.classes), domains, self.train_per_class, tests))
