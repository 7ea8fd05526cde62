"""The ledger's tables, as SQLAlchemy Core.

Times are integer milliseconds since the epoch (UTC), money is integer micro-dollars: both compare and add exactly on
SQLite and PostgreSQL alike. JSON is kept as text, as it came.
"""

import sqlalchemy as sa

from nanobanana_pipeline.ledger.states import OPEN_STATES, WAITING_STATES

SCHEMA_VERSION = 4
"""A change of the tables below is a step in `migrations` and one more here."""

metadata = sa.MetaData()

_Text = sa.Text
_Big = sa.BigInteger

meta = sa.Table(
    "ledger_meta",
    metadata,
    sa.Column("key", _Text, primary_key=True),
    sa.Column("value", _Text, nullable=False),
)

catalogues = sa.Table(
    "catalogues",
    metadata,
    sa.Column("catalogue", _Text, primary_key=True),
    # What the files looked like when they were last registered in full; null while a registration is under way.
    sa.Column("fingerprint", _Text),
    sa.Column("registered_at", _Big),
    sa.Column("next_position", _Big, nullable=False, default=0),
)

shards = sa.Table(
    "shards",
    metadata,
    sa.Column("shard", _Text, primary_key=True),
    sa.Column("catalogue", _Text, nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("prompts", sa.Integer, nullable=False),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("request_hash", _Text, primary_key=True),
    sa.Column("model", _Text, nullable=False),
    sa.Column("resolution", _Text, nullable=False),
    sa.Column("body", _Text, nullable=False),
)

PRIORITISED = sa.text(
    "priority <> 0 AND active AND state IN (" + ", ".join(f"'{state}'" for state in WAITING_STATES) + ")"
)

items = sa.Table(
    "items",
    metadata,
    sa.Column("item_id", _Text, primary_key=True),
    sa.Column("catalogue", _Text, nullable=False),
    sa.Column("prompt_id", _Text, nullable=False),
    sa.Column("sample", sa.Integer, nullable=False),
    sa.Column("shard", _Text, nullable=False),
    # Order of first registration within the catalogue: the order of work, and the key that pages of work go by.
    sa.Column("position", _Big, nullable=False),
    # Higher first; of the same priority, in the order of position.
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
    sa.Column("request_hash", _Text, nullable=False),
    sa.Column("campaign", _Text),
    sa.Column("labels", _Text),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("state", _Text, nullable=False),
    # Why a deferred item waits, in words.
    sa.Column("note", _Text),
    # Attempts ever made: numbers them, and makes an admission by a worker with a stale view fail.
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("last_attempt_id", _Text),
    sa.Index("items_work", "shard", "state", "active"),
    # Empty where nobody uses priorities, so it costs nothing then; otherwise it tells the most urgent shards.
    sa.Index("items_prioritised", "shard", "priority", sqlite_where=PRIORITISED, postgresql_where=PRIORITISED),
    # Not by prompt_id: PostgreSQL can't index a long text, and any string is a valid one.
    sa.Index("items_by_position", "catalogue", "position"),
    sa.Index("items_by_request", "request_hash"),
)

_OPEN = sa.text("state IN (" + ", ".join(f"'{state}'" for state in OPEN_STATES) + ")")

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("attempt_id", _Text, primary_key=True),
    sa.Column("item_id", _Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("catalogue", _Text, nullable=False),
    sa.Column("shard", _Text, nullable=False),
    sa.Column("prompt_id", _Text, nullable=False),
    sa.Column("sample", sa.Integer, nullable=False),
    sa.Column("campaign", _Text),
    sa.Column("model", _Text, nullable=False),
    sa.Column("resolution", _Text, nullable=False),
    sa.Column("request_hash", _Text, nullable=False),
    # Why it was made: new, retry, retry_failed, regenerate or resubmit.
    sa.Column("cause", _Text, nullable=False),
    sa.Column("run_id", _Text, nullable=False),
    # The run that a re-execution began with: options that pay again act once an item under it.
    sa.Column("root_run_id", _Text, nullable=False),
    # The counter that a cap on one run goes by; all shards of one `nanobanana run` share it.
    sa.Column("run_scope", _Text, nullable=False),
    # The plan it was made under, which a person may have approved; null where none was made.
    sa.Column("plan_hash", _Text),
    sa.Column("owner", _Text, nullable=False),
    sa.Column("state", _Text, nullable=False),
    sa.Column("first_status", _Text),
    sa.Column("task_id", _Text),
    # The UTC day (YYYY-MM-DD) of the reservation, to which the attempt counts for good.
    sa.Column("day", _Text, nullable=False),
    sa.Column("created_at", _Big, nullable=False),
    sa.Column("submitted_at", _Big),
    sa.Column("completed_at", _Big),
    # When its images, paid for, were last tried for and not had, and for how long that had been in vain by then: after
    # a day of it they are given up.
    sa.Column("delivery_failed_at", _Big),
    sa.Column("delivery_vain_ms", _Big, nullable=False, default=0, server_default="0"),
    sa.Column("stored_at", _Big),
    sa.Column("closed_at", _Big),
    sa.Column("submits", sa.Integer, nullable=False),
    sa.Column("polls", sa.Integer, nullable=False, default=0),
    sa.Column("prompt_tokens", _Big),
    sa.Column("completion_tokens", _Big),
    sa.Column("total_tokens", _Big),
    sa.Column("reserved_micros", _Big, nullable=False),
    sa.Column("cost_micros", _Big, nullable=False, default=0),
    sa.Column("at_risk_micros", _Big, nullable=False, default=0),
    sa.Column("cost_source", _Text),
    sa.Column("price_version", _Text),
    sa.Column("error_kind", _Text),
    sa.Column("error_code", _Text),
    sa.Column("error_message", _Text),
    sa.Column("text", _Text),
    sa.Column("metadata", _Text),
    # JSON lists: the result URLs as last seen, and the image files once stored.
    sa.Column("urls", _Text),
    sa.Column("images", _Text),
    sa.UniqueConstraint("item_id", "attempt"),
    sa.Index("attempts_one_open", "item_id", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
    sa.Index("attempts_open_by_shard", "shard", sqlite_where=_OPEN, postgresql_where=_OPEN),
    sa.Index("attempts_open_by_owner", "owner", sqlite_where=_OPEN, postgresql_where=_OPEN),
    sa.Index("attempts_by_shard", "shard"),
    sa.Index("attempts_by_day", "day"),
)

budget = sa.Table(
    "budget",
    metadata,
    # day:2026-11-22, catalogue:NAME or run:ID
    sa.Column("scope", _Text, primary_key=True),
    sa.Column("reserved", _Big, nullable=False, default=0),
    sa.Column("spent", _Big, nullable=False, default=0),
    sa.Column("at_risk", _Big, nullable=False, default=0),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("owner", _Text, primary_key=True),
    sa.Column("shard", _Text, nullable=False),
    sa.Column("run_id", _Text, nullable=False),
    sa.Column("host", _Text, nullable=False),
    sa.Column("boot_id", _Text, nullable=False),
    sa.Column("pid_namespace", _Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started", _Text, nullable=False),
    sa.Column("acquired_at", _Big, nullable=False),
    sa.Column("expires_at", _Big, nullable=False),
    # Whose limits its open tasks count against; empty, as processes of version 2 enter it: everybody's.
    sa.Column("account", _Text, nullable=False, server_default=""),
    # Whether it has more to send than it was let: those who share its account then leave it room.
    sa.Column("waiting", sa.Boolean, nullable=False, server_default=sa.false()),
)

throttle = sa.Table(
    "throttle",
    metadata,
    # One row per account (a name, or API origin and key fingerprint): what 429s taught, shared by all its runs.
    sa.Column("account", _Text, primary_key=True),
    sa.Column("state", _Text, nullable=False),
)

latency_history = sa.Table(
    "latency_history",
    metadata,
    sa.Column("model", _Text, primary_key=True),
    sa.Column("resolution", _Text, primary_key=True),
    # JSON list of the latest latencies in seconds, oldest first.
    sa.Column("latencies", _Text, nullable=False),
    sa.Column("updated_at", _Big, nullable=False),
)
