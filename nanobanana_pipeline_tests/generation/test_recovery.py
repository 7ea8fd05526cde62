"""An image file that is gone is fetched again at no cost, for as long as the provider has it."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from nanobanana_pipeline.generation.recovery import Recovered, missing_images, recover_images
from nanobanana_pipeline.ledger.work import Rerun
from nanobanana_pipeline_tests.generation.pipelines import Pipeline


def recover(pipeline: Pipeline) -> tuple[int, Recovered]:
    """How many were missing, and what became of them."""
    with pipeline.open() as workspace:
        missing = missing_images(workspace)
        return len(missing), recover_images(workspace, missing, lambda: pipeline.provider(workspace))


@pytest.mark.parametrize("fault", [None, {"fault": "url_expired", "urls": 2}])
def test_lost_files_are_fetched_again_from_old_or_fresh_addresses(
    pipeline: Pipeline, fault: dict[str, Any] | None
) -> None:
    """Deleted by a hand, or emptied by a full disk: paid for, and free to fetch."""
    pipeline.write([{"prompt_id": f"p{n}", "prompt": f"a picture of {n}"} for n in range(3)])
    pipeline.run()
    before = pipeline.table("images")
    deleted, emptied, _ = (Path(pipeline.folder, "output", row["path"]) for row in before)
    deleted.unlink()
    emptied.write_bytes(b"")
    pipeline.simulator.set_faults([fault] if fault else [])
    lost, recovered = recover(pipeline)
    assert (lost, len(recovered.items), recovered.reasons) == (2, 2, {})
    after = pipeline.table("images")
    assert {row["sha256"] for row in after} == {row["sha256"] for row in before}
    for row in after:
        file = Path(pipeline.folder, "output", row["path"])
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
    assert len(pipeline.accepted()) == 3
    pipeline.assert_books_agree()


def test_what_the_provider_no_longer_has_is_made_anew_alone_and_by_a_persons_word(pipeline: Pipeline) -> None:
    """One lost picture must not cost the whole shard again."""
    pipeline.write([{"prompt_id": f"p{n}", "prompt": f"a picture of {n}"} for n in range(3)])
    pipeline.run()
    (row,) = [row for row in pipeline.table("images") if row["prompt_id"] == "p1"]
    Path(pipeline.folder, "output", row["path"]).unlink()
    pipeline.simulator.set_faults([{"fault": "image_404"}])
    lost, recovered = recover(pipeline)
    assert (lost, recovered.items) == (1, [])
    assert "HTTP 404" in recovered.reasons[row["item_id"]]
    pipeline.simulator.set_faults([])
    pipeline.run(rerun=Rerun.REGENERATE, items=(row["item_id"],))
    assert pipeline.accepted()[3:] == ["a picture of 1"]
    assert recover(pipeline)[0] == 0
    pipeline.assert_books_agree()


def test_what_a_run_has_just_made_is_not_made_anew_by_it(pipeline: Pipeline) -> None:
    """`regenerate` on a shard that is not finished paid twice for what it had only begun itself."""
    pipeline.write([{"prompt_id": "new", "prompt": "a new picture"}])
    pipeline.run(rerun=Rerun.REGENERATE)
    assert pipeline.accepted() == ["a new picture"]
