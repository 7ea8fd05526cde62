"""The simulator's knobs, as a command line and as a value; `process` turns the value back into a command line."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

DEFAULT_KEY = "simulated-key"
KEY_FROM_STDIN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """How the simulated provider behaves. Ports of 0 are chosen by the system."""

    host: str = "127.0.0.1"
    port: int = 8000
    images_port: int = 0
    api_key: str = DEFAULT_KEY
    book: Path | None = None
    fsync: bool = False
    model: str = "nano_banana_2"
    latency: float = 6.0
    sigma: float = 0.35
    seed: int = 0
    faults: Path | None = None
    max_in_flight: int | None = None
    requests_per_minute: int | None = None
    url_lifetime: float = 3600.0
    picture_bytes: int | None = None
    cached_picture: bool = False
    watch_stdin: bool = False

    def as_arguments(self) -> list[str]:
        """The command line that gives these options, with the key left to standard input: others can read `ps`."""
        arguments: list[str] = []
        for field in fields(self):
            value = KEY_FROM_STDIN if field.name == "api_key" else getattr(self, field.name)
            flag = f"--{field.name.replace('_', '-')}"
            if value is True:
                arguments.append(flag)
            elif value is not None and value is not False:
                arguments += [flag, str(value)]
        return arguments


def read_arguments(arguments: Sequence[str] | None = None) -> SimulatorOptions:
    """Options from a command line (None: this process's). Exits with usage help when they are wrong."""
    default = SimulatorOptions()
    parser = argparse.ArgumentParser(
        prog="python -m nanobanana_pipeline.simulator",
        description="A provider for development: the wire of the real one, its own billing book, scripted faults.",
    )
    add = parser.add_argument
    add("--host", default=default.host, help="address to listen on (%(default)s)")
    add("--port", type=_port, default=default.port, help="port of the API; 0: any free one (%(default)s)")
    add("--images-port", type=_port, default=default.images_port, help="port of the pictures' origin (%(default)s)")
    add("--api-key", default=default.api_key, help="the key to accept; - reads it from standard input's first line")
    add("--book", type=Path, help="the billing book, JSON lines, appended to (default: a temporary file)")
    add("--fsync", action="store_true", help="force each row of the book to the disk before answering")
    add("--model", default=default.model, help="the model that there is: a name, or a spec's file (%(default)s)")
    add("--latency", type=_seconds, default=default.latency, help="median seconds that a task takes (%(default)s)")
    add("--sigma", type=_seconds, default=default.sigma, help="spread of the log-normal latency (%(default)s)")
    add("--seed", type=int, default=default.seed, help="what latencies, tokens and pictures are drawn from")
    add("--faults", type=Path, help="a fault script, TOML or JSON")
    add("--max-in-flight", type=_positive, metavar="N", help="answer 429 to submits beyond N running tasks")
    add("--requests-per-minute", type=_positive, metavar="N", help="answer 429, Retry-After, beyond N submits a minute")
    add(
        "--url-lifetime",
        type=_seconds,
        default=default.url_lifetime,
        help="seconds a picture's URL holds (%(default)s)",
    )
    add("--picture-bytes", type=_positive, metavar="N", help="pad pictures to N bytes (they become JPEG)")
    add("--cached-picture", action="store_true", help="one picture a size for all tasks: for benchmarks")
    add("--watch-stdin", action="store_true", help="end when standard input closes, as when the parent process dies")
    options = SimulatorOptions(**vars(parser.parse_args(arguments)))
    if not options.api_key:
        parser.error("the API key is empty")
    return options


def _port(text: str) -> int:
    return _within(int(text), 0, 65535)


def _positive(text: str) -> int:
    return _within(int(text), 1, 10**12)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not zero or more")
    return seconds


def _within(value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{value} is not within {low} to {high}")
    return value
