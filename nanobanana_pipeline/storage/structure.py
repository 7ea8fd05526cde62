"""The skeletons of PNG, JPEG and WebP files: sizes, chunks and end markers, read without decoding a pixel.

Each walk visits every chunk or segment from the first byte to the end marker, so a file that was cut anywhere shows it.
What a picture may be is decided in `verification`.
"""

import re
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"


class BadImage(Exception):  # noqa: N818 - it says what came, and is handed around as a value too
    """Bytes that are no usable image. `reason` is one word for tables; the message says it to a person."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Shape:
    """What a walk found. `end`: the offset behind the end marker; `scans`: passes over the picture (JPEG)."""

    width: int
    height: int
    has_c2pa: bool
    end: int = 0
    scans: int = 1


def walk_png(data: bytes) -> Shape:
    """The shape of a PNG file whose chunks are all there, with good checksums."""
    width = height = 0
    has_c2pa = has_pixels = False
    at = len(PNG_SIGNATURE)
    while True:
        if at + 12 > len(data):
            raise BadImage("truncated", f"the png image ends after {len(data)} bytes, before its end marker")
        length = int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise BadImage("truncated", f"the png image ends after {len(data)} bytes, within a chunk up to {end}")
        checksum = int.from_bytes(data[end - 4 : end], "big")
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != checksum:
            raise BadImage("corrupt", f"the png image has a wrong checksum at byte {at}")
        if (name == b"IHDR") != (at == len(PNG_SIGNATURE)):
            raise BadImage("corrupt", "the png image has no header chunk at its start")
        if name == b"IHDR":
            width, height = (
                int.from_bytes(data[at + 8 : at + 12], "big"),
                int.from_bytes(data[at + 12 : at + 16], "big"),
            )
        has_pixels |= name == b"IDAT"
        has_c2pa |= name == b"caBX"
        at = end
        if name == b"IEND":
            break
    if not has_pixels:
        raise BadImage("corrupt", "the png image has no pixels")
    return Shape(width, height, has_c2pa=has_c2pa, end=at)


_MARK, _EOI, _SOS, _APP11 = 0xFF, 0xD9, 0xDA, 0xEB
_FRAME_HEADER_BYTES: Final = 6
# SOF0 to SOF15, but for the three of the range that are tables.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = frozenset({0xC2, 0xCA})
# In scan data 0xFF is followed by 0 (a stuffed byte), a restart marker or a fill byte; anything else is a new marker.
_NEXT_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def walk_jpeg(data: bytes) -> Shape:
    """The shape of a JPEG file from its start to its first end marker, with every pass a progressive one needs."""
    frame: bytes | None = None
    progressive = has_c2pa = False
    scans: list[bytes] = []
    at = 2
    while True:
        marker, at = _jpeg_marker(data, at)
        if marker == _EOI:
            break
        segment, at = _jpeg_segment(data, at)
        if marker in _FRAMES and frame is None:
            frame, progressive = segment, marker in _PROGRESSIVE
        has_c2pa |= marker == _APP11 and segment[:2] == b"JP" and b"c2pa" in segment[:256]
        if marker == _SOS:
            scans.append(segment)
            found = _NEXT_MARKER.search(data, at)
            if found is None:
                raise BadImage("truncated", f"the jpeg image ends after {len(data)} bytes, before its end marker")
            at = found.start()
    if frame is None or len(frame) < _FRAME_HEADER_BYTES or not scans:
        raise BadImage("corrupt", "the jpeg image has no picture in it")
    if progressive:
        _check_passes(frame, scans)
    return Shape(
        int.from_bytes(frame[3:5], "big"),
        int.from_bytes(frame[1:3], "big"),
        has_c2pa=has_c2pa,
        end=at,
        # A progressive picture of one scan is still drawn at its end only.
        scans=max(len(scans), 2) if progressive else len(scans),
    )


def _jpeg_marker(data: bytes, at: int) -> tuple[int, int]:
    """The marker at `at` and the offset behind it."""
    while at + 1 < len(data) and data[at] == data[at + 1] == _MARK:
        at += 1
    if at + 1 >= len(data):
        raise BadImage("truncated", f"the jpeg image ends after {len(data)} bytes, before its end marker")
    if data[at] != _MARK:
        raise BadImage("corrupt", f"the jpeg image has no marker at byte {at}")
    return data[at + 1], at + 2


def _jpeg_segment(data: bytes, at: int) -> tuple[bytes, int]:
    """The content of the segment whose length is at `at`, and the offset behind it."""
    end = at + max(int.from_bytes(data[at : at + 2], "big"), 2)
    if end > len(data):
        raise BadImage("truncated", f"the jpeg image ends after {len(data)} bytes, within a segment up to {end}")
    return data[at + 2 : end], end


def _check_passes(frame: bytes, scans: list[bytes]) -> None:
    """A progressive picture gains precision scan by scan: each component's first and last coefficient must get all."""
    components = {
        frame[at] for at in range(_FRAME_HEADER_BYTES, min(len(frame), _FRAME_HEADER_BYTES + 3 * frame[5]), 3)
    }
    # What is still missing: the constant (0) and the finest detail (63) of each component.
    wanted = {(component, coefficient) for component in components for coefficient in (0, 63)}
    for scan in scans:
        count = scan[0] if scan else 0
        if len(scan) < 4 + 2 * count:
            raise BadImage("corrupt", "the jpeg image has a broken scan header")
        start, end, low_bits = scan[-3], scan[-2], scan[-1] & 0x0F
        if low_bits == 0:
            wanted -= {(scan[1 + 2 * i], coefficient) for i in range(count) for coefficient in range(start, end + 1)}
    if wanted:
        raise BadImage("truncated", "the progressive jpeg image lacks its last scans")


def walk_webp(data: bytes) -> Shape:
    """The shape of a WebP file whose chunks fill exactly the length that it announces."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise BadImage("truncated", f"the webp image ends after {len(data)} bytes, {end} were announced")
    size: tuple[int, int] | None = None
    has_c2pa = has_pixels = False
    at = 12
    while at < end:
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : min(at + 8 + length, at + 64)]
        at += 8 + length + length % 2
        # A last chunk of odd length whose padding byte was left out is common, and harmless.
        if at - length % 2 > end:
            raise BadImage("truncated", f"the webp image ends after {end} bytes, within a chunk up to {at}")
        size = size or _webp_size(name, body)
        has_pixels |= name in {b"VP8 ", b"VP8L", b"ANMF"}
        has_c2pa |= name == b"C2PA"
    if size is None or not has_pixels:
        raise BadImage("corrupt", "the webp image has no picture in it")
    return Shape(*size, has_c2pa=has_c2pa, end=end)


def _webp_size(name: bytes, body: bytes) -> tuple[int, int] | None:
    """Width and height, when `body` is the start of one of the chunks that tell them."""
    try:
        if name == b"VP8X":
            width, more_width, height, more_height = struct.unpack_from("<HBHB", body, 4)
            return (more_width << 16 | width) + 1, (more_height << 16 | height) + 1
        if name == b"VP8L":
            (bits,) = struct.unpack_from("<I", body, 1)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if name == b"VP8 ":
            width, height = struct.unpack_from("<HH", body, 6)
            return width & 0x3FFF, height & 0x3FFF
    except struct.error:
        raise BadImage("corrupt", "the webp image has a broken header") from None
    return None


WALKS: Final[Mapping[str, Callable[[bytes], Shape]]] = {"png": walk_png, "jpeg": walk_jpeg, "webp": walk_webp}
