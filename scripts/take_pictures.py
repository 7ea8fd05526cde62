"""Takes the pictures in docs/pictures anew, from those that the browser test of a first day keeps.

    python scripts/take_pictures.py          runs that test, then makes the pictures
    python scripts/take_pictures.py --kept   makes them of what its last run has kept

Needs Chromium on the PATH and the project's `dev` extra. What the pictures show is the real thing, clicked through in
`nanobanana_pipeline_tests/e2e/test_first_day.py`; here they are only made small.
"""
# ruff: noqa: INP001, T201 (a folder of programs, no package; it speaks to whoever runs it)

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final

from PIL import Image

PROJECT: Final = Path(__file__).resolve().parents[1]
TEST: Final = "nanobanana_pipeline_tests/e2e/test_first_day.py"
KEPT: Final = PROJECT / "test-output" / "clicks"
PICTURES: Final = PROJECT / "docs" / "pictures"
NAMES: Final = ("dagster", "contact-sheet", "gallery", "costs")
MOST_BYTES: Final = 400_000


def main() -> int:
    """Make all pictures; 1 when one could not be made."""
    parser = argparse.ArgumentParser(description="Take the pictures in docs/pictures anew.")
    parser.add_argument("--kept", action="store_true", help="of what the test's last run has kept")
    if not parser.parse_args().kept:
        test = [sys.executable, "-m", "pytest", "-q", TEST]
        if subprocess.run(test, cwd=PROJECT, check=False).returncode:  # noqa: S603 - our own test
            print("the test failed: no picture was made", file=sys.stderr)
            return 1
    made = [make(name) for name in NAMES]
    return 0 if all(made) else 1


def make(name: str) -> bool:
    """Make one picture of the latest that was kept: as it is when that is small, else in 256 colours."""
    kept = sorted(KEPT.glob(f"[0-9][0-9]-{name}.png"))
    if not kept:
        print(f"{name}: there is none in {KEPT.relative_to(PROJECT)}", file=sys.stderr)
        return False
    picture = Image.open(kept[-1]).convert("RGB")
    file = PICTURES / f"{name}.png"
    picture.save(file, optimize=True)
    if file.stat().st_size > MOST_BYTES:
        palette = picture.quantize(256, method=Image.Quantize.MEDIANCUT)
        picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(file, optimize=True)
    size = file.stat().st_size
    print(f"{file.relative_to(PROJECT)}: {picture.width} x {picture.height}, {size / 1000:.0f} kB")
    if size > MOST_BYTES:
        print(f"{file.name} has more than {MOST_BYTES:,} bytes: make the window smaller", file=sys.stderr)
    return size <= MOST_BYTES


if __name__ == "__main__":
    sys.exit(main())
