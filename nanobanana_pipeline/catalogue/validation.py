"""Reads a catalogue once, in batches, and tells good rows from bad ones before anything is spent.

Every row becomes a prompt or a rejection. Whole columns are worked on at a time; only a bad row costs more than that.
The rules are in `rules`, and what becomes of the prompts is the ledger's.
"""
# pyarrow has no types of its own, and makes pyarrow.compute's functions when it is imported.
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, repeat
from typing import NamedTuple, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nanobanana_pipeline.catalogue import columns
from nanobanana_pipeline.catalogue.columns import PlainBatch
from nanobanana_pipeline.catalogue.identity import Request, RequestHasher
from nanobanana_pipeline.catalogue.labels import labels_json
from nanobanana_pipeline.catalogue.occurrences import Occurrences
from nanobanana_pipeline.catalogue.reading import (
    CatalogueFile,
    CatalogueSource,
    UnreadableFileError,
    iter_batches,
    one_line,
)
from nanobanana_pipeline.catalogue.rules import (
    FILE_RULES,
    Broken,
    Fault,
    RejectedPrompt,
    Rule,
    faults,
    reject,
    reject_file,
    schema_faults,
    shown,
    undecodable,
)
from nanobanana_pipeline.memory import collector_paused
from nanobanana_pipeline.model_specs.spec import ModelSpec

__all__ = ["FILE_RULES", "CataloguePrompt", "RejectedPrompt", "Rule", "ValidatedBatch", "validate"]

_T = TypeVar("_T")

# A row's place in the whole catalogue as one number: the file's index above, the row's number below.
_ROW_BITS = 40


class CataloguePrompt(NamedTuple):
    """A good row: `samples` images of one request are wanted, sooner than those of lower `priority`."""

    catalogue: str
    prompt_id: str
    samples: int
    request: Request
    request_hash: str
    campaign: str | None
    labels: str | None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ValidatedBatch:
    """Some rows of a catalogue, in order, told apart."""

    prompts: list[CataloguePrompt]
    rejected: list[RejectedPrompt]


def validate(source: CatalogueSource, spec: ModelSpec) -> Iterator[ValidatedBatch]:
    """Each row of a catalogue as a prompt or a rejection; what can't be read of a file is one rejection of its own.

    Never raises for what is in the files. The memory in use does not grow with the catalogue.
    """
    validator = _Validator(source, spec)
    for index in range(len(source.files)):
        yield from validator.check_file(index)


