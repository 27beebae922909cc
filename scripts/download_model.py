"""Fetch a model from the Hugging Face hub: safetensors, configuration and tokenizer, checked, whole or not at all.

    python scripts/download_model.py openai-community/gpt2        # -> model/gpt2
    python scripts/download_model.py Qwen/Qwen3-0.6B --revision main --to ~/models/qwen

Beside the files lies `source.json`: repository, revision asked for, commit it meant, and every file's size and
SHA-256. Files are fetched into a hidden folder next to the destination, compared with what the hub says of them, and
moved into place by one rename, so the destination is either absent or complete. Only files at the top of the
repository are taken; pickle weights and code never are.

Knows nothing about training, about loading the model, or about where a configuration looks for it.
Set HF_TOKEN for private or gated repositories; HF_ENDPOINT chooses another hub.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from groupwise.errors import UserError, listed

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "source.json"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FETCHED = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file as the hub lists it; size in bytes.

    A file kept in large-file storage has its SHA-256 listed, any other the SHA-1 of its git blob.
    """

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a revision of a repository holds: the commit it means now, files fit to fetch, the names of all others."""

    commit: str
    files: dict[str, RemoteFile]
    other_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One fetched file as `source.json` records it; size in bytes."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The content of `source.json`: where a model folder came from and what it held on arrival."""

    repo: str
    revision: str
    commit: str
    files: dict[str, FileRecord]


def is_fetched(name: str) -> bool:
    """Whether a file of a repository is weights, configuration or tokenizer at its top, in a format that runs no code.

    >>> [is_fetched(name) for name in ("model.safetensors", "tokenizer.json", "merges.txt", "chat_template.jinja")]
    [True, True, True, True]
    >>> [is_fetched(name) for name in ("pytorch_model.bin", "modeling.py", "onnx/config.json", "tf_model.h5")]
    [False, False, False, False]
    >>> is_fetched("pytorch_model.bin.index.json")    # lists the shards of weights that are not fetched
    False
    """
    if name == SOURCE or "/" in name or "\\" in name:
        return False
    if name.endswith(".index.json"):
        return name == INDEX
    return _matches(name, FETCHED)


def human_size(size: int) -> str:
    """A number of bytes in the unit a person would use, powers of 1000.

    >>> human_size(999), human_size(548_105_171), human_size(2_500_000_000_000)
    ('999 B', '548.1 MB', '2500.0 GB')
    """
    if size < 1000:
        return f"{size} B"
    value = size / 1000
    for unit in ("kB", "MB"):
        if value < 1000:
            return f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def hash_file(path: Path) -> tuple[str, str]:
    """SHA-256 of a file, and the SHA-1 git gives it as a blob, both in hexadecimal, in one reading."""
    sha256 = hashlib.sha256()
    git_sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            git_sha1.update(chunk)
    return sha256.hexdigest(), git_sha1.hexdigest()


