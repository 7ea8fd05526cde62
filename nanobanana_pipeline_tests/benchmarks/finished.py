"""An output whose catalogue is done, made in seconds: what only shows at size can be measured on it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from nanobanana_pipeline.generation.intake import refresh
from nanobanana_pipeline.generation.mending import mend_tables
from nanobanana_pipeline.generation.workspace import Workspace
from nanobanana_pipeline.ledger.ledger import Stamp
from nanobanana_pipeline.settings import load_settings

# As a run would have left them; the open ones, for resuming, were submitted by a worker that is gone.
_ATTEMPTS = """
INSERT INTO attempts (attempt_id, item_id, attempt, catalogue, shard, prompt_id, sample, campaign, model, resolution,
  request_hash, cause, run_id, root_run_id, run_scope, owner, state, task_id, day, created_at, submitted_at,
  completed_at, stored_at, closed_at, submits, polls, total_tokens, reserved_micros, cost_micros, at_risk_micros,
  cost_source, images)
SELECT 'a' || items.item_id, items.item_id, 1, catalogue, shard, prompt_id, sample, campaign, model, resolution,
  items.request_hash, 'new', 'run', 'run', 'run', 'gone', :state, 'task-' || items.position, '2026-11-20',
  1795000000000, 1795000000000, 1795000005000, 1795000006000, 1795000006000, 1, 3, 1302, 67200,
  CASE :state WHEN 'stored' THEN 67200 ELSE 0 END, 0, 'price_list', CASE :state WHEN 'stored' THEN :images END
FROM items JOIN requests ON requests.request_hash = items.request_hash
"""
_ITEMS = "UPDATE items SET state = :state, attempts = 1, last_attempt_id = 'a' || item_id"
_IMAGE = '[{"n":1,"path":"images/none.jpg","sha256":"none","bytes":1,"format":"jpeg","width":1024,"height":1024}]'


def finish(folder: Path, prompts: int, *, still_open: bool = False, **knobs: Any) -> dict[str, str]:
    """An output in `folder` with a catalogue of so many prompts, all done (or submitted, and left open); its settings.

    Nobody must be asked for anything: tables are written from the ledger, and the image files themselves are missing.
    """
    settings = {
        "api_key": "none",
        "base_url": "http://127.0.0.1:9",
        "catalogue": str(folder / "catalogue"),
        "output": str(folder / "output"),
        "budget_usd": "1000000",
        **knobs,
    }
    (folder / "catalogue").mkdir(parents=True)
    names = pa.table(
        {
            "prompt_id": [f"p{number}" for number in range(prompts)],
            "prompt": [f"a harbour at dawn, number {number}" for number in range(prompts)],
            "campaign": [f"campaign {number % 12}" for number in range(prompts)],
        }
    )
    pq.write_table(names, folder / "catalogue" / "bench.parquet")
    with Workspace.open(load_settings(**settings)) as workspace:
        workspace.ledger.claim(Stamp("simulated", "http://127.0.0.1"))
        refresh(workspace)
        with workspace.ledger.database.write() as connection:
            state = "submitted" if still_open else "stored"
            connection.execute(sa.text(_ATTEMPTS), {"state": state, "images": _IMAGE})
            connection.execute(sa.text(_ITEMS), {"state": "open" if still_open else "done"})
        if not still_open:
            mend_tables(workspace)
    return {name.upper(): str(value) for name, value in settings.items()}
