"""Measured power: serving runs of the ML.ENERGY leaderboard, and kernels on an H200.

**Serving runs** (leaderboard v2, Apache-2.0): vLLM at 16 bits in a closed loop at several batch sizes; energy for each
request, mean TPOT, token throughput and output tokens. Mean watts are joules for each output token times tokens/s.
By Little's law the decoding sequences are tokens/s x TPOT, and a decode iteration takes one TPOT. The table does not
say how long prompts were; the means used here are those of its prompts: 500 first turns of ShareGPT, under 400
characters each, with a short system prompt; HumanEval for code.

**Kernels** (PyPI ``aisimulate``, Apache-2.0): GEMMs run back to back on an H200 with their mean power. Those of less
than 20 µs are left out of the fit: between them the GPU waits for launches, so that their power is not that of their
work. The rest is heavily uneven, so what is fitted is the median power of each cell of a grid of utilisations.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.steps.roofline import terms
from qplan.models.steptimes import Floats

PROMPT_TOKENS = {"chat": 120, "code": 150}
GPUS = {"NVIDIA A100-SXM4-40GB": "A100-SXM4-40GB", "NVIDIA H100 80GB HBM3": "H100-SXM5-80GB"}
KERNEL_GPU = "H200-SXM"
SHORTEST_KERNEL_S = 20e-6
CELL = 0.05  # width of a cell in either utilisation
FEWEST = 20  # kernels of a cell
# A GEMM of a millisecond or more, at the power limit, is all tensor cores.
LONG_KERNEL_S, NEAR_LIMIT = 1e-3, 0.85


@dataclass(frozen=True, slots=True)
class Run:
    """A serving run.

    Attributes
    ----------
    batch
        Mean number of decoding sequences.
    power_w
        Mean of one GPU.
    joules_per_request, output_tokens
        Means of a request; the energy is that of all GPUs.
    """

    deployment: Deployment
    task: str
    batch: float
    tpot_s: float
    tokens_per_s: float
    output_tokens: float
    power_w: float
    joules_per_request: float


@dataclass(frozen=True, slots=True)
class Points:
    """N points of a GPU: shares of peak bandwidth and peak 16-bit arithmetic, and power over TDP; arrays (N,).

    Attributes
    ----------
    groups
        What to leave out together: the served model, or the kernel's size.
    """

    memory_share: Floats
    compute_share: Floats
    power: Floats
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kernels:
    """GEMMs measured on an H200.

    Attributes
    ----------
    long, every
        Median power of cells of utilisation: of kernels of 20 µs or more, and of all.
    op_energy_8
        Energy of an FP8 operation over that of a BF16 one, in long kernels at the power limit.
    """

    long: Points
    every: Points
    op_energy_8: float


def read_runs(path: Path) -> list[Run]:
    """Read the text-only runs without pipeline parallelism of the leaderboard's flat table.

    Raises
    ------
    InputError
        The file cannot be read, lacks a column, or holds a model or GPU of unknown shape.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        runs = [_run(row, path) for row in rows if row["family"] == "llm_text_generation" and row["PP"] == "1"]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not the leaderboard's table: {type(error).__name__} {error}") from None
    if not runs:
        raise InputError(f"{path}: no run of a language model without pipeline parallelism")
    return runs


def points_of(runs: list[Run]) -> Points:
    """Return utilisations and power of serving runs."""
    shares = np.array([_shares(run) for run in runs])
    power = np.array([run.power_w / (run.deployment.gpu.tdp_w or np.nan) for run in runs])
    return Points(shares[:, 0], shares[:, 1], power, tuple(run.deployment.model.name for run in runs))


