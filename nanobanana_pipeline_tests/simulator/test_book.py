"""The billing book: what every other test of the pipeline is held against, so it must itself be beyond doubt."""

import json
import time
from pathlib import Path

import pytest

from nanobanana_pipeline.simulator.billing import Book, as_seconds, as_time, read_book
from nanobanana_pipeline.simulator.process import SimulatorProcess
from nanobanana_pipeline_tests.simulator.conftest import LONG_S, Talk, image_urls, send

# Worked by hand from the list prices: USD a million tokens, input 0.50, text 3.00; USD an image by tier.
TIER_USD = {"0.5K": 44_820, "1K": 67_200, "2K": 100_800, "4K": 151_200}  # micro-dollars
TIER_TOKENS = {"0.5K": 747, "1K": 1120, "2K": 1680, "4K": 2520}


def micros_by_hand(resolution: str, images: int, usage: dict[str, int]) -> int:
    """The price of a task in micro-dollars, in whole numbers alone: half a micro-dollar is the least that occurs."""
    text = usage["completion_tokens"] - images * TIER_TOKENS[resolution]
    half_micros = 2 * images * TIER_USD[resolution] + 6 * text + usage["prompt_tokens"]
    return (half_micros + 1) // 2  # half up


@pytest.mark.parametrize("resolution", ["0.5K", "1K", "2K", "4K"])
def test_a_task_is_billed_by_the_list(talk: Talk, prompt: str, resolution: str) -> None:
    """Cent for cent: three prompts of different length, so that halves round too."""
    for text in (prompt, f"{prompt} again", f"{prompt} once more, at greater length"):
        talk.finished(text, resolution=resolution, image_urls=["https://a.example/1.png", "https://a.example/2.png"])
        row = talk.rows(text)[-1]

        assert row["event"] == "billed"
        assert row["usage"]["prompt_tokens"] > 2240
        assert row["cost_usd"] == f"{micros_by_hand(resolution, 1, row['usage']) / 1_000_000:.6f}"


def test_the_poll_tells_the_tokens_that_the_book_bills(talk: Talk, prompt: str) -> None:
    """Two books from one truth, or reconciliation would be chasing ghosts."""
    task = talk.finished(prompt)

    assert talk.rows(prompt)[-1]["usage"] == task["usage"]


def test_tokens_and_costs_are_the_same_in_every_run(prompt: str) -> None:
    """A demo or a test that fails must be repeatable."""
    costs: list[list[str]] = []
    for _ in range(2):
        with SimulatorProcess(latency=1) as simulator:
            talk = Talk(simulator)
            for number in range(5):
                talk.finished(f"{prompt} {number}")
            costs.append([row["cost_usd"] for row in simulator.book if row["event"] == "billed"])

    assert costs[0] == costs[1]
    assert len(set(costs[0])) > 1


def test_a_task_is_billed_though_nobody_polls(prompt: str) -> None:
    """The provider's money doesn't wait for the client: a timer writes the row, not a request."""
    with SimulatorProcess(latency=0.05, sigma=0) as simulator:
        Talk(simulator).accepted(prompt)
        deadline = time.monotonic() + 120
        while not (events := [row["event"] for row in read_book(simulator.book_path)]).count("billed"):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    assert events == ["accepted", "billed"]


def test_the_row_is_in_the_file_before_the_answer_leaves(prompt: str) -> None:
    """`kill -9` right after an answer must not lose the provider's side of the story."""
    with SimulatorProcess(latency=1000, fsync=True) as simulator:
        talk = Talk(simulator)
        for number in range(5):
            task_id = talk.accepted(f"{prompt} {number}")
            assert list(read_book(simulator.book_path))[-1]["task_id"] == task_id


def test_rows_have_what_reconciliation_needs(talk: Talk, prompt: str) -> None:
    """The fields of the agreed format; money as text with six decimals."""
    talk.submit_body(
        {"model": "nano_banana_2", "input": [{"params": {"prompt": prompt, "resolution": "2K"}}]}, Idempotency_Key="k-1"
    )
    talk.simulator.advance(LONG_S)
    accepted, billed = talk.rows(prompt)

    assert accepted["idempotency_key"] == billed["idempotency_key"] == "k-1"
    assert accepted["fingerprint"] == billed["fingerprint"]
    assert accepted["task_id"] == billed["task_id"]
    assert accepted["key"] == billed["key"] != ""
    assert (billed["resolution"], billed["images"], billed["status"]) == ("2K", 1, "completed")
    assert accepted["time"] < billed["time"]
    assert accepted["time"].endswith("Z")
    assert billed["price_version"]


def test_the_key_itself_is_nowhere_in_the_book(tmp_path: Path) -> None:
    """Books are kept, mailed and committed."""
    key = "sk-very-secret-0123456789"
    with SimulatorProcess(api_key=key, book=tmp_path / "book.jsonl", latency=0) as simulator:
        talk = Talk(simulator)
        (url,) = image_urls(talk.finished("a picture"))
        send("GET", url, headers={"Authorization": f"Bearer {key}"})
        talk.submit("")

    assert key.encode() not in (tmp_path / "book.jsonl").read_bytes()


def test_a_token_on_the_images_origin_is_booked(talk: Talk, prompt: str) -> None:
    """The one thing a client must never do; it still gets its picture, so nothing but the book tells."""
    (url,) = image_urls(talk.finished(prompt))
    before = talk.simulator.stats()["token_leaks"]
    answer = send("GET", url, headers={"Authorization": f"Bearer {talk.simulator.api_key}"})
    send("GET", url, headers={"X-Api-Key": talk.simulator.api_key})
    send("GET", f"{url}&key={talk.simulator.api_key}")
    send("GET", url)
    leaks = [row for row in talk.simulator.book if row["event"] == "token_leak"]

    assert answer.status == 200
    assert talk.simulator.stats()["token_leaks"] == before + 3
    assert leaks[-1]["origin"] == "images"
    assert leaks[-1]["path"].startswith("/images/")


