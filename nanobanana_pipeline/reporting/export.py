"""The images for the people who want them: current ones, under names that can be read, with a list of what they are.

Files are byte for byte what the provider sent, so that signed provenance (C2PA) stays valid; each is held against its
hash on the way. Nothing here changes the output.
"""

import hashlib
import re
import unicodedata
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from nanobanana_pipeline.catalogue.identity import Request, safe_name
from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.generation.publishing import image_rows, usd
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger import schema, statement
from nanobanana_pipeline.ledger.statement import ItemStatement
from nanobanana_pipeline.object_stores.opening import ObjectStoreError
from nanobanana_pipeline.storage import durable
from nanobanana_pipeline.storage.query import csv_value
from nanobanana_pipeline.storage.schemas import MONEY, TIME

Format = Literal["folder", "zip", "parquet", "csv"]
FORMATS: Final[tuple[Format, ...]] = ("folder", "zip", "parquet", "csv")
MANIFEST: Final = "manifest.csv"

_SLUG_CHARS: Final = 48
_ROW_GROUP_BYTES: Final = 64_000_000
_ZIP_TIME: Final = (1980, 1, 1, 0, 0, 0)


class Exported(NamedTuple):
    """A row of the manifest: an image file, what it shows and, on the first of an item, what that cost."""

    file: str
    catalogue: str
    prompt_id: str
    sample: int
    n: int
    campaign: str | None
    labels: str | None
    prompt: str
    text: str | None
    aspect_ratio: str | None
    resolution: str
    width: int
    height: int
    format: str
    bytes: int
    sha256: str
    has_c2pa: bool
    cost_usd: Any
    stored_at: datetime | None
    source_path: str


@dataclass(slots=True)
class ExportReport:
    """Where it is, how many images and bytes it holds, and the images whose files are missing or no longer whole."""

    path: str
    images: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)


def export(
    workspace: Workspace,
    destination: str | Path,
    fmt: Format = "folder",
    *,
    catalogue: str | None = None,
    campaign: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ExportReport:
    """Export the current images (all, or those of a catalogue or campaign) with a manifest.

    `folder` and `zip` hold files and `manifest.csv`, `parquet` one table with the bytes in it, `csv` the manifest
    alone. A damaged image is left out and reported. `on_progress` is told how many images are done. Raises `UserError`
    for a destination that is there already.
    """
    target = Path(destination).expanduser().absolute()
    report = ExportReport(str(target))
    _check_destination(target, fmt)
    shards = _shards(workspace, catalogue)
    with _SINKS[fmt].open(target) as sink:
        for row in _named_apart(_current(workspace, shards, campaign)):
            data = b""
            if fmt != "csv":
                found = _read(workspace, row)
                if found is None:
                    report.damaged.append(row.source_path)
                    continue
                data = found
            sink.add(row, data)
            report.images += 1
            report.bytes += row.bytes
            if on_progress is not None:
                on_progress(report.images)
    return report


def _check_destination(target: Path, fmt: Format) -> None:
    if target.exists() and not (fmt == "folder" and target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} is there already: name another destination, or take that one away first")
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent}: make it, or name another destination")


def _shards(workspace: Workspace, catalogue: str | None) -> list[str]:
    """The shards in the catalogues' order, or those of one. Raises `UserError` for a catalogue that nobody knows."""
    shards = schema.shards
    query = sa.select(shards.c.shard).order_by(shards.c.catalogue, shards.c.number)
    if catalogue is not None:
        query = query.where(shards.c.catalogue == catalogue)
    with workspace.ledger.database.read() as connection:
        names = list(connection.execute(query).scalars())
    if catalogue is not None and not names:
        raise UserError(f"there is no catalogue {catalogue} in the ledger: see `nanobanana status`")
    return names


