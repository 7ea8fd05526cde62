"""Chance that can be had again: numbers drawn from a seed and a text by hashing, the same on every machine and version.

The standard generators are not used because making one for each request costs more than answering the request.
"""

import hashlib
from statistics import NormalDist

_NORMAL = NormalDist()


def fraction(*parts: object) -> float:
    """A number in (0, 1), even over all the values that `parts` can take."""
    text = "\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")
    whole = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
    return (whole + 0.5) / 2**56


def integer(low: int, high: int, *parts: object) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + int(fraction(*parts) * (high - low + 1))


def log_normal(median: float, sigma: float, *parts: object) -> float:
    """A log-normal number with that median; `sigma` 0.35 puts nine in ten between 0.56 and 1.8 medians."""
    return median * 2.718281828459045 ** (sigma * _NORMAL.inv_cdf(fraction(*parts)))
