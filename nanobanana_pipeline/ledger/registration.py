"""Bringing a catalogue into the book: which items are new, edited or gone, and which shard each belongs to.

Shards are append-only. A prompt gets its shard once, when it is first seen; edits, insertions and removals move nobody.
The catalogue is taken in batches, each in a transaction of its own, so that running engines are never held up for long.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.engine import Connection

from nanobanana_pipeline.catalogue.identity import item_ids
from nanobanana_pipeline.catalogue.sharding import shard_key
from nanobanana_pipeline.catalogue.validation import CataloguePrompt
from nanobanana_pipeline.ledger import schema
from nanobanana_pipeline.ledger.changes import count_change
from nanobanana_pipeline.ledger.database import Database, through_deadlocks
from nanobanana_pipeline.ledger.kept_images import has_image
from nanobanana_pipeline.ledger.states import ItemState
from nanobanana_pipeline.memory import collector_paused

T = TypeVar("T")

_items = schema.items
_shards = schema.shards
_requests = schema.requests
_catalogues = schema.catalogues

# Each commit writes most pages of the indexes by hash, which have no order. With commits that grow with what is there
# already, a million rows are written some fifteen times over instead of hundreds, and a small catalogue needs little
# memory. A commit of the most holds engines up for a second or two.
_PROMPTS_A_COMMIT = (4_000, 32_000)
_COMMIT_SHARE = 4
# SQLite takes at most 32,766 bound parameters; shorter lists also plan faster.
_IDS_A_QUERY = 500
_ROWS_A_PAGE = 1_000
GONE = "gone"
"""The fingerprint of a catalogue that is no longer there."""
_NEW = ItemState.PENDING.value
_HAS_OPEN_ATTEMPT = (ItemState.OPEN, ItemState.UNKNOWN, ItemState.OVERDUE)


@dataclass(slots=True)
class Registration:
    """What a catalogue brought, in items, and the shards whose rows changed by it."""

    catalogue: str
    new: int = 0
    edited: int = 0
    removed: int = 0
    unchanged: int = 0
    relabelled: int = 0
    prompts: int = 0
    shards: set[str] = field(default_factory=set)

    @property
    def items(self) -> int:
        """Active items of the catalogue."""
        return self.new + self.edited + self.unchanged + self.relabelled

    def add(self, part: "Registration") -> None:
        """Count in what a part of the catalogue brought."""
        self.new += part.new
        self.edited += part.edited
        self.removed += part.removed
        self.unchanged += part.unchanged
        self.relabelled += part.relabelled
        self.prompts += part.prompts
        self.shards |= part.shards


def registered_fingerprint(connection: Connection, catalogue: str) -> str | None:
    """What the catalogue's files looked like when they were last registered in full."""
    query = sa.select(_catalogues.c.fingerprint).where(_catalogues.c.catalogue == catalogue)
    return connection.execute(query).scalar_one_or_none()


def fingerprints(connection: Connection) -> dict[str, str | None]:
    """The same of every catalogue there ever was; `GONE` for one that was removed, and whose tables say so."""
    rows = connection.execute(sa.select(_catalogues.c.catalogue, _catalogues.c.fingerprint)).all()
    return {row.catalogue: row.fingerprint for row in rows}


def register(
    database: Database,
    catalogue: str,
    batches: Iterable[Sequence[CataloguePrompt]],
    *,
    default_resolution: str,
    shard_size: int,
    complete: Callable[[], bool],
) -> Registration:
    """Enter a catalogue's prompts, batch by batch, and mark as inactive what it no longer has.

    `complete` is asked after the last batch. False means that not all of the catalogue could be read: then nothing is
    taken for removed. The catalogue counts as registered once it is sealed, when its tables are written as well.
    """
    report = Registration(catalogue)
    with (
        one_at_a_time(database, catalogue),
        database.engine.connect() as connection,
        database.much_to_write(connection),
    ):
        writing = connection.execution_options(nanobanana_write=True)
        with database.begun(writing):
            writing.exec_driver_sql("DROP TABLE IF EXISTS seen_items")
            writing.exec_driver_sql("CREATE TEMPORARY TABLE seen_items (item_id TEXT PRIMARY KEY)")
            insert = database.upsert(_catalogues).values(catalogue=catalogue, next_position=0)
            count_change(database, writing)
            # Null until it is sealed: a registration that is cut off is done again.
            writing.execute(insert.on_conflict_do_update(index_elements=["catalogue"], set_={"fingerprint": None}))
            # Of a catalogue never seen before nothing can be known, edited or gone.
            before = sa.select(_catalogues.c.next_position).where(_catalogues.c.catalogue == catalogue)
            there: int = writing.execute(before).scalar_one()
        new = there == 0
        for batch in _gathered(batches, there):
            enter = partial(
                _register_batch, database, writing, catalogue, batch, default_resolution, shard_size, new=new
            )
            with collector_paused():
                report.add(through_deadlocks(enter))
        if complete() and not new:
            report.add(through_deadlocks(partial(_deactivate_unseen, database, writing, catalogue)))
        with database.begun(writing):
            writing.exec_driver_sql("DROP TABLE seen_items")
    return report


