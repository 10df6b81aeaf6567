"""Orders to a replica, to sleep and to wake, as the router's file says they are given; and whether it sleeps."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import time
from urllib.parse import urlsplit, urlunsplit

import orjson

from qplan.measure.load.http1 import HttpError
from qplan.router.replicas import Replica
from qplan.router.upstream import Upstream

_ORDER_S = 600.0
_ASK_S = 2.0
_LOOK_S = 0.25


def asks(replica: Replica) -> bool:
    """Whether a replica can be asked if it sleeps."""
    return replica.address.sleep is not None and bool(replica.address.sleep.asleep)


async def is_asleep(replica: Replica) -> bool | None:
    """Whether a replica sleeps; one that cannot be asked does not if it answers. ``None``: it does not answer."""
    path = replica.address.sleep.asleep if replica.address.sleep is not None else ""
    try:
        status, body = await replica.upstream.get(path or "/health", timeout_s=_ASK_S)
    except (HttpError, OSError, TimeoutError):
        return None
    if not path:
        return False if status < 500 else None
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return bool(document.get("is_sleeping")) if status == 200 and isinstance(document, dict) else None


async def put_to_sleep(replica: Replica) -> str:
    """Order a replica to sleep where nothing is under way; return what went wrong."""
    orders = replica.address.sleep
    return await _carried_out(replica, orders.sleep) if orders is not None else ""


async def wake_up(replica: Replica) -> str:
    """Order a replica to wake, and wait until its health check is good; return what went wrong."""
    orders = replica.address.sleep
    if orders is not None and (reason := await _carried_out(replica, orders.wake)):
        return reason
    until_s = time.monotonic() + _ORDER_S
    while time.monotonic() < until_s:
        if await is_asleep(replica) is False:
            try:
                status, _ = await replica.upstream.get("/health", timeout_s=_ASK_S)
            except (HttpError, OSError, TimeoutError):
                status = 0
            if 0 < status < 500:
                return ""
        await asyncio.sleep(_LOOK_S)
    return f"not healthy {_ORDER_S:g} s after it was woken"


async def _carried_out(replica: Replica, order: str) -> str:
    """Post to the replica or to a URL, or run a command; return what went wrong."""
    try:
        if asks(replica):
            status = await replica.upstream.order(order, timeout_s=_ORDER_S)
        elif order.startswith(("http://", "https://")):
            parts = urlsplit(order)
            path = urlunsplit(("", "", parts.path or "/", parts.query, ""))
            status = await Upstream(f"{parts.scheme}://{parts.netloc}").order(path, timeout_s=_ORDER_S)
        else:
            return await _run(shlex.split(order))
    except TimeoutError:
        return f"not done in {_ORDER_S:g} s"
    except (HttpError, OSError) as error:
        return str(error) or type(error).__name__
    return "" if status < 400 else f"status {status}"


async def _run(words: list[str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(_ORDER_S):
            code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
    return f"{words[0]} ended with {code}" if code else ""
