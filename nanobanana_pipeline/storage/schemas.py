"""What the tables are: every column, once, with its type, its unit and its meaning.

The data dictionary in docs/tables.md and the comments inside the Delta tables are made from this. Columns are only ever
added, at the end: readers of last year's tables keep working. How tables are written is in `tables`.
"""

# pyright: reportUnknownParameterType=false
# pyarrow ships no types.

from typing import Final

import pyarrow as pa

MONEY: Final = pa.decimal128(18, 6)
TIME: Final = pa.timestamp("us", tz="UTC")

_TEXT = pa.string()
_COUNT = pa.int32()
_BIG = pa.int64()


def _column(name: str, type_: pa.DataType, description: str) -> pa.Field:
    # Delta shows a field's "comment" to every reader that knows of comments.
    return pa.field(name, type_, metadata={"comment": description})


def _table(description: str, *columns: pa.Field) -> pa.Schema:
    return pa.schema(columns, metadata={"comment": description})


def description_of(described: pa.Schema | pa.Field) -> str:
    """The description of a table or column."""
    return (described.metadata or {}).get(b"comment", b"").decode()


_CATALOGUE = _column("catalogue", _TEXT, "Catalogue: the stem of its file, or the name of its folder.")
_SHARD = _column("shard", _TEXT, "Shard (Dagster partition) that the item belongs to for good: `<catalogue>-<NNNNNN>`.")
_PROMPT_ID = _column(
    "prompt_id", _TEXT, "Prompt within the catalogue: as the row sets it, or derived from the request when it doesn't."
)
_SAMPLE = _column("sample", _COUNT, "Which of the images wanted of the prompt, from 1.")
_ITEM_ID = _column("item_id", _TEXT, "Stable hash of catalogue, prompt_id and sample: 32 hex digits.")
_CAMPAIGN = _column("campaign", _TEXT, "Campaign that the row names, for grouping costs; null when it names none.")
_LABELS = _column("labels", _TEXT, "JSON object of the catalogue's further columns; null when there are none.")
_MODEL = _column("model", _TEXT, "Model spec used.")
_RESOLUTION = _column("resolution", _TEXT, "Resolution: `0.5K`, `1K`, `2K` or `4K`; the model's default filled in.")
_REQUEST_HASH = _column("request_hash", _TEXT, "Equal for two requests that ask the same of the model: 32 hex digits.")
_ACTIVE = _column("active", pa.bool_(), "Whether the row is still in the catalogue; removed ones stay here as false.")
_RUN_ID = _column("run_id", _TEXT, "Dagster run of the latest attempt.")
_TASK_ID = _column("task_id", _TEXT, "The provider's task; null when none was created.")
_COST_SOURCE = _column("cost_source", _TEXT, "Where the cost is from: `provider`, `price_list` or `invoice`.")
_ERROR_KIND = _column(
    "error_kind",
    _TEXT,
    "What kind of failure: `retryable`, `rate_limited`, `invalid_request`, `content_policy`, `auth`, `balance`, "
    "`not_found`, `unknown_outcome`, `provider_failure`, `bad_output` or `deadline`; null without one.",
)
_ERROR_CODE = _column("error_code", _TEXT, "The provider's code, nine digits, or the HTTP status; null without one.")
_ERROR_MESSAGE = _column("error_message", _TEXT, "The failure in words; null without one.")

_REQUEST = (
    _column("prompt", _TEXT, "The prompt's text."),
    _MODEL,
    _column("aspect_ratio", _TEXT, "Width to height, such as `16:9`; null leaves it to the model."),
    _RESOLUTION,
    _column("image_urls", _TEXT, "JSON list of input image URLs; null without any."),
    _column("response_modalities", _TEXT, "JSON list of what the answer may hold: `Image`, `Text`."),
)


def _tokens(of: str) -> tuple[pa.Field, ...]:
    return (
        _column("prompt_tokens", _BIG, f"Input tokens {of}; null when none were reported."),
        _column("completion_tokens", _BIG, f"Output tokens (image and text) {of}; null when none were reported."),
        _column("total_tokens", _BIG, f"All tokens {of}; null when none were reported."),
    )


