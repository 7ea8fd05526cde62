"""The recipes of docs/operations.md as a person follows them: their commands, as they stand there, in a shell."""

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanobanana_pipeline_tests.e2e.command import LIMIT_S, ROOT

PAGE = ROOT / "docs" / "operations.md"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NANOBANANA = """\
#!/bin/bash
step=$(printf '%03d' "$(ls "$STEPS" | wc -l)")
"{python}" -m nanobanana_pipeline.cli "$@" >"$STEPS/out" 2>"$STEPS/err"
code=$?
mkdir "$STEPS/$step" && printf '%s' "$*" >"$STEPS/$step/command" && printf '%s' $code >"$STEPS/$step/code"
mv "$STEPS/out" "$STEPS/err" "$STEPS/$step/"
exit $code
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a recipe, and how it ended."""

    command: str
    code: int
    out: str
    err: str


@cache
def recipes() -> dict[str, list[tuple[str, str]]]:
    """The page's blocks by heading: language (none for a shell) and text."""
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {section.partition("\n")[0]: _BLOCK.findall(section) for section in sections}


def commands(title: str) -> str:
    """All that a recipe says to type."""
    return "".join(text for language, text in recipes()[title] if not language)


def block(title: str, language: str) -> str:
    """What a recipe says to write into a file."""
    (text,) = [text for found, text in recipes()[title] if found == language]
    return text


def follow(text: str, folder: Path, environment: Mapping[str, str], values: Mapping[str, str]) -> list[Step]:
    """Type this in a shell, with values in place of the words that stand for them; what each command said."""
    for word, value in values.items():
        assert word in text, word
        text = text.replace(word, value)
    tools, steps = folder / "tools", folder / "steps"
    tools.mkdir(exist_ok=True)
    steps.mkdir()
    for name, script in (
        ("nanobanana", _NANOBANANA.format(python=sys.executable)),
        ("python", f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'),
    ):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    known = {**environment, "PATH": f"{tools}:{environment['PATH']}", "STEPS": str(steps)}
    shell = subprocess.run(
        ["/bin/bash"], input=text, cwd=folder, env=known, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert shell.stderr == "", shell.stderr
    followed = [
        Step((step / "command").read_text(), int((step / "code").read_text()), *_said(step))
        for step in sorted(steps.iterdir())
    ]
    steps.rename(folder / f"followed-{len(list(folder.glob('followed-*')))}")
    return followed


def _said(step: Path) -> tuple[str, str]:
    out, err = (step / "out").read_text(), (step / "err").read_text()
    assert "Traceback" not in out + err, err
    return out, err
