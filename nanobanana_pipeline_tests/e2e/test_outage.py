"""The database goes away under a run: whoever sits at the terminal, or looks at the run's page, reads why it waits."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from dagster import DagsterInstance
from sqlalchemy import make_url

from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.e2e.command import LIMIT_S, Place, submits
from nanobanana_pipeline_tests.servers.proxy import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.timeout(600)]


def read_until(window: int, words: str) -> str:
    """What a terminal shows until it shows `words`, or its program has ended."""
    shown = ""
    while words not in shown:
        try:
            shown += os.read(window, 65536).decode(errors="replace")
        except OSError:
            break
    return shown


def test_a_wait_for_the_database_is_a_line_on_the_terminal_and_in_dagster(
    tmp_path: Path, simulator: Callable[..., SimulatorProcess], home: Path, postgres_url: str
) -> None:
    """Ten minutes without a word looked like a hang: people killed it, and with it the answers that it held."""
    provider = simulator(latency=0.1, sigma=0.0, cached_picture=True)
    # It can't be over before the wire is cut.
    provider.set_faults([{"fault": "slow_task", "seconds": 3000}])
    with Proxy(make_url(postgres_url).port or 5432) as wire:
        through_wire = make_url(postgres_url).set(host="127.0.0.1", port=wire.port)
        here = Place.with_provider(
            tmp_path, provider, LEDGER_URL=through_wire.render_as_string(hide_password=False), MAX_IN_FLIGHT="4"
        )
        here.furnish(home)
        here.catalogue({f"p{n}": f"a fox {n}" for n in range(12)})
        run, window = here.start_on_a_terminal("run")
        provider.wait_for("accepted", 4)
        wire.cut()
        provider.set_faults([])
        provider.advance(6000)
        shown = read_until(window, "bring it back")
        assert "waiting for the ledger postgresql" in shown, shown
        wire.restore()
        shown = read_until(window, "is back after")
        assert "is back after" in shown, shown
        shown += read_until(window, "no such words")
        os.close(window)
        assert run.wait(LIMIT_S) == 0, shown
    assert "Traceback" not in shown
    assert len(submits(provider)) == 12
    with DagsterInstance.from_config(str(here.output / ".dagster")) as instance:
        logs = [event.user_message for each in instance.get_runs() for event in instance.all_logs(each.run_id)]
    assert any("waiting for the ledger" in line for line in logs), json.dumps(logs, indent=1)
    assert any("is back after" in line for line in logs)
