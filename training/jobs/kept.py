"""Latents and encoded captions that lie in a job, each under a digest of its own content.

So one that several pictures share is there once, and what names the digests says what all of it is.
The latents are in the model's own scale, as :class:`training.runs.examples.EncodedImage` has them:
who trains from them needs no VAE.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from ..cache import Entry, TensorCache, digest_of
from ..errors import AtelierError, require
from ..runs.examples import Conditioning, EncodedImage
from ..runs.identity import tensors_digest
from ..tensor_tree import NotATree, put_together, take_apart

Key = TypeVar("Key")
Value = TypeVar("Value")


class Kept(Mapping[Key, Value]):
    """Entries by what they belong to, read when they are asked for.

    Args:
        folder: where they lie.
        digests: of the entries, in hexadecimal.
        made_of: turns an entry into the value.
    """

    def __init__(
        self, folder: Path, digests: Mapping[Key, str], made_of: Callable[[Entry], Value]
    ) -> None:
        self._cache, self._made_of = TensorCache(folder), made_of
        self._digests = {key: bytes.fromhex(digest) for key, digest in digests.items()}

    def __getitem__(self, key: Key) -> Value:
        digest = self._digests[key].hex()
        entry = self._cache.read(digest)
        if entry is None:
            raise AtelierError(
                f'The job\'s file "{self._cache.path(digest)}" is gone or damaged. Copy the job '
                "anew, or export it again."
            )
        return self._made_of(entry)

    def __contains__(self, key: object) -> bool:
        return key in self._digests  # Mapping's own would read the entry

    def __iter__(self) -> Iterator[Key]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)

    def require_all(self) -> None:
        """Raises :class:`AtelierError` when files are missing; what is in them is checked when
        they are read."""
        paths = {self._cache.path(digest.hex()) for digest in self._digests.values()}
        missing = sorted(path.name for path in paths if not path.is_file())
        require(
            not missing,
            f'The job lacks {len(missing)} of {len(paths)} files in "{self._cache.folder}" '
            f"({', '.join(missing[:2])}). Copy the job anew, or export it again.",
        )


def kept_image(entry: Entry) -> EncodedImage:
    """A view of a picture, from its entry."""
    return EncodedImage(entry[0]["latent"], entry[0].get("mask"))


def kept_conditioning(entry: Entry) -> Conditioning:
    """A caption as the host encoded it, from its entry."""
    return put_together(entry[0], entry[1]["form"])


class Keeping:
    """Entries on their way into a job.

    Args:
        folder: where they are to lie.
    """

    def __init__(self, folder: Path) -> None:
        self._cache = TensorCache(folder)
        self._there: set[str] = set()

    def image(self, image: EncodedImage) -> str:
        """Write a view, unless it is there.

        Returns:
            Its digest.

        Raises:
            AtelierError: the disk is full or the folder cannot be written.
        """
        mask = {} if image.mask is None else {"mask": image.mask}
        return self._write({"latent": image.latent, **mask}, {})

    def conditioning(self, conditioning: Conditioning) -> str:
        """Write an encoded caption, unless it is there; as :meth:`image`.

        Raises:
            AtelierError: likewise, or no file can hold it.
        """
        try:
            tensors, form = take_apart(conditioning)
        except NotATree as error:
            raise AtelierError(
                f"clip: other nodes hung a value of the kind {error} on the text encoder, which no "
                "file can hold, so this run cannot be trained outside. Wire the CLIP without them."
            ) from error
        return self._write(tensors, {"form": form})

    def _write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
        digest = digest_of(tensors_digest(tensors), dict(facts))
        if digest not in self._there:
            try:
                self._cache.write(digest, tensors, facts)
            except AtelierError as error:  # which speaks of a cache that is filled again
                raise AtelierError(
                    f"The job could not be written: {error.__cause__}. Free some space on that "
                    "disk and export it again."
                ) from error
            self._there.add(digest)
        return digest
