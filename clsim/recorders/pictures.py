"""Pictures of a pair of domains: the target's confusion matrix, and maps of features before and after training."""

from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from clsim.data.batches import Loader
from clsim.data.streams import Benchmark, Experience
from clsim.errors import RunFailed
from clsim.events import Part, State
from clsim.recorders.figures import grid_figure, map_figure
from clsim.recorders.tensorboard import TensorBoard
from clsim.tools import eval_batch

SHOWN = 150  # images of a domain on a map
ITERATIONS = 500  # of t-SNE: a second for both maps; pictures should take less time than training
BEFORE = "before.npz"


class Pictures(Part):
    """Draws into the folder `pictures` of the run, and into TensorBoard, when training is over.

    A map shows test images of the source and images of the target, in two dimensions by t-SNE (van der Maaten and
    Hinton 2008): the features that the learner returns in its Outputs, or its logits where it returns no features or
    training leaves them as they were. Labels are used for the colours of the maps only.
    """

    def __init__(
        self, directory: Path, benchmark: Benchmark, loaders: Mapping[str, Loader], board: TensorBoard
    ) -> None:
        """`loaders` are those of the test stream's tables, by fingerprint."""
        self.folder = directory / "pictures"
        self.target, _, self.source = benchmark.test_stream
        self.loaders = loaders
        self.board = board

    def before_training(self, s: State) -> None:
        """Keep the outputs of the untrained learner; a resumed run has them already."""
        if s.step == 0:
            self.folder.mkdir(exist_ok=True)
            np.savez(self.folder / BEFORE, **self._outputs(s))  # type: ignore[arg-type]  # its stub has no arrays by name

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
        maps = _maps(_stored(self.folder / BEFORE), self._outputs(s))
        features = map_figure({name: _flat(points) for name, points in maps.items()}, classes, domains)
        for name, figure in (("confusion", confusion), ("features", features)):
            figure.savefig(self.folder / f"{name}.png")
            self.board.picture(name, figure, s.trained)

    @torch.no_grad()
    def _outputs(self, s: State) -> dict[str, NDArray[np.float32]]:
        """The (n,K) "logits" and, if there are any, (n,D) "features": images of the source, then of the target."""
        s.learner.eval()
        found: dict[str, list[torch.Tensor]] = {}
        for experience in (self.source, self.target):
            loader = self.loaders[experience.table.fingerprint]
            for count, batch in loader.unlabelled(_spread(experience), eval_batch(loader.reads)):
                outputs = s.outputs(batch)
                for name, values in (("logits", outputs.logits), ("features", outputs.features)):
                    if values is not None:
                        found.setdefault(name, []).append(values[:count].float().cpu())
        return {name: torch.cat(values).numpy() for name, values in found.items()}


def _stored(path: Path) -> dict[str, NDArray[np.float32]]:
    """The arrays of a file. Raises RunFailed if it is broken: a run that was interrupted reads it much later."""
    try:
        with path.open("rb") as stream, np.load(stream) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise RunFailed(f"{path} is missing or broken ({type(error).__name__}); start again with --fresh") from error


def _maps(
    before: Mapping[str, NDArray[np.float32]], after: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """The features before and after training, or the logits where the features are the same."""
    moved = "features" in after and not np.allclose(before["features"], after["features"])
    name = "features" if moved else "logits"
    return {"before": before[name], "after": after[name]}


def _spread(experience: Experience) -> NDArray[np.int64]:
    """At most SHOWN of its rows, evenly over the classes, which are in order."""
    return experience.rows[:: -(-len(experience.rows) // SHOWN)]


def _flat(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n,D) -> (n,2); if all points are equal, they stay equal."""
    from sklearn.manifold import TSNE  # late: a second to import

    if (points == points[0]).all():  # an untrained learner may score every image alike, and t-SNE divides by the spread
        return np.zeros((len(points), 2))
    wide = min(30, (len(points) - 1) / 3)
    tsne = TSNE(init="pca", random_state=0, perplexity=wide, max_iter=ITERATIONS, n_jobs=1)
    return np.asarray(tsne.fit_transform(points), dtype=np.float64)
