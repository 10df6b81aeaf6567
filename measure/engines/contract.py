"""What a serving engine is asked for, and what its adapter owes.

::

    refusal(serving) ─► prepare(serving) ─► start(serving, prepared) ─► Server: endpoint, check, state ... stop
      before anything      makes the            returns once a sane
      is started           weights, cached      token came back

Every adapter promises:

- :meth:`Engine.refusal` costs nothing and starts nothing; it names what the engine lacks for a configuration.
- :meth:`Engine.prepare` writes only below the folder it is given, atomically: a killed preparation leaves nothing that
  a later one takes for finished weights. It is not repeated when its result is there.
- :meth:`Engine.start` returns only when the server answered a completion with sane tokens (any, of weights that are
  not meaningful), and raises
  :class:`EngineError` with the engine's last lines when it died, hung past the deadline, or answered garbage. Whatever
  it raises, no process of it is left.
- :meth:`Server.check` raises as soon as the process is gone or its health route says so.
- :meth:`Server.stop` ends the whole process group, may be called twice, and leaves no process behind.
- Commands are lists of arguments, never shell strings; the exact list is in :attr:`Server.command`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from qplan.core.errors import MeasurementError
from qplan.core.quantization import Quantization
from qplan.measure.endpoint import Endpoint

_RAISED = re.compile(r"\w*(Error|Exception)\b: |: error: ")  # Python's, and argparse's
_COMPLAINT = re.compile(r"error|exception|fail|cannot|unable|out of memory|invalid", re.IGNORECASE)
_POINTER = re.compile(r"see (the )?(root cause|stack trace)", re.IGNORECASE)  # says that another line says it
_NEAR_END = 10
_KEPT_LINES = 20


class EngineError(MeasurementError):
    """An engine could not be started, died, hangs, or answers garbage.

    Parameters
    ----------
    message
        What happened, in one sentence.
    last_lines
        The last lines that the engine wrote. The most telling one becomes part of the message; the last 20 are kept.
    """

    def __init__(self, message: str, last_lines: Iterable[str] = ()) -> None:
        lines = tuple(last_lines)
        self.last_lines = lines[-_KEPT_LINES:]
        said = _telling(lines)
        super().__init__(f"{message}; it said: {said}" if said else message)


def _telling(lines: tuple[str, ...]) -> str:
    """Return the last line that names an exception; else of the last complaints the first: others follow from it."""
    said = [line for line in lines if not _POINTER.search(line)]
    raised = [line for line in said if _RAISED.search(line)]
    complaints = [line for line in said[-_NEAR_END:] if _COMPLAINT.search(line)]
    return (raised[-1:] or complaints[:1] or lines[-1:] or [""])[0].strip()[:300]


@dataclass(frozen=True, slots=True)
class Serving:
    """What an engine is asked to serve.

    Attributes
    ----------
    model
        Name that observations carry.
    weights
        Unquantized weights: path of a GGUF file or of a Hugging Face folder, or a Hub id, as the engine takes it.
    tp
        Tensor parallelism.
    devices
        Indices of the GPUs to use; empty on a CPU.
    context_tokens
        Longest sequence, prompt and output together.
    max_sequences
        Most sequences that are decoded together.
    settings
        Further flags of the engine by their long name without dashes, such as ``{"max-num-batched-tokens": 4096}``.
        ``True`` gives a flag without a value, ``False`` leaves it out.
    """

    model: str
    weights: str
    quantization: Quantization
    tp: int = 1
    devices: tuple[int, ...] = ()
    context_tokens: int = 2048
    max_sequences: int = 8
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Weights ready to be loaded.

    Attributes
    ----------
    weights
        Path or Hub id that the engine loads.
    bits_per_weight
        Measured: bits of all weight tensors over their number of elements; ``None`` where it was not looked at.
    recipe
        How they came to be, for provenance: ``"Q4_1 dequantized to F16, requantized to Q8_0 by ggml"``.
    meaningful
        Whether what the model says can make sense; not with random weights, of which any answer is accepted.
    """

    weights: str
    bits_per_weight: float | None
    recipe: str
    meaningful: bool = True


@dataclass(frozen=True, slots=True)
class EngineState:
    """What the engine says of itself; ``None`` where it does not say.

    Attributes
    ----------
    running, waiting
        Requests being decoded, and queued.
    kv_usage
        Share of the KV cache in use, 0 to 1.
    """

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None


class Server(Protocol):
    """A running server; a context manager that stops it."""

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go."""

    @property
    def command(self) -> tuple[str, ...]:
        """Exact command that was run; empty for a server that somebody else runs."""

    @property
    def version(self) -> str:
        """Version of the engine that runs."""

    @property
    def pid(self) -> int | None:
        """Process id of the leader of the server's process group; ``None`` for a server that somebody else runs."""

    def check(self) -> None:
        """Raise :class:`EngineError` with the last lines if the server is dead or unhealthy."""

    def state(self) -> EngineState:
        """Read the engine's own metrics; every field ``None`` where it has none."""

    def cpu_s(self) -> float | None:
        """CPU time used by all processes of the server so far; ``None`` where it cannot be read."""

    def last_lines(self, count: int = 20) -> tuple[str, ...]:
        """Return the last lines that the engine wrote."""

    def stop(self) -> None:
        """End every process of the server."""

    def __enter__(self) -> Server:
        """Return the server."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""


class Engine(Protocol):
    """An adapter to a serving engine."""

    name: str
    """Name in plans and observations: ``llamacpp``, ``vllm``, ``trtllm``, ``sglang``, ``transformers``, ``remote``."""

    def version(self) -> str:
        """Return the installed version.

        Raises
        ------
        MeasurementError
            The engine is not installed; the message says how to install it.
        """

    def refusal(self, serving: Serving) -> str | None:
        """Say why the engine cannot serve this (format, GPUs, settings), or return ``None``."""

    def prepare(self, serving: Serving, cache: Path) -> Prepared:
        """Make or find the weights of `serving`, below the folder `cache`."""

    def start(self, serving: Serving, prepared: Prepared, folder: Path, *, deadline_s: float) -> Server:
        """Start the engine and wait until it really serves; logs and files it needs go to `folder`."""
