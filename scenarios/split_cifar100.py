"""Split CIFAR-100: the most common stream for comparing class-incremental methods."""

from dataclasses import dataclass
from typing import Literal

from clsim.data.readers import Hub
from clsim.data.streams import Benchmark, ClassScenario, DataAccess, class_incremental

HUB = Hub("uoft-cs/cifar100", "aadb3af77e9048adbea6b47c21a81e47dd092ae5")


@dataclass(kw_only=True)
class SplitCifar100(ClassScenario):
    """CIFAR-100, 32x32 photographs of 100 classes, ten new ones at a time (Krizhevsky 2009)."""

    classes_per_experience: int = 10  # new classes in each experience; must divide 100 (minus base_classes)
    protocol: Literal["class", "task"] = "class"  # task: the experience's number is also known at test

    def build(self, data: DataAccess) -> Benchmark:
        """50,000 training and 10,000 test images in experiences of `classes_per_experience` classes."""
        train, test = (
            data.table(data.parquet("cifar100", split, "img", "fine_label", hub=HUB), self.on_bad_image)
            for split in ("train", "test")
        )
        return class_incremental(self, train, test, self.classes_per_experience, self.protocol)
