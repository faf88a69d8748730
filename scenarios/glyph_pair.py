"""Glyph pair: embedded unsupervised adaptation from one drawn domain to another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clsim.data.domains import adaptation, direction, every_pair
from clsim.data.glyph_tables import chosen_classes, train_and_test
from clsim.data.glyphs import DOMAINS
from clsim.data.streams import Benchmark, DataAccess, Scenario


@dataclass(kw_only=True)
class GlyphPair(Scenario):
    """Drawn 32x32 pictures: a labelled source domain, an unlabelled target domain; nothing to download."""

    protocol: Literal["pair", "targets"] = "pair"  # one target, or one after the other
    source: str = "real"  # the labelled domain: clipart, infograph, painting, quickdraw, real, sketch
    target: str = "sketch"  # the unlabelled domain (pair)
    sources: tuple[str, ...] = ()  # several labelled domains, in place of source
    targets: tuple[str, ...] = ()  # unlabelled domains, one after the other (targets); none: all but the source
    pairs: Literal["one", "all"] = "one"  # all: a run for every source and target (pair)
    shots: int | None = None  # labelled images of each class and domain, drawn by order_seed; none: all
    train_per_class: int = 20  # training images of each class and domain; any number
    test_per_class: int = 10  # test images of each class and domain; any number
    classes: Literal["all", "seen", "held_out"] = "held_out"  # of the 100; held_out: 20 that clip_micro never saw

    def build(self, data: DataAccess) -> Benchmark:
        """The target's training images are unlabelled."""
        domains = (*(self.sources or (self.source,)), self.target) if self.protocol == "pair" else DOMAINS
        sizes = self.train_per_class, self.test_per_class
        return adaptation(self, *train_and_test(chosen_classes(self.classes), domains, *sizes))

    def variant(self) -> str:
        return direction(self)

    def expanded(self) -> Sequence[Mapping[str, Any]]:
        return every_pair(self, DOMAINS)