def _current(workspace: Workspace, shards: Iterable[str], campaign: str | None) -> Iterator[Exported]:
    """The current images of active items, in the catalogues' order."""
    for shard in shards:
        # A transaction a shard: copying many images takes long, and a long reader is in the writers' way.
        with workspace.ledger.database.read() as connection:
            items, _ = statement.shard_statement(connection, shard)
        for entry in items:
            if entry.item.active and campaign in (None, entry.item.campaign):
                yield from _rows(entry)


def _rows(entry: ItemStatement) -> Iterator[Exported]:
    item, attempt = entry.item, entry.attempt
    request = Request.from_json(item.body)
    # On the item's first image alone, so that the column can be added up.
    cost_micros = entry.cost_micros
    for image in image_rows(entry):
        n = image["n"]
        which = f"{item.sample}" if n == 1 else f"{item.sample}-{n}"
        extension = image["path"].rpartition(".")[2]
        name = f"{safe_name(item.prompt_id, 60)}-{which}{_slug(request.prompt)}.{extension}"
        stored_at = attempt.stored_at if attempt else None
        yield Exported(
            file=f"{safe_name(item.catalogue)}/{name}",
            catalogue=item.catalogue,
            prompt_id=item.prompt_id,
            sample=item.sample,
            n=n,
            campaign=item.campaign,
            labels=item.labels,
            prompt=request.prompt,
            text=attempt.text if attempt else None,
            aspect_ratio=request.aspect_ratio,
            resolution=item.resolution,
            width=image["width"],
            height=image["height"],
            format=image["format"],
            bytes=image["bytes"],
            sha256=image["sha256"],
            has_c2pa=image["has_c2pa"],
            cost_usd=usd(cost_micros),
            stored_at=datetime.fromtimestamp(stored_at / 1000, UTC) if stored_at else None,
            source_path=image["path"],
        )
        cost_micros = 0


def _named_apart(rows: Iterable[Exported]) -> Iterator[Exported]:
    """The rows, none with the file name of another, also where large and small letters are one."""
    taken: set[str] = set()
    for row in rows:
        file = row.file
        if file.lower() in taken:
            stem, _, extension = file.rpartition(".")
            file = f"{stem}-{row.sha256[:8]}-{len(taken)}.{extension}"
        taken.add(file.lower())
        yield row._replace(file=file)


def _slug(prompt: str) -> str:
    """The prompt's first words, as a part of a file name; empty when none of its characters can be."""
    plain = unicodedata.normalize("NFKD", prompt[:200]).encode("ascii", "ignore").decode().lower()
    slug = "-".join(re.findall(r"[a-z0-9]+", plain))
    if len(slug) > _SLUG_CHARS:
        # Whole words, when there is more than one.
        slug = slug[: _SLUG_CHARS + 1].rpartition("-")[0] or slug[:_SLUG_CHARS]
    return f"-{slug}" if slug else ""


def _read(workspace: Workspace, row: Exported) -> bytes | None:
    """The image's bytes; None when the file is missing or is not what was stored."""
    try:
        data = workspace.images.read(row.source_path)
    except ObjectStoreError:
        raise  # of a store that is out of reach nobody knows whether its images are whole
    except (OSError, ValueError):
        return None
    return data if hashlib.sha256(data).hexdigest() == row.sha256 else None


class _Sink(Protocol):
    """Where exported images go; what is half done when an error comes is taken away."""

    @classmethod
    def open(cls, target: Path) -> Any:
        """A context manager that gives the sink."""
        ...

    def add(self, row: Exported, data: bytes) -> None:
        """Add an image."""
        ...


