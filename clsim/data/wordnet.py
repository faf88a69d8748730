"""Words for WordNet ids, from the files that ImageNet and its subsets come with."""

import re
from collections.abc import Sequence
from pathlib import Path

NAME_FILES = ("LOC_synset_mapping.txt", "classes.txt", "words.txt")  # lines of a WordNet id and its words
WORDNET_ID = re.compile(r"n\d{8}")


def readable(class_names: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Words for WordNet ids, from a class-name file in one of the folders; the names themselves if there is none.

    A line is an id and its words: `n01440764 tench, Tinca tinca`. The first word is the name; an id is appended if two
    classes have one name (there are two cranes).
    """
    if not all(WORDNET_ID.fullmatch(name) for name in class_names):
        return list(class_names)
    for file in (folder / name for folder in folders for name in NAME_FILES):
        if not file.is_file():
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        pairs = (re.split(r"[\s:,]+", line.strip(), maxsplit=1) for line in lines)
        words = {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}
        if all(words.get(name) for name in class_names):
            found = [words[name] for name in class_names]
            return [
                f"{word} ({name})" if found.count(word) > 1 else word
                for word, name in zip(found, class_names, strict=True)
            ]
    return list(class_names)
