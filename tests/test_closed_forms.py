"""Methods that compute their classifier in closed form: against numbers computed by hand, and against scikit-learn."""

import copy

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from clsim.backbones.load import load_backbone
from clsim.data.batches import Batch
from clsim.events import Part
from clsim.outputs import as_outputs
from clsim.parts.first_session import AdaptFormer
from clsim.parts.heads import NO_IMAGES, CosineHead
from clsim.parts.ridge import PENALTIES, RidgeHead
from clsim.strategies.fecam import FeCam, MahalanobisHead
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


# ranpac


def test_ridge_by_hand():
    """Without a projection: G = diag(5, 1), Q = [[2, 1], [0, 1]], and lambda = 1 makes diag(6, 2) of G."""
    head = RidgeHead(2, 3, size=0)
    head.add(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 2, 2]))
    head.solve(penalty=1.0)
    assert torch.allclose(head.weight, torch.tensor([[1 / 3, 0, 1 / 6], [0, 0, 1 / 2]]).double())
    assert torch.allclose(head(torch.tensor([[3.0, -2.0]])), torch.tensor([[1.0, NO_IMAGES, -0.5]]))


def test_random_features_are_not_negative_and_drawn_once_from_a_normal_distribution():
    head = RidgeHead(100, 3, size=400)
    assert abs(float(head.projection.mean())) < 0.02 and abs(float(head.projection.std()) - 1) < 0.02
    features = torch.randn(7, 100)
    assert torch.equal(head.expand(features), (features @ head.projection).clamp(min=0).double())


@pytest.mark.parametrize("size", [0, 40, 300])
def test_ridge_is_that_of_scikit_learn(rows, size):
    features, labels = rows
    head = RidgeHead(8, 5, size)
    head.add(features[:70], labels[:70])
    head.add(features[70:], labels[70:])
    head.solve(penalty=10.0)
    theirs = Ridge(alpha=10.0, fit_intercept=False, solver="cholesky")
    theirs.fit(head.expand(features).numpy(), torch.nn.functional.one_hot(labels, 5).double().numpy())
    np.testing.assert_allclose(head.weight.T, theirs.coef_, rtol=1e-8, atol=1e-12)
    known = [0, 2, 3, 4]
    np.testing.assert_allclose(head(features)[:, known], theirs.predict(head.expand(features))[:, known], atol=1e-6)


def test_without_a_projection_one_experience_or_many_give_the_same_solution(rows):
    features, labels = rows
    one, many = RidgeHead(8, 5, 0), RidgeHead(8, 5, 0)
    one.add(features, labels)
    for chosen in torch.randperm(120, generator=torch.Generator().manual_seed(0)).split(12):
        many.add(features[chosen], labels[chosen])
    one.solve(0.1)
    many.solve(0.1)
    assert torch.allclose(one.weight, many.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [20, 300])
def test_the_penalty_is_the_one_with_the_smallest_error_on_images_held_out(rows, size):
    """Of 120 images 96 are fitted: fewer than 300 random features, and more than 20."""
    features, labels = rows
    order = torch.randperm(120, generator=torch.Generator().manual_seed(3))
    head, targets = RidgeHead(8, 5, size), torch.nn.functional.one_hot(labels, 5).double().numpy()
    h = head.expand(features).numpy()
    errors = []
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(h[order[:96]], targets[order[:96]])
        errors.append(np.square(model.predict(h[order[96:]]) - targets[order[96:]]).mean())
    best = PENALTIES[int(np.argmin(errors))]
    assert head.choose(features, labels, order) == best
    assert 1e-8 < best < 1e8 and not head.counts.any() and not head.second.any()


def test_the_projection_of_a_run_is_the_one_drawn_at_first_and_the_penalty_is_logged(tmp_path, finished, prepare):
    run = finished("ranpac", tmp_path, tuner="none", projections=30)
    learner, _ = prepare("ranpac", tmp_path, tuner="none", projections=30).learner()
    assert torch.equal(run._predictor.learner.classifier.projection, learner.classifier.projection)
    log = run.events["log"]
    chosen = [value for name, value in zip(log["name"], log["value"], strict=True) if name == "penalty"]
    assert len(chosen) == 3 and set(chosen) <= set(PENALTIES)
    assert "step" not in run.events and run.summary["cost"]["trainable_parameters"] == 0
    width = learner.classifier.projection.shape[0]
    assert run.summary["cost"]["stored_parameters"] == 30 * width + 30 * 30 + 2 * 30 * 6 + 6


