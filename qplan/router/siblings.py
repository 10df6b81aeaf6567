"""Processes of one router tell each other their metrics, over a socket each in a folder that only they can enter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

_PATIENCE_S = 1.0
_MOST_BYTES = 2**24


async def share(folder: str, number: int, samples: Callable[[], bytes]) -> asyncio.AbstractServer:
    """Answer whoever connects to this process's socket with its `samples`."""
    path = _socket(folder, number)
    path.unlink(missing_ok=True)  # of a process that this one replaces

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(samples())
        await writer.drain()
        writer.close()

    return await asyncio.start_unix_server(answer, path)


async def collect(folder: str, number: int) -> list[list[Any]]:
    """Return the samples of all processes but this one; those that do not answer are left out."""
    others = [path for path in sorted(Path(folder).glob("*.metrics")) if path != _socket(folder, number)]
    return [found for found in await asyncio.gather(*map(_ask, others)) if found]


async def _ask(path: Path) -> list[Any]:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                data = b""
                while piece := await reader.read(2**16):
                    data += piece
                    if len(data) > _MOST_BYTES:
                        return []
            finally:
                writer.close()
        found: list[Any] = orjson.loads(data)
    except (OSError, TimeoutError, orjson.JSONDecodeError):
        return []
    return found


def _socket(folder: str, number: int) -> Path:
    return Path(folder) / f"{number}.metrics"