PROMPTS: Final = _table(
    "A row is a valid prompt of a catalogue.",
    _CATALOGUE,
    _PROMPT_ID,
    _column("samples", _COUNT, "Images wanted of this prompt."),
    _SHARD,
    *_REQUEST,
    _CAMPAIGN,
    _LABELS,
    _REQUEST_HASH,
    _ACTIVE,
    _column("priority", _COUNT, "Order of work: higher first; 0 unless the row says otherwise."),
)

REJECTED_PROMPTS: Final = _table(
    "A row is a catalogue row (or file) that breaks a rule; nothing is spent on it.",
    _CATALOGUE,
    _column("file", _TEXT, "File of the catalogue."),
    _column("row_number", _BIG, "Row within the file, from 1; null when the whole file is meant."),
    _column("prompt_id", _TEXT, "The row's prompt_id; null when it has none."),
    _column("rule", _TEXT, "The rule that it breaks."),
    _column("column_name", _TEXT, "The column at fault; null when no single one is."),
    _column("value", _TEXT, "The value at fault, shortened."),
    _column("message", _TEXT, "What is wrong and what would be right."),
)

RESULTS: Final = _table(
    "A row is an item (one image wanted) in its latest state. Tokens and money are summed over all its attempts.",
    _ITEM_ID,
    _CATALOGUE,
    _SHARD,
    _PROMPT_ID,
    _SAMPLE,
    _ACTIVE,
    _CAMPAIGN,
    _LABELS,
    *_REQUEST,
    _column("status", _TEXT, "`succeeded`, `failed`, `unknown`, `deferred`, `in_flight` or `pending`."),
    _column("attempts", _COUNT, "Attempts made."),
    _column("task_id", _TEXT, "The provider's task of the latest attempt; null when none was created."),
    _column("submitted_at", TIME, "When the provider took the latest attempt."),
    _column("completed_at", TIME, "When its task was seen to have ended."),
    _column("stored_at", TIME, "When its images were safely on disk."),
    _column("latency_s", pa.float64(), "Seconds from submitted_at to completed_at."),
    _column("polls", _COUNT, "Times that the latest task was asked about."),
    *_tokens("of all attempts"),
    _column("cost_usd", MONEY, "Money spent on all attempts, US dollars."),
    _COST_SOURCE,
    _column("at_risk_usd", MONEY, "Money that attempts of unknown outcome may have cost, US dollars; not in cost_usd."),
    _ERROR_KIND,
    _ERROR_CODE,
    _ERROR_MESSAGE,
    _column("text", _TEXT, "Text that came with the image; null without any."),
    _column("image_count", _COUNT, "Image files of the item."),
    _column("image_path", _TEXT, "Its first image file, relative to the output; null without one."),
    _column("metadata", _TEXT, "JSON object: the provider's metadata, as it came."),
    _RUN_ID,
)

IMAGES: Final = _table(
    "A row is a current image file.",
    _ITEM_ID,
    _CATALOGUE,
    _SHARD,
    _PROMPT_ID,
    _SAMPLE,
    _column("n", _COUNT, "Which of the task's images, from 1: a task may return more than one."),
    _column("path", _TEXT, "The file, relative to the output."),
    _column("sha256", _TEXT, "SHA-256 of the file: 64 hex digits."),
    _column("bytes", _BIG, "Size of the file, bytes."),
    _column("format", _TEXT, "`png`, `jpeg`, `webp`, `gif` or `avif`."),
    _column("width", _COUNT, "Pixels."),
    _column("height", _COUNT, "Pixels."),
    _column("expected_width", _COUNT, "Pixels that the request should give; null when it leaves the ratio open."),
    _column("expected_height", _COUNT, "Pixels that the request should give; null when it leaves the ratio open."),
    _column("has_c2pa", pa.bool_(), "Whether the file carries C2PA content credentials (not whether they are valid)."),
    _column("source_url", _TEXT, "Where it was fetched from, without query: a signature in it would be a key."),
)

