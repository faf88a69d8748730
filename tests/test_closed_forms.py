"""Methods that compute their classifier in closed form: against numbers computed by hand, and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from clsim.data.batches import Batch
from clsim.outputs import as_outputs
from clsim.parts.heads import NO_IMAGES
from clsim.strategies.slda import Discriminant, Slda

pytestmark = pytest.mark.usefixtures("without_pictures")


@pytest.fixture
def rows():
    """(120,8) float32 features of four classes out of five (the second has no images), and their labels."""
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 2, 3, 4], 30)
    mixing = draw.normal(size=(8, 8))
    features = draw.normal(size=(120, 8)) @ mixing + 2 * draw.normal(size=(5, 8))[labels]
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def in_batches(head, features, labels, order, sizes):
    """Adds the rows to a head in this order, in batches of these sizes."""
    for chosen in order.split(sizes):
        head.add(features[chosen], labels[chosen])
    head.solve()
    return head


# slda


def test_slda_by_hand():
    """Means (1, 0) and (0, 2), deviations +-1 along the first axis: S = diag(1, 0), of which a half is the identity."""
    head = Discriminant(2, 3, shrinkage=0.5)
    head.add(torch.tensor([[0.0, 0.0], [2.0, 0.0], [-1.0, 2.0], [1.0, 2.0]]), torch.tensor([0, 0, 2, 2]))
    head.solve()
    assert torch.equal(head.covariance(), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double())
    # (S + I) / 2 = diag(1, 1/2), so w = (1, 0) and (0, 4), b = -1/2 and -4
    assert torch.allclose(head.weight, torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 4.0]]).double())
    assert torch.allclose(head(torch.tensor([[3.0, 0.25]])), torch.tensor([[2.5, NO_IMAGES, -3.0]]))


def test_slda_is_the_linear_discriminant_of_scikit_learn(rows):
    features, labels = rows
    head = in_batches(Discriminant(8, 5, shrinkage=0.01), features, labels, torch.arange(120), 32)
    covariance = np.mean([np.cov(features[labels == c].double().numpy().T, bias=True) for c in (0, 2, 3, 4)], axis=0)
    np.testing.assert_allclose(head.covariance(), covariance, rtol=1e-12, atol=1e-12)

    class Given(EmpiricalCovariance):
        def fit(self, X, y=None):
            self.covariance_ = 0.99 * covariance + 0.01 * np.eye(8)
            return self

    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=[0.25] * 4, covariance_estimator=Given())
    theirs.fit(features.double().numpy(), labels.numpy())
    np.testing.assert_allclose(head.weight[[0, 2, 3, 4]], theirs.coef_, rtol=1e-9)
    np.testing.assert_allclose(head.bias[[0, 2, 3, 4]], theirs.intercept_ - np.log(0.25), rtol=1e-9)
    assert (head(features).argmax(dim=1).numpy() == theirs.predict(features.double().numpy())).all()


def test_slda_depends_on_no_order_and_no_batch_size(rows):
    features, labels = rows
    mixed = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    one, other = (
        in_batches(Discriminant(8, 5, 1e-4), features, labels, order, size)
        for order, size in ((torch.arange(120), 1), (mixed, 50))
    )
    assert torch.allclose(one.weight, other.weight, rtol=1e-9, atol=0)
    assert torch.equal(one(features).argmax(dim=1), other(features).argmax(dim=1))


def test_slda_of_a_run_knows_every_image_once(tmp_path, finished, prepare):
    run, job = finished("slda", tmp_path), prepare("slda", tmp_path)
    _, tower = job.learner()
    table = job.benchmark.train_table
    with torch.no_grad():
        (batch,) = job.loader(table, tower).clean(np.arange(len(table)), len(table))
    head = in_batches(Discriminant(tower.out_dim, 6, 1e-4), batch.features, batch.labels, torch.arange(len(table)), 5)
    found = run._predictor.learner
    assert torch.equal(found.head.classes.counts, head.classes.counts)
    assert torch.allclose(found.head.second, head.second)
    clean = Batch(None, batch.features)
    assert torch.allclose(as_outputs(found(clean)).logits, head(batch.features), rtol=1e-3)
    # what is stored are the sums: means and their counts, one matrix, and the solution
    width = tower.out_dim
    assert run.summary["cost"]["stored_parameters"] == 6 * width + 6 + width**2 + 6 * width + 6


def test_slda_refuses_what_cannot_be():
    for shrinkage in (0.0, -0.1, 1.5):
        with pytest.raises(ValueError, match="shrinkage must be above 0 and at most 1"):
            Slda(shrinkage=shrinkage)
