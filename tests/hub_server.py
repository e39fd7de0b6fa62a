"""A small hub on loopback: what `huggingface_hub` asks to read a repository, and to write one."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"
READ = re.compile(r"(?P<kind>/datasets)?/(?P<name>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
ASK = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+?)"
    r"(/(?P<what>revision|tree|preupload|commit)/(?P<rev>[^/]+))?"
)


@dataclasses.dataclass
class Repo:
    """Files by commit; `main` is the last one. tags: other names of commits."""

    commits: dict[str, dict[str, bytes]]
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    is_gated: bool = False
    is_private: bool = False

    @property
    def main(self) -> str:
        return list(self.commits)[-1]

    def commit_of(self, revision: str) -> str | None:
        if revision == "main":
            return self.main
        return self.tags.get(revision, revision if revision in self.commits else None)


@dataclasses.dataclass
class Hub:
    """Repositories by (kind, name), and what was asked: ("GET", path) of every request."""

    repos: dict[tuple[str, str], Repo] = dataclasses.field(default_factory=dict)
    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    address: str = ""

    def add(self, kind: str, name: str, files: dict[str, bytes], **settings) -> Repo:
        repo = Repo({commit_of(files): files}, **settings)
        self.repos[kind, name] = repo
        return repo

    def fetched(self, name: str) -> list[str]:
        """Return the files of a repository whose content was sent."""
        found = [READ.fullmatch(path) for method, path in self.asked if method == "GET"]
        return sorted(match["path"] for match in found if match and match["name"] == name)


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer for the hub on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path))
            read, ask = READ.fullmatch(path), ASK.fullmatch(path)
            match = read or ask
            if match is None:
                return self.answer(404)
            kind = "dataset" if "dataset" in (match["kind"] or "") else "model"
            repo = hub.repos.get((kind, match["name"]))
            has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if repo is None or (repo.is_private and not has_token):
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            commit = repo.commit_of(match["rev"] or "main")
            if commit is None:
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            files = repo.commits[commit]
            if ask is not None:
                return self.tell(ask, commit, files)
            if repo.is_gated and not has_token:
                return self.answer(401, {"X-Error-Code": "GatedRepo"})
            if match["path"] not in files:
                return self.answer(404, {"X-Error-Code": "EntryNotFound"})
            content = files[match["path"]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(200, {"ETag": etag, "X-Repo-Commit": commit}, content)

        do_HEAD = do_GET

        def tell(self, ask, commit, files):
            entries = [
                {"type": "file", "path": path, "size": len(content)}
                | {"oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            siblings = [{"rfilename": path} for path in files]
            info = {"id": ask["name"], "modelId": ask["name"], "sha": commit, "siblings": siblings}
            info |= {"private": False, "downloads": 0, "likes": 0, "tags": []}
            self.answer(200, {}, entries if ask["what"] == "tree" else info)

        def do_POST(self):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path))
            body = self.body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, {"X-Error-Message": "Invalid username or password."})
            if path == "/api/validate-yaml":
                return self.answer(200, {}, {"errors": [], "warnings": []})
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                if asked["organization"] == "others":
                    return self.answer(403, {"X-Error-Message": "no rights"})
                is_new = ("model", name) not in hub.repos
                if is_new:
                    hub.add("model", name, {}, is_private=asked.get("visibility") == "private")
                return self.answer(200 if is_new else 409, {}, {"url": f"{hub.address}/{name}"})
            ask = ASK.fullmatch(path)
            repo = hub.repos["model", ask["name"]]
            if ask["what"] == "preupload":
                names = [one["path"] for one in json.loads(body)["files"]]
                mode = {"uploadMode": "regular", "shouldIgnore": False}
                return self.answer(200, {}, {"files": [{"path": name} | mode for name in names]})
            files = dict(repo.commits[repo.main])
            for line in body.decode().splitlines():
                change = json.loads(line)
                value = change["value"]
                if change["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif change["key"] == "deletedFile":
                    del files[value["path"]]
            commit = commit_of(files)
            repo.commits[commit] = files
            url = f"{hub.address}/{ask['name']}/commit/{commit}"
            self.answer(200, {}, {"success": True, "commitOid": commit, "commitUrl": url})

        def body(self):
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def answer(self, status, headers=None, content=b""):
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
