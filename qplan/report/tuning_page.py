"""A study as a picture, or as one page with the figure and all that the picture cannot say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qplan.report.figure_files import write_picture
from qplan.report.measured_page import figure_block, list_block, page, section_blocks, table_block
from qplan.report.tuning import facts_of, front_table, value_of
from qplan.report.tuning_plots import draw_study

if TYPE_CHECKING:
    from pathlib import Path

    from qplan.report.measured_axes import Drawn
    from qplan.solvers.tuning.summary import Summary

CAVEATS = (
    "On the front is what no other measured configuration beats on every objective; noise of measuring is not in it.",
    "'At least' and 'at most' are bounds: a search that found no rate too high, or a configuration that was abandoned "
    "when no load could bring it to the front any more. A bound of a measured configuration counts as its value.",
    "What was not measured is left out by what the sampler expects of it, which can be wrong.",
)


def write_study(path: Path, summary: Summary) -> None:
    """Write a study as a picture or as a page that needs no other file, by the suffix of `path`.

    Raises
    ------
    InputError
        Nothing was measured yet, matplotlib is not installed, or the file cannot be written.
    """
    drawn = draw_study(summary)
    write_picture(path, drawn.png if path.suffix.casefold() == ".png" else render_study(summary, drawn).encode())


def render_study(summary: Summary, drawn: Drawn) -> str:
    """Return the page; every name from the study is escaped."""
    sections = (
        ("The front", table_block(*front_table(summary)) or "<p>Nothing keeps every limit yet.</p>"),
        ("Figure", figure_block(drawn)),
        ("The study", table_block(("", " "), facts_of(summary))),
        ("Every configuration that was tried", _tried(summary)),
        ("Not measured", table_block(("configuration", "probability of the front"), summary.skipped)),
        ("Left out before", table_block(("combination", "reason"), summary.refused)),
        ("What these numbers are not", list_block(CAVEATS)),
    )
    return page(f"Study {summary.study}", section_blocks(sections))


def _tried(summary: Summary) -> str:
    names = list(summary.units)
    rows = [
        (
            one.trial,
            one.configuration,
            one.how,
            *(value_of(one, name, summary) for name in names),
            None if one.gpu_hours is None else f"{one.gpu_hours:.3g}",
            one.reason,
        )
        for one in summary.found
    ]
    return table_block(("trial", "configuration", "ended as", *names, "GPU-hours", "reason"), rows)
