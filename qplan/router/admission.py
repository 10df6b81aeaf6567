"""What the router takes in: bodies of a bounded size, in a bounded time, and in a bounded sum."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from qplan.router.asking import AskError

if TYPE_CHECKING:
    from qplan.router.settings import Limits


class Admission:
    """The bodies that a process holds.

    Attributes
    ----------
    held_bytes
        Of all bodies that are being read, or belong to requests under way.
    """

    def __init__(self) -> None:
        self.held_bytes = 0

    async def take(self, request: web.BaseRequest, limits: Limits) -> bytes:
        """Read the body of a request; it counts as held until it is given back.

        Raises
        ------
        AskError
            It is too large (413), too slow (408) or ill-formed (400), or others hold too much already (429).
        """
        said = request.content_length
        if said is not None and said > limits.body:
            raise _too_large(limits)
        if request.headers.get("Expect", "").casefold() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        pieces: list[bytes] = []
        try:
            if request.content.is_eof():  # all of it came with the head
                await self._read(request, limits, pieces)
            else:
                async with asyncio.timeout(limits.upload):
                    await self._read(request, limits, pieces)
        except BaseException as error:
            self.held_bytes -= sum(map(len, pieces))
            if isinstance(error, TimeoutError):
                raise AskError(408, f"the body did not come within {limits.upload:g} s", "upload_timeout") from None
            if isinstance(error, RequestPayloadError):
                raise AskError(400, "the body is ill-formed", "invalid_body") from None
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def give_back(self, body: bytes) -> None:
        """Take note that a body is needed no more."""
        self.held_bytes -= len(body)

    async def _read(self, request: web.BaseRequest, limits: Limits, pieces: list[bytes]) -> None:
        size = 0
        while piece := await request.content.readany():
            pieces.append(piece)
            size += len(piece)
            self.held_bytes += len(piece)
            if size > limits.body:
                raise _too_large(limits)
            if self.held_bytes > limits.bodies:
                raise AskError(429, "too many large requests are under way", "too_much_data")


def _too_large(limits: Limits) -> AskError:
    return AskError(413, f"the body is larger than {limits.body} bytes", "request_too_large")
