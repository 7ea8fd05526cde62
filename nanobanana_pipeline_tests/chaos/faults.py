"""The mix of faults in a chaos round: rare enough that work gets done, common enough to meet every path."""

from typing import Any

MIX: list[dict[str, Any]] = [
    {"fault": "answer_lost", "rate": 0.01},
    {"fault": "gateway_504", "rate": 0.005},
    {"fault": "no_id_200", "rate": 0.005},
    {"fault": "undecodable_200", "rate": 0.005},
    {"fault": "rate_limited_429", "rate": 0.02, "retry_after": 0},
    {"fault": "error_500", "rate": 0.02},
    {"fault": "unavailable_503_html", "rate": 0.01},
    {"fault": "refused_400_moderation", "rate": 0.01},
    {"fault": "fast_path", "rate": 0.02},
    {"fault": "failed", "rate": 0.03},
    {"fault": "text_only", "rate": 0.01},
    {"fault": "no_output", "rate": 0.005},
    {"fault": "several_images", "rate": 0.01},
    {"fault": "usage_absent", "rate": 0.02},
    {"fault": "usage_cost", "rate": 0.02},
    {"fault": "slow_task", "rate": 0.01, "seconds": 6},
    {"fault": "poll_500", "rate": 0.02, "times": 2},
    {"fault": "poll_cut", "rate": 0.02, "times": 1},
    {"fault": "poll_truncated", "rate": 0.02, "times": 1},
    {"fault": "forgotten_404", "rate": 0.01, "times": 1},
    {"fault": "url_expired", "rate": 0.03},
    {"fault": "image_500_then_good", "rate": 0.02, "failures": 2},
    {"fault": "image_cut", "rate": 0.02, "times": 1},
    # Once each: three bad ones in a row are given up as promised, and the book would not say that they came.
    {"fault": "image_truncated", "rate": 0.01, "times": 1},
    {"fault": "image_blank", "rate": 0.005, "times": 1},
]

NOT_DELIVERABLE = {"text_only", "no_output"}
"""Faults after which the provider has no usable image to give, paid or not."""