def test_a_given_penalty_is_used(tmp_path, finished):
    head = finished("ranpac", tmp_path, tuner="none", projections=30, penalty=3.0)._predictor.learner.classifier
    again = copy.deepcopy(head)
    again.solve(3.0)
    assert torch.equal(head.weight, again.weight)


# first-session tuning: aper and phase 1 of ranpac


class Weights(Part):
    """Copies of what learns, before training and after each experience."""

    def __init__(self):
        self.seen = []

    def before_training(self, s):
        self.seen.append({n: p.detach().clone() for n, p in s.learner.named_parameters() if p.requires_grad})

    def after_training_exp(self, s):
        self.before_training(s)


@pytest.mark.parametrize("tuner", ["adapter", "ssf", "vpt_deep", "vpt_shallow", "finetune"])
@pytest.mark.parametrize("name", ["aper", "ranpac"])
def test_a_tuner_learns_in_the_first_experience_only(name, tuner, make_loop):
    spy = Weights()
    loop = make_loop(name, parts=[spy], tuner=tuner)
    loop.run()
    start, first, *later = spy.seen
    assert all(not torch.equal(start[key], first[key]) for key in start)
    assert len(later) == 2 and all(torch.equal(first[key], each[key]) for each in later for key in first)
    in_tower = {key for key in start if key.startswith("images.tower.")}
    assert bool(in_tower) == (tuner == "finetune")


def test_the_cosine_head_by_hand():
    head = CosineHead(2, 2)
    assert torch.equal(head.scale, torch.ones(())) and (head.weight.abs() <= 2**-0.5).all()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 2.0], [3.0, 4.0]]))
        head.scale.fill_(5.0)
    assert torch.allclose(head(torch.tensor([[10.0, 0.0], [0.0, 0.1]])), torch.tensor([[0.0, 3.0], [5.0, 4.0]]))


def test_adaptformer_reads_the_stream_before_the_second_norm():
    tower = load_backbone("vit_nano").image
    tuner = AdaptFormer(tower, 4)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(tower(images, tuner.eval()), tower(images)), "it starts from the unchanged tower"
        for each in (*tuner.up, *tuner.down):
            each.weight.normal_()
            each.bias.normal_()
        x = tower.embed(images)
        for block, down, up in zip(tower.vit.blocks, tuner.down, tuner.up, strict=True):
            x = x + block.attn(block.norm1(x))
            x = x + block.mlp(block.norm2(x)) + 0.1 * up(down(x).relu())
        assert torch.allclose(tower(images, tuner), tower.pool(tower.vit.norm(x)), atol=1e-5)
        dropped = tower(images, tuner.train())
        assert not torch.allclose(dropped, tower(images, tuner), atol=1e-5), "hidden features are dropped in training"


@pytest.mark.parametrize("fields", [{"tuner": "none"}, {"lr": 0.0, "weight_decay": 0.0}])
def test_without_a_step_aper_classifies_as_ncm(fields, tmp_path, finished):
    """An adapter that has not learned changes nothing, and the same features twice have the same cosines."""
    plain, aper = finished("ncm", tmp_path), finished("aper", tmp_path, **fields)
    assert aper.matrix["correct"] == plain.matrix["correct"]
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)
    np.testing.assert_allclose(aper.scores(images), plain.scores(images), atol=1e-5)


