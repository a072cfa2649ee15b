"""The pictures that a request carries: files of a form, or one picture as the body. Their names name them in answers,
and nothing else: no path of a request is ever opened."""

from __future__ import annotations

from pathlib import PurePosixPath

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sensorium.base.reading import printable
from sensorium.data.images.gathered import Encoded
from sensorium.web.wire import Refused

FILES = 64  # pictures of a request: as many as go through a network together
_FIELDS = 8
_LONGEST_NAME = 200  # characters
ALONE = "picture"  # the name of a picture that came without one
HOW = "send files of a form (curl -F file=@a.jpg), or one picture as the body (curl --data-binary @a.jpg)"


class Parts(MultiPartParser):
    """The parts of a form, in memory: a request is bounded, and nothing of it is written to the disk."""

    spool_max_size = 1 << 40


async def pictures_of(request: Request) -> list[Encoded]:
    """The pictures, undecoded, with their names. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        data = b"".join([piece async for piece in request.stream()])
        if not data:
            raise Refused(400, f"there is no picture: {HOW}.")
        return [Encoded(ALONE, data)]
    try:
        form = await Parts(request.headers, request.stream(), max_files=FILES, max_fields=_FIELDS).parse()
    except MultiPartException as error:
        raise Refused(400, f"the form: {printable(error.message)[:200]}") from None
    found: list[Encoded] = []
    for field, part in form.multi_items():
        if not isinstance(part, UploadFile):
            shown = printable(field)[:40]
            raise Refused(400, f"'{shown}' is text: options stand in the address (?{shown}=...); {HOW}.")
        found.append(Encoded(_named(part.filename, len(found) + 1), part.file.read()))
        part.file.close()
    if not found:
        raise Refused(400, f"there is no picture: {HOW}.")
    return found


def _named(given: str | None, number: int) -> str:
    """The last part of a name, printable; with a number if there is none."""
    last = PurePosixPath((given or "").replace("\\", "/")).name
    return printable(last)[:_LONGEST_NAME] or f"{ALONE} {number}"
