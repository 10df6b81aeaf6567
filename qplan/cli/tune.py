"""``qplan tune``: a study that measures only promising configurations, its report, and what follows from it."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qplan.cli.examples import example_option
from qplan.cli.interrupts import INTERRUPTED, interrupts
from qplan.cli.measure import PlanGroup
from qplan.cli.profiles import DEFAULT_STORE, Store
from qplan.core.errors import InputError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qplan.measure.campaign.points import Target
    from qplan.solvers.tuning.measuring import Measure
    from qplan.solvers.tuning.objectives import Row
    from qplan.solvers.tuning.summary import Summary
    from qplan.solvers.tuning.tunefile import Tuning

EXAMPLES = """
[bold]Examples[/bold]

  qplan tune run --example > tune.yaml

  qplan tune tune.yaml --from-store llamacpp-cpu

  qplan tune tune.yaml --storage postgresql+psycopg://host/studies      (the same on every node)

  qplan tune tune.yaml --storage postgresql+psycopg://host/studies --ray auto --workers 4

  qplan tune report tuning.db --plot study.html

  qplan tune apply tuning.db --best saturation --launch serve.sh
"""
DEFAULT_STORAGE = "tuning.db"

Storage = Annotated[
    str,
    typer.Argument(
        metavar="STORAGE", help="Where the study is kept: a file, or an Optuna storage's URL.", show_default=True
    ),
]
StudyName = Annotated[str | None, typer.Option("--study", metavar="NAME", help="Which study, where there are several.")]

app = typer.Typer(
    cls=PlanGroup,
    help=f"Search a space of configurations for the Pareto front, measuring only promising ones.\n{EXAMPLES}",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _example() -> str:
    _need_optuna()
    from qplan.solvers.tuning.tunefile import EXAMPLE

    return EXAMPLE


@app.command("run")
def run(
    plan: Annotated[Path, typer.Argument(metavar="TUNE.yaml", help="Tuning file.", show_default=False)],
    from_store: Annotated[
        str | None,
        typer.Option(
            "--from-store", metavar="STORE|PACK", help="Look configurations up in a finished table; measure nothing."
        ),
    ] = None,
    storage: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Where the study is kept: a file (SQLite; a journal if it ends in .journal), sqlite:///FILE, "
            "postgresql+psycopg://HOST/NAME; workers on one URL share the study.",
        ),
    ] = DEFAULT_STORAGE,
    store: Store = DEFAULT_STORE,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Let workers on a Ray cluster measure; or 'auto', or 'local'."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Workers on the cluster; by default as many as it has GPUs for."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configurations, and what is none and why.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
    example: Annotated[  # noqa: ARG001  (handled by its callback)
        bool, example_option(_example, "Print a file with every key.")
    ] = False,
) -> None:
    """Tune: choose a configuration, measure it, and again, until the budget is spent or little is left to gain.

    Stop it with Ctrl-C, or kill it: the same command goes on where it was. Started several times on one storage, also
    on other machines, workers share the study; what a dead one held is measured by another. With --ray they are tasks
    of a cluster, whose nodes must all reach the storage; what they observe comes back into the store here.

    Example: qplan tune run --example > tune.yaml; qplan tune tune.yaml --dry-run; qplan tune tune.yaml
    """
    _need_optuna()
    from qplan.profiles.store import ProfileStore
    from qplan.report.output import working
    from qplan.report.tuning import JsonLog, TuningDisplay, print_front, print_space
    from qplan.solvers.tuning import setup
    from qplan.solvers.tuning.engines import measurable
    from qplan.solvers.tuning.study import everywhere, storage_at
    from qplan.solvers.tuning.summary import summarize_study
    from qplan.solvers.tuning.tunefile import read_tuning
    from qplan.solvers.tuning.worker import Job, work

    if not plan.is_file() and not plan.suffix:
        raise InputError(f"no tuning file '{plan}', and no command of that name{nearest(str(plan), COMMANDS)}")
    tuning = read_tuning(plan)
    if workers is not None and ray is None:
        raise InputError("--workers: only with --ray; on this machine start the same command several times")
    with ProfileStore(store) as opened:
        with working("making the space"):
            measure: Measure | None = None
            if from_store is not None:
                enumerated, measure = setup.enumerate_table(tuning, from_store)
            elif ray is not None or dry_run:
                enumerated = measurable(tuning)
            else:
                enumerated, measure = setup.enumerate_machine(tuning, opened)
        if dry_run:
            print_space(tuning, enumerated, as_json=as_json)
            return
        source = from_store or setup.MEASURED
        with storage_at(storage) as kept:
            with working("opening the study"):
                sampler = setup.sampler_of(tuning, enumerated)
                study = setup.open_study(tuning, kept, enumerated, source, sampler)

            def summary() -> Summary:
                return summarize_study(study, tuning, importance=False)

            candidates = len(enumerated.configurations)
            display = JsonLog(summary) if as_json else TuningDisplay(summary, candidates, str(tuning.budget))
            with interrupts() as stopping, display:
                if ray is not None:
                    from qplan.solvers.tuning.ray import Assignment, work_on_ray

                    given = Assignment(tuning, everywhere(storage), source, enumerated, sampler, measure)

                    def keep(rows: Sequence[Row]) -> None:
                        setup.keep_rows(tuning, opened, rows)

                    stopped = work_on_ray(ray, workers, given, emit=display.take, keep=keep, stopping=stopping)
                else:
                    assert measure is not None
                    job = Job(study, tuning, enumerated, measure, sampler)
                    stopped = work(job, emit=display.take, stopping=stopping)
            found = summary()
    if stopped.interrupted:
        sys.stderr.write("qplan: stopped; the same command goes on\n")
        raise typer.Exit(INTERRUPTED)
    if not as_json:
        print_front(found)
        sys.stderr.write(f"qplan: {stopped.reason}; see more with qplan tune report {storage}\n")
    if not found.front:
        sys.stderr.write("qplan: no configuration could be measured within the limits\n")
        raise typer.Exit(4)


@app.command("report")
def report(
    storage: Storage = DEFAULT_STORAGE,
    study: StudyName = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw front, hypervolume and importance: .png or .html.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a study: its front, how it grew, which parameters matter, and what was not measured and why.

    Example: qplan tune report tuning.db; qplan tune report tuning.db --plot study.html
    """
    from qplan.report.figure_files import check_plot
    from qplan.report.tuning import print_study

    if plot is not None:
        check_plot(plot)
    found, _ = _summary(storage, study, importance=True)
    print_study(found, as_json=as_json)
    if plot is not None:
        from qplan.report.tuning_page import write_study

        write_study(plot, found)
        typer.echo(f"wrote {plot}", err=True)


