"""``qplan fit PACK --measured STORE``: correct what a pack says by what was measured of one's own systems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from qplan.core.errors import InputError

if TYPE_CHECKING:
    from qplan.models.fitted import Fitted


def fit_measured(profiles: str, measured: str, out: Path | None, plot: Path | None, *, as_json: bool) -> None:
    """Correct the surrogates of `profiles` by the serving rows of `measured`; report, draw and save as asked."""
    from qplan.models.calibrated_fit import calibrate_fitted
    from qplan.models.fitted import KIND
    from qplan.models.saved import save
    from qplan.models.surrogates import Surrogates
    from qplan.profiles.sources import read_profiles
    from qplan.report.calibrating import check_curve_plot, draw_few_points, print_calibration

    if plot is not None:
        check_curve_plot(plot)
    prior, pack = _prior(profiles), read_profiles(measured)
    name, table = pack.card.name, pack.table
    found, few = calibrate_fitted(prior, table, name)
    if plot is not None:
        draw_few_points(few, plot)
    if out is not None:
        provenance = {"profiles": prior.source, "measured": name, "rows": table.num_rows, "evidence": found.evidence}
        save(out, KIND, Surrogates(found, None).to_parts(), provenance=provenance)
    print_calibration(found, few, as_json=as_json)
    for path in filter(None, (plot, out)):
        typer.echo(f"wrote {path}", err=as_json)


def _prior(profiles: str) -> Fitted:
    """Return what was fitted to the step times of `profiles`: read where it is at hand, else fitted now."""
    from qplan.models.calibrated import Calibrated
    from qplan.models.fitted import SHIPPED
    from qplan.models.fitting import fit_profiles
    from qplan.models.surrogates import open_fitted
    from qplan.profiles.sources import read_profiles
    from qplan.report.measuring import count_bar

    if f"{profiles}.qplan" == SHIPPED or profiles.endswith(".qplan"):
        found = open_fitted(Path(profiles) if profiles.endswith(".qplan") else None).steps
        if isinstance(found, Calibrated):
            raise InputError(
                f"{profiles}: is calibrated already, on {found.measured_in}; expected a pack with step times, or what "
                "qplan fit saved of one"
            )
        if found is None:
            raise InputError(f"{profiles}: holds no step times to correct; expected a fit to prefill and decode rows")
        return found
    pack = read_profiles(profiles)
    with count_bar("fitting") as progress:
        return fit_profiles(pack.table, pack.card.name, pack.card.known_error, progress)[0]
