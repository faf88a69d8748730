"""Glyphs: each picture a function of its own key; what is held out; domains that differ; tables apart."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from clsim.backbones.features import FeatureBank
from clsim.backbones.load import load_backbone
from clsim.data import captions, glyphs
from clsim.data.glyph_forms import SHAPES_OF, disc, square
from clsim.data.glyph_sheet import sheet
from clsim.data.glyph_tables import glyph_table, train_and_test
from clsim.errors import RequestError


def everything(index=0, seed=0):
    """Every class in every domain, once."""
    classes, domains = (axis.reshape(-1) for axis in np.indices((100, 6)))
    return classes, domains, np.full(600, index), seed


def test_a_picture_depends_on_its_key_alone():
    classes, domains, indices, seed = everything()
    images = glyphs.render(classes, domains, indices, seed)
    assert images.shape == (600, 3, 32, 32) and images.dtype == np.uint8
    order = np.random.default_rng(0).permutation(600)[:150]
    assert np.array_equal(glyphs.render(classes[order], domains[order], indices[order], seed), images[order])


@pytest.mark.parametrize("change", [{"index": 1}, {"seed": 1}])
def test_another_index_or_seed_is_another_picture_everywhere(change):
    a, b = glyphs.render(*everything()), glyphs.render(*everything(**change))
    assert (a != b).reshape(600, -1).mean(axis=1).min() > 0.02


def test_no_two_keys_give_the_same_picture():
    images = glyphs.render(*everything())
    assert len({image.tobytes() for image in images}) == 600


def test_nothing_is_no_picture_and_unknown_classes_are_refused():
    none = np.array([], dtype=np.int64)
    assert glyphs.render(none, none, none, 0).shape == (0, 3, 32, 32)
    with pytest.raises(ValueError, match="classes 0 to 99"):
        glyphs.render(np.array([100]), np.array([0]), np.array([0]), 0)


def test_a_fifth_is_held_out_and_every_word_is_still_met():
    assert len(glyphs.HELD_OUT) == 20
    assert sorted(c // 10 for c in glyphs.HELD_OUT) == sorted([*range(10)] * 2)
    assert sorted(c % 10 for c in glyphs.HELD_OUT) == sorted([*range(10)] * 2)
    names = glyphs.class_names()
    assert len(set(names)) == 100 and names[0] == "checked arrow" and names[99] == "hollow triangle"


def test_shapes_lie_in_the_unit_circle_around_the_middle():
    angle = np.linspace(0, 2 * np.pi, 60, dtype=np.float32)
    for name, distance in SHAPES_OF.items():
        assert distance(1.25 * np.cos(angle), 1.25 * np.sin(angle)).min() > 0, name
        assert min(distance(r * np.cos(angle), r * np.sin(angle)).min() for r in (0.1, 0.6)) < -0.05, name


def test_distances_by_hand():
    point = np.array([0.5], dtype=np.float32), np.array([0.0], dtype=np.float32)
    assert disc(*point) == pytest.approx(-0.4)
    assert square(*point) == pytest.approx(-0.26)


def test_tables_for_training_and_testing_share_no_picture_and_larger_ones_begin_alike():
    train, test = train_and_test(range(3), ["Real", "quick draw"], 4, 2)
    assert train.domain_names == ("real", "quickdraw") and train.class_names == glyphs.class_names()[:3]
    assert len(train) == 3 * 2 * 4 and len(test) == 3 * 2 * 2
    pictures = [{image.tobytes() for image in table.images} for table in (train, test)]
    assert not pictures[0] & pictures[1]
    larger = glyph_table(range(3), ["real", "quickdraw"], 5)
    assert pictures[0] < {image.tobytes() for image in larger.images}
    of_two = [image.tobytes() for image in train.images[(train.labels == 2) & (train.domains == 1)]]
    again = glyphs.render(np.full(4, 2), np.full(4, glyphs.DOMAINS.index("quickdraw")), np.arange(4), 2)
    assert sorted(of_two) == sorted(image.tobytes() for image in again)


def test_tables_refuse_unknown_domains_and_no_pictures():
    with pytest.raises(RequestError, match="quickdraw"):
        glyph_table([0], ["quickdrew"], 1)
    with pytest.raises(RequestError, match="at least 1"):
        glyph_table([0], ["real"], 0)


def test_the_contact_sheet_shows_every_domain():
    assert sheet().size == (20 * 64, 6 * 64)


@pytest.mark.slow
def test_the_gap_between_domains_is_real(cache_dir):
    """A classifier that learned `real` loses at least 15 points on sketch and quickdraw, which can be learned."""
    tower, solid = load_backbone("vit_micro").image, [10 * shape + 3 for shape in range(10)]

    def features(table):
        return FeatureBank(tower, table, torch.device("cpu"), cache_dir).rows(np.arange(len(table))).numpy()

    found = {}
    for learned in ("real", "sketch", "quickdraw"):
        train = glyph_table(solid, [learned], 60)
        model = RidgeClassifier(1.0).fit(features(train), train.labels)
        for domain in {"real", learned} if learned != "real" else ("real", "sketch", "quickdraw"):
            test = glyph_table(solid, [domain], 30, test=True)
            found[learned, domain] = model.score(features(test), test.labels)
    for far in ("sketch", "quickdraw"):
        assert found["real", far] < found["real", "real"] - 0.15
        assert found[far, far] > 0.7


# captions


def test_captions_leave_the_held_out_templates_out_and_tell_the_domain_they_name():
    draw = np.random.default_rng(0)
    written = [captions.caption("striped star", 5, glyphs.DOMAINS, draw) for _ in range(600)]
    told = {c.text for c in written if c.domain == 5}
    assert all("sketch" in text or "pencil drawing" in text for text in told)
    assert not any("sketch" in c.text or "pencil" in c.text for c in written if c.domain == -1)
    assert all("striped star" in c.text for c in written)
    held_out = {
        t.format(c="striped star", d=d) for t in captions.HELD_OUT_TEMPLATES for d in ("sketch", "pencil drawing")
    }
    assert not held_out & {c.text for c in written}
    assert len(captions.HELD_OUT_TEMPLATES) == (len(captions.PLAIN_TEMPLATES) + len(captions.DOMAIN_TEMPLATES)) // 10


def test_fillers_come_before_the_caption():
    text = captions.behind_fillers("a star", 7, np.random.default_rng(0))
    assert text.endswith(" a star") and len(text.split()) == 9


def test_merges_by_hand():
    # "ab" and "ac": no pair is met twice, so they go by the alphabet
    assert captions.merges(["ab", "ac"]) == [("a", "b</w>"), ("a", "c</w>")]
    # a-b is met twice, then what is left of "abc"
    assert captions.merges(["abc", "abd"]) == [("a", "b"), ("ab", "c</w>"), ("ab", "d</w>")]
