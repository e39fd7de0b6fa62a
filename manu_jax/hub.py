"""Models and data sets by their names on the hub, fetched at one commit; results sent there.

A text `org/name` or `org/name@revision` names a repository where no file or folder of that name
exists here; a path that begins with `./`, `../`, `/` or `~` never does. Files come into the cache
of `huggingface_hub`, with its progress, resume and environment variables (HF_HOME, HF_HUB_CACHE,
HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN). A revision is resolved once in a process, so that all files
of a run are of one commit.
"""

import contextlib
import dataclasses
import logging
import os
import platform
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from manu_jax import parallel, stores
from manu_jax.folder import FileHashes, ForeignErrors, expand_path, is_hidden
from manu_jax.types import ManuError

logger = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
NAME = re.compile(r"(?P<name>[A-Za-z0-9_][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
# Of which a push leaves no old ones: they know what was to be forgotten
WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "*.gguf", "consolidated*.pth",
    "pytorch_model*.bin", "pytorch_model*.bin.index.json", "tf_model*.h5", "flax_model*.msgpack",
)  # fmt: skip
SHOWN = 10  # files in an error
COMMIT = "commit "  # begins the fingerprint of what is named on the hub


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository of the hub, as the user names it. revision: None: its default branch."""

    name: str
    kind: Kind
    revision: str | None = None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


# The commit that a repository's revision had when this process first asked, and what was fetched.
_commits: dict[Repository, str] = {}
_fetched: dict[tuple[Repository, tuple[str, ...]], Path] = {}


def repository(path: str | os.PathLike | None, kind: Kind) -> Repository | None:
    """Return the repository that a text names, or None: it is a path of this machine."""
    found = NAME.fullmatch(path) if isinstance(path, str) else None
    if found is None or Path(found[0]).exists():
        return None
    return Repository(found["name"], kind, found["revision"])


def local(path: str | os.PathLike, kind: Kind, patterns: Sequence[str]) -> Path:
    """Return the folder here that a path or a name on the hub means, with the files it needs.

    patterns: of the files that are fetched, as `fnmatch` reads them; at least one has to match. Of
    several processes the first one of each host fetches; all have to call this together. Of a store
    each process has copies of its own. Raises
    ManuError where there is no such repository or revision, where it is gated, and where the
    network or the cache lacks it.
    """
    named = repository(path, kind)
    is_on_hub = bool(parallel.broadcast(named is not None))
    if is_on_hub != (named is not None):
        raise ManuError(
            f"{path}: a folder on one host and a name on the hub for another. Give a path that all "
            "hosts have, or begin it with ./"
        )
    if named is None:
        return _from_store(expand_path(path), kind, patterns)
    key = (named, tuple(patterns))
    if key not in _fetched:
        if jax.process_count() == 1:
            _fetched[key] = _download(named, patterns, _commits.get(named))
        else:
            _fetched[key] = _download_on_each_host(named, patterns)
        commit = _fetched[key].name
        if named not in _commits:
            logger.info("%s: commit %s of the hub", named, commit)
        _commits[named] = commit
    return _fetched[key]


def fingerprint(path: str | None, kind: Kind, files: FileHashes) -> str | None:
    """Return what tells the files of a path from others: the commit, or a hash of what they hold.

    Of a name on the hub it is the commit that `local` has found, and "absent" before that.
    """
    named = repository(path, kind)
    if named is None:
        return files.of(path)
    return f"{COMMIT}{_commits[named]}" if named in _commits else "absent"


def check_push(name: str) -> None:
    """Raise ManuError where a push could not even begin: no name, offline, nobody logged in."""
    import huggingface_hub
    from huggingface_hub import constants

    found = NAME.fullmatch(name)
    if found is None or found["revision"] is not None:
        raise ManuError(f"push: {name!r}: expected the name of a repository, org/name.")
    if constants.HF_HUB_OFFLINE:
        raise ManuError(
            f"push: {name}: HF_HUB_OFFLINE is set, so nothing can be sent. Unset it, or push=null."
        )
    if huggingface_hub.get_token() is None:
        raise ManuError(
            f"push: {name}: nobody is logged in to {constants.ENDPOINT}. Call `hf auth login`, or "
            "set HF_TOKEN to a token that may write."
        )


def push(folder: Path, name: str, *, card: str, message: str) -> str:
    """Send a model's folder with its card as one commit, and return its address.

    name: `org/name`; a repository that is not there is made, and is private. Its old weights go,
    other files stay. Hidden files are not sent. Raises ManuError where the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    folder = stores.local_copies(folder)
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not is_hidden(file.relative_to(folder))
    ]
    names = [file.relative_to(folder).as_posix() for file in files]
    operations: list[Any] = [
        CommitOperationAdd(path, file) for path, file in zip(names, files, strict=True)
    ]
    operations.append(CommitOperationAdd("README.md", card.encode()))
    api = HfApi()
    with _told(Repository(name, "model"), "be written"):
        api.create_repo(name, private=True, exist_ok=True)
        old = api.list_repo_files(name)
        operations += [CommitOperationDelete(path) for path in _old_weights(old, names)]
        return str(api.create_commit(name, operations, commit_message=message).commit_url)


def _from_store(path: Any, kind: Kind, patterns: Sequence[str]) -> Path:
    """Return a folder of this machine, or copies of what matches in one of a store."""
    if stores.is_store(path):
        if stores.is_unfinished(path):
            raise ManuError(f"{path}: it is being written, or was left half-written. Make it anew.")
        if not any(stores.matches(name, patterns) for name in stores.names_in(path)):
            shown = ", ".join(patterns[:SHOWN])
            raise ManuError(f"{path}: it holds none of {shown}. Give the folder of a {kind}.")
    return stores.local_copies(path, patterns)


