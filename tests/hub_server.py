"""A hub of our own for the real clients: it serves the repositories under a directory as huggingface_hub, transformers,
datasets and lm-eval ask for them, and can be told to be private, gated, missing, dying or down.

    python tests/hub_server.py DIRECTORY PORT
    HF_ENDPOINT=http://127.0.0.1:PORT HF_HOME=$(mktemp -d) python train.py config/modernbert_chat_small.py

DIRECTORY has models/ORG/NAME and datasets/ORG/NAME; another revision of NAME lies beside it, as NAME@REVISION with its
slashes quoted (NAME@refs%2Fconvert%2Fparquet).
"""

import contextlib
import hashlib
import json
import os
import random
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

from nanodlm import hub

GOOD_TOKEN, OTHER_TOKEN = "hf_good", "hf_other"  # the first may see everything, the second what is public


class Hub:
    """The server, on a thread, and its switches. A repository is named as in models/org/name or datasets/org/name."""

    def __init__(self, directory, port):
        self.directory, self.port, self.server = Path(directory), port, None
        self.reset()

    def reset(self):
        """An obedient hub, which has been asked nothing."""
        self.private, self.gated = set(), set()  # repositories
        self.status = 0  # answer everything with this one, as 503
        self.breaks = {}  # a part of a file's path: [times to break off, bytes before that, whether by a reset]
        self.silent = 0  # close so many connections without a word, as behind a server that restarts
        self.log = []  # (method, path, its Range or "")

    def start(self):
        if self.server is None:
            self.server = Server(("127.0.0.1", self.port), Handler)
            self.server.hub = self
            threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self):
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def asked(self, part):
        """The Range, or "", of every GET of a path with this part."""
        return [wanted for method, path, wanted in self.log if method == "GET" and part in path]

    def revision(self, name, revision):
        """(directory, commit) of a repository's revision, or (None, None)."""
        home = self.directory / name
        for there in (home, *sorted(home.parent.glob(f"{home.name}@*"))):
            commit = commit_of(there) if there.is_dir() else None
            if commit and revision in (commit, unquote(there.name.partition("@")[2]) or "main"):
                return there, commit
        return None, None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True  # comes back where it was

    def __init__(self, *args):
        self.open = []
        super().__init__(*args)

    def finish_request(self, request, client_address):
        self.open.append(request)
        super().finish_request(request, client_address)

    def server_close(self):
        """Clients keep their connections, which end with the server, too."""
        super().server_close()
        for connection in self.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        pass  # a client that goes away


def files(directory):
    return sorted(p for p in directory.rglob("*") if p.is_file())


def digest(content):
    return hashlib.sha1(content).hexdigest()


def commit_of(directory):
    parts = [f"{p.relative_to(directory)} {digest(p.read_bytes())}" for p in files(directory)]
    return digest(f"{directory.name} {parts}".encode())


