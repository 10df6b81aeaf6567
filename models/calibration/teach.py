"""``python -m qplan.models.calibration.teach``: the shipped lessons, and what calibrations by them leave.

Both come from public closed-loop runs.

The runs are those that :mod:`qplan.models.validation` reads. One family is one GPU, model, quantization, engine and
tensor parallelism; the sample tells engine versions apart only in part.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from qplan.core.deployment import Deployment
from qplan.core.errors import InputError
from qplan.core.gpu import Gpu
from qplan.core.model import Model
from qplan.core.quantization import Quantization
from qplan.models.calibration.curve import Family
from qplan.models.calibration.doubt import Doubt, errors_left
from qplan.models.calibration.lessons import SHIPPED, Lessons, learn, to_data
from qplan.models.calibration.loops import LoopsPrior
from qplan.models.calibration.priors import ClosedLoad, ClosedLoopPrior
from qplan.models.profiled import COLUMNS, profiled
from qplan.models.validation import MODELS, PACK, PACKAGE, Run, fetch, read_runs
from qplan.profiles.packs import read_pack


def composed_prior(pack: str = PACK) -> ClosedLoopPrior:
    """Return the prior of a pack's step times, for the models that the runs have."""
    found = profiled(read_pack(pack, models=set(MODELS.values()), columns=COLUMNS).table, pack)
    if found is None:
        raise InputError(f"{pack} has no step times of {', '.join(sorted(set(MODELS.values())))}")
    return ClosedLoopPrior(found)


def families(runs: Iterable[Run], prior: ClosedLoopPrior, *, by_tp: bool = True) -> list[Family[ClosedLoad]]:
    """Group the runs that `prior` knows into families: of one tensor parallelism each, or with all of them together."""
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if _deployment(run) in prior:
            system = f"{run.model} {run.quantization} {run.gpu} {run.engine}"
            grouped.setdefault((system, f"{system} x{run.tp}" if by_tp else system), []).append(run)
    return [_family(system, name, members) for (system, name), members in sorted(grouped.items())]


def teach(known: Iterable[Family[ClosedLoad]], prior: ClosedLoopPrior) -> Lessons:
    """Learn from all families together."""
    known = list(known)
    found = [prior(family.rows) for family in known]
    return {
        metric: learn([(parts[metric], family.measured[metric]) for parts, family in zip(found, known, strict=True)])
        for metric in ("ttft", "tpot")
    }


def others_lessons(known: Iterable[Family[ClosedLoad]], prior: ClosedLoopPrior) -> dict[str, Lessons]:
    """Return by system what all families of other systems teach."""
    known = list(known)
    systems = sorted({family.system for family in known})
    return {system: teach([one for one in known if one.system != system], prior) for system in systems}


def _family(system: str, name: str, runs: list[Run]) -> Family[ClosedLoad]:
    rows = tuple(ClosedLoad(_deployment(run), run.input_tokens, run.output_tokens, run.concurrency) for run in runs)
    measured = {"ttft": np.array([run.ttft_s for run in runs]), "tpot": np.array([run.tpot_s for run in runs])}
    return Family(name, system, rows, measured, np.array([row.coordinates for row in rows]))


def _deployment(run: Run) -> Deployment:
    return Deployment(
        Model.named(run.model), Quantization.parse(run.quantization), Gpu.named(run.gpu), run.tp, run.engine
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the lessons; with ``--write``, also put them into the file that ships."""
    parser = argparse.ArgumentParser(prog="python -m qplan.models.calibration.teach", description=__doc__)
    parser.add_argument("--rows", type=Path, help="silicon_sample.csv (default: download its package)")
    parser.add_argument("--write", action="store_true", help=f"write {SHIPPED.name}, which ships")
    options = parser.parse_args(arguments)
    prior = composed_prior()
    runs = read_runs(options.rows.read_text(encoding="utf-8") if options.rows else fetch())
    known = families(runs, prior)
    document = {
        "prior": f"closed loops on the step times of {PACK}",
        "source": f"coefficients fitted to the runs of {PACKAGE} (Apache-2.0), silicon_sample.csv",
        "made_by": "python -m qplan.models.calibration.teach --write",
        "lessons": to_data(teach(known, prior)),
        "doubt": Doubt.of(errors_left(LoopsPrior(prior.profiled), known, others_lessons(known, prior))).to_data(),
    }
    text = json.dumps(document, indent=2) + "\n"
    sys.stdout.write(text)
    if options.write:
        SHIPPED.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
