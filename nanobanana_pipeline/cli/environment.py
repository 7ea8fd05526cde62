"""What commands set in the environment before Dagster is loaded, for this process and those it starts.

Settings themselves are read by `settings`; DAGSTER_HOME is Dagster's own variable and only passed on here.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanobanana_pipeline.settings import Settings

_LOCAL_OUTPUT = "data/output"
_SAMPLE = "sample"
_PROJECT = Path(__file__).resolve().parents[2]


def local_output(settings: "Settings") -> Path:
    """The output, or where a remote one keeps what has to be local (Dagster's state, logs)."""
    return Path(_LOCAL_OUTPUT if "://" in settings.workspace else settings.workspace).absolute()


def set_dagster_home(settings: "Settings") -> Path:
    """DAGSTER_HOME as it is set, else a folder in the local output; absolute, as Dagster wants it, and prepared.

    A pipeline beside the first is seen in the first one's Dagster.
    """
    from nanobanana_pipeline.orchestration.instance import prepare_home
    from nanobanana_pipeline.settings import load_settings

    first = settings if settings.pipeline is None else load_settings(pipeline=None)
    home = prepare_home(os.environ.get("DAGSTER_HOME") or local_output(first) / ".dagster")
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
    return home


def demo_settings() -> "Settings":
    """Settings that mean the simulator, whatever provider the environment names; and the sample, where it is found."""
    from nanobanana_pipeline.settings import load_settings

    for name in ("NANOBANANA_API_KEY", "NANOBANANA_BASE_URL"):
        # Gone for the processes that are started from here, too.
        os.environ.pop(name, None)
    return show_the_sample(load_settings(api_key=None, base_url=None))


def show_the_sample(settings: "Settings") -> "Settings":
    """Without a catalogue of their own, let simulated processes that are started from here find the sample."""
    sample = _PROJECT / "data" / "catalogue"
    chosen = "NANOBANANA_CATALOGUE" in os.environ or Path(settings.catalogue).is_dir()
    if chosen or not settings.simulated or not sample.is_dir():
        return settings
    os.environ["NANOBANANA_CATALOGUE"] = str(sample)
    return settings.model_copy(update={"catalogue": str(sample)})


def demo_catalogue(settings: "Settings") -> str | None:
    """The catalogue that the demo is about: the sample, or all there are where there is none."""
    return _SAMPLE if (Path(settings.catalogue) / f"{_SAMPLE}.parquet").exists() else None