def test_a_token_on_a_foreign_path_is_booked(talk: Talk) -> None:
    """A wrong base path sends the key to whoever answers there."""
    before = talk.simulator.stats()["token_leaks"]
    base = talk.simulator.base_url
    headers = {"Authorization": f"Bearer {talk.simulator.api_key}"}
    send("GET", f"{base}/v1/images", headers=headers)
    send("GET", f"{base}/v1/images")

    assert talk.simulator.stats()["token_leaks"] == before + 1


def test_a_restart_takes_up_where_the_book_ends(prompt: str) -> None:
    """Tasks outlive the provider's process: same status, same bytes, billed exactly once, and no clock going back."""
    with SimulatorProcess(latency=50, seed=1) as simulator:
        talk = Talk(simulator)
        done = talk.finished(prompt)
        (url,) = image_urls(done)
        picture = send("GET", url).body
        pending = talk.accepted(f"{prompt}, later")
        simulator.kill()
        assert [row["event"] for row in simulator.book].count("billed") == 1
        simulator.start()
        again = talk.poll(done["id"]).json
        running = talk.poll(pending).json
        pictures = [send("GET", address).body for address in (url, *image_urls(again))]
        simulator.advance(LONG_S)
        after = talk.poll(pending).json
        late_picture = send("GET", image_urls(after)[0])
        billed = [row["task_id"] for row in simulator.book if row["event"] == "billed"]
        stats = simulator.stats()

    assert again["usage"] == done["usage"]
    assert running["status"] == "in_progress"
    assert after["status"] == "completed"
    assert pictures == [picture, picture]
    assert late_picture.status == 200
    assert billed == [done["id"], pending]
    assert (stats["accepted"], stats["billed"], stats["in_flight"]) == (2, 2, 0)


def test_another_sample_after_a_restart_is_still_another_picture(prompt: str) -> None:
    """The count of identical requests must survive, or two samples would share a file."""
    with SimulatorProcess(latency=0) as simulator:
        talk = Talk(simulator)
        first = send("GET", image_urls(talk.finished(prompt))[0])
        simulator.stop()
        simulator.start()
        second = send("GET", image_urls(talk.finished(prompt))[0])

    assert first.body != second.body


def test_tasks_that_fell_due_while_it_was_down_are_billed_at_the_start(tmp_path: Path, prompt: str) -> None:
    """The work went on without us: the bill has the time it was due, not that of the restart."""
    with SimulatorProcess(latency=1, sigma=0, book=tmp_path / "book.jsonl") as simulator:
        task_id = Talk(simulator).accepted(prompt)
        simulator.kill()
        row = json.loads((tmp_path / "book.jsonl").read_text())
        # To have been accepted three days ago is the same as to have been down for three days.
        then = as_time(as_seconds(row["time"]) - 3 * 86_400)
        (tmp_path / "book.jsonl").write_text(json.dumps(row | {"time": then}) + "\n")
        simulator.start()
        rows = simulator.book

    assert [(row["event"], row["task_id"]) for row in rows] == [("accepted", task_id), ("billed", task_id)]
    assert as_seconds(rows[1]["time"]) == pytest.approx(as_seconds(then) + 1, abs=0.01)


def test_a_row_torn_by_a_crash_spoils_no_other(tmp_path: Path) -> None:
    """Power fails in the middle of a line; the next line must not be glued to it."""
    path = tmp_path / "book.jsonl"
    path.write_bytes(b'{"event": "refused", "time": "2026-01-01T00:00:00.000Z", "sta')
    book = Book(path)
    book.append({"event": "refused", "time": "2026-01-02T00:00:00.000Z"})
    book.close()

    assert [row["time"][:10] for row in read_book(path)] == ["2026-01-02"]


def test_the_book_is_right_when_asked_for(talk: Talk, prompt: str) -> None:
    """Due is due: the answer must not depend on whether a timer came first."""
    # Other tests share the simulator, and a task of theirs may never end.
    before = talk.simulator.stats()["in_flight"]
    task_ids = [talk.accepted(f"{prompt} {number}") for number in range(30)]
    talk.simulator.advance(LONG_S)
    billed = {row["task_id"] for row in talk.simulator.book if row["event"] == "billed"}

    assert billed >= set(task_ids)
    assert talk.simulator.stats()["in_flight"] <= before


def test_the_sum_of_the_book_is_the_sum_of_the_stats(talk: Talk, prompt: str) -> None:
    """Integers of micro-dollars, so the sums are equal and not nearly so."""
    talk.finished(prompt)
    rows = talk.simulator.book
    micros = sum(int(row["cost_usd"].replace(".", "")) for row in rows if row["event"] == "billed")

    assert int(talk.simulator.stats()["cost_usd"].replace(".", "")) == micros


def test_the_book_given_by_path_is_appended_to(tmp_path: Path, prompt: str) -> None:
    """It is a log: nothing in it is ever rewritten."""
    path = tmp_path / "books" / "one.jsonl"
    with SimulatorProcess(latency=0, book=path) as simulator:
        Talk(simulator).finished(prompt)
    first = path.read_bytes()
    with SimulatorProcess(latency=0, book=path) as simulator:
        Talk(simulator).finished(prompt)

    assert path.read_bytes().startswith(first)
    assert len(path.read_bytes().splitlines()) == 4
    assert path.stat().st_mode & 0o777 == 0o644