def _gathered(batches: Iterable[Sequence[CataloguePrompt]], there: int) -> Iterator[list[CataloguePrompt]]:
    """The prompts of the batches, in the same order, as many together as suits the items that are there already."""
    least, most = _PROMPTS_A_COMMIT
    together: list[CataloguePrompt] = []
    for batch in batches:
        together += batch
        if len(together) >= min(most, max(least, there // _COMMIT_SHARE)):
            yield together
            there += len(together)
            together = []
    if together:
        yield together


def deactivate_missing(database: Database, present: Sequence[str]) -> list[Registration]:
    """Mark every item of catalogues that are no longer there as inactive; their results and costs stay.

    A catalogue is reported until it is sealed as `GONE`, when its tables are written as well.
    """
    return through_deadlocks(partial(_deactivate_missing, database, present))


def _deactivate_missing(database: Database, present: Sequence[str]) -> list[Registration]:
    reports: list[Registration] = []
    with database.write() as connection:
        rows = connection.execute(sa.select(_catalogues).order_by(_catalogues.c.catalogue)).all()
        for row in rows:
            name = row.catalogue
            if name in present or row.fingerprint == GONE:
                continue
            gone = (_items.c.catalogue == name) & _items.c.active
            shards = set(connection.execute(sa.select(_items.c.shard).where(gone).distinct()).scalars())
            removed = connection.execute(_items.update().where(gone).values(active=False)).rowcount
            reports.append(Registration(name, removed=removed, shards=shards))
            connection.execute(_catalogues.update().where(_catalogues.c.catalogue == name).values(fingerprint=None))
        if reports:
            count_change(database, connection)
    return reports


def _register_batch(
    database: Database,
    connection: Connection,
    catalogue: str,
    batch: Sequence[CataloguePrompt],
    default_resolution: str,
    shard_size: int,
    *,
    new: bool,
) -> Registration:
    """Enter a batch, in a transaction of its own; what it brought. Of a `new` catalogue no item is looked for."""
    with database.begun(connection):
        report = Registration(catalogue)
        identities = _enter(database, connection, batch, report, default_resolution, shard_size, new=new)
        if not new:
            insert = database.upsert(_seen).on_conflict_do_nothing()
            database.insert(connection, insert, ["item_id"], [(identity,) for identity in identities])
        count_change(database, connection)
    return report


def _enter(
    database: Database,
    connection: Connection,
    batch: Sequence[CataloguePrompt],
    report: Registration,
    default_resolution: str,
    shard_size: int,
    *,
    new: bool,
) -> list[str]:
    """Enter a batch, counted in `report`; the items that it is about."""
    wanted = [(prompt, sample) for prompt in batch for sample in range(1, prompt.samples + 1)]
    identities = item_ids(report.catalogue, ((prompt.prompt_id, sample) for prompt, sample in wanted))
    known = {} if new else _items_by_id(connection, _KNOWN, identities)
    assign = _Assignment(connection, report.catalogue, shard_size)
    added: list[tuple[Any, ...]] = []
    changed: dict[str, CataloguePrompt] = {}
    requests: dict[str, CataloguePrompt] = {}
    shard_of_prompt: dict[str, str] = {}
    for identity, (prompt, sample) in zip(identities, wanted, strict=True):
        row = known.get(identity)
        if row is None:
            shard = shard_of_prompt.get(prompt.prompt_id) or assign.shard_of_new_prompt()
            added.append(_item_row(identity, prompt, sample, shard, assign.next_position()))
            report.new += 1
            report.shards.add(shard)
        else:
            shard = row.shard
            if row.request_hash != prompt.request_hash or not row.active:
                report.edited += 1
            elif (row.campaign, row.labels, row.priority) != (prompt.campaign, prompt.labels, prompt.priority):
                report.relabelled += 1
            else:
                report.unchanged += 1
            if (row.request_hash, row.campaign, row.labels, row.priority, bool(row.active)) != (
                prompt.request_hash,
                prompt.campaign,
                prompt.labels,
                prompt.priority,
                True,
            ):
                changed[identity] = prompt
                report.shards.add(shard)
        # All samples of a prompt stay together, also when more are asked for later.
        shard_of_prompt[prompt.prompt_id] = shard
        if row is None or row.request_hash != prompt.request_hash or not row.active:
            requests[prompt.request_hash] = prompt
    report.prompts += len(batch)
    _insert(database, connection, requests, added, default_resolution)
    if added:
        assign.save()
    if changed:
        connection.execute(_EDIT, _edits(database, connection, changed))
    return identities


def _insert(
    database: Database,
    connection: Connection,
    requests: Mapping[str, CataloguePrompt],
    added: list[tuple[Any, ...]],
    default_resolution: str,
) -> None:
    # A request that was adopted from the tables may lack its prompt (`adoption`). In one order for every process.
    insert = database.upsert(_requests)
    complete = insert.on_conflict_do_update(index_elements=["request_hash"], set_={"body": insert.excluded.body})
    for page in _pages(sorted(requests.items(), key=itemgetter(0))):
        rows = [_request_row(prompt, default_resolution) for _, prompt in page]
        database.insert(connection, complete, _REQUEST_COLUMNS, rows)
    for page in _pages(added):
        database.insert(connection, _items.insert(), _ITEM_COLUMNS, page)


def _pages(rows: list[T]) -> Iterator[list[T]]:
    """A few rows at a time: as the database takes them, they take several times the memory."""
    return (rows[start : start + _ROWS_A_PAGE] for start in range(0, len(rows), _ROWS_A_PAGE))


_REQUEST_COLUMNS = ("request_hash", "model", "resolution", "body")


def _request_row(prompt: CataloguePrompt, default_resolution: str) -> tuple[Any, ...]:
    request = prompt.request
    return prompt.request_hash, request.model, request.resolution or default_resolution, request.to_json()


_ITEM_COLUMNS = (
    *("item_id", "catalogue", "prompt_id", "sample", "shard", "position", "priority", "request_hash", "campaign"),
    *("labels", "active", "state", "attempts"),
)


def _item_row(identity: str, prompt: CataloguePrompt, sample: int, shard: str, position: int) -> tuple[Any, ...]:
    return (
        identity,
        prompt.catalogue,
        prompt.prompt_id,
        sample,
        shard,
        position,
        prompt.priority,
        prompt.request_hash,
        prompt.campaign,
        prompt.labels,
        True,
        _NEW,
        0,
    )


class _Assignment:
    """Gives new prompts their place: the catalogue's last shard while it has room, then a new one."""

    def __init__(self, connection: Connection, catalogue: str, shard_size: int) -> None:
        self._connection = connection
        self._catalogue = catalogue
        self._size = shard_size
        query = (
            sa.select(_shards.c.number, _shards.c.prompts)
            .where(_shards.c.catalogue == catalogue)
            .order_by(_shards.c.number.desc())
            .limit(1)
        )
        last = connection.execute(query).one_or_none()
        # Numbers begin with 0; "no shard yet" is a full one before the first.
        self._number, self._prompts = (last.number, last.prompts) if last else (-1, shard_size)
        self._key = shard_key(catalogue, self._number)
        position = sa.select(_catalogues.c.next_position).where(_catalogues.c.catalogue == catalogue)
        self._position: int = connection.execute(position).scalar_one()
        self._added: Counter[int] = Counter()

    def shard_of_new_prompt(self) -> str:
        if self._prompts >= self._size:
            self._number, self._prompts = self._number + 1, 0
            self._key = shard_key(self._catalogue, self._number)
        self._prompts += 1
        self._added[self._number] += 1
        return self._key

    def next_position(self) -> int:
        self._position += 1
        return self._position - 1

    def save(self) -> None:
        self._connection.execute(
            _catalogues.update().where(_catalogues.c.catalogue == self._catalogue).values(next_position=self._position)
        )
        for number, added in self._added.items():
            shard = shard_key(self._catalogue, number)
            update = _shards.update().where(_shards.c.shard == shard).values(prompts=_shards.c.prompts + added)
            if self._connection.execute(update).rowcount == 0:
                self._connection.execute(
                    _shards.insert().values(shard=shard, catalogue=self._catalogue, number=number, prompts=added)
                )


_seen = sa.Table("seen_items", sa.MetaData(), sa.Column("item_id", sa.Text, primary_key=True))

_EDIT = (
    _items.update()
    .where(_items.c.item_id == sa.bindparam("b_item"))
    .values(
        request_hash=sa.bindparam("request_hash"),
        campaign=sa.bindparam("campaign"),
        labels=sa.bindparam("labels"),
        priority=sa.bindparam("priority"),
        active=True,
        state=sa.bindparam("b_state"),
    )
)


_KNOWN = sa.select(
    _items.c.item_id,
    _items.c.shard,
    _items.c.request_hash,
    _items.c.campaign,
    _items.c.labels,
    _items.c.priority,
    _items.c.active,
    _items.c.state,
)


def _items_by_id(connection: Connection, query: Any, identities: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for start in range(0, len(identities), _IDS_A_QUERY):
        page = query.where(_items.c.item_id.in_(identities[start : start + _IDS_A_QUERY]))
        found.update((row.item_id, row) for row in connection.execute(page))
    return found


def _edits(database: Database, connection: Connection, changed: Mapping[str, CataloguePrompt]) -> list[dict[str, Any]]:
    """What changes of these items, each by its state at this moment, which is held until it is written.

    A worker may have brought an item on since it was first read. Its old state written back would have it wait beside
    its open attempt, or be paid for again. In the order of workers' admissions, as opposite ones would deadlock.
    """
    query = database.lock_rows(_KNOWN.order_by(_items.c.item_id))
    return [
        {
            "b_item": identity,
            "request_hash": changed[identity].request_hash,
            "campaign": changed[identity].campaign,
            "labels": changed[identity].labels,
            "priority": changed[identity].priority,
            "b_state": _state_after_edit(connection, row, changed[identity].request_hash),
        }
        for identity, row in _items_by_id(connection, query, sorted(changed)).items()
    ]


def _state_after_edit(connection: Connection, row: Any, request_hash: str) -> str:
    """An item with an open attempt waits for its end; one edited back to a request it has an image of is done again."""
    if row.request_hash == request_hash or row.state in _HAS_OPEN_ATTEMPT:
        return row.state
    kept = connection.execute(sa.select(has_image(row.item_id, request_hash))).scalar_one()
    return ItemState.DONE if kept else ItemState.PENDING


def _deactivate_unseen(database: Database, connection: Connection, catalogue: str) -> Registration:
    unseen = sa.and_(
        _items.c.catalogue == catalogue,
        _items.c.active,
        ~sa.select(_seen.c.item_id).where(_seen.c.item_id == _items.c.item_id).exists(),
    )
    with database.begun(connection):
        shards = set(connection.execute(sa.select(_items.c.shard).where(unseen).distinct()).scalars())
        removed = connection.execute(_items.update().where(unseen).values(active=False)).rowcount
        count_change(database, connection)
    return Registration(catalogue, removed=removed, shards=shards)


def seal(database: Database, catalogue: str, fingerprint: str) -> None:
    """Note what a catalogue looked like when all of it was entered and its tables were written."""
    with database.write() as connection:
        connection.execute(
            _catalogues.update()
            .where(_catalogues.c.catalogue == catalogue)
            .values(fingerprint=fingerprint, registered_at=database.now(connection))
        )


@contextmanager
def one_at_a_time(database: Database, catalogue: str) -> Generator[None]:
    """Hold the lock of a catalogue's assignment; it ends with the process, whatever becomes of that.

    To be taken before any transaction: whoever has it waits for the database.
    """
    if database.dialect == "sqlite":
        path = Path(str(database.engine.url.database))
        with FileLock(path.with_name(f"{path.name}.registration.lock")):
            yield
        return
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        key = {"key": f"nanobanana:{catalogue}"}
        connection.execute(sa.text("SELECT pg_advisory_lock(hashtextextended(:key, 0))"), key)
        try:
            yield
        finally:
            connection.execute(sa.text("SELECT pg_advisory_unlock(hashtextextended(:key, 0))"), key)