def entry(directory, path):
    """What the hub's listings say of a file or folder."""
    name = path.relative_to(directory).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": digest(name.encode())}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": digest(path.read_bytes())}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self):
        hub, url = self.server.hub, urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.log.append((self.command, unquote(self.path), self.headers.get("Range") or ""))
        if hub.silent:
            hub.silent -= 1
            self.close_connection = True
        elif hub.status:
            self.send(hub.status, {"error": "this hub is unwell"})
        else:
            self.route([unquote(part) for part in url.path.split("/")[1:]], parse_qs(url.query))

    do_GET = do_HEAD = do_POST = answer

    def route(self, parts, query):
        """models at /api/models/ORG/NAME/… and /ORG/NAME/resolve/…, data sets at /api/datasets/… and /datasets/…"""
        api = parts[0] == "api" and parts.pop(0) and len(parts) > 2
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        if len(parts) < 2 or not (api or parts[2:3] == ["resolve"]):
            return self.refuse(404, "EntryNotFound", "no such page")
        name, (what, *rest) = f"{kind}/{parts[0]}/{parts[1]}", parts[2:] or ["revision", "main"]
        if self.may_see(name):
            there, commit = self.server.hub.revision(name, rest[0] if rest else "main")
            if what == "refs":
                return self.send(200, {"branches": [], "converts": [], "tags": []})
            if there is None:
                return self.refuse(404, "RevisionNotFound", f"no revision {rest[0]}")
            getattr(self, f"do_{what.replace('-', '_')}")(there, commit, name, "/".join(rest[1:]), query)

    def may_see(self, name):
        """Whether this repository is there for whoever asks, or else says what the hub says."""
        hub, token = self.server.hub, (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", GOOD_TOKEN, OTHER_TOKEN):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif not (hub.directory / name).is_dir() or name in hub.private and token == OTHER_TOKEN:
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif name in hub.private and not token:
            self.refuse(401, "RepoNotFound", "Invalid username or password.")
        elif name in hub.gated and token != GOOD_TOKEN and "/resolve/" in self.path:  # all but its files can be seen
            self.refuse(403 if token else 401, "GatedRepo", f"Access to {name} is restricted.")
        else:
            return True

    def do_revision(self, there, commit, name, path, query):
        facts = {"id": name.partition("/")[2], "sha": commit, "private": False, "gated": False, "disabled": False}
        facts |= {"downloads": 0, "likes": 0, "tags": [], "lastModified": "2026-01-01T00:00:00.000Z"}
        self.send(200, facts | {"siblings": [{"rfilename": entry(there, p)["path"]} for p in files(there)]})

    def do_tree(self, there, commit, name, path, query):
        folder, deep = there / path, query.get("recursive", [""])[0].lower() == "true"
        if not folder.is_dir():
            return self.refuse(404, "EntryNotFound", f"no folder {path}")
        self.send(200, [entry(there, p) for p in sorted(folder.rglob("*") if deep else folder.iterdir())])

    def do_paths_info(self, there, commit, name, path, query):
        try:
            wanted = json.loads(self.body)["paths"]
        except ValueError:
            wanted = parse_qs(self.body.decode())["paths"]
        self.send(200, [entry(there, there / p) for p in wanted if (there / p).exists()])

    def do_resolve(self, there, commit, name, path, query):
        """A file, or the part of it that is asked for."""
        file = there / path
        if not file.is_file():
            return self.refuse(404, "EntryNotFound", f"no file {path}", X_Repo_Commit=commit)
        content, status, head = file.read_bytes(), 200, {"X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        head["ETag"] = f'"{digest(content)}"'
        first, _, last = (self.headers.get("Range") or "").removeprefix("bytes=").partition("-")
        if first:
            size, end = len(content), min(int(last or len(content)), len(content) - 1)
            status, content = 206, content[int(first) : end + 1]
            head["Content_Range"] = f"bytes {first}-{end}/{size}"
        self.send(status, content, "application/octet-stream", **head)

    def refuse(self, status, code, message, **head):
        self.send(status, {"error": message}, X_Error_Code=code, X_Error_Message=message, **head)

    def send(self, status, content, kind="application/json", **head):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content_Type": kind, "Content_Length": len(content), **head}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        broken = next((b for part, b in self.server.hub.breaks.items() if part in unquote(self.path) and b[0]), None)
        if broken is None:
            return self.wfile.write(content)
        self.wfile.write(content[: broken[1]])
        broken[0] -= 1
        self.close_connection = True
        if broken[2]:  # what is left is not waited for: the other side sees a reset, and not an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())


def free_port():
    """A port that stays free: not one of those that connections are given on their side."""
    for port in random.sample(range(20000, 32000), 100):
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def quoted(name, revision):
    """The directory's name of another revision."""
    return f"{name}@{quote(revision, safe='')}"


if __name__ == "__main__":
    hub = Hub(sys.argv[1], int(sys.argv[2]))
    hub.start()
    print(f"HF_ENDPOINT=http://127.0.0.1:{hub.port} serves {hub.directory}; Ctrl-C ends it")
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        hub.stop()