@app.command("apply")
def apply(
    storage: Storage = DEFAULT_STORAGE,
    study: StudyName = None,
    trial: Annotated[
        int | None, typer.Option(metavar="N", help="Number of the trial whose configuration to take.")
    ] = None,
    best: Annotated[
        str | None, typer.Option(metavar="OBJECTIVE", help="Take the configuration of the front that is best by this.")
    ] = None,
    launch: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the script that serves it; - prints it.")
    ] = None,
    qps: Annotated[
        str | None, typer.Option("--qps", metavar="RATE", help="Size a fleet of it for this rate: qplan capacity.")
    ] = None,
    slo: Annotated[
        list[str] | None, typer.Option(metavar="SLO", help="SLOs of the fleet; the study's by default.")
    ] = None,
    profiles: Annotated[
        str | None, typer.Option(metavar="PACK", help="Profiles of the fleet, as of qplan capacity.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Take a configuration of the front: write the script that serves it, or size a fleet of it.

    Example: qplan tune apply tuning.db --best saturation --launch serve.sh; qplan tune apply --trial 7 --qps 40
    """
    from qplan.report.output import print_json
    from qplan.report.tuning import print_choice
    from qplan.solvers.tuning.choice import choose, target_of

    if qps is None and (slo or profiles is not None):
        raise InputError("--slo and --profiles are of a fleet that is sized; expected --qps")
    found, tuning = _summary(storage, study, importance=False)
    one = choose(found, trial, best)
    target = target_of(tuning, one)
    if launch is not None:
        from qplan.report.deploy.tuned import launch_script

        script = launch_script(target, f"study {found.study}, trial {one.trial}: {target}")
        if str(launch) == "-":
            sys.stdout.write(script)
        else:
            _write_script(launch, script)
    if qps is not None:
        _size_fleet(tuning, target, qps, slo, profiles, as_json=as_json)
    elif as_json and str(launch) != "-":
        print_json({"schema_version": 1, "trial": asdict(one), "target": asdict(target)})
    elif launch is None:
        print_choice(one, target, found)


COMMANDS = ("run", "report", "apply")


def _write_script(path: Path, script: str) -> None:
    try:
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)
    except OSError as error:
        raise InputError(f"--launch: cannot write {path}: {error.strerror}") from None
    typer.echo(f"wrote {path}", err=True)


def _size_fleet(
    tuning: Tuning, target: Target, qps: str, slo: list[str] | None, profiles: str | None, *, as_json: bool
) -> None:
    """Plan as ``qplan capacity`` does, with this model, quantization and GPU alone."""
    from qplan.core.model import Model
    from qplan.core.quantization import Quantization
    from qplan.core.slo import Slo
    from qplan.core.units import parse_rate
    from qplan.profiles.workloads import read_workload
    from qplan.report.plans import print_plan
    from qplan.solvers.capacity.ask import DEFAULT_PROFILES, CapacityAsk
    from qplan.solvers.capacity.planner import plan_capacity

    workload = tuning.conditions.workload
    ask = CapacityAsk.of(
        parse_rate(qps, "--qps"),
        Slo.parse_all(slo) if slo else tuning.conditions.slos,
        models=[Model.named(target.model, "the study's model")],
        workload=read_workload(workload) if workload else None,
        quality_floor=0.0,  # it was chosen for its quality already
        quantizations=[Quantization.parse(target.quantization)],
        inventory={target.gpu: math.inf},
        profiles=profiles or DEFAULT_PROFILES,
    )
    answer = plan_capacity(ask)
    print_plan(answer.plan, answer.explanation, as_json=as_json)
    if answer.plan.status == "infeasible":
        raise typer.Exit(3)


def _summary(storage: str, name: str | None, *, importance: bool) -> tuple[Summary, Tuning]:
    _need_optuna()
    from qplan.solvers.tuning.study import load_study, storage_at
    from qplan.solvers.tuning.summary import summarize_study

    with storage_at(_there(storage)) as kept:
        study, tuning = load_study(kept, name)
        return summarize_study(study, tuning, importance=importance), tuning


def _there(storage: str) -> str:
    """Refuse a file that is not there, or holds something else: opening it would make a storage of it."""
    from qplan.solvers.tuning.study import is_storage

    if "://" in storage or storage.startswith("journal:"):
        return storage
    if not Path(storage).is_file():
        raise InputError(f"STORAGE: no file {storage}; expected what qplan tune run --storage was given")
    if not is_storage(storage):
        raise InputError(f"STORAGE: {storage} holds no study; expected what qplan tune run --storage was given")
    return storage


def _need_optuna() -> None:
    """Say in one line that Optuna is missing; quiet its own log, which is about what qplan shows itself."""
    try:
        import optuna
    except ImportError:
        raise InputError("tuning needs Optuna: pip install 'qplan[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