def list_remote(repo: str, revision: str) -> Listing:
    """Ask the hub what a revision of a model repository holds.

    Raises UserError when the hub cannot be reached or refuses, or when it keeps a file's size to itself.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # whatever the hub's library raises is about network, names or rights: see explain
        raise UserError(explain(error, repo, revision)) from error
    if info.sha is None:
        raise UserError(f"{repo}: the hub does not say which commit {revision!r} is, so nothing can be pinned to it")
    files: dict[str, RemoteFile] = {}
    other_names: list[str] = []
    for sibling in info.siblings or ():
        name = sibling.rfilename
        if not is_fetched(name):
            other_names.append(name)
            continue
        if sibling.size is None:
            raise UserError(f"{repo}: the hub does not say how large {name} is, so it could not be checked")
        lfs = sibling.lfs
        files[name] = RemoteFile(
            name=name,
            size=sibling.size,
            sha256=lfs.sha256 if lfs else None,
            git_sha1=None if lfs else sibling.blob_id,  # in large-file storage the blob is only a pointer
        )
    return Listing(commit=info.sha, files=files, other_names=tuple(other_names))


def check_loadable(repo: str, listing: Listing) -> None:
    """Raise UserError, saying what the repository holds instead, unless it has a configuration and safetensors."""
    if WEIGHTS not in listing.files and INDEX not in listing.files:
        pickled = [name for name in listing.other_names if _matches(name, PICKLED)]
        safetensors = [name for name in (*listing.files, *listing.other_names) if name.endswith(".safetensors")]
        if safetensors:
            held = f"its safetensors are {_few(safetensors)}, from which from_pretrained builds no model"
        elif pickled:
            held = f"only pickle weights ({_few(pickled)}), which are never fetched: loading them can run foreign code"
        else:
            held = f"it holds {_few((*listing.files, *listing.other_names)) or 'no files'}"
        raise UserError(
            f"{repo} has no {WEIGHTS} (nor {INDEX}): {held}.\n"
            "Choose another repository, or a --revision that has them (conversions are often offered as refs/pr/1)."
        )
    if CONFIG not in listing.files:
        raise UserError(f"{repo} has no {CONFIG}: it is not a Transformers model. Choose another repository.")


def shards_of(repo: str, index: Path, available: Iterable[str]) -> set[str]:
    """Names of the weight files that a sharded model's index lists; UserError if one is not in the repository."""
    try:
        shards = set(map(str, json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{repo}: {INDEX} is not the index of a sharded model ({error!r})") from error
    if missing := sorted(shards.difference(available)):
        raise UserError(f"{repo}: {INDEX} lists shards that the repository lacks:\n{listed(missing)}")
    return shards


def check_file(path: Path, expected: RemoteFile) -> FileRecord:
    """Compare a fetched file with what the hub says of it: size, and the hash it lists.

    Raises UserError when they differ.
    """
    size = path.stat().st_size
    if size != expected.size:
        raise UserError(
            f"{expected.name} arrived damaged: {size} bytes instead of {expected.size}. Nothing was kept; run it again."
        )
    sha256, git_sha1 = hash_file(path)
    for kind, got, wanted in (("SHA-256", sha256, expected.sha256), ("git SHA-1", git_sha1, expected.git_sha1)):
        if wanted is not None and got != wanted:
            raise UserError(
                f"{expected.name} arrived damaged: {kind} {got} instead of {wanted}. Nothing was kept; run it again."
            )
    return FileRecord(size=size, sha256=sha256)


def fetch(repo: str, revision: str, commit: str, file: RemoteFile, folder: Path) -> FileRecord:
    """Fetch one file at a commit into a folder and check it; UserError when it does not come or comes damaged."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(repo, file.name, revision=commit, local_dir=folder)
    except Exception as error:  # as in list_remote; transfer back ends add exception types of their own
        raise UserError(f"{file.name}: {explain(error, repo, revision)}") from error
    return check_file(Path(path), file)


def fetch_all(repo: str, revision: str, listing: Listing, folder: Path) -> dict[str, FileRecord]:
    """Fetch what from_pretrained needs into an empty folder, one line of output a file, and check every file.

    Of several sets of weights only the one from_pretrained would choose is fetched: `model.safetensors`, else the
    shards of the index. Raises UserError, before the weights are fetched, when the disk is too full for them.
    """
    if WEIGHTS in listing.files:
        chosen_names = {WEIGHTS, *(name for name in listing.files if not _is_weights(name) and name != INDEX)}
    else:
        fetch(repo, revision, listing.commit, listing.files[INDEX], folder)
        shards = shards_of(repo, folder / INDEX, listing.files)
        chosen_names = {*shards, *(name for name in listing.files if not _is_weights(name))}
    chosen = [listing.files[name] for name in sorted(chosen_names)]
    total = sum(file.size for file in chosen)
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UserError(
            f"{repo} needs {human_size(total)}, but the disk of the destination has {human_size(free)} free. "
            "Make room or choose another disk with --to."
        )
    print(f"{repo} at {listing.commit}: {len(chosen)} files, {human_size(total)}", flush=True)
    records: dict[str, FileRecord] = {}
    for number, file in enumerate(chosen, start=1):
        print(f"[{number}/{len(chosen)}] {file.name}, {human_size(file.size)}", flush=True)
        records[file.name] = fetch(repo, revision, listing.commit, file, folder)
    return records


def download(repo: str, revision: str, destination: Path) -> Source:
    """Fetch a model into a folder that is absent or empty, which afterwards is complete, or as it was before.

    Raises UserError when the hub, the repository or the transfer does not allow it, OSError when the disk does not.
    """
    listing = list_remote(repo, revision)
    check_loadable(repo, listing)
    # Not simply the parent: folders above the destination are created only once there is something to put into them.
    home = next(folder for folder in destination.parents if folder.exists())
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.partial-", dir=home) as scratch:
        folder = Path(scratch) / "model"  # the scratch folder itself is closed to other users, a model is not
        folder.mkdir()
        records = fetch_all(repo, revision, listing, folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub library's notes on what it fetched
        source = Source(repo=repo, revision=revision, commit=listing.commit, files=records)
        (folder / SOURCE).write_text(json.dumps(asdict(source), indent=2) + "\n", encoding="utf-8")
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.exists():
            destination.rmdir()  # empty, or this fails: nothing of the user's is ever deleted
        folder.rename(destination)
    return source


def read_source(folder: Path) -> Source | None:
    """What a folder's `source.json` says, or None where there is none or it is not one of ours."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Source).validate_json((folder / SOURCE).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def check_present(source: Source, folder: Path) -> None:
    """Compare a model folder with its own `source.json`; UserError lists every file that is missing or different."""
    problems: list[str] = []
    for name, record in source.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name}: missing")
        elif path.stat().st_size != record.size:
            problems.append(f"{name}: {path.stat().st_size} bytes instead of {record.size}")
        elif hash_file(path)[0] != record.sha256:
            problems.append(f"{name}: content differs from what was fetched (SHA-256)")
    if problems:
        raise UserError(
            f"{folder} holds {source.repo}, but not as it was fetched:\n{listed(problems)}\n"
            "Remove the folder to fetch it again, or choose another one with --to."
        )


def check_already_there(repo: str, revision: str, folder: Path) -> Source:
    """Say what an occupied destination holds, if it is exactly the model asked for.

    Asks the hub which commit the revision means now, except when the revision is the recorded commit itself.
    Raises UserError, with what to do, when the folder holds anything else.
    """
    source = read_source(folder)
    if source is None or source.repo != repo:
        held = f"already exists and holds {source.repo if source else 'other files'}"
        raise UserError(f"{folder} {held}. Choose another folder with --to, or remove it.")
    commit = source.commit if revision == source.commit else list_remote(repo, revision).commit
    if source.commit != commit:
        raise UserError(
            f"{folder} already holds {repo} at commit {source.commit}, but {revision!r} is now {commit}. "
            "Choose another folder with --to, or remove it to fetch the new one."
        )
    check_present(source, folder)
    return source


def explain(error: Exception, repo: str, revision: str) -> str:
    """What an exception of the hub's library means for the person who asked, and the remedy."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # "not in the cache either" hides why the hub did not answer
    token = "create one at https://huggingface.co/settings/tokens and set it as HF_TOKEN"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    match error:
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so the hub is not asked. Unset it to download."
        case errors.GatedRepoError():
            return (
                f"{repo} is gated: accept its conditions on {constants.ENDPOINT}/{repo}, then use an access token of "
                f"that account ({token})."
            )
        case errors.RepositoryNotFoundError():
            return (
                f"no model repository {repo} at {constants.ENDPOINT}: check the spelling (OWNER/NAME). "
                f"If it is private, an access token is needed: {token}."
            )
        case errors.RevisionNotFoundError():
            return (
                f"{repo} has no revision {revision!r}: --revision takes a branch, a tag or a commit of the repository."
            )
        case _ if status in (401, 403):
            return f"{constants.ENDPOINT} refuses access to {repo} ({status}). Check the access token in HF_TOKEN."
        case _ if status is not None:
            return (
                f"{constants.ENDPOINT} answered {status} for {repo} at {revision!r}. Try again later; "
                "if HF_ENDPOINT is set, check it."
            )
        case _ if type(error).__module__.partition(".")[0] in ("httpx", "httpx2"):  # which one depends on the version
            return (
                f"no connection to {constants.ENDPOINT} ({_named(error)}). Check the network, the proxy settings "
                "and HF_ENDPOINT."
            )
        case _:
            return f"{repo} could not be fetched ({_named(error)}). Nothing was kept; run it again."


def run(repo: str, revision: str, destination: Path) -> str:
    """Fetch the model, or find it already there; the sentence that says which. Raises UserError, OSError."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo!r} is not the name of a repository, such as openai-community/gpt2. {error}") from error
    if destination.is_dir() and any(destination.iterdir()):
        source = check_already_there(repo, revision, destination)
        return f"already there: {destination} holds {repo} at {source.commit}, and all files verify"
    if destination.exists() and not destination.is_dir():
        raise UserError(f"{destination} is a file. Choose a folder with --to.")
    source = download(repo, revision, destination)
    total = sum(record.size for record in source.files.values())
    return f"{destination}: {len(source.files)} files, {human_size(total)}, verified"


def main() -> int:
    """Command line; the exit code: 0 the model is there, 2 it is not and stderr says why and what to do."""
    parser = argparse.ArgumentParser(description="Fetch a model (safetensors only) from the Hugging Face hub.")
    parser.add_argument("repo", help="repository on the hub, such as openai-community/gpt2")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    parser.add_argument("--to", type=Path, metavar="DIR", help="folder to create (default: model/<last part of REPO>)")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when the hub's library is imported
    signal.signal(signal.SIGTERM, _stop)
    folder: Path = args.to or ROOT / "model" / args.repo.rpartition("/")[2]
    destination = folder.expanduser().resolve()  # behind a link, the hidden folder must lie on the link's target's disk
    try:
        print(run(args.repo, args.revision, destination))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cannot use {destination}: {error}. Choose another folder with --to.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was kept", file=sys.stderr)
        return 130
    return 0


def _stop(_signal: int, _frame: object) -> NoReturn:
    """End as an exception does, so that the hidden folder is removed on the way out."""
    sys.exit(143)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    sys.exit(main())
