"""What an image file would cost to decode, by its structure, before a decoder sees it.

Decoders believe what a file says about itself, so that a few kilobytes can cost minutes or gigabytes: a JPEG whose scans
each pass over the whole image, a TIFF whose tags all name the same megabytes, a GIF of a million comments. Here the
structure alone is walked, at a bounded cost, and a file that asks for too much raises ValueError with the reason.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import BinaryIO

MAX_SCANNED = 2_500_000_000
"""Pixels times scans of a JPEG of several scans, each of which passes over the image; encoders make up to twelve."""
MAX_FILE = 1 << 30
HEADER = 1 << 17  # bytes in which most JPEGs have theirs
_MOST_SEGMENTS = 20_000
_MOST_CHUNKS = 200_000  # an animation has a few a frame
_MOST_STRIPS = 200_000
_MOST_TILES = 20_000  # of JPEG 2000, each of which costs kilobytes
_MOST_BLOCKS = 4_000  # of a GIF before its first frame, of 255 bytes each
_MOST_METADATA = 64 << 20
_MOST_SLOW = 4 << 20  # bytes of the kinds that are decoded in a slow loop
_SCAN = b"\xff\xda"
_SMALL = 1 << 16  # bytes of a PNG that has fewer chunks than _MOST_CHUNKS, whatever they are
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")
_EXIF = re.compile(rb"II[*+]\0|MM\0[*+]")
_MOST_EXIF = 16
_ORIENTATION = 274
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS, interoperability
_MOST_DIRECTORIES = 8
_STRIPS = (273, 279, 324, 325)  # offsets and sizes of strips and of tiles
_LARGE_ICON = 4096
_MOST_ICONS = 256
_LONG_HEADER = 1 << 16
_MOST_COMMENTS = 1000
_COMMENT = re.compile(rb"#[^\r\n]*")
_MOST_SAMPLES = 80_000_000  # of JPEG 2000, which is slow to decode


@dataclass(frozen=True)
class Structure:
    """``format``: Pillow's name; ``scans`` of a JPEG; ``exif`` of a PNG, and whether its text may hold EXIF too;
    ``wide``: whether it may have more than 8 bits."""

    format: str
    scans: int = 1
    exif: bytes = b""
    profile: bool = False
    wide: bool = True


_PLAIN_JPEG = Structure("JPEG", wide=False)
_PLAIN_PNG = (Structure("PNG", wide=False), Structure("PNG"))


def inspect(file: BinaryIO, name: str, *, header: bool = False) -> Structure:
    """Walk the structure of a seekable image file, or of its ``header`` alone. Raises ValueError with
    the reason if it should not be decoded."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(34).ljust(34, b"\0")
    if size > MAX_FILE:
        raise ValueError(f"more than {MAX_FILE >> 20:,} MB: store it smaller")
    if head.startswith(b"\xff\xd8"):
        file.seek(0)
        if header and (found := _jpeg(file.read(HEADER), header=True)).scans:
            return found
        file.seek(0)
        return _jpeg(file.getvalue() if isinstance(file, io.BytesIO) else file.read())
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(file, size, wide=head[24] > 8)
    if head.startswith(_TIFF):
        check_tags(file, size)
        return Structure("TIFF")
    if head.startswith((b"GIF87a", b"GIF89a")):
        _gif(file, head)
        return Structure("GIF")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Structure("WEBP")
    if head.startswith(b"BM"):
        if struct.unpack_from("<I", head, 30)[0] in (1, 2):  # decoded in a loop over its pixels
            width, height = struct.unpack_from("<ii", head, 18)
            if max(size, abs(width * height)) > _MOST_SLOW:
                raise ValueError(
                    f"a run-length coded BMP of more than {_MOST_SLOW >> 20} million pixels: store it as PNG"
                )
        return Structure("BMP")
    if head.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        _jpeg2000(file, size)
        return Structure("JPEG2000")
    if head[4:8] == b"ftyp":
        _avif(file)
        return Structure("AVIF")
    if head.startswith(b"\0\0\1\0"):
        _icons(file, int.from_bytes(head[4:6], "little"))
        return Structure("ICO")
    if head[:1] == b"P" and head[1:2] in b"123456fy":
        _pnm(file, head[1:2], size)
        return Structure("PPM")
    if name.lower().endswith(".tga"):  # it has no signature: any bytes would pass for one
        return Structure("TGA")
    raise ValueError("not an image in a known format")


