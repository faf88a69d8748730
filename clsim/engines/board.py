"""What is shown while many runs go on: a live table on a terminal, one line for each event elsewhere."""

import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clsim import rundir
from clsim.engines.base import Planned
from clsim.recorders.console import console
from clsim.results import Run

SHOWN = 20  # runs in the table at most
PER_SECOND = 2  # updates of the table


class Board:
    """The state of all runs. `quiet`: only failures are shown."""

    def __init__(self, runs: Sequence[Planned], done: int, quiet: bool) -> None:
        """`done`: how many other runs of the request were finished before."""
        self._runs = runs
        self._total = done + len(runs)
        self._done, self._failed = done, 0
        self._running: dict[int, _Progress] = {}
        self._quiet = quiet
        self._out, err = console(sys.stdout), console(sys.stderr)
        self._live: Live | None = None
        if err.is_terminal and not err.is_dumb_terminal and not quiet:
            self._live = Live(
                get_renderable=self._table,
                console=err,
                refresh_per_second=PER_SECOND,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> "Board":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, index: int, why: str = "") -> None:
        """A run began, or is going to begin again because of `why`."""
        run = self._runs[index]
        if why:
            self._running.pop(index, None)
            self._say(f"{run.name}: {why}; it is started again")
            return
        self._running = self._running | {index: _Progress(run)}  # a new one: the table is drawn in another thread
        if self._live is None:
            self._say(f"begins: {run.name}")

    def ended(self, index: int, found: Run | None, lines: str) -> None:
        """A run ended, or failed with its last lines."""
        run, progress = self._runs[index], self._running.get(index)
        self._running = {other: each for other, each in self._running.items() if other != index}
        self._done, self._failed = self._done + (found is not None), self._failed + (found is None)
        if found is None:
            with_lines = f"failed: {run.name}: {lines}"
            console(sys.stderr).print(with_lines, soft_wrap=True)
            return
        name, value = next(((n, v) for n, v in found.metrics.items() if v is not None), ("", 0.0))
        result = f", {name.replace('_', ' ')} {100 * value:.1f} %" if name else ""
        took = f" in {progress.seconds():.0f} s" if progress else ""
        self._say(f"done {self._done} of {self._total}: {run.name}{took}{result}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            (self._out if self._live is None else self._live.console).print(text, soft_wrap=True)

    def _table(self) -> Group:
        running = list(self._running.values())
        left = self._total - self._done - self._failed - len(running)
        title = f"{self._done} done, {len(running)} running, {left} left"
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        for each in running[:SHOWN]:
            table.add_row(*map(Text, each.cells()))
        more = [Text(f"and {len(running) - SHOWN} more")] if len(running) > SHOWN else []
        return Group(Text(title + (f", {self._failed} failed" if self._failed else ""), style="bold"), table, *more)


class _Progress:
    """How far a run is, as its journal says."""

    def __init__(self, run: Planned) -> None:
        self._name = run.name
        self._path = run.directory / rundir.EVENTS
        self._began = time.monotonic()
        self._offset = 0
        self._experiences: int | None = None
        self._learned = 0

    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def cells(self) -> tuple[str, str, str]:
        """Name, progress and time."""
        self._read()
        where = "begins"
        if self._experiences is not None:
            where = f"experience {min(self._learned + 1, self._experiences)} of {self._experiences}"
        return self._name, where, str(timedelta(seconds=int(self.seconds())))

    def _read(self) -> None:
        """Read what is new in the journal; a run that continues cuts off its end."""
        try:
            with self._path.open("rb") as file:
                if self._path.stat().st_size < self._offset:
                    self._offset, self._learned = 0, 0
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._offset += len(line)
                    if b'"event": "step"' not in line and b'"event": "log"' not in line:
                        self._take(json.loads(line))
        except (OSError, ValueError):
            return  # not there yet, or just being cut

    def _take(self, record: dict[str, object]) -> None:
        if record.get("event") == "start":
            self._experiences = int(str(record["experiences"]))
        elif record.get("event") == "evaluation":
            self._learned = int(str(record["experience"]))
