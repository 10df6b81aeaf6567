"""``python -m qplan.models.validation``: the error of a composed pack against end-to-end measurements.

The measurements are the rows of ``silicon_sample.csv``, which the PyPI package ``aiconfigurator-core`` carries:
closed-loop runs of real engines with their mean TTFT and TPOT. Each row of a deployment that the pack holds is
predicted at the same concurrency (:mod:`qplan.models.closedloop`). The error is that of the whole chain, from kernel
tables to latencies; the measured engine may be another version, or another engine, than the tables come from, which
the table of groups shows.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from qplan.core.errors import InputError
from qplan.models.closedloop import closed_loop
from qplan.models.profiled import COLUMNS, profiled
from qplan.models.steptimes import Floats, StepTimes
from qplan.profiles.packs import find_pack, read_pack

PACKAGE = "aiconfigurator-core==0.12.0"
MEMBER = "aiconfigurator_core/systems/silicon_sample.csv"
PACK = "trtllm-composed"
COVERAGE = 0.9
MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama-3.1-8b",
    "meta-llama/Llama-3.1-70B": "llama-3.1-70b",
}
GPUS = {"h100_sxm": "H100-SXM5-80GB", "h200_sxm": "H200-SXM"}
# Rows that name no precision ran the 16-bit checkpoint; NVIDIA's FP8 checkpoints carry an FP8 KV cache. The pack has no
# tables of block-scaled FP8.
QUANTIZATIONS = {"": "BF16", "fp8": "W8A8KV8-FP"}


@dataclass(frozen=True, slots=True)
class Run:
    """A measured closed-loop run; latencies are means in seconds."""

    engine: str
    model: str
    gpu: str
    quantization: str
    tp: int
    input_tokens: int
    output_tokens: int
    concurrency: int
    ttft_s: float
    tpot_s: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run with what was predicted for it, in seconds."""

    run: Run
    ttft_s: float
    tpot_s: float


def read_runs(text: str, quantizations: Mapping[str, str] = QUANTIZATIONS) -> list[Run]:
    """Read the rows of ``silicon_sample.csv`` that the pack can predict: aggregated serving of the models above.

    `quantizations` names the tables that stand for each of the file's formats; rows of other formats are left out.
    """
    return [
        Run(
            row["backend"],
            MODELS[row["model_path"]],
            GPUS[row["system"]],
            quantizations[row["gemm_quant_mode"]],
            int(row["tp_size"]),
            int(row["isl"]),
            int(row["osl"]),
            int(row["batch_size"]),
            float(row["silicon_ttft_ms"]) / 1e3,
            float(row["silicon_tpot_ms"]) / 1e3,
        )
        for row in csv.DictReader(io.StringIO(text))
        if row["mode"] == "agg"
        and row["model_path"] in MODELS
        and row["system"] in GPUS
        and row["gemm_quant_mode"] in quantizations
    ]


def compare(runs: Iterable[Run], pack: str = PACK) -> list[Comparison]:
    """Predict each run at its concurrency; runs of deployments that the pack lacks are left out."""
    found = profiled(read_pack(pack, models=set(MODELS.values()), columns=COLUMNS).table, pack)
    if found is None:
        raise InputError(f"{pack} has no step times of {', '.join(sorted(set(MODELS.values())))}")
    index = {(d.model.name, d.gpu.name, str(d.quantization), d.tp): i for i, d in enumerate(found.deployments)}
    comparisons = []
    for run in runs:
        at = index.get((run.model, run.gpu, run.quantization, run.tp))
        if at is None:
            continue
        steps, kv_tokens = found.steps.take(np.array([at])), found.deployments[at].memory().kv_tokens
        comparisons.append(Comparison(run, *_latencies(steps, kv_tokens, run)))
    return comparisons


