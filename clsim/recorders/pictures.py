"""Pictures of a pair of domains: what the target's classes are taken for, and maps of features before and after."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clsim.data.batches import Loader
from clsim.data.streams import Benchmark, Experience
from clsim.events import Part, State
from clsim.recorders.figures import grid_figure, map_figure
from clsim.recorders.tensorboard import TensorBoard
from clsim.tools import EVAL_BATCH

SHOWN = 150  # images of a domain on a map
ITERATIONS = 500  # of t-SNE: a second for both maps, and no run should take longer for its pictures than to learn
BEFORE = "before.npy"


class Pictures(Part):
    """Draws into the folder `pictures` of the run, and into TensorBoard, when training is over.

    A map shows test images of the source and images of the target by what the learner's classifier reads, where it says
    that (`represent`: (B,) batch -> (B,D)), or else by its logits; t-SNE brings them to two dimensions (van der Maaten
    and Hinton 2008). Labels colour the maps and go nowhere else.
    """

    def __init__(
        self, directory: Path, benchmark: Benchmark, loaders: Mapping[str, Loader], bf16: bool, board: TensorBoard
    ) -> None:
        self.folder = directory / "pictures"
        self.target, _, self.source = benchmark.test_stream
        self.loaders = loaders
        self.bf16 = bf16
        self.board = board

    def before_training(self, s: State) -> None:
        """Keep what the images look like to an untrained learner; on resuming it is there already."""
        if s.step == 0:
            self.folder.mkdir(exist_ok=True)
            np.save(self.folder / BEFORE, self._represented(s))

    def after_training(self, s: State) -> None:
        """Draw."""
        assert s.confusion is not None
        names = s.info.class_names
        share = 100 * s.confusion / np.maximum(1, s.confusion.sum(axis=1, keepdims=True))
        title = f"predictions on {self.target.domain}, % of each class"
        confusion = grid_figure(share, names, names, title, ("class", "prediction"))
        shown = [(experience, _spread(experience)) for experience in (self.source, self.target)]
        classes = np.concatenate([experience.table.labels[rows] for experience, rows in shown])
        domains = [experience.domain or experience.name for experience, rows in shown for _ in rows]
        maps = {"before": np.load(self.folder / BEFORE), "after": self._represented(s)}
        features = map_figure({name: _flat(points) for name, points in maps.items()}, classes, domains)
        for name, figure in (("confusion", confusion), ("features", features)):
            figure.savefig(self.folder / f"{name}.png")
            self.board.picture(name, figure, s.trained)

    @torch.no_grad()
    def _represented(self, s: State) -> NDArray[np.float32]:
        """(n,D): images of the source, then of the target."""
        learner = s.learner.eval()
        represent = getattr(learner, "represent", learner)
        found = []
        for experience in (self.source, self.target):
            loader = self.loaders[experience.table.fingerprint]
            for count, batch in loader.unlabelled(_spread(experience), EVAL_BATCH):
                with torch.autocast(loader.device.type, torch.bfloat16, enabled=self.bf16):
                    said: Tensor = represent(batch)
                found.append(said[:count].float().cpu())
        return torch.cat(found).numpy()


def _spread(experience: Experience) -> NDArray[np.int64]:
    """Up to SHOWN of its rows, evenly over the classes, which stand one behind the other."""
    return experience.rows[:: -(-len(experience.rows) // SHOWN)]


def _flat(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,D) -> (n,2); points that are all the same stay so."""
    from sklearn.manifold import TSNE  # late: a second to import

    if (points == points[0]).all():  # an untrained learner may score every image alike, and t-SNE divides by the spread
        return np.zeros((len(points), 2))
    wide = min(30, (len(points) - 1) / 3)
    tsne = TSNE(init="pca", random_state=0, perplexity=wide, max_iter=ITERATIONS, n_jobs=1)
    return np.asarray(tsne.fit_transform(points), dtype=np.float64)
