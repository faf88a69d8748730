"""5-datasets: five sets of ten classes each, one after another (Ebrahimi et al. 2020, arXiv:2003.09553)."""

from dataclasses import dataclass

import numpy as np

from clsim.data.readers import Hub, Source
from clsim.data.streams import Benchmark, DataAccess, Scenario, arrival, class_incremental
from clsim.errors import RequestError, unknown

# name (also the local folder): (image column, repository on the Hub); in the order of the stream
SETS = {
    "svhn": ("image", Hub("ufldl-stanford/svhn", "f9e1717d73324ebbc1ece84267ccd80d0aca0690", "cropped_digits")),
    "mnist": ("image", Hub("ylecun/mnist", "77f3279092a1c1579b2250db8eafed0ad422088c")),
    "cifar10": ("img", Hub("uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2")),
    # "main" is not pinned: the commits of these two could not be looked up
    "notmnist": ("image", Hub("anubhavmaity/notMNIST", "main")),
    "fashion_mnist": ("image", Hub("zalando-datasets/fashion_mnist", "main")),
}


@dataclass(kw_only=True)
class FiveDatasets(Scenario):
    """SVHN, MNIST, CIFAR-10, notMNIST and Fashion-MNIST, one experience each, 50 classes in all."""

    sets: tuple[str, ...] = tuple(SETS)  # the sets in order of arrival; fewer make a shorter stream

    def __post_init__(self) -> None:
        for name in self.sets:
            if name not in SETS:
                raise unknown("set", name, SETS)
        if not self.sets or len(set(self.sets)) < len(self.sets):
            raise RequestError(f"sets names each set once, and at least one, not {', '.join(self.sets) or 'none'}")

    def build(self, data: DataAccess) -> Benchmark:
        """One experience for each set; images of all sets are resized to one size."""
        train, test = (
            data.table(self._joined(data, split), self.on_bad_image, one_size=True) for split in ("train", "test")
        )
        # "mnist 3" belongs to the set whose position `owner` holds
        owner = np.array([self.sets.index(name.split(" ")[0]) for name in train.class_names])
        order = arrival(self.order_seed, len(self.sets))
        groups, names = [np.flatnonzero(owner == i).tolist() for i in order], [self.sets[i] for i in order]
        # no mirrored images: three of the five sets are digits or letters (the published L2P code mirrors all five)
        return class_incremental(self, train, test, len(groups[0]), flip=False, groups=groups, names=names)

    def _joined(self, data: DataAccess, split: str) -> Source:
        """One split of every set, one set after another."""
        sources = []
        for name in self.sets:
            image, hub = SETS[name]
            sources.append(data.parquet(name, split, image, "label", hub=hub))
        return Source.join(sources, self.sets)
