"""Trees of class folders as people have them: what is read, what is left out and counted, what is refused."""

import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from clsim.data.folders import read_folder, read_tree
from clsim.data.streams import DataAccess
from clsim.errors import RequestError
from clsim.scenarios.folder import Folder


@pytest.fixture
def plant(encode):
    """Makes class folders with `count` images each."""

    def make(tree, *names, count=2):
        for name in names:
            (tree / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = np.full((4, 4, 3), (31 * sum(map(ord, name)) + i) % 256, dtype=np.uint8)
                (tree / name / f"{i}.png").write_bytes(encode(image))
        return tree

    return make


def classes(source):
    return dict(source.found.classes)


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("train", "val"), ("TRAIN", "Valid"), ("Training", "validation")],
)
def test_splits_have_any_usual_name(tmp_path, plant, train, test):
    plant(tmp_path, f"{train}/ant", f"{train}/bee", count=3)
    plant(tmp_path, f"{test}/ant", f"{test}/bee", count=1)
    learned, tested = read_tree(tmp_path)
    assert (classes(learned), classes(tested)) == ({"ant": 3, "bee": 3}, {"ant": 1, "bee": 1})
    assert (learned.found.split, tested.found.split) == (train, test)
    assert learned.names[0] == "ant/0.png"


def test_a_split_is_chosen_by_name_and_the_others_are_counted(tmp_path, plant):
    plant(tmp_path, "train/ant", count=3)
    plant(tmp_path, "val/ant", count=1)
    plant(tmp_path, "test/ant", "extra/ant", count=2)
    assert classes(read_tree(tmp_path)[1]) == {"ant": 2}
    learned, tested = read_tree(tmp_path, test_split="Validation")
    assert (tested.found.split, classes(tested)) == ("val", {"ant": 1})
    unused = learned.found.left_out["folders next to the splits"]
    assert unused == (str(tmp_path / "extra"), str(tmp_path / "test"))
    with pytest.raises(RequestError, match="no split 'holdout'; there are: extra, test, train, val"):
        read_tree(tmp_path, test_split="holdout")
    plant(tmp_path, "Testing/ant")
    with pytest.raises(RequestError, match="has 'Testing' and 'test', which are names of one split"):
        read_tree(tmp_path)


def test_a_tree_without_splits_is_cut_and_this_is_noted(tmp_path, plant):
    plant(tmp_path, "ant", "bee", count=60)
    learned, tested = read_tree(tmp_path)
    assert learned.found.images + tested.found.images == 120
    assert "a fifth of the images is for testing, by a hash of each file's path" in learned.found.notes[0]
    with pytest.raises(RequestError, match="test_split=val: .* has no folders of splits"):
        read_tree(tmp_path, test_split="val")


def test_a_class_with_too_few_images_for_the_cut_is_named(tmp_path, plant):
    plant(tmp_path, "bee", "cow", count=60)
    plant(tmp_path, "ant", count=1)
    with pytest.raises(
        RequestError, match=r"class 'ant' has 1 images, .* leaves 1 of them for training and 0 for test"
    ):
        Folder(classes_per_experience=3).build(DataAccess(tmp_path, tmp_path / ".cache", 8))


@pytest.mark.parametrize("count", [2, 3, 20])
def test_a_small_class_is_cut_so_that_it_has_test_images(tmp_path, plant, count):
    names = [f"c{i:02}" for i in range(40)]  # the hash alone leaves some of 40 without test images
    plant(tmp_path, *names, count=count)
    learned, tested = read_tree(tmp_path)
    assert set(classes(learned)) == set(classes(tested)) == set(names)
    assert all(classes(learned)[name] + classes(tested)[name] == count for name in names)
    assert min(*classes(learned).values(), *classes(tested).values()) >= 1
    again = read_tree(tmp_path)
    assert (again[0].names, again[1].names) == (learned.names, tested.names)


def test_splits_are_never_classes(tmp_path, plant):
    plant(tmp_path, "ant/Train", "ant/Test", "bee/Train", "bee/Test")
    with pytest.raises(RequestError, match="ant has folders of splits in it; a class folder must be in a split's"):
        read_tree(tmp_path)
    with pytest.raises(RequestError, match="'Test' is the name of a split, and not of a class"):
        read_folder(tmp_path / "ant")


def test_classes_are_excluded_by_name(tmp_path, plant):
    plant(tmp_path, "train/ant", "train/bee", "train/BACKGROUND_Google", "test/ant", "test/bee")
    learned, _ = read_tree(tmp_path, exclude=("BACKGROUND_Google",))
    assert classes(learned) == {"ant": 2, "bee": 2}
    assert learned.found.left_out["excluded classes"] == (str(tmp_path / "train" / "BACKGROUND_Google"),)
    with pytest.raises(RequestError, match="no class to exclude 'cow'; there are: .*ant, bee"):
        read_tree(tmp_path, exclude=("cow",))


