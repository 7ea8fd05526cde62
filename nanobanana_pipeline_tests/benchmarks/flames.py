"""Where the CPU of a whole run goes: a sampling profiler, and the flame graph in docs/performance.md that it draws.

`python -m nanobanana_pipeline_tests.benchmarks.flames OUT.svg ITEMS` runs the product on so many items. Each sample
adds the CPU that a thread has used since the last one, by the kernel's own account, to the stack that the thread is in:
so time in C counts, where the lock of the interpreter is not held, and waiting does not. Linux only.
"""

import html
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

from nanobanana_pipeline_tests.benchmarks.measuring import ROOT, python, say

_EVERY_S: Final = 0.005
_WIDTH: Final = 1200
_ROW: Final = 15
_THINNEST: Final = 0.004
"""Frames of less than this share of the whole are left out of the picture."""
_COLOURS: Final = {
    "nanobanana_pipeline": "#f2b705",
    "dagster": "#8e7cc3",
    "aiohttp": "#6fa8dc",
    "sqlalchemy": "#93c47d",
}
_OURS: Final = "nanobanana_pipeline"
_LEFT_OUT: Final = ("threading", "concurrent.futures", "runpy", "asyncio", "contextlib", "click", "importlib", "_")

Stack = tuple[str, ...]


class Sampler:
    """Samples this process in a thread of its own, from `start` to `stop`."""

    def __init__(self) -> None:
        self.nanoseconds: Counter[Stack] = Counter()
        self._used: dict[int, int] = {}
        self._running = True
        self._thread = threading.Thread(target=self._sample, daemon=True, name="sampler")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and leave the figures as they are."""
        self._running = False
        self._thread.join()

    def _sample(self) -> None:
        while self._running:
            frames = sys._current_frames()  # what every profiler in Python is made of
            stacks = {thread.native_id: frames.get(thread.ident or 0) for thread in threading.enumerate()}
            for task in os.listdir("/proc/self/task"):  # noqa: PTH208 - Path objects would be most of the sampling
                self._count(int(task), stacks.get(int(task)))
            time.sleep(_EVERY_S)

    def _count(self, task: int, frame: FrameType | None) -> None:
        if task == self._thread.native_id:
            return
        try:
            with open(f"/proc/self/task/{task}/schedstat") as file:  # noqa: PTH123 - as above
                used = int(file.read().split()[0])
        except OSError:
            return
        self.nanoseconds[_stack(frame)] += used - self._used.get(task, 0)
        self._used[task] = used


def _stack(frame: FrameType | None) -> Stack:
    stack: list[str] = []
    while frame is not None:
        module: str = frame.f_globals.get("__name__", "?")
        library = module.partition(".")[0]
        deeper_in = stack[-1].partition(".")[0] if stack else ""
        # Of a library's frames in a row the innermost tells enough; ours are all shown.
        if not module.startswith(_LEFT_OUT) and (library != deeper_in or library == _OURS):
            stack.append(f"{module}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    return tuple(reversed(stack)) or ("(native threads and Python itself)",)


@dataclass(slots=True)
class _Flame:
    cost: int = 0
    above: dict[str, "_Flame"] = field(default_factory=dict)


def flame_graph(nanoseconds: Counter[Stack], title: str) -> str:
    """The samples as an SVG: each frame as wide as its share, standing on the one that called it."""
    root = _Flame()
    for stack, cost in nanoseconds.items():
        root.cost += cost
        flame = root
        for name in stack:
            flame = flame.above.setdefault(name, _Flame())
            flame.cost += cost
    boxes: list[tuple[int, float, float, str, float]] = []

    def place(flame: _Flame, depth: int, left: float) -> None:
        for name, above in sorted(flame.above.items()):
            share = above.cost / root.cost
            if share >= _THINNEST:
                boxes.append((depth, left, share, name, share * 100))
                place(above, depth + 1, left)
            left += share

    place(root, 0, 0.0)
    height = (max(box[0] for box in boxes) + 3) * _ROW
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="4" y="{_ROW}" font-size="12">{html.escape(title)}</text>',
    ]
    for depth, left, share, name, percent in boxes:
        x, width, y = left * _WIDTH, share * _WIDTH, height - (depth + 1) * _ROW
        colour = next((shade for start, shade in _COLOURS.items() if name.startswith(start)), "#d9d9d9")
        shown = name.rpartition(".")[2] if width < len(name) * 5.2 else name
        text = html.escape(shown[: int(width / 5.4)])
        lines.append(
            f'<g font-size="10"><title>{html.escape(name)} {percent:.1f} %</title>'
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_ROW - 1}" fill="{colour}"/>'
            f'<text x="{x + 2:.1f}" y="{y + 11}">{text}</text></g>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def folded(nanoseconds: Counter[Stack]) -> str:
    """The samples as text, a stack a line, for other tools."""
    return "".join(f"{';'.join(stack)} {cost // 1000}\n" for stack, cost in nanoseconds.most_common())


def main() -> None:
    """Run the product on a provider of its own and draw where its CPU went."""
    from nanobanana_pipeline_tests.benchmarks.engine import product_knobs  # noqa: PLC0415 - not in the profiled process
    from nanobanana_pipeline_tests.benchmarks.provider import running_provider  # noqa: PLC0415

    picture, items = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    folder = Path(tempfile.mkdtemp(prefix="nanobanana-bench-"))
    with running_provider(latency=5, sigma=0.25) as provider:
        knobs = product_knobs(folder, provider.base_url, items, "structure")
        environment = os.environ | {f"NANOBANANA_{name}": value for name, value in knobs.items()}
        subprocess.run(
            python("nanobanana_pipeline_tests.benchmarks.flames", str(picture)), cwd=ROOT, env=environment, check=True
        )
    shutil.rmtree(folder)
    say(f"{picture} and {picture.with_suffix('.folded')}")


def _profiled(picture: Path) -> None:
    sampler = Sampler()
    sampler.start()
    from nanobanana_pipeline.cli.main import main as command  # noqa: PLC0415 - importing it is part of the cost

    code = command(["run", "--json"])
    sampler.stop()
    if code:
        raise SystemExit(code)
    seconds = sum(sampler.nanoseconds.values()) / 1e9
    picture.write_text(flame_graph(sampler.nanoseconds, f"nanobanana run: {seconds:.1f} s of CPU, by frame"))
    picture.with_suffix(".folded").write_text(folded(sampler.nanoseconds))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        _profiled(Path(sys.argv[1]))
    else:
        main()