def orientation(exif: bytes) -> int:
    """The orientation, 1..8, in EXIF data; 1 if they have none or are damaged. Nothing else in them is read."""
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        start = struct.unpack_from(order + "I", exif, 4)[0]
        for entry in range(struct.unpack_from(order + "H", exif, start)[0]):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * entry)
            if tag == _ORIENTATION and kind == 3 and count == 1:
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1


def check_exif(exif: bytes) -> None:
    """Raise ValueError if the tags of EXIF data ask for much more than the data."""
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:4] in _TIFF:
        check_tags(io.BytesIO(exif), len(exif))


def check_tags(file: BinaryIO, size: int) -> None:
    """The same for the first directory of a TIFF and those that it points to, and for its strips."""
    file.seek(0)
    head = file.read(16)
    big = b"+" in head[:4]
    if len(head) < (16 if big else 8):
        raise ValueError("truncated")
    order = "<" if head[:2] == b"II" else ">"
    places = [struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)[0]]
    wanted = 0
    for number, place in enumerate(places):  # grows while it is walked
        bytes_, more = _directory(file, place, size, order, big)
        wanted += bytes_
        places += more if number < _MOST_DIRECTORIES else []
        if wanted > 4 * size + (1 << 20):
            raise ValueError("damaged: its tags ask for more than the file has")


def _directory(file: BinaryIO, place: int, size: int, order: str, big: bool) -> tuple[int, list[int]]:
    """(bytes that the tags of one directory name, places of further directories)."""
    if place > size:
        return 0, []
    file.seek(place)
    count = int.from_bytes(file.read(8 if big else 2), "little" if order == "<" else "big")
    entry, inline, word = (20, 8, "Q") if big else (12, 4, "I")
    entries = file.read(min(count, 1 << 16) * entry)
    wanted, places = len(entries), []
    for at in range(0, len(entries) - entry + 1, entry):
        tag, kind = struct.unpack_from(order + "HH", entries, at)
        number, value = struct.unpack_from(order + 2 * word, entries, at + 4)
        if tag in _STRIPS and number > _MOST_STRIPS:
            raise ValueError(f"{number:,} strips; at most {_MOST_STRIPS:,} are read")
        if tag in _DIRECTORIES:
            places.append(value)
        bytes_ = number * (_TYPE_BYTES[kind] if kind < len(_TYPE_BYTES) else 1)
        wanted += min(bytes_, size) if bytes_ > inline else 0
    return wanted, places


def _icons(file: BinaryIO, count: int) -> None:
    """Compare the images of an ICO with the size of an icon: its directory can't say more than 256, but they can."""
    if count > _MOST_ICONS:
        raise ValueError(f"an ICO of {count:,} images: store it again")
    file.seek(6)
    for at in [int.from_bytes(file.read(16)[12:], "little") for _ in range(count)]:
        file.seek(at)
        head = file.read(40).ljust(40, b"\0")
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", head, 16)
        else:
            width, height = struct.unpack_from("<ii", head, 4)
            if head[16] in (1, 2):
                raise ValueError("a run-length coded icon, which is not read")
        if not (abs(width) <= _LARGE_ICON and abs(height) <= 2 * _LARGE_ICON):
            raise ValueError("damaged: an icon of an unlikely size")


def _pnm(file: BinaryIO, kind: bytes, size: int) -> None:
    """Bound the header, which Pillow reads byte by byte, and comments and numbers, which it reads one by one."""
    file.seek(0)
    head = file.read(_LONG_HEADER)
    if len(head) == _LONG_HEADER and len(_COMMENT.sub(b" ", head).split(None, 4)) < 4:
        raise ValueError("a PNM of little but comments: store it again")
    if kind in b"123":
        if size > _MOST_SLOW:
            raise ValueError(f"a PNM of more than {_MOST_SLOW >> 20} MB of decimal numbers: store it as PNG")
        if (head + file.read()).count(b"#") > _MOST_COMMENTS:
            raise ValueError("a PNM of little but comments: store it again")


