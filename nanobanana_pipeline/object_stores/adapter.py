"""obstore under fsspec's interface: whole objects, one listing for all that is below, and errors in one line.

Which URIs come here is said in `opening`.
"""

# pyright: reportIncompatibleMethodOverride=false
# fsspec's own signatures are looser than what its callers rely on.

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar

from obstore.exceptions import BaseError
from obstore.fsspec import FsspecStore

from nanobanana_pipeline.object_stores.opening import ObjectStoreError

_CLIENT: Final[Any] = {"allow_http": True, "timeout": "60s"}

P = ParamSpec("P")
T = TypeVar("T")


def _in_one_line(call: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Say what a store refused without its page of XML."""

    @functools.wraps(call)
    async def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await call(*args, **kwargs)
        except FileNotFoundError as error:
            # The store's words hold its address, and a reader of "not found" wants the path alone.
            raise FileNotFoundError(args[1] if len(args) > 1 else str(error)) from None
        except BaseError as error:
            raise ObjectStoreError(str(args[1]), error) from None

    return told


class ObjectStore(FsspecStore):
    """The objects of one kind of store, as fsspec's callers know files. Nothing is cached; any thread may call."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"client_options": _CLIENT, **options})

    @_in_one_line
    async def _pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> Any:
        # One request, or a multipart upload for a large object: visible when it is whole, and not before.
        return await super()._pipe_file(path, value, mode, **kwargs)

    @_in_one_line
    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        return await super()._cat_file(path, start, end, **kwargs)

    @_in_one_line
    async def _rm_file(self, path: str, **kwargs: Any) -> None:
        await super()._rm_file(path, **kwargs)

    @_in_one_line
    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        # obstore forgets the bucket in the name of what it found.
        return {**await super()._info(path, **kwargs), "name": self._strip_protocol(path)}

    @_in_one_line
    async def _ls(self, path: str, detail: bool = True, **_kwargs: Any) -> list[Any]:  # noqa: FBT001, FBT002 - fsspec's
        bucket, prefix = self._split_path(path)
        found = await self._construct_store(bucket).list_with_delimiter_async(prefix)
        entries = [_entry(bucket, each) for each in found["objects"]]
        entries += [{"name": f"{bucket}/{each}", "size": 0, "type": "directory"} for each in found["common_prefixes"]]
        if not entries:
            raise FileNotFoundError(path)
        return entries if detail else sorted(entry["name"] for entry in entries)

    @_in_one_line
    async def _find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,  # noqa: FBT001, FBT002 - fsspec's
        **kwargs: Any,
    ) -> Any:
        # One listing of all that is below: folder by folder, as fsspec walks, is a request for each.
        if maxdepth is not None or withdirs:
            return await super()._find(path, maxdepth, withdirs, **kwargs)
        bucket, prefix = self._split_path(path)
        found: dict[str, Any] = {}
        async for chunk in self._construct_store(bucket).list(prefix):
            found |= {entry["name"]: entry for entry in (_entry(bucket, each) for each in chunk)}
        return found if kwargs.get("detail") else sorted(found)


def _entry(bucket: str, meta: Any) -> dict[str, Any]:
    return {
        "name": f"{bucket}/{meta['path']}",
        "size": meta["size"],
        "type": "file",
        "ETag": meta["e_tag"],
        "LastModified": meta["last_modified"],
    }


class S3(ObjectStore):
    """Amazon S3, and what speaks its language (`AWS_ENDPOINT_URL`)."""

    protocol = "s3"


class S3A(ObjectStore):
    """Hadoop's name for S3."""

    protocol = "s3a"


class GS(ObjectStore):
    """Google Cloud Storage."""

    protocol = "gs"


class AZ(ObjectStore):
    """Azure Blob Storage."""

    protocol = "az"


class ABFS(ObjectStore):
    """Azure Data Lake Storage."""

    protocol = "abfs"


class ABFSS(ObjectStore):
    """Azure Data Lake Storage, by its other name."""

    protocol = "abfss"
