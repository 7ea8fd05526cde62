"""Image files under the output: where each one lives, and writing it so that a power cut can't take it back.

Paths are relative to the output, with forward slashes, as the tables show them. What is a good image is decided in
`verification`; whether one is wanted, in the engine.
"""

import hashlib
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from nanobanana_pipeline.catalogue.identity import safe_name
from nanobanana_pipeline.object_stores.opening import open_uri
from nanobanana_pipeline.storage import durable
from nanobanana_pipeline.storage.verification import BadImage, ImageFacts, format_of, verify_image

__all__ = ["BadImage", "ImageFacts", "ImageStore", "verify_image"]

IMAGES = "images"
UNUSABLE = "unusable"

_SHA_DIGITS = 12


class ImageStore:
    """The images of one output: a local folder, or an fsspec URI. Safe to share between threads."""

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self._local = None if durable.is_remote(self.root) else durable.local_path(self.root)
        self._ready_folders: set[str] = set()

    def path_for(
        self, catalogue: str, shard: str, prompt_id: str, sample: int, sha256: str, ext: str, *, n: int = 1
    ) -> str:
        """Where the `n`th image of an item's task belongs: `images/<catalogue>/<shard>/<prompt_id>-<sample>-….<ext>`.

        Any string is a valid name here: none can lead out of its folder, and no two give the same path.
        """
        which = f"{sample}" if n == 1 else f"{sample}-{n}"
        name = f"{safe_name(prompt_id)}-{which}-{sha256[:_SHA_DIGITS]}.{ext}"
        return f"{IMAGES}/{safe_name(catalogue)}/{safe_name(shard)}/{name}"

    @property
    def local(self) -> bool:
        """Whether images are files of this machine."""
        return self._local is not None

    def write(self, relative: str, data: bytes) -> None:
        """Store `data` at `relative`, whole and durable when this returns. What was there is replaced in one step."""
        self.write_all([(relative, data)])

    def write_all(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Store several files, each as `write` does; should one fail, any of them may be there, whole."""
        if self._local is None:
            filesystem, base = open_uri(self.root)
            for relative, data in files:
                # An object store shows an object only once it is there in full.
                filesystem.pipe_file(f"{base}/{_inside(relative)}", data)
            return
        paths = [(f"{self._local}/{_inside(relative)}", data) for relative, data in files]
        folders = {os.path.split(path)[0] for path, _ in paths}
        for folder in folders - self._ready_folders:
            durable.make_folder(folder)
            self._ready_folders.add(folder)
        try:
            durable.write_files(paths)
        except FileNotFoundError:  # someone tidied up under us
            for folder in folders:
                durable.make_folder(folder)
            durable.write_files(paths)

    def read(self, relative: str) -> bytes:
        """The bytes at `relative`; `FileNotFoundError` when there are none."""
        if self._local is None:
            filesystem, base = open_uri(self.root)
            return bytes(filesystem.cat_file(f"{base}/{_inside(relative)}"))
        return Path(self._local, _inside(relative)).read_bytes()

    def exists(self, relative: str, size: int | None = None) -> bool:
        """Whether there is a file at `relative`, of `size` bytes when given: a row of a table is only a claim."""
        path = _inside(relative)
        try:
            if self._local is None:
                filesystem, base = open_uri(self.root)
                found = int(filesystem.size(f"{base}/{path}") or 0)
            else:
                found = os.stat(f"{self._local}/{path}").st_size  # noqa: PTH116 - a million times over
        except (FileNotFoundError, NotADirectoryError):
            return False
        return size is None or found == size

    def matches(self, relative: str, sha256: str) -> bool:
        """Whether the file at `relative` is there and holds exactly the bytes with this hash."""
        try:
            data = self.read(relative)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return hashlib.sha256(data).hexdigest() == sha256

    def set_aside(self, attempt_id: str, data: bytes, ext: str | None = None) -> str:
        """Keep bytes that were paid for but can't be used, as evidence; the path they are at, under `unusable/`."""
        digest = hashlib.sha256(data).hexdigest()[:_SHA_DIGITS]
        relative = f"{UNUSABLE}/{safe_name(attempt_id)}-{digest}.{ext or format_of(data) or 'bin'}"
        self.write(relative, data)
        return relative

    def clean_temp(self, older_than_s: float = 3600.0) -> list[str]:
        """Remove what writers that died left half written; the paths removed.

        Younger files stay: another worker may be writing them. Walks every folder of images, so not for each run.
        """
        if self._local is None:
            return []  # object stores keep no half-written objects
        removed: list[str] = []
        for folder in (IMAGES, UNUSABLE):
            for path in durable.leftovers(f"{self._local}/{folder}", older_than_s):
                Path(path).unlink(missing_ok=True)
                removed.append(os.path.relpath(path, self._local))
        return removed


def _inside(relative: str) -> str:
    """`relative` when it stays inside the output. Paths come from tables too, and those can be edited."""
    clean = posixpath.normpath(relative)
    if clean != relative or clean.startswith(("/", "../")) or clean in {".", ".."}:
        raise ValueError(f"not a path inside the output: {relative!r}")
    return clean
