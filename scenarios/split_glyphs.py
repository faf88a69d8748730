"""Split glyphs: an embedded stream of new classes, drawn as they are needed."""

from dataclasses import dataclass
from typing import Literal

from clsim.data.glyph_tables import train_and_test
from clsim.data.streams import Benchmark, ClassScenario, DataAccess, class_incremental


@dataclass(kw_only=True)
class SplitGlyphs(ClassScenario):
    """Drawn 32x32 pictures of 100 classes, 10 shapes in 10 fills, ten new ones at a time; nothing to download."""

    train_per_class: int = 50  # training images of each class; any number
    test_per_class: int = 20  # test images of each class; any number
    classes_per_experience: int = 10  # new classes in each experience; must divide 100 (minus base_classes)
    protocol: Literal["class", "task"] = "class"  # task: the experience's number is also known at test
    domain: str = "real"  # clipart, infograph, painting, quickdraw, real or sketch

    def build(self, data: DataAccess) -> Benchmark:
        """The 100 classes in experiences of `classes_per_experience`."""
        train, test = train_and_test(range(100), [self.domain], self.train_per_class, self.test_per_class)
        return class_incremental(self, train, test, self.classes_per_experience, self.protocol)