def test_litter_is_neither_a_class_nor_an_image(tmp_path, plant):
    plant(
        tmp_path, "ant", "bee", ".Trash-1000", "__MACOSX", "ant/.ipynb_checkpoints", "bee/__MACOSX", "bee/.Trash-1000"
    )
    for name in ("._0.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "ant" / name).write_bytes(b"\0")
    source = read_folder(tmp_path)
    assert classes(source) == {"ant": 2, "bee": 2}
    assert len(source.found.left_out["hidden files, and files of an operating system"]) == 7


def test_every_suffix_that_people_have_is_read_and_others_are_counted_by_name(tmp_path):
    (tmp_path / "ant").mkdir()
    image = Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8))
    read = {"jpg": "JPEG", "JPEG": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "PNG": "PNG", "bmp": "BMP", "gif": "GIF"}
    read |= {"webp": "WEBP", "tif": "TIFF", "TIFF": "TIFF", "pgm": "PPM", "ppm": "PPM"}
    if ".avif" in Image.registered_extensions():
        read["avif"] = "AVIF"
    for suffix, kind in read.items():
        (image.convert("L") if suffix == "pgm" else image).save(tmp_path / "ant" / f"a.{suffix}", kind)
    for name in ("b.jp2", "b.tga", "notes"):
        (tmp_path / "ant" / name).write_bytes(b"")
    os.mkfifo(tmp_path / "ant" / "pipe.png")
    (tmp_path / "stray.png").write_bytes(b"")
    found = read_folder(tmp_path).found
    assert found.images == len(read)
    assert found.left_out == {
        "images in no class folder": (str(tmp_path / "stray.png"),),
        "not read as images (.jp2)": (str(tmp_path / "ant" / "b.jp2"),),
        "not read as images (.tga)": (str(tmp_path / "ant" / "b.tga"),),
        "not read as images (without a suffix)": (str(tmp_path / "ant" / "notes"),),
        "neither files nor folders": (str(tmp_path / "ant" / "pipe.png"),),
    }


def test_links_are_followed_inside_the_tree_only(tmp_path, plant):
    tree = plant(tmp_path / "tree", "train/ant", "train/bee")
    plant(tmp_path / "elsewhere", "bee", count=5)
    ant = tree / "train" / "ant"
    (ant / "inside.png").symlink_to(tree / "train" / "bee" / "0.png")
    (ant / "more").symlink_to(tree / "train" / "bee")
    (ant / "outside.png").symlink_to(tmp_path / "elsewhere" / "bee" / "0.png")
    (ant / "out").symlink_to(tmp_path / "elsewhere" / "bee")
    (ant / "gone.png").symlink_to(tree / "nowhere.png")
    (ant / "round").symlink_to(tree)
    (tree / "train" / "cow").symlink_to(tmp_path / "elsewhere" / "bee")
    (tree / "train" / "dog").symlink_to(tree / "train")
    source = read_folder(tree / "train", tree=tree)
    assert classes(source) == {"ant": 2 + 1 + 2, "bee": 2}
    counts = {why: len(names) for why, names in source.found.left_out.items()}
    assert counts == {"links out of the tree": 3, "links to a folder that they are in": 2, "links to nothing": 1}
    with pytest.raises(RequestError, match="no images in class folders .* left out: 1 links out of the tree, e.g. "):
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "cow").symlink_to(tmp_path / "elsewhere" / "bee")
        read_folder(tmp_path / "linked")


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path, plant):
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    plant(tmp_path, f"train/{composed}", f"test/{decomposed}", "train/ant", "test/ant")
    learned, tested = read_tree(tmp_path)
    assert learned.class_names == tested.class_names == ("ant", composed)
    assert learned.names == tested.names, "so the hash of a path is that of the tree's copy on macOS"
    plant(tmp_path, f"train/{decomposed}")
    assert classes(read_tree(tmp_path)[0]) == {"ant": 2, composed: 4}


@pytest.mark.parametrize(("one", "other"), [("Star", "star"), ("fire truck", "fire_truck")])
def test_classes_that_read_the_same_are_refused_by_name(tmp_path, plant, one, other):
    message = f"'{one}' and '{other}' differ only by case, or by '_' and a blank"
    plant(tmp_path / "a", *sorted([one, other]), "bee")
    with pytest.raises(RequestError, match=message):
        read_tree(tmp_path / "a")
    plant(tmp_path / "b", f"photo/{one}", f"sketch/{other}")
    with pytest.raises(RequestError, match=message):
        read_tree(tmp_path / "b", domain_folders=True)
    plant(tmp_path / "c", f"train/{one}", f"test/{other}")
    with pytest.raises(RequestError, match=f"class '{one}' of 'train' is '{other}' in 'test'"):
        read_tree(tmp_path / "c")
    plant(tmp_path / "d", f"{one}/bee", f"{other}/bee")
    with pytest.raises(RequestError, match=f"the domains '{one}' and '{other}' in .* differ only by case"):
        read_tree(tmp_path / "d", domain_folders=True)


