"""Known models, fetched from the Hugging Face hub when a person asks for it.

Every file is checked against the digest that the hub keeps of it (SHA-256 of large files, Git's own
SHA-1 of small ones), and against the one pinned here where there is one. A folder of models appears
whole or not at all. What was fetched is written beside it, in ``revision.json``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from .errors import AtelierError, needed_package, require
from .model_download import TIMEOUT, RemoteFile, download, in_words

REVISION_FILE = "revision.json"
SPARE_BYTES = 64 << 20
"""What stays free on the disk."""

Tick = Callable[[int, int], None]
"""Bytes done, bytes in all; may raise to cancel."""


@dataclass(frozen=True, slots=True)
class KnownFile:
    """A file of a model on the hub."""

    path: str
    """Within the repository, and within the folder."""
    size_bytes: int
    """About, for what is told beforehand; exact where ``sha256`` is given."""
    sha256: str | None = None
    """None = whatever the hub says of it at the revision."""
    if_there: bool = False
    """Only where the revision has it: which small files go with a tokenizer differs."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be fetched."""

    name: str
    """Of its folder."""
    repo_id: str
    revision: str
    """Full commit hash; "" = the newest, found once when it is fetched, and written down."""
    files: tuple[KnownFile, ...]
    licence: str

    @property
    def size_bytes(self) -> int:
        """Of all files, about."""
        return sum(file.size_bytes for file in self.files)

    @property
    def size(self) -> str:
        """``379 MB``."""
        return in_megabytes(self.size_bytes)

    @property
    def page(self) -> str:
        """Where a person reads about the model and gets its files."""
        return f"https://huggingface.co/{self.repo_id}"


def in_megabytes(size_bytes: int) -> str:
    """``379 MB``, and ``1.3 GB`` from there on."""
    megabytes = size_bytes / 1e6
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def fetch(model: KnownModel, folder: Path, tick: Tick, endpoint: str | None = None) -> Path:
    """Bring a model's files into ``folder``: all of them or none.

    Args:
        folder: the model's own; other files that lie in it stay.
        endpoint: of the hub; None = huggingface.co, or what the variable HF_ENDPOINT names.

    Returns:
        ``folder``.

    Raises:
        AtelierError: no network, a file that is not there or arrives damaged, a full disk; says
            what to fetch by hand, and where to put it.
        whatever ``tick`` raises.
    """
    staged = folder.with_name(f".{folder.name[:64]}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        revision, files = _listing(model, endpoint)
        total = sum(file.size_bytes for file in files)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_space(folder.parent, total)
        done = 0
        for file in files:
            target = staged / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            download(file, target, lambda size, before=done: tick(before + size, total))
            done += file.size_bytes
        _write_revision(staged / REVISION_FILE, model, revision, files)
        _move_into(staged, folder)
    except (AtelierError, OSError) as error:
        raise AtelierError(f"{in_words(error)} {_by_hand(model, folder)}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # there is none after a success
    return folder


def _listing(model: KnownModel, endpoint: str | None) -> tuple[str, list[RemoteFile]]:
    """The revision, and what the hub says of each file in it."""
    hub = needed_package("huggingface_hub", "Fetching a model")
    api = hub.HfApi(endpoint=endpoint, token=False)  # these models are public
    try:
        info = api.model_info(
            model.repo_id, revision=model.revision or None, files_metadata=True, timeout=TIMEOUT
        )
    except Exception as error:  # of requests or of httpx, by the release of huggingface_hub
        raise AtelierError(
            f"{api.endpoint}/{model.repo_id} did not answer: {in_words(error)}"
        ) from error
    of_path = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    files = []
    for known in model.files:
        found = of_path.get(known.path)
        if found is None and known.if_there:
            continue
        require(
            found is not None,
            f"{api.endpoint}/{model.repo_id} has no {known.path} in revision {info.sha}.",
        )
        url = f"{api.endpoint}/{model.repo_id}/resolve/{info.sha}/{quote(known.path)}"
        sha256 = known.sha256 or (found.lfs["sha256"] if found.lfs else None)
        files.append(RemoteFile(known.path, url, found.size or 0, sha256, found.blob_id))
    return info.sha, files


def _require_space(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    require(
        free >= size_bytes + SPARE_BYTES,
        f'The disk of "{folder}" has {in_megabytes(free)} free, and {in_megabytes(size_bytes)} '
        "are to be fetched. Free some space.",
    )


def _write_revision(path: Path, model: KnownModel, revision: str, files: list[RemoteFile]) -> None:
    facts = {
        "repo_id": model.repo_id,
        "revision": revision,
        "licence": model.licence,
        "files": {
            file.path: {"size": file.size_bytes, "sha256": file.sha256, "git_sha1": file.git_sha1}
            for file in files
        },
    }
    path.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def _move_into(staged: Path, folder: Path) -> None:
    """In one step where there is no folder yet; else file by file."""
    if not folder.exists():
        staged.rename(folder)
        return
    for source in sorted(path for path in staged.rglob("*") if path.is_file()):
        target = folder / source.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)


def _by_hand(model: KnownModel, folder: Path) -> str:
    names = ", ".join(file.path for file in model.files)
    return f'Or get {names} from {model.page} yourself and put them into "{folder}".'
