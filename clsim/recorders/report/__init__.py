"""`clsim report`: finished runs as one HTML file that needs no network, for a browser, a phone or a printer."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clsim.errors import RequestError, writing

SECONDS = 5  # between two versions of a watched report


def write(paths: Sequence[Path], out: Path, reload_seconds: int = 0) -> None:
    """Write the report of the runs in and below `paths`; an existing file is replaced.

    `reload_seconds`: how often a browser reads the file again; 0: never. Raises RequestError if there is no run, or if
    a file of a finished run is missing or broken.
    """
    from clsim.recorders.report import data, page  # late: NumPy and jinja2

    if out.suffix != ".html":
        raise RequestError(f"--out {out}: the report is an HTML file, so its name ends in .html")
    text = page.render(data.collect(paths), reload_seconds).encode()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")  # a browser never reads half a page
    try:
        with writing(out, len(text)):
            part.write_bytes(text)
            part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def watch(paths: Sequence[Path], out: Path) -> None:
    """Write the report again every SECONDS until Ctrl-C; the last version no longer reloads. Raises as `write` does.

    A run that is just deleted or started again cannot be read: a line says so, and the last version stays.
    """
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(SECONDS)
            try:
                write(paths, out, SECONDS)
            except (RequestError, FileNotFoundError) as error:
                print(f"clsim: {error}", file=sys.stderr)
    write(paths, out)
