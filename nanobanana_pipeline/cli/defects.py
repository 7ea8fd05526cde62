"""Where the traceback of a defect goes: a file in the output, without the key."""

import traceback
from datetime import UTC, datetime
from pathlib import Path
from tempfile import gettempdir

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.settings import Settings, load_settings


def keep(error: BaseException) -> Path:
    """Write the error down for its report; returns the file."""
    text = "".join(traceback.format_exception(error))
    try:
        settings = load_settings()
    except UserError:
        return _write(Path(gettempdir()), text)
    text = _without_key(text, settings)
    if "://" not in settings.workspace:
        try:
            return _write(Path(settings.workspace).absolute() / "logs", text)
        except OSError:
            pass
    return _write(Path(gettempdir()), text)


def _without_key(text: str, settings: Settings) -> str:
    key = settings.api_key.get_secret_value().strip() if settings.api_key else ""
    return text.replace(key, "***") if key else text


def _write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    file = folder / f"defect-{now:%Y%m%dT%H%M%S.%fZ}.txt"
    file.write_text(text)
    return file
