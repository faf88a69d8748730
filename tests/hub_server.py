"""A server on the loopback address that speaks as much of the Hub's HTTP interface as its client needs to download."""

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of every revision that is not a commit
TREE = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)/tree/([^/?]+)")
INFO = re.compile(r"/api/(datasets|models)/([^/]+/[^/]+)(?:/revision/([^/?]+))?$")
FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class FakeHub:
    """Repositories with files, and what was asked for."""

    files: dict[tuple[str, str], dict[str, bytes]]  # ("datasets" or "models", "owner/name") -> path -> content
    revisions: tuple[str, ...] = ("main",)  # and every commit in full
    gated: tuple[str, ...] = ()  # repositories whose terms must be accepted first
    down: bool = False  # whether every request is answered with status 503
    broken: dict[str, int] = field(default_factory=dict)  # path -> bytes after which its connection breaks, once
    stalled: dict[str, int] = field(default_factory=dict)  # path -> bytes after which nothing more comes
    waiting: threading.Event = field(default_factory=threading.Event)  # set when a client waits for such a file
    closed: threading.Event = field(default_factory=threading.Event)  # set when the server stops
    endpoint: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # (method, path, range)

    def downloads(self, name: str) -> list[str]:
        """The ranges in which a file was asked for; "" for all of it."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith(name)]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for one connection."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_args) -> None:
        """Nothing is printed."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(self.path).partition("?")[0]
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.down:
            return self._error(503, "", "overloaded")
        for pattern, reply in ((TREE, self._tree), (INFO, self._info), (FILE, self._file)):
            if found := pattern.match(path):
                return reply(body, *found.groups())
        return self._error(404, "RepoNotFound", "Repository not found")

    def _repository(self, kind: str | None, name: str, revision: str | None) -> dict[str, bytes] | None:
        """The files of a repository; None after an answer that there is no such repository or revision."""
        files = self.hub.files.get((kind or "models", name))
        if files is None:
            self._error(401, "RepoNotFound", "Invalid username or password.")  # the Hub does not tell what is private
        elif name in self.hub.gated:
            self._error(403, "GatedRepo", "Access to this resource is restricted.")
        elif revision not in (None, *self.hub.revisions) and not re.fullmatch("[0-9a-f]{40}", revision):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return files
        return None

    def _tree(self, body: bool, kind: str, name: str, revision: str) -> None:
        files = self._repository(kind, name, revision)
        if files is not None:
            self._json(
                [{"type": "file", "path": path, "size": len(data), "oid": etag(data)} for path, data in files.items()]
            )

    def _info(self, body: bool, kind: str, name: str, revision: str | None) -> None:
        files = self._repository(kind, name, revision)
        if files is not None:
            self._json({"id": name, "sha": commit(revision or "main"), "siblings": [{"rfilename": p} for p in files]})

    def _file(self, body: bool, kind: str | None, name: str, revision: str, path: str) -> None:
        files = self._repository(kind, name, revision)
        if files is None:
            return
        if path not in files:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        data = files[path]
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(span[1]) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("X-Repo-Commit", commit(revision))
        self.send_header("ETag", f'"{etag(data)}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - first))
        if span:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if not body:
            return
        stop = self.hub.broken.pop(path, self.hub.stalled.get(path))
        self.wfile.write(data[first:stop])
        if path in self.hub.stalled:
            self.hub.waiting.set()
            self.hub.closed.wait()
        if stop is not None:
            self.close_connection = True

    def _json(self, content: object) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def etag(data: bytes) -> str:
    """The identity of a file's content."""
    return hashlib.sha1(data).hexdigest()


def commit(revision: str) -> str:
    """The commit of a revision."""
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else COMMIT


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub at `hub.endpoint`, until the end of the block."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
