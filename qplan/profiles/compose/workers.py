"""Run worker processes, one request each, a few at a time."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from qplan.core.errors import StoreError
from qplan.profiles.compose.environment import last_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

WORKER = Path(__file__).with_name("worker.py")


def run(
    python: Path,
    requests: Sequence[Mapping[str, object]],
    folder: Path,
    jobs: int,
    progress: Callable[[int, int], None] = lambda _, __: None,
) -> list[dict[str, NDArray[np.float64]]]:
    """Compose every request with `python` and return the arrays of each, in order.

    Parameters
    ----------
    folder
        Where request, result and log of each worker are put.
    jobs
        Processes at a time.
    progress
        Told the index of a request and how many more of its deployments are done.

    Raises
    ------
    StoreError
        A worker failed; the message ends with its last words. The others are killed, as on any exception.
    """
    waiting = list(range(len(requests)))
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        with selectors.DefaultSelector() as pipes:
            while waiting or running:
                while waiting and len(running) < jobs:
                    index = waiting.pop(0)
                    running[index] = _start(python, requests[index], folder / str(index))
                    pipes.register(_pipe(running[index]), selectors.EVENT_READ, index)
                for key, _ in pipes.select():
                    said = os.read(key.fd, 65536)
                    if said:
                        progress(key.data, said.count(b"\n"))
                        continue
                    pipes.unregister(key.fileobj)
                    if running[key.data].wait():
                        words = (folder / str(key.data)).with_suffix(".log").read_text(errors="replace")
                        raise StoreError(f"composing {requests[key.data]['system']} failed: {last_line(words)}")
                    _pipe(running.pop(key.data)).close()
    finally:
        for process in running.values():
            process.kill()
            process.wait()
            _pipe(process).close()
    return [_arrays(folder / f"{index}.npz") for index in range(len(requests))]


def _start(python: Path, request: Mapping[str, object], stem: Path) -> subprocess.Popen[bytes]:
    stem.with_suffix(".json").write_text(json.dumps(request), encoding="utf-8")
    files = [str(stem.with_suffix(suffix)) for suffix in (".json", ".npz")]
    with stem.with_suffix(".log").open("wb") as log:
        # -I keeps this process's paths and settings out of the worker's environment. No shell, our own words.
        return subprocess.Popen(  # noqa: S603
            [str(python), "-I", str(WORKER), *files],
            stdout=subprocess.PIPE,
            stderr=log,
            # The worker solves many tiny systems, on which BLAS threads cost ten times what they save.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