def _old_weights(there: Collection[str], sent: Collection[str]) -> list[str]:
    """Return the weight files at the top of a repository that a push does not replace."""
    ours = [name for name in there if any(Path(name).match(pattern) for pattern in WEIGHTS)]
    return sorted(name for name in ours if "/" not in name and name not in sent)


def _download_on_each_host(named: Repository, patterns: Sequence[str]) -> Path:
    """Fetch on the first process, which finds the commit, then on the first one of each host."""
    commit = np.zeros(40, np.int32)
    own = jax.process_index()

    def find() -> None:
        commit[:] = [*_download(named, patterns, _commits.get(named)).name.encode()]

    parallel.on_first_process(find)
    commit = multihost_utils.broadcast_one_to_all(commit)
    known = bytes(np.asarray(commit, np.uint8)).decode()
    host = np.uint32(zlib.crc32(platform.node().encode()))
    hosts = [int(one) for one in multihost_utils.process_allgather(host)]
    fault = None
    if own == hosts.index(hosts[own]):
        try:
            _download(named, patterns, known)
        except ManuError as error:
            fault = error
    failed = multihost_utils.process_allgather(np.int32(fault is not None))
    if fault is not None:
        raise fault
    if failed.any():
        raise ManuError(
            f"{named}: process {int(failed.argmax())} could not fetch it, and says why."
        )
    return _download(named, patterns, known)  # what the host's first one has fetched


def _download(named: Repository, patterns: Sequence[str], commit: str | None) -> Path:
    """Return the snapshot's folder with the files of `patterns`; its name is the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    with _told(named, "be fetched"):
        folder = Path(
            snapshot_download(
                named.name,
                repo_type=named.kind,
                revision=commit or named.revision,
                allow_patterns=list(patterns),
            )
        )
    held = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*"))
    if not any(filter_repo_objects(held, allow_patterns=list(patterns))):
        raise ManuError(f"{named}: {_without(named, patterns, commit or folder.name)}")
    return folder


def _without(named: Repository, patterns: Sequence[str], commit: str) -> str:
    """Return what a repository holds in place of the wanted files, as far as can be told."""
    from huggingface_hub import HfApi, constants

    wanted = ", ".join(patterns[:SHOWN])
    if constants.HF_HUB_OFFLINE:
        return (
            f"the cache {constants.HF_HUB_CACHE} holds none of {wanted}, and HF_HUB_OFFLINE is "
            "set. Unset it, or fetch the repository with `hf download` first."
        )
    with _told(named, "be read"):
        there = HfApi().list_repo_files(named.name, repo_type=named.kind, revision=commit)
    more = f" and {len(there) - SHOWN} more" if len(there) > SHOWN else ""
    shown = ", ".join(there[:SHOWN]) or "nothing"
    return (
        f"none of its files is {wanted}; it holds {shown}{more}. Give a {named.kind} in a format "
        "that is read; pickles never are."
    )


@contextlib.contextmanager
def _told(named: Repository, what: str) -> Iterator[None]:
    """Turn whatever `huggingface_hub` raises into one ManuError that says what can be done."""
    from huggingface_hub import constants, errors

    place, page = str(named), f"{constants.ENDPOINT}/{_prefix(named)}{named.name}"
    again = "Look at the network, and give the same command again: what is fetched is kept"
    with ForeignErrors(place, f"can't {what} on {constants.ENDPOINT}", f"{again}."):
        try:
            yield
        except errors.GatedRepoError:
            raise ManuError(
                f"{place}: the {named.kind} is gated. Accept its terms at {page}, then call `hf "
                "auth login` or set HF_TOKEN."
            ) from None
        except errors.RepositoryNotFoundError:
            raise ManuError(
                f"{place}: no such folder here, and no {named.kind} of that name at {page} that "
                "you may see. Mend the name, or call `hf auth login` where it is private."
            ) from None
        except errors.HFValidationError as error:
            raise ManuError(
                f"{place}: no such folder here, and no name that the hub has ({_reason(error)}). "
                "Mend the name."
            ) from None
        except errors.RevisionNotFoundError:
            raise ManuError(
                f"{place}: {named.name} has no revision {named.revision}. Give a branch, a tag or "
                f"a commit that {page} has."
            ) from None
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            if constants.HF_HUB_OFFLINE:
                raise ManuError(
                    f"{place}: no such folder here, HF_HUB_OFFLINE is set, and the cache "
                    f"{constants.HF_HUB_CACHE} lacks the {named.kind} or a part of it. Unset "
                    "HF_HUB_OFFLINE, or fetch it with `hf download` first."
                ) from None
            raise ManuError(
                f"{place}: no such folder here, and {constants.ENDPOINT} does not answer "
                f"({_reason(error)}). {again}; or give a folder."
            ) from None
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            advice = f"{again}."
            if status in (401, 403):
                advice = "Call `hf auth login`, or set HF_TOKEN to a token that may do this."
            raise ManuError(
                f"{place}: can't {what}: {constants.ENDPOINT} answers {status}. {advice}"
            ) from None


def _prefix(named: Repository) -> str:
    return "datasets/" if named.kind == "dataset" else ""


def _reason(error: BaseException) -> str:
    """Return what lies at the bottom of an error, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200] or type(error).__name__
