"""How long to wait and how often to try, in one place: defaults for production, shorter ones for tests."""

from dataclasses import dataclass

from nanobanana_pipeline.ledger.leases import LEASE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Times in seconds. What a user may want to change is in the settings instead."""

    submit_tries: int = 5
    """Submits of one attempt, while they are refused for a reason that passes; then the item is deferred."""
    submit_backoff_s: float = 0.5
    download_tries: int = 5
    """Also of what turns out to be no good image: a garbled transfer gives one now and then, a bad image every time. Of
    120,000 images in an hour of faults, two met three garbled transfers in a row, and were given up when three was all.
    """
    download_backoff_s: float = 0.2
    fresh_urls: int = 3
    """Times that a completed task is asked for URLs that are valid now."""
    not_found_s: float = 60.0
    """A task that the provider does not know may only not be known *yet*; after this long it is overdue."""
    give_up_delivery_s: float = 24 * 3600.0
    """How long a paid image is worth asking a failing image host for in vain, over several runs."""
    delivery_pause_s: float = 6 * 3600.0
    """How much of the time between two tries counts to it: in a pause, nobody can say how the host was."""
    stop_grace_s: float = 8.0
    """How long a stop waits for the answers to submits that are in the air."""
    lease_s: float = LEASE_S
    submit_timeout_s: float = 120.0
    """The longest that a submit can be in the air; a dead worker's lease is taken over no sooner than that after its
    end."""
    margin_s: float = 5.0
    """What take-over waits on top, for a request that a stopped process had already begun to send."""

    @property
    def take_over_grace_s(self) -> float:
        """How long after the end of its lease a worker that may be alive still holds its attempts."""
        return self.submit_timeout_s + self.margin_s
