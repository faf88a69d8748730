"""What this process has read to make the streams of its runs; `clsim.known` compares it later."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

MOST = 20_000  # files; of more, none are kept


@dataclass
class Reads:
    """Paths that decide which images and labels a stream has."""

    files: set[Path] = field(default_factory=set)  # of images and labels
    folders: set[Path] = field(default_factory=set)  # folders, or files, in which images were looked for at any depth
    places: set[Path] = field(default_factory=set)  # folders of which only the names of their entries matter
    runs: set[Path] = field(default_factory=set)  # directories of the runs that were prepared here
    too_many: bool = False  # whether there were more than MOST files
    uncertain: bool = False  # whether something was read that may change elsewhere, e.g. a branch on the Hub

    def add_files(self, files: Iterable[Path]) -> None:
        """Note files that were read."""
        if not self.too_many:
            self.files.update(files)
            self.too_many = len(self.files) > MOST


READ = Reads()
