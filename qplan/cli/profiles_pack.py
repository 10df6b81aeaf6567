"""``qplan profiles findings | heldout | requests``: what a measured pack says, and how well it was predicted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Name = Annotated[str, typer.Argument(metavar="PACK|STORE", help="A pack, or a store.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def findings(
    name: Name,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page (.html), or a figure for each claim (.png).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold the studies' claims on quantized serving against measured loads: verdicts by the spread of repeats.

    Examples: qplan profiles findings llamacpp-cpu, qplan profiles findings qplan.db --plot findings.html
    """
    from qplan.measure.findings.claims import findings as hold
    from qplan.measure.findings.points import measured_loads
    from qplan.profiles.sources import read_profiles
    from qplan.report.figure_files import check_plot
    from qplan.report.findings import print_findings

    if plot is not None:
        check_plot(plot)
    pack = read_profiles(name)
    loads = measured_loads(pack.table)
    found = hold(loads)
    print_findings(pack.card.name, loads, found, as_json=as_json)
    if plot is not None:
        from qplan.report.findings_page import write_findings

        for file in write_findings(pack.card.name, loads, found, plot):
            typer.echo(f"wrote {file}", err=as_json)


def requests(
    name: Annotated[str, typer.Argument(metavar="PACK", help="A pack with timestamps.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Tell latencies again from the timestamps beside a pack, and how far they lie from its observations.

    Example: qplan profiles requests h200-measured
    """
    from qplan.profiles.packs import read_pack
    from qplan.profiles.timestamps import read_requests
    from qplan.report.requests import print_requests

    print_requests(read_pack(name), read_requests(name), as_json=as_json)


def heldout(
    name: Name,
    fitted: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What qplan fit saved; by default the shipped model.")
    ] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="STORE|PACK", help="Fit to this now, rows of the pack left out; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict a pack's loads from other profiles, and print how far off: by quantization, by load, at saturation.

    Examples: qplan profiles heldout h200-measured, qplan profiles heldout mine.parquet --from qplan.db --json
    """
    import pyarrow as pa

    from qplan.core.errors import InputError
    from qplan.models.packcheck import check_pack, fit_to, left_out
    from qplan.models.surrogates import open_fitted
    from qplan.profiles.sources import read_profiles
    from qplan.report.measuring import count_bar
    from qplan.report.packcheck import print_check

    if fitted is not None and from_:
        raise InputError("--fitted: is a fit already; leave out --from")
    pack = read_profiles(name)
    gone = 0
    if from_:
        others = [read_profiles(other) for other in from_]
        table, gone = left_out(pa.concat_tables([other.table for other in others]), pack.table)
        source = ", ".join(other.card.name for other in others)
        known = others[0].card.known_error if len(others) == 1 else None
        if not table.num_rows:
            raise InputError(f"--from: {source} holds nothing but rows of {pack.card.name}")
        if gone:
            source = f"{source} without {pack.card.name}"
        with count_bar("fitting") as progress:
            surrogates = fit_to(table, source, known, progress)
    else:
        surrogates = open_fitted(fitted)
    print_check(pack.card.name, check_pack(pack.table, pack.card.name, surrogates, gone), as_json=as_json)