def read_kernels(file: BinaryIO, where: str) -> Kernels:
    """Read ``gemm_perf.parquet``.

    Raises
    ------
    InputError
        The file cannot be read or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ("m", "n", "k", "latency", "power")
    try:
        table = pq.read_table(file, columns=[*columns, "gemm_dtype"])
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{where}: not a table of measured GEMMs: {error}") from None
    m, n, k, latency_ms, power_w = (np.asarray(table[name].to_numpy(), dtype=float) for name in columns)
    kind = np.array(table["gemm_dtype"].to_pylist())
    gpu = Gpu.named(KERNEL_GPU)
    assert gpu.tdp_w is not None
    time_s, flops = latency_ms * 1e-3, 2 * m * n * k
    memory_share = 2 * (n * k + m * k + m * n) / time_s / (gpu.bandwidth_tb_s * 1e12)
    compute_share = flops / time_s / (gpu.tflops_16 * 1e12)
    long, every = (
        _cells(memory_share[chosen], compute_share[chosen], power_w[chosen] / gpu.tdp_w)
        for chosen in ((kind == "bfloat16") & (time_s >= shortest) for shortest in (SHORTEST_KERNEL_S, 0.0))
    )
    at_limit = (time_s >= LONG_KERNEL_S) & (power_w > NEAR_LIMIT * gpu.tdp_w)
    joules = {
        name: np.median(
            power_w[at_limit & (kind == name)] * time_s[at_limit & (kind == name)] / flops[at_limit & (kind == name)]
        )
        for name in ("bfloat16", "fp8_block")
    }
    return Kernels(long, every, float(joules["fp8_block"] / joules["bfloat16"]))


def _cells(memory_share: Floats, compute_share: Floats, power: Floats) -> Points:
    """Return the medians of every cell that holds enough kernels."""
    cell = np.stack([memory_share // CELL, compute_share // CELL], axis=1).astype(int)
    keys, index, count = np.unique(cell, axis=0, return_inverse=True, return_counts=True)
    held = np.flatnonzero(count >= FEWEST)
    medians = np.array(
        [[np.median(values[index.ravel() == at]) for values in (memory_share, compute_share, power)] for at in held]
    ).reshape(-1, 3)
    names = tuple(f"{u},{v}" for u, v in keys[held])
    return Points(medians[:, 0], medians[:, 1], medians[:, 2], names)


def _run(row: dict[str, str], path: Path) -> Run:
    if row["Model"] not in _shapes() or row["GPU"] not in GPUS:
        raise InputError(f"{path}: {row['Model']} on {row['GPU']}: no shape of this model, or no such GPU, is known")
    tp, tokens_per_s, output_tokens = int(row["TP"]), float(row["Token tput (tok/s)"]), float(row["Avg Output Tokens"])
    joules, tpot_s = float(row["Energy/req (J)"]), float(row["Avg TPOT (s)"])
    return Run(
        Deployment(_shapes()[row["Model"]], Quantization.parse("BF16"), Gpu.named(GPUS[row["GPU"]]), tp, "vllm"),
        row["task"],
        min(tokens_per_s * tpot_s, float(row["Avg BS (reqs)"])),
        tpot_s,
        tokens_per_s,
        output_tokens,
        joules / output_tokens * tokens_per_s / tp,
        joules,
    )


def _shares(run: Run) -> tuple[float, float]:
    """Return the utilisations of a run: decode iterations, one a TPOT, and the prompts of its requests."""
    prompt = float(PROMPT_TOKENS[run.task])
    context = prompt + run.output_tokens / 2
    decode = terms(run.deployment, np.zeros(1), np.array([run.batch]), np.array([run.batch * context]))
    prefill = terms(run.deployment, np.array([prompt]), np.zeros(1), np.zeros(1))
    requests_per_s = run.tokens_per_s / run.output_tokens
    # Prompts ride along with decode iterations or come many at once: their own reading of the weights is left out.
    memory = decode.memory_s[0] / run.tpot_s + prefill.kv_s[0] * requests_per_s
    compute = decode.compute_s[0] / run.tpot_s + prefill.compute_s[0] * requests_per_s
    return float(memory), float(compute)


@cache
def _shapes() -> dict[str, Model]:
    """Return the models of the leaderboard by name."""
    text = files(__package__).joinpath("leaderboard_models.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["name"]: _shape(row) for row in rows}


def _shape(row: dict[str, str]) -> Model:
    sizes: dict[str, Any] = {key: int(value) for key, value in row.items() if key != "name"}
    return Model(row["name"], **sizes)
