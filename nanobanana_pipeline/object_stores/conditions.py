"""Whether a store keeps the promise that commits rest on: of several who put one object at once, one alone makes it.

Not every server that speaks a store's language does. Some overlook the condition (`If-None-Match: *`, in S3's words);
OpenStack Swift looks first and writes then, so that writers who come at the same moment all win. Two commits to a table
would then undo each other without a word, so such a store is found out before anything relies on it.
"""

import contextlib
import threading
import uuid
from typing import Final

from nanobanana_pipeline.errors import UserError
from nanobanana_pipeline.object_stores.opening import SCHEMES, ObjectStoreError, open_uri

_RIVALS: Final = 8
# Of 25 rounds, Swift had several winners in 21.
_ROUNDS: Final = 3

_proven: set[str] = set()
_lock: Final = threading.Lock()


def refuse_heedless(uri: str) -> None:
    """Refuse, with a `UserError`, a store on which two writers below `uri` could both win.

    Asked once by each process; some 25 small requests, most of them at the same time.
    """
    with _lock:
        if uri not in _proven and uri.partition("://")[0] in SCHEMES:
            _try_out(uri)
            _proven.add(uri)


def _try_out(uri: str) -> None:
    store, base = open_uri(uri)
    for _ in range(_ROUNDS):
        path = f"{base}/_condition-{uuid.uuid4().hex}"
        try:
            winners = store.count_winners(path, _RIVALS)
        finally:
            with contextlib.suppress(FileNotFoundError, ObjectStoreError):
                store.rm_file(path)
        # None may win: the answer to the one who did was lost, and repeated it came too late.
        if winners > 1:
            raise UserError(
                f"{uri} can't hold tables: of {_RIVALS} that put one new object at the same moment {winners} were told "
                "that they had made it, so two commits could undo each other; use a store that keeps the condition "
                "If-None-Match: * (Amazon S3, Google Cloud Storage, Azure), or a folder, for NANOBANANA_OUTPUT"
            )