def _latencies(steps: StepTimes, kv_tokens: float, run: Run) -> tuple[float, float]:
    """Return mean TTFT and TPOT in seconds of a deployment whose KV cache holds `kv_tokens`.

    Requests that the cache has no room for at full length wait for others to end: with N in flight and m running, each
    of which takes E, one ends every E / m seconds and a request waits for (N - m) of them (Little's law).
    """
    running = min(run.concurrency, max(1, int(kv_tokens // (run.input_tokens + run.output_tokens))))
    first, tpot = (float(time[0]) for time in closed_loop(steps, run.input_tokens, run.output_tokens, running))
    took = first + (run.output_tokens - 1) * tpot
    return first + (run.concurrency - running) * took / running, tpot


def ratios(comparisons: Iterable[Comparison], metric: str) -> Floats:
    """Return measured over predicted of ``ttft`` or ``tpot``."""
    return np.array([getattr(one.run, f"{metric}_s") / getattr(one, f"{metric}_s") for one in comparisons])


def known_error(comparisons: list[Comparison], source: str = PACKAGE) -> dict[str, Any]:
    """Return what a card keeps: the central `COVERAGE` range of measured over predicted, on the engine composed for."""
    own = [one for one in comparisons if one.run.engine == "trtllm"]
    tails = 100 * np.array([(1 - COVERAGE) / 2, 0.5, (1 + COVERAGE) / 2])
    return {
        "coverage": COVERAGE,
        "measured_over_predicted": {
            metric: dict(
                zip(
                    ("lower", "median", "upper"),
                    np.percentile(ratios(own, metric), tails).round(3).tolist(),
                    strict=True,
                )
            )
            for metric in ("ttft", "tpot")
        },
        "rows": len(own),
        "gpus": sorted({one.run.gpu for one in own}),
        "models": sorted({one.run.model for one in own}),
        "source": f"{source}, {Path(MEMBER).name}",
        "command": "python -m qplan.models.validation",
    }


def table(comparisons: list[Comparison]) -> str:
    """Return a Markdown table: a group of runs a row, mean absolute error and median of measured over predicted."""
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for one in comparisons:
        groups.setdefault((one.run.model, one.run.quantization, one.run.gpu, one.run.engine), []).append(one)
    lines = [
        "| model | quantization | GPU | measured on | runs "
        "| TPOT error | measured / predicted | TTFT error | measured / predicted |",
        "| --- | --- | --- | --- | --: | --: | --: | --: | --: |",
    ]
    for key, members in sorted(groups.items()):
        cells = [*key, str(len(members))]
        for metric in ("tpot", "ttft"):
            ratio = ratios(members, metric)
            cells += [f"{np.abs(1 / ratio - 1).mean():.0%}", f"{np.median(ratio):.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fetch() -> str:
    """Download the package with pip, or uv where there is no pip, and return the text of ``silicon_sample.csv``.

    It is unpacked into a temporary folder; nothing is installed.
    """
    python = [sys.executable, "-m", "pip"] if find_spec("pip") else ["uv", "pip"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*python, "install", "--quiet", "--no-deps", "--target", folder, PACKAGE]
        try:
            subprocess.run(command, check=True)  # noqa: S603
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(f"cannot download {PACKAGE} ({error}); pass --rows with the file") from None
        return (Path(folder) / MEMBER).read_text(encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Print the table of errors; with ``--write``, also put the known error into the pack's card."""
    parser = argparse.ArgumentParser(prog="python -m qplan.models.validation", description=__doc__)
    parser.add_argument("--rows", type=Path, help="silicon_sample.csv (default: download its package)")
    parser.add_argument("--write", action="store_true", help="write the known error into the pack's card")
    options = parser.parse_args(arguments)
    comparisons = compare(read_runs(options.rows.read_text() if options.rows else fetch()))
    error = known_error(comparisons)
    sys.stdout.write(f"{table(comparisons)}\n\n{json.dumps(error, indent=2)}\n")
    if options.write:
        path = find_pack(PACK).with_suffix(".json")
        card = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(
            json.dumps({**card, "known_error": error}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
