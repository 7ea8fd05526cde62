"""Where the work stands, while somebody works."""

from nanobanana_pipeline.generation.standing import standing
from nanobanana_pipeline_tests.generation.pipelines import Pipeline


def test_a_worker_shows_how_far_how_fast_and_at_what_cost(pipeline: Pipeline) -> None:
    """It is what a person waits by; the ledger alone must tell it, from any machine."""
    pipeline.write([{"prompt_id": f"p{n}", "prompt": f"fox {n}"} for n in range(10)])
    with pipeline.open() as workspace:
        pipeline.refresh()
        lease = workspace.ledger.lease("cat-000000", "run-1")
        lease.acquire()
        pipeline.run(limit=4)
        (worker,) = standing(workspace.ledger, workspace.settings).workers
        lease.release()
        assert standing(workspace.ledger, workspace.settings).workers == []
    progress = worker.progress
    assert (worker.shard, worker.dead) == ("cat-000000", False)
    assert (progress.items, progress.done, progress.in_flight) == (10, 4, 0)
    assert progress.spent_micros > 0
    assert progress.left_s is not None
    assert progress.a_minute > 0