class _Validator:
    """What has to be known across the batches of one catalogue."""

    def __init__(self, source: CatalogueSource, spec: ModelSpec) -> None:
        self._source = source
        self._spec = spec
        self._hasher = RequestHasher(spec)
        self._proper_name = {name.lower(): name for name in spec.response_modalities}
        self._prompt_ids = Occurrences()
        self._anonymous_requests = Occurrences()

    def check_file(self, index: int) -> Iterator[ValidatedBatch]:
        """The rows of one file; whatever happens to the file meanwhile, the rows seen so far stand."""
        file, rows_seen = self._source.files[index], 0
        try:
            for batch in iter_batches(file):
                if rows_seen == 0 and (rejected := list(self._schema_rejections(file, batch.schema))):
                    yield ValidatedBatch([], rejected)
                    return
                yield self._check_batch(index, _plain_batch(batch, rows_seen + 1))
                rows_seen += batch.num_rows
        except UnreadableFileError as error:
            after = f" after row {rows_seen}" if rows_seen else ""
            says = f"can't be read{after}: {error}; write it again, whole"
            unreadable = reject_file(self._source.name, file.path, Rule.UNREADABLE_FILE, None, None, says)
            yield ValidatedBatch([], [unreadable])

    def _schema_rejections(self, file: CatalogueFile, schema: pa.Schema) -> Iterator[RejectedPrompt]:
        for rule, column, value, says in schema_faults(schema):
            yield reject_file(self._source.name, file.path, rule, column, value, says)

    def _check_batch(self, index: int, batch: PlainBatch) -> ValidatedBatch:
        readable, rejected = self._part(index, batch, undecodable(batch))
        good, broken = self._part(index, readable, faults(readable, self._spec))
        rejected |= broken
        with collector_paused():
            rows, prompts = good.row_numbers.tolist(), self._prompts(good)
        taken = self._taken_ids(index, rows, prompts, rejected)
        if taken:
            rejected |= taken
            prompts = [prompt for row, prompt in zip(rows, prompts, strict=True) if row not in taken]
        return ValidatedBatch(prompts, [rejected[row] for row in sorted(rejected)])

    def _part(
        self, index: int, batch: PlainBatch, found: Sequence[Fault]
    ) -> tuple[PlainBatch, dict[int, RejectedPrompt]]:
        """Part a batch by the faults found in it: the rows without any, and the others rejected, by row number."""
        if not found:
            return batch, {}
        bad = np.logical_or.reduce([fault.rows for fault in found])
        rejected: dict[int, RejectedPrompt] = {}
        for i in np.flatnonzero(bad).tolist():
            broken = [(fault.rule, fault.column, fault.value(i), fault.says(i)) for fault in found if fault.rows[i]]
            rejected[int(batch.row_numbers[i])] = self._reject(index, batch, i, broken)
        return batch.take(np.flatnonzero(~bad)), rejected

    def _reject(self, index: int, batch: PlainBatch, i: int, broken: Sequence[Broken]) -> RejectedPrompt:
        file, row = self._source.files[index].path, int(batch.row_numbers[i])
        return reject(self._source.name, file, row, _prompt_id_at(batch, i), broken)

    def _prompts(self, batch: PlainBatch) -> list[CataloguePrompt]:
        """A batch of good rows as prompts, all of them: whether their ids are taken is another question."""
        requests = [
            Request(self._spec.name, *fields)
            for fields in zip(
                batch.known["prompt"].to_pylist(),
                _entries(batch, "image_urls"),
                _texts(batch, "aspect_ratio"),
                _texts(batch, "resolution"),
                self._modalities_of(batch),
                strict=False,  # a column that is not there goes on for ever
            )
        ]
        hashes = self._hasher.hashes(requests)
        fields = zip(
            self._ids(batch, hashes),
            _whole_numbers(batch, "samples", 1),
            requests,
            hashes,
            _texts(batch, "campaign"),
            labels_json(batch.labels) if batch.labels else repeat(None),
            _whole_numbers(batch, "priority", 0),
            strict=False,
        )
        return [CataloguePrompt(self._source.name, *row) for row in fields]

    def _modalities_of(self, batch: PlainBatch) -> Iterable[tuple[str, ...] | None]:
        if "response_modalities" not in batch.known:
            return repeat(None)
        # No modality has a comma in its name, and these rows are good: joined, different lists stay different.
        return _few(pc.binary_join(batch.known["response_modalities"], ","), self._modalities)

    def _modalities(self, joined: str) -> tuple[str, ...]:
        """Response modalities in the provider's spelling, each once."""
        return tuple(dict.fromkeys(self._proper_name[name.lower()] for name in joined.split(",")))

    def _ids(self, batch: PlainBatch, hashes: list[str]) -> list[str]:
        """The prompt ids of some good rows; a row without one is named by its request and how often it came."""
        given = list(islice(_texts(batch, "prompt_id"), len(hashes)))
        anonymous = [i for i, prompt_id in enumerate(given) if prompt_id is None]
        nameless = [hashes[i] for i in anonymous]
        before = self._anonymous_requests.tally(nameless, repeat(0, len(nameless)))
        for n, i in enumerate(anonymous):
            ordinal = before[n].ordinal if n in before else 1
            given[i] = f"auto-{hashes[i][:16]}-{ordinal}"
        return cast(list[str], given)

    def _taken_ids(
        self, index: int, rows: list[int], prompts: list[CataloguePrompt], rejected: dict[int, RejectedPrompt]
    ) -> dict[int, RejectedPrompt]:
        """Rejections, by row number, of the prompts whose id an earlier row has, be that row good or bad."""
        ids = dict(zip(rows, (prompt.prompt_id for prompt in prompts), strict=True))
        by_row = ids | {row: bad.prompt_id for row, bad in rejected.items() if bad.prompt_id}
        claims = sorted(by_row) if rejected else rows
        places = [index << _ROW_BITS | row for row in claims]
        again = self._prompt_ids.tally([by_row[row] for row in claims], places)
        return {
            row: self._reject_taken(index, row, ids[row], occurrence.first_place)
            for position, occurrence in again.items()
            if (row := claims[position]) in ids
        }

    def _reject_taken(self, index: int, row: int, prompt_id: str, first_place: int) -> RejectedPrompt:
        files = self._source.files
        first_file, first_row = files[first_place >> _ROW_BITS].path, first_place & ((1 << _ROW_BITS) - 1)
        says = f"{shown(prompt_id)} is taken by row {first_row} of {first_file}"
        broken = [(Rule.DUPLICATE_PROMPT_ID, "prompt_id", prompt_id, says)]
        return reject(self._source.name, files[index].path, row, prompt_id, broken)


def _plain_batch(batch: pa.RecordBatch, first_row: int) -> PlainBatch:
    try:
        return PlainBatch.of(batch, first_row)
    except pa.ArrowException as error:
        raise UnreadableFileError(one_line(error)) from None


def _prompt_id_at(batch: PlainBatch, i: int) -> str | None:
    """The id of a bad row, however bad."""
    ids = batch.known.get("prompt_id")
    if ids is None or not ids[i].is_valid:
        return None
    return ids[i].as_buffer().to_pybytes().decode(errors="replace").replace("\0", "\\0") or None


def _texts(batch: PlainBatch, column: str) -> Iterable[str | None]:
    """The values of an optional text column, empty as None."""
    if column not in batch.known:
        return repeat(None)
    return _few(batch.known[column], str)


def _few(texts: pa.StringArray, convert: Callable[[str], _T]) -> list[_T | None]:
    """A column converted, each different value once; empty and null as None."""
    encoded = texts.dictionary_encode()
    values = [*(convert(text) if text else None for text in encoded.dictionary.to_pylist()), None]
    return [values[code] for code in pc.fill_null(encoded.indices, -1).to_pylist()]


def _entries(batch: PlainBatch, column: str) -> Iterable[tuple[str, ...]]:
    """The lists of a column, null as empty."""
    if column not in batch.known or not len(entries := batch.known[column].flatten()):
        return repeat(())
    values, ends = entries.to_pylist(), np.cumsum(columns.lengths(batch.known[column])).tolist()
    return [tuple(values[begin:end]) for begin, end in pairwise([0, *ends])]


def _whole_numbers(batch: PlainBatch, column: str, default: int) -> Iterable[int]:
    if column not in batch.known:
        return repeat(default)
    return pc.fill_null(batch.known[column], default).cast(pa.int64()).to_pylist()