@pytest.mark.parametrize("file", ["LOC_synset_mapping.txt", "words.txt", "classes.txt"])
def test_wordnet_ids_get_their_words(tmp_path, plant, file):
    ids = ("n01440764", "n02012849", "n03126707")
    plant(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in ids))
    before = read_tree(tmp_path)[0].fingerprint
    between = "\t" if file == "words.txt" else " "
    words = ("tench, Tinca tinca", "crane", "crane")
    (tmp_path / file).write_text("".join(f"{a}{between}{b}\n" for a, b in zip(ids, words, strict=True)))
    learned, tested = read_tree(tmp_path)
    assert learned.class_names == tested.class_names == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert learned.fingerprint != before, "a stored table has the old names"


def test_names_that_are_not_utf8_are_refused_in_one_line(tmp_path, plant):
    plant(tmp_path, "ant")
    try:
        (tmp_path / "ant" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with pytest.raises(RequestError, match=r"the name b'caf\\xe9.png' in .*ant is not UTF-8; rename it") as caught:
        read_tree(tmp_path)
    str(caught.value).encode()


LAYOUTS = ["{domain}/{name}", "{split}/{domain}/{name}", "{domain}/{split}/{name}"]


@pytest.fixture(params=LAYOUTS)
def domain_tree(request, tmp_path, plant):
    splits = ("train", "test") if "split" in request.param else ("",)
    for domain in ("Art", "Real World"):
        for split in splits:
            for name in ("ant", "bee", "cow", "dog"):
                plant(tmp_path, request.param.format(domain=domain, split=split, name=name), count=30)
    return DataAccess(tmp_path, tmp_path / ".cache", 8)


def test_every_protocol_reads_a_tree_of_domains(domain_tree):
    domains = Folder(protocol="domain").build(domain_tree)
    assert [each.name for each in domains.train_stream] == ["Art", "Real World"]
    pair = Folder(protocol="pair", source="real_world", target="art").build(domain_tree)
    assert pair.train_stream[0].name == "Real World > Art" and pair.protocol == "pair"
    assert {each.name for each in pair.test_stream} == {"target", "target test", "source test"}
    targets = Folder(protocol="targets", source="art").build(domain_tree)
    assert [each.domain for each in targets.train_stream] == ["Real World"]
    by_class = Folder(protocol="class", classes_per_experience=2).build(domain_tree)
    assert [len(each.classes) for each in by_class.train_stream] == [2, 2]
    assert by_class.info.class_names == ("ant", "bee", "cow", "dog")
    assert by_class.info.domain_names == ("Art", "Real World")
    by_task = Folder(protocol="task", classes_per_experience=2).build(domain_tree)
    assert [each.task_label for each in by_task.test_stream] == [0, 1]


def test_a_tree_that_looks_like_domains_says_so_and_can_be_read_as_classes(tmp_path, plant):
    plant(tmp_path, "car/left", "car/right", "bus/left", "bus/right", count=30)
    learned, _ = read_tree(tmp_path, domain_folders=None)
    assert learned.domain_names == ("bus", "car") and "read as domains, not as classes" in learned.found.notes[0]
    assert dict(learned.found.domains).keys() == {"bus", "car"}
    assert read_tree(tmp_path, domain_folders=False)[0].class_names == ("bus", "car")
    plant(tmp_path, "car")
    assert read_tree(tmp_path, domain_folders=None)[0].class_names == ("bus", "car")


def test_fields_of_domains_without_effect_are_refused():
    for fields, message in (
        ({"protocol": "pair"}, "protocol=pair needs a domain with labels: scenario.source=DOMAIN"),
        ({"protocol": "pair", "source": "Art"}, "needs a domain without labels: scenario.target=DOMAIN"),
        ({"protocol": "pair", "pairs": "all"}, "pairs=all needs the names of the domain folders"),
        ({"protocol": "task", "shots": 3}, "sources, targets and shots are not for protocol=task"),
        ({"protocol": "domain", "domain_folders": True}, "protocol=domain always has domain folders"),
    ):
        with pytest.raises(RequestError, match=message):
            Folder(**fields)
    pairs = Folder(protocol="pair", pairs="all", domains=("Art", "Clipart", "Real World")).expanded()
    assert len(pairs) == 6 and pairs[0] == {"pairs": "one", "source": "Art", "target": "Clipart"}


def test_a_tree_of_classes_is_not_read_as_domains(tmp_path, plant):
    data = DataAccess(plant(tmp_path, "ant", "bee"), tmp_path / ".cache", 8)
    with pytest.raises(
        RequestError, match="read as DOMAIN/CLASS/.*; left out: 4 images in no class folder, e.g. .*ant/0"
    ):
        Folder(protocol="domain").build(data)