ATTEMPTS: Final = _table(
    "A row is an attempt to make an item, paid or not.",
    _column("attempt_id", _TEXT, "The attempt."),
    _ITEM_ID,
    _CATALOGUE,
    _SHARD,
    _PROMPT_ID,
    _SAMPLE,
    _CAMPAIGN,
    _MODEL,
    _RESOLUTION,
    _column("attempt", _COUNT, "Which attempt of the item, from 1."),
    _column(
        "state",
        _TEXT,
        "`submitting`, `submitted`, `completed`, `stored`, `failed`, `unusable`, `refused`, `unknown`, `overdue` or "
        "`abandoned`.",
    ),
    _column("first_status", _TEXT, "The provider's first word on the task."),
    _TASK_ID,
    _REQUEST_HASH,
    _column("created_at", TIME, "When its budget was reserved; its UTC day is the day that its cost counts to."),
    _column("submitted_at", TIME, "When the provider took it; null before, and when it never did."),
    _column("completed_at", TIME, "When its task was seen to have ended."),
    _column("stored_at", TIME, "When its images were safely on disk."),
    _column("closed_at", TIME, "When it came to its end, whatever that was; null while it is open."),
    _column("polls", _COUNT, "Times that its task was asked about."),
    *_tokens("of the attempt"),
    _column("reserved_usd", MONEY, "Budget reserved before it was sent, US dollars."),
    _column("cost_usd", MONEY, "Money spent, US dollars."),
    _column("at_risk_usd", MONEY, "Money that it may have cost while its outcome is unknown, US dollars."),
    _COST_SOURCE,
    _column("price_version", _TEXT, "Version of the price list used; null when the provider told the cost."),
    _ERROR_KIND,
    _ERROR_CODE,
    _ERROR_MESSAGE,
    _column("run_id", _TEXT, "Dagster run that made the attempt."),
    _column("plan_hash", _TEXT, "Plan that the attempt was made under; null where none was made."),
)

COST_DAILY: Final = _table(
    "A row is a UTC day, catalogue, campaign, model and resolution. An attempt counts to the day of its reservation.",
    _column("day", pa.date32(), "UTC day of the attempts' reservations."),
    _CATALOGUE,
    _CAMPAIGN,
    _MODEL,
    _RESOLUTION,
    _column("items", _BIG, "Items with an attempt on the day."),
    _column("succeeded", _BIG, "Those of them that an attempt of the day gave an image."),
    _column("failed", _BIG, "Those of them that only failed on the day."),
    _column("images", _BIG, "Image files made by the day's attempts."),
    _column("tokens", _BIG, "All tokens of the day's attempts."),
    _column("cost_usd", MONEY, "Money spent on the day's attempts, US dollars."),
    _column("at_risk_usd", MONEY, "Money that the day's attempts of unknown outcome may have cost, US dollars."),
    _column("cost_per_image_usd", MONEY, "cost_usd divided by images, US dollars; null without images."),
)

RECONCILIATION: Final = _table(
    "A row is an invoice line, or an attempt that no invoice line matches.",
    _column("invoice", _TEXT, "Name of the invoice file."),
    _column("source_line", _BIG, "Line of the invoice, from 1; null for an attempt that it lacks."),
    _column("task_id", _TEXT, "Task that the line or the attempt names."),
    _column("attempt_id", _TEXT, "The attempt matched; null when there is none."),
    _column("item_id", _TEXT, "The attempt's item; null when there is none."),
    _CATALOGUE,
    _column(
        "day",
        pa.date32(),
        "UTC day of the line or of the attempt's reservation; the invoice's own where it sums up days.",
    ),
    _column(
        "status",
        _TEXT,
        "`matched`, `amount_differs`, `only_invoice`, `only_ledger`, `charged_again` or `duplicate`.",
    ),
    _column("invoice_usd", MONEY, "Amount of the line, US dollars."),
    _column("ledger_usd", MONEY, "Amount of the attempt as the ledger had it, US dollars."),
    _column("difference_usd", MONEY, "invoice_usd minus ledger_usd, a missing one counted as zero, US dollars."),
    _column("note", _TEXT, "What a person should know about it."),
    _column("reconciled_at", TIME, "When the invoice was held against the ledger."),
    _column("list_usd", MONEY, "What the price list makes of its tokens, US dollars; null without an attempt."),
)

SCHEMAS: Final[dict[str, pa.Schema]] = {
    "prompts": PROMPTS,
    "rejected_prompts": REJECTED_PROMPTS,
    "results": RESULTS,
    "images": IMAGES,
    "attempts": ATTEMPTS,
    "cost_daily": COST_DAILY,
    "reconciliation": RECONCILIATION,
}

NOT_FROM_LEDGER: Final = frozenset({"reconciliation"})
"""The tables that come from elsewhere; every other can be made again from the ledger and the catalogue."""