def test_aper_has_the_means_of_both_towers_features(tmp_path, finished):
    learner = finished("aper", tmp_path, lr=0.1)._predictor.learner
    means = learner.classifier.means
    frozen, tuned = means.chunk(2, dim=1)
    ncm = finished("ncm", tmp_path)._predictor.learner.head
    assert torch.allclose(frozen, ncm.means, atol=1e-5) and not torch.allclose(tuned, frozen, atol=1e-3)
    with torch.no_grad():
        images, features = torch.randn(5, 3, 16, 16), torch.randn(5, means.shape[1] // 2)
        both = torch.cat([features, learner.images(Batch(images))], dim=1)
        expected = torch.nn.functional.cosine_similarity(both[:, None], means.float()[None], dim=-1)
        assert torch.allclose(learner(Batch(images, features)).logits, expected, atol=1e-5)


# fecam


def unit(features):
    return torch.nn.functional.normalize(features.double(), dim=1)


@pytest.mark.parametrize("shrinkage", [(1.0, 0.0), (0.5, 1.0), (100.0, 100.0)])
def test_fecam_is_the_mahalanobis_distance_of_scipy(rows, shrinkage):
    features, labels = rows
    diagonal, off_diagonal = shrinkage
    head = MahalanobisHead(8, 5, diagonal, off_diagonal)
    for chosen in torch.randperm(120, generator=torch.Generator().manual_seed(0)).split(50):
        head.add(features[chosen], labels[chosen])
    with torch.no_grad():
        logits = head.eval()(features)
    assert (logits[:, 1] == NO_IMAGES).all()
    for c in (0, 2, 3, 4):
        own, outside = unit(features[labels == c]).numpy(), ~np.eye(8, dtype=bool)
        covariance = np.cov(own.T)
        shrunk = covariance + diagonal * np.eye(8) * covariance.diagonal().mean()
        shrunk += off_diagonal * outside * covariance[outside].mean()
        correlation = shrunk / np.sqrt(np.outer(shrunk.diagonal(), shrunk.diagonal()))
        np.testing.assert_allclose(head.correlations(c), correlation, rtol=1e-9, atol=1e-12)
        inverse, mean = np.linalg.inv(correlation), own.mean(axis=0)
        expected = [-(mahalanobis(row, mean, inverse) ** 2) for row in unit(features).numpy()]
        np.testing.assert_allclose(logits[:, c], expected, rtol=1e-4, atol=1e-6)


def test_fecam_by_hand():
    """Unit features (1, 0) and (0, 1): variances 1/2, covariance -1/2; shrunk to 1 and -1/2."""
    head = MahalanobisHead(2, 3, diagonal=1.0, off_diagonal=0.0)
    head.add(torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, 4.0]]), torch.tensor([0, 0, 2]))
    assert torch.allclose(head.correlations(0), torch.tensor([[1.0, -0.5], [-0.5, 1.0]]).double())
    assert torch.equal(head.correlations(2), torch.eye(2).double()), "one image has no variance"
    # (1, 0) is (1/2, -1/2) from the mean of class 0; the inverse is [[4, 2], [2, 4]] / 3: 1/3. (0, 1) is 2 away
    with torch.no_grad():
        assert torch.allclose(head.eval()(torch.tensor([[7.0, 0.0]])), torch.tensor([[-1 / 3, NO_IMAGES, -2.0]]))


def test_fecam_counts_a_matrix_for_each_class(tmp_path, finished):
    run = finished("fecam", tmp_path)
    width = run._predictor.learner.head.second.shape[1]
    assert run.summary["cost"]["stored_parameters"] == 6 * width**2 + 6 * width + 6
    for fields in ({"diagonal": 0.0}, {"off_diagonal": -1.0}):
        with pytest.raises(ValueError, match="diagonal must be"):
            FeCam(**fields)


@pytest.mark.parametrize(
    ("name", "fields", "idle", "used"),
    [
        ("aper", {"tuner": "ssf"}, {"bottleneck", "prompt_length"}, {"lr", "crop_min"}),
        ("aper", {"tuner": "vpt_deep"}, {"bottleneck"}, {"prompt_length", "lr"}),
        ("ranpac", {"tuner": "none"}, {"bottleneck", "prompt_length", "lr", "crop_min"}, {"projections", "penalty"}),
        ("slda", {}, {"lr", "optimizer"}, {"shrinkage"}),
        ("fecam", {}, {"lr", "optimizer"}, {"diagonal", "off_diagonal"}),
        ("gdumb", {"restarts": True}, {"schedule", "warmup_lr"}, {"lr", "cutmix", "memory"}),
        ("icarl", {"per_class": 3}, {"memory", "mask"}, {"per_class", "lr"}),
        ("icarl", {"distil": "kd"}, set(), {"memory", "mask", "label_smoothing"}),
    ],
)
def test_fields_that_change_nothing_are_known(name, fields, idle, used, tmp_path, prepare):
    job = prepare(name, tmp_path, **fields)
    unused = job.strategy.unused(job.benchmark.info)
    assert idle <= set(unused) and not used & set(unused)
