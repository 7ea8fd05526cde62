"""What one output has: the model spec, the ledger, the image files and the tables that belong together.

Opened from settings by the command line, by Dagster's assets and by tests alike; holds no connection to the provider.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.ledger.ledger import Ledger
from nanobanana_pipeline.model_specs.loader import load_spec
from nanobanana_pipeline.model_specs.spec import ModelSpec
from nanobanana_pipeline.object_stores.opening import SCHEMES
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.storage.images import ImageStore
from nanobanana_pipeline.storage.tables import Tables

_WITH_SCHEME: Final = ("file://", *(f"{scheme}://" for scheme in SCHEMES))


@dataclass(frozen=True, slots=True)
class Workspace:
    """An open output; a context manager, since the ledger in it has to be closed."""

    settings: Settings
    spec: ModelSpec
    ledger: Ledger
    images: ImageStore
    tables: Tables

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open the output that the settings name, creating what is missing. Raises `UserError`."""
        output = settings.workspace
        spec = load_spec(settings.model, settings.prices)
        if "://" not in output:
            try:
                Path(output).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"the output folder {output} can't be made ({error.strerror}): set NANOBANANA_OUTPUT to another"
                ) from None
        elif not output.startswith(_WITH_SCHEME):
            raise UserError(
                f"NANOBANANA_OUTPUT={output}: an output is a folder, or begins with {', '.join(_WITH_SCHEME)}"
            )
        ledger = Ledger(settings.ledger)
        stamp = ledger.stamp
        simulated = stamp.mode == "simulated" if stamp else (True if settings.simulated else None)
        return cls(settings, spec, ledger, ImageStore(output), Tables(output, simulated=simulated))

    @property
    def output(self) -> str:
        """The output folder or URI."""
        return self.settings.workspace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.close()
