"""The tables' columns are public: dashboards and scripts name them."""

import pyarrow as pa
import pytest

from nanobanana_pipeline.storage.schemas import MONEY, SCHEMAS, TIME, description_of

COLUMNS = {
    "prompts": "catalogue prompt_id samples shard prompt model aspect_ratio resolution image_urls response_modalities "
    "campaign labels request_hash active",
    "rejected_prompts": "catalogue file row_number prompt_id rule column_name value message",
    "results": "item_id catalogue shard prompt_id sample active campaign labels prompt model aspect_ratio resolution "
    "image_urls response_modalities status attempts task_id submitted_at completed_at stored_at latency_s polls "
    "prompt_tokens completion_tokens total_tokens cost_usd cost_source at_risk_usd error_kind error_code error_message "
    "text image_count image_path metadata run_id",
    "images": "item_id catalogue shard prompt_id sample n path sha256 bytes format width height expected_width "
    "expected_height has_c2pa source_url",
    "attempts": "attempt_id item_id catalogue shard prompt_id sample campaign model resolution attempt state "
    "first_status task_id request_hash created_at submitted_at completed_at stored_at closed_at polls prompt_tokens "
    "completion_tokens total_tokens reserved_usd cost_usd at_risk_usd cost_source price_version error_kind error_code "
    "error_message run_id",
    "cost_daily": "day catalogue campaign model resolution items succeeded failed images tokens cost_usd at_risk_usd "
    "cost_per_image_usd",
}


def test_the_tables_are_the_designs() -> None:
    """A table more or less is a promise broken."""
    assert [*COLUMNS, "reconciliation"] == list(SCHEMAS)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_keep_their_names_and_order(name: str) -> None:
    """New columns may come at the end; none may be renamed, moved or dropped."""
    expected = COLUMNS[name].split()
    assert SCHEMAS[name].names[: len(expected)] == expected


@pytest.mark.parametrize("name", SCHEMAS)
def test_everything_is_described(name: str) -> None:
    """The data dictionary is made from this."""
    assert description_of(SCHEMAS[name]).endswith(".")
    for field in SCHEMAS[name]:
        assert description_of(field).endswith("."), field.name


@pytest.mark.parametrize("name", SCHEMAS)
def test_units_show_in_names_and_types(name: str) -> None:
    """Money is exact, times are UTC instants: a float or a naive time would be wrong somewhere, some day."""
    for field in SCHEMAS[name]:
        assert (field.type == MONEY) == field.name.endswith("_usd"), field.name
        assert (field.type == TIME) == field.name.endswith("_at"), field.name
        assert not pa.types.is_null(field.type)
