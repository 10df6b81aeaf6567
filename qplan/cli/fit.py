"""``qplan fit``: train the surrogates on profiles, and see how far off they are on what they have not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
[bold]Examples[/bold]

  qplan fit trtllm-composed

  qplan fit profiles.db -o ours.qplan

  qplan fit profiles.db --json > report.json
"""


def fit(
    profiles: Annotated[str, typer.Argument(metavar="STORE|PACK", help="Store, or pack.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Save the fitted model, for qplan predict.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit surrogates to a store or pack; report their errors on rows, settings and models that were left out."""
    from qplan.models.fitted import KIND
    from qplan.models.fitting import fit_profiles
    from qplan.models.saved import save
    from qplan.profiles.packs import Pack, read_pack
    from qplan.profiles.store import ProfileStore, is_store
    from qplan.report.forecasts import print_held_out
    from qplan.report.measuring import count_bar

    if is_store(profiles):
        with ProfileStore(profiles) as store:
            pack = Pack.of_store(str(store), store.read())
    else:
        pack = read_pack(profiles)
    with count_bar("fitting") as progress:
        fitted, held_out = fit_profiles(pack.table, pack.card.name, pack.card.known_error, progress)
    if out is not None:
        provenance = {"profiles": pack.card.name, "rows": pack.table.num_rows, "evidence": fitted.evidence}
        save(out, KIND, {"fitted": fitted.to_data()}, provenance=provenance)
    print_held_out(fitted, held_out, as_json=as_json)
    if out is not None:
        typer.echo(f"wrote {out}", err=as_json)


fit.__doc__ = f"{fit.__doc__}\n{EXAMPLES}"