def _jpeg(data: bytes, *, header: bool = False) -> Structure:
    """Count the scans, or see whether there is one; check the EXIF data, which Pillow parses on opening."""
    plain = not header and len(data) < 2 * _MOST_SEGMENTS and data.count(_SCAN) <= 1
    if plain and b"Exif" not in data and b"MPF\0" not in data:
        return _PLAIN_JPEG  # too short for too many segments, and nothing else is there to be found
    at, metadata, scans, pixels, components, progressive = 2, 0, 0, 0, 0, False
    exif = b""
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or data[found.start() + 1] == 0xD9:
            break
        kind, at = data[found.start() + 1], found.end()
        if kind in (0x01, 0xD8):
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if kind == 0xDA:
            scans += 1
            if header or (not progressive and components and data[at + 2 : at + 3] == bytes([components])):
                break  # one scan has everything: a second would be an error to the decoder
            if scans * pixels > MAX_SCANNED and scans > 1:
                raise ValueError(
                    f"a JPEG of more than {scans - 1} scans of {pixels // 10**6} megapixels: store it again"
                )
        else:
            metadata += length
            if kind == 0xE1 and data[at + 2 : at + 6] == b"Exif":
                exif += data[at + (8 if exif else 2) : at + length]
            elif kind == 0xE2 and data[at + 2 : at + 6] == b"MPF\0":
                check_exif(data[at + 6 : at + length])
            if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                height, width = struct.unpack(">HH", data[at + 3 : at + 7].ljust(4, b"\0"))
                pixels, components = max(pixels, width * height), int.from_bytes(data[at + 7 : at + 8], "big")
                progressive = progressive or kind in (0xC2, 0xC6, 0xCA, 0xCE)
        if metadata > _MOST_METADATA or len(exif) > _MOST_METADATA >> 4:
            raise ValueError("a JPEG of little but metadata: store it again")
        at += max(length, 2)
    else:
        raise ValueError(f"a JPEG of more than {_MOST_SEGMENTS:,} segments: store it again")
    if exif:
        check_exif(exif)
    return Structure("JPEG", scans if header else max(scans, 1), wide=False)


def _png(file: BinaryIO, size: int, *, wide: bool) -> Structure:
    """Find EXIF data, so that they need no decoding; bound the number of chunks."""
    if size <= _SMALL and isinstance(file, io.BytesIO):
        data = file.getvalue()
        if b"eXIf" not in data and b"tEXt" not in data and b"zTXt" not in data and b"iTXt" not in data:
            return _PLAIN_PNG[wide]
    at, exif, profile = 8, b"", False
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND" or at > size:
            break
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"eXIf":
            exif = file.read(length)
            check_exif(exif)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            profile = profile or file.read(17) in (b"Raw profile type ", b"XML:com.adobe.xmp")
        at += 12 + length
    else:
        raise ValueError(f"a PNG of more than {_MOST_CHUNKS:,} chunks: store it again")
    return Structure("PNG", exif=exif, profile=profile, wide=wide)


def _gif(file: BinaryIO, head: bytes) -> None:
    """Bound the blocks before the first frame, which Pillow joins one by one."""
    file.seek(13 + (3 << ((head[10] & 7) + 1) if head[10] & 0x80 else 0))
    blocks = 0
    while (kind := file.read(1)) == b"!":
        file.read(1)
        while (length := file.read(1)) not in (b"", b"\0"):
            file.seek(length[0], 1)
            blocks += 1
            if blocks > _MOST_BLOCKS:
                raise ValueError("a GIF of little but comments: store it again")
    if kind not in (b",", b";", b"\0", b""):
        return  # the decoder says what is wrong


def _avif(file: BinaryIO) -> None:
    """Check what looks like EXIF data, wherever they are: the decoder parses them on opening."""
    file.seek(0)
    data = file.read()
    for number, found in enumerate(_EXIF.finditer(data)):
        if number == _MOST_EXIF:
            raise ValueError("an AVIF of many EXIF blocks: store it again")
        check_exif(data[found.start() :])


def _jpeg2000(file: BinaryIO, size: int) -> None:
    """Bound tiles, components and precincts, of which the decoder allocates a record each."""
    file.seek(0)
    data = file.read(min(size, 1 << 20))
    at = data.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(data) < at + 42:
        raise ValueError("damaged: no JPEG 2000 header")
    right, bottom, left, top, wide, high, across, down = struct.unpack_from(">8I", data, at + 8)
    components = struct.unpack_from(">H", data, at + 40)[0]
    if not (
        wide and high and right > left and bottom > top and across <= left and down <= top and 1 <= components <= 4
    ):
        raise ValueError("damaged: its JPEG 2000 header gives an impossible size")
    samples = (right - left) * (bottom - top) * components
    if samples > _MOST_SAMPLES:
        raise ValueError(
            f"{right - left} x {bottom - top} with {components} channels: too large a JPEG 2000; store it smaller"
        )
    tiles = -(-(right - across) // wide) * -(-(bottom - down) // high)
    if tiles > _MOST_TILES:
        raise ValueError(f"{tiles:,} tiles; at most {_MOST_TILES:,} are read")
