"""Opening what a URI names. Light to import: the object stores' own library is loaded when one is really opened.

Credentials and endpoints come from the variables that each cloud's own tools read (`AWS_ACCESS_KEY_ID`,
`AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, …), or from the machine's role. The
library under Delta Lake is the same: what opens the images opens the tables. What is kept where is up to the callers.
"""

import re
from typing import Any, Final

import fsspec

from nanobanana_pipeline.errors import UserError

SCHEMES: Final = ("s3", "s3a", "gs", "az", "abfs", "abfss")
"""The stores that an output can be in: each has a put that fails if somebody was faster, as commits to tables need."""

DELTA_OPTIONS: Final[dict[str, str]] = {"allow_http": "true", "timeout": "60s"}
"""How Delta Lake opens a store. An endpoint without TLS is only ever one that a person has named."""

_COLOURS: Final = re.compile(r"\x1b\[\d*m")
_CALM: Final = "what was stored before is safe; check the store and its credentials in the environment, then run again"


class ObjectStoreError(UserError, OSError):
    """The store refused, or could not be reached with all its retries (about three minutes)."""

    def __init__(self, place: str, error: Exception) -> None:
        # The first lines say what happened; behind them come addresses, arrows and XML.
        words = " ".join(line.strip(" \t↳") for line in _COLOURS.sub("", str(error)).partition("<")[0].splitlines()[:3])
        super().__init__(f"the object store failed at {place}: {words[:400].rstrip(': ')}; {_CALM}")


for _scheme in SCHEMES:
    fsspec.register_implementation(
        _scheme, f"nanobanana_pipeline.object_stores.adapter.{_scheme.upper()}", clobber=True
    )


def open_uri(uri: str) -> tuple[Any, str]:
    """The file system of `uri` (a path, or any URI that fsspec knows; an `AbstractFileSystem`) and the path in it.

    Raises `ValueError` for a scheme that nobody knows, and `ImportError` for one whose package is not installed.
    """
    return fsspec.core.url_to_fs(uri)
