"""Glyph pair: embedded unsupervised adaptation from one drawn domain to another."""

from dataclasses import dataclass
from typing import Literal

from clsim.data.glyph_tables import chosen_classes, train_and_test
from clsim.data.streams import Benchmark, DataAccess, Scenario, adaptation


@dataclass(kw_only=True)
class GlyphPair(Scenario):
    """Drawn 32x32 pictures: a labelled source domain, an unlabelled target domain; nothing to download."""

    source: str = "real"  # the domain with labels: clipart, infograph, painting, quickdraw, real, sketch
    target: str = "sketch"  # the domain without
    train_per_class: int = 20  # training images of each class and domain; any number
    test_per_class: int = 10  # test images of each class and domain; any number
    classes: Literal["all", "seen", "held_out"] = "held_out"  # of the 100; held_out: 20 that clip_micro never saw

    def build(self, data: DataAccess) -> Benchmark:
        """One experience, with the target's training images unlabelled."""
        classes = chosen_classes(self.classes)
        train, test = train_and_test(classes, [self.source, self.target], self.train_per_class, self.test_per_class)
        return adaptation(self, train, test, self.source, self.target)

    def variant(self) -> str:
        return f"{self.source}-{self.target}"