class _Manifest:
    """A CSV file that spreadsheets open with the right characters, and take nothing in it for a formula."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8-sig", newline="")
        self._write(Exported._fields)

    def add(self, row: Exported) -> None:
        self._write(row)

    def close(self) -> None:
        self._file.close()

    def _write(self, values: Iterable[Any]) -> None:
        self._file.write(",".join(map(csv_value, values)) + "\n")


class _Folder:
    def __init__(self, target: Path) -> None:
        self._target = target
        self._folders: set[Path] = set()
        target.mkdir(exist_ok=True)
        self._manifest = _Manifest(target / MANIFEST)

    @classmethod
    @contextmanager
    def open(cls, target: Path) -> Generator[Self]:
        sink = cls(target)
        try:
            yield sink
        finally:
            # The files that are there are good; with the manifest a person sees how far it came.
            sink._manifest.close()

    def add(self, row: Exported, data: bytes) -> None:
        path = self._target / row.file
        if path.parent not in self._folders:
            path.parent.mkdir(exist_ok=True)
            self._folders.add(path.parent)
        path.write_bytes(data)
        self._manifest.add(row)


class _Csv:
    def __init__(self, path: Path) -> None:
        self._manifest = _Manifest(path)

    @classmethod
    @contextmanager
    def open(cls, target: Path) -> Generator[Self]:
        with _whole(target) as path:
            sink = cls(path)
            try:
                yield sink
            finally:
                sink._manifest.close()

    def add(self, row: Exported, data: bytes) -> None:  # noqa: ARG002 - a list has no use for it
        # There are no files beside it, so it points to those of the output.
        self._manifest.add(row._replace(file=row.source_path))


class _Zip:
    def __init__(self, archive: zipfile.ZipFile, manifest: Path) -> None:
        self._archive = archive
        self._manifest = _Manifest(manifest)

    @classmethod
    @contextmanager
    def open(cls, target: Path) -> Generator[Self]:
        with _whole(target) as path:
            manifest = path.with_name(f"{path.name}.manifest")
            try:
                # Images are compressed already.
                with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                    sink = cls(archive, manifest)
                    try:
                        yield sink
                    finally:
                        sink._manifest.close()
                    sink._write(MANIFEST, manifest.read_bytes(), zipfile.ZIP_DEFLATED)
            finally:
                manifest.unlink(missing_ok=True)

    def add(self, row: Exported, data: bytes) -> None:
        self._write(row.file, data, zipfile.ZIP_STORED)
        self._manifest.add(row)

    def _write(self, name: str, data: bytes, compression: int) -> None:
        # One time for all: the same images give the same archive.
        entry = zipfile.ZipInfo(name, _ZIP_TIME)
        entry.external_attr = 0o644 << 16
        self._archive.writestr(entry, data, compression)


_PARQUET: Final = pa.schema(
    [
        # The shape that data sets of images have: readers of those show the picture.
        pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *(
            pa.field(
                name,
                {
                    "sample": pa.int32(),
                    "n": pa.int32(),
                    "width": pa.int32(),
                    "height": pa.int32(),
                    "bytes": pa.int64(),
                    "has_c2pa": pa.bool_(),
                    "cost_usd": MONEY,
                    "stored_at": TIME,
                }.get(name, pa.string()),
            )
            for name in Exported._fields
        ),
    ]
)


class _Parquet:
    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    @classmethod
    @contextmanager
    def open(cls, target: Path) -> Generator[Self]:
        with (
            _whole(target) as path,
            pq.ParquetWriter(path, _PARQUET, compression="none", use_dictionary=False) as writer,
        ):
            sink = cls(writer)
            yield sink
            sink._flush()

    def add(self, row: Exported, data: bytes) -> None:
        self._rows.append({"image": {"bytes": data, "path": row.file}, **row._asdict()})
        self._bytes += len(data)
        if self._bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_PARQUET))
            self._rows, self._bytes = [], 0


_SINKS: Final[dict[Format, type[_Sink]]] = {"folder": _Folder, "zip": _Zip, "parquet": _Parquet, "csv": _Csv}


@contextmanager
def _whole(target: Path) -> Generator[Path]:
    """A path to write to that becomes `target` when all went well, and is taken away when not."""
    path = target.with_name(f"{durable.TEMP_PREFIX}{target.name}{durable.TEMP_SUFFIX}")
    try:
        yield path
        path.replace(target)
    finally:
        path.unlink(missing_ok=True)
