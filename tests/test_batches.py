"""Batches: only what is read is loaded, and in evaluation only what may be seen is given."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clsim.data.batches import Batch, Loader
from clsim.data.encoded import EncodedImages
from clsim.data.table import ImageTable
from clsim.data.transforms import Augmentation, InputSpec, evaluation

PIXELS = InputSpec(16, crop=1.0)
CPU = torch.device("cpu")


class RowNumbers:
    """A bank whose feature of a row is its number, twice."""

    def rows(self, rows):
        return torch.from_numpy(rows).float()[:, None].expand(-1, 2)


@pytest.fixture
def table(make_table):
    return make_table(3, 7)


def generator():
    return torch.Generator().manual_seed(0)


def loader(table, *reads):
    return Loader(table, PIXELS, set(reads), CPU, RowNumbers() if "features" in reads else None)


def expected_images(table, rows):
    return evaluation(torch.from_numpy(table.images[rows]), PIXELS)


def test_only_what_is_read_is_loaded(table):
    rows = np.array([3, 20, 0])
    batch = loader(table, "images").train(rows, Augmentation(), generator())
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.features is None
    pictureless = replace(table, images=None)  # touching an image would raise
    batch = loader(pictureless, "features").train(rows, Augmentation(), generator())
    assert batch.images is None
    assert batch.features.tolist() == [[3, 3], [20, 20], [0, 0]]
    assert len(batch) == 3
    for clean in loader(pictureless, "features").clean(rows, 2):
        assert clean.images is None
    for _, unlabelled in loader(pictureless, "features").unlabelled(rows, 2):
        assert unlabelled.images is None
    batch = loader(table, "images", "features").train(rows, Augmentation(), generator())
    assert batch.images is not None and batch.features is not None
    assert len(Batch(None)) == 0


def test_training_batches_carry_labels_and_rows(table):
    rows = np.array([3, 20, 0])
    batch = loader(table, "images").train(rows, Augmentation(crop_min=1.0, flip=False), generator(), replayed=1)
    assert batch.labels.tolist() == table.labels[rows].tolist() == [0, 2, 0]
    assert batch.rows.tolist() == [3, 20, 0]
    assert (batch.replayed, batch.domains) == (1, None)
    # no crop, no flip: the clean images
    torch.testing.assert_close(batch.images, expected_images(table, rows), rtol=0, atol=1e-5)


def test_domains_are_given_where_there_are_any(table):
    domains = np.arange(len(table)) % 2
    batch = loader(replace(table, domains=domains), "images").train(np.array([4, 5]), Augmentation(), generator())
    assert batch.domains.tolist() == [0, 1]


def test_training_images_come_from_the_generator(table):
    rows = np.arange(8)
    first, again = (loader(table, "images").train(rows, Augmentation(), generator()) for _ in range(2))
    assert torch.equal(first.images, again.images)


def test_clean_batches_are_in_order_and_not_augmented(table):
    rows = np.array([1, 4, 9, 16, 20])
    batches = list(loader(table, "images", "features").clean(rows, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.concatenate([batch.rows for batch in batches]).tolist() == rows.tolist()
    assert torch.cat([batch.labels for batch in batches]).tolist() == table.labels[rows].tolist()
    assert torch.cat([batch.features for batch in batches])[:, 0].tolist() == rows.tolist()
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected_images(table, rows))


def test_evaluation_batches_show_the_image_alone(table):
    for _, batch in loader(table, "images", "features").unlabelled(np.arange(5), 2):
        assert batch.labels is None
        assert batch.rows is None
        assert batch.domains is None


def test_a_table_that_is_kept_on_the_device_gives_the_same_batches(table, monkeypatch):
    rows, plain, kept = np.array([3, 20, 0]), loader(table, "images"), loader(table, "images")
    kept._kept = torch.from_numpy(table.images)  # as on a GPU
    monkeypatch.setattr(ImageTable, "pixels", lambda *args: pytest.fail("an image is sent"))
    found = [kept.train(rows, Augmentation(), generator()), *(batch for _, batch in kept.unlabelled(rows, 2))]
    monkeypatch.undo()
    expected = [plain.train(rows, Augmentation(), generator()), *(batch for _, batch in plain.unlabelled(rows, 2))]
    assert plain._kept is None
    assert all(torch.equal(*(each.images for each in pair)) for pair in zip(found, expected, strict=True))


def test_encoded_images_are_read_while_the_batch_before_is_computed(make_table, tmp_path, monkeypatch):
    monkeypatch.setattr("clsim.data.table.LARGEST_DECODED", 0)
    encoded = ImageTable.decode(make_table(3, 7).encoded(), 16, tmp_path)
    rows, how, ahead, plain = (
        np.array([3, 20, 0, 1]),
        Augmentation(),
        loader(encoded, "images"),
        loader(encoded, "images"),
    )
    ahead.upcoming = rows[2:]
    asked = []
    take = EncodedImages.take
    monkeypatch.setattr(EncodedImages, "take", lambda images, rows: asked.append(rows.tolist()) or take(images, rows))
    found = [ahead.train(part, how, generator()).images for part in (rows[:2], rows[2:])]
    assert asked == [[3, 20], [0, 1]] and ahead.upcoming is None
    expected = [plain.train(part, how, generator()).images for part in (rows[:2], rows[2:])]
    assert all(map(torch.equal, found, expected))


def test_evaluation_batches_have_one_size(table):
    rows = np.array([1, 4, 9, 16, 20])
    found = list(loader(table, "images", "features").unlabelled(rows, 3))
    assert [count for count, _ in found] == [3, 2]
    assert [len(batch) for _, batch in found] == [3, 3]
    images = torch.cat([batch.images[:count] for count, batch in found])
    assert torch.equal(images, expected_images(table, rows))
    assert found[1][1].features[:, 0].tolist() == [16, 20, 20]  # filled up with the last one


def test_a_batch_as_batches_of_one_image_each(table):
    rows = np.array([3, 20, 0])
    batch = loader(table, "features").train(rows, Augmentation(), generator(), replayed=1)
    singles = list(batch.singles())
    assert [len(single) for single in singles] == [1, 1, 1]
    assert [single.rows.tolist() for single in singles] == [[3], [20], [0]]
    assert torch.equal(torch.cat([single.features for single in singles]), batch.features)
    assert torch.equal(torch.cat([single.labels for single in singles]), batch.labels)
    assert all(single.images is None and single.domains is None for single in singles)
    assert [single.replayed for single in singles] == [0, 0, 1]


def test_training_features_come_from_a_view_of_each_image(table):
    class View:
        def __init__(self, number):
            self.number = number

        def rows(self, rows):
            return torch.stack([torch.from_numpy(rows), torch.full((len(rows),), self.number)], dim=1).float()

    rows = np.arange(20)
    with_views = Loader(table, PIXELS, {"features"}, CPU, RowNumbers(), [View(0), View(1), View(2)])
    draw = generator()
    first = with_views.train(rows, Augmentation(), draw).features
    assert first[:, 0].tolist() == rows.tolist() and set(first[:, 1].tolist()) == {0, 1, 2}
    assert not torch.equal(with_views.target(rows, Augmentation(), draw).features, first), "drawn anew every time"
    for clean in (*with_views.clean(rows, 20), *(batch for _, batch in with_views.unlabelled(rows, 20))):
        assert torch.equal(clean.features, RowNumbers().rows(rows))
