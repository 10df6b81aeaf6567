"""``qplan fit``: train the surrogates on profiles, and see how far off they are on what they have not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
[bold]Examples[/bold]

  qplan fit trtllm-composed

  qplan fit profiles.db -o ours.qplan --plot calibration.png

  qplan fit profiles.db --json > report.json

  qplan fit trtllm-composed --measured mine.db -o ours.qplan
"""


def fit(
    profiles: Annotated[str, typer.Argument(metavar="STORE|PACK", help="Store, or pack.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Save the fitted model, for qplan predict.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the calibration of the intervals of measured loads: PNG.")
    ] = None,
    measured: Annotated[
        str | None,
        typer.Option(
            metavar="STORE|PACK", help="Correct it by the serving runs of your own systems, of which a few suffice."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit surrogates to a store or pack; report their errors on loads, settings and models that were left out."""
    from qplan.cli.fit_measured import fit_measured
    from qplan.core.errors import InputError
    from qplan.models.fitted import KIND
    from qplan.models.fitting import fit_rows
    from qplan.models.saved import save
    from qplan.profiles.sources import read_profiles
    from qplan.report.fits import check_plot, draw_report, print_report
    from qplan.report.measuring import count_bar

    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise InputError(f"--out: {out}; expected the name of a file in a folder that is there")
    if measured is not None:
        fit_measured(profiles, measured, out, plot, as_json=as_json)
        return
    if plot is not None:
        check_plot(plot)
    pack = read_profiles(profiles)
    with count_bar("fitting") as progress:
        report = fit_rows(pack.table, pack.card.name, pack.card.known_error, progress)
    if out is not None:
        provenance = {"profiles": pack.card.name, "rows": pack.table.num_rows, "evidence": report.fitted.evidence}
        save(out, KIND, report.fitted.to_parts(), provenance=provenance)
    print_report(report, as_json=as_json)
    if out is not None:
        typer.echo(f"wrote {out}", err=as_json)
    if plot is not None:
        draw_report(report, plot)
        typer.echo(f"wrote {plot}", err=as_json)


fit.__doc__ = f"{fit.__doc__}\n{EXAMPLES}"
