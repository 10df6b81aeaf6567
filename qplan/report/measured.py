"""What was measured, on the terminal, as a page and as figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qplan.core.errors import InputError
from qplan.report.measured_summary import Measured, Saturation, Variant, summarize_measured
from qplan.report.output import console, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

JSON_SCHEMA_VERSION = 1
_MAIN_METRICS = (
    *("perplexity", "kl_divergence", "top1_agreement"),
    *("accuracy", "exact_match", "pass@1", "hard_satisfaction_rate", "rouge_l"),
)
_REASON_LENGTH = 200  # on the terminal; page and JSON have the whole


def write_report(observations: pa.Table, out: Path, *, title: str = "qplan: measured") -> tuple[Path, ...]:
    """Write figures, or a page with figures and tables.

    Parameters
    ----------
    observations
        Rows with every column of the schema, from a pack or a store.
    out
        ``FILE.html``: one page that holds everything. ``FILE.png``: bits against quality and saturation; with
        several models, a file for each. Anything else is a folder, made if need be: the page and every figure.
    title
        Heading of the page.

    Returns
    -------
    tuple of Path
        The files written.

    Raises
    ------
    InputError
        There is nothing to show, matplotlib is missing, or `out` cannot be written.
    """
    from qplan.report.measured_page import render_page
    from qplan.report.measured_plots import draw_loads, draw_trends

    measured = summarize_measured(observations)
    try:
        if out.suffix == ".png":
            return _write_trends(measured, out)
        drawn = [*draw_trends(measured), *draw_loads(measured)]
        page = render_page(measured, drawn, title)
        if out.suffix == ".html":
            out.write_text(page, encoding="utf-8")
            return (out,)
        if out.suffix and not out.is_dir():
            raise InputError(f"cannot write '{out}': expected a name that ends in .html or .png, or a folder")
        out.mkdir(parents=True, exist_ok=True)
        files = [out / "report.html"]
        files[0].write_text(page, encoding="utf-8")
        for figure, name in zip(drawn, _distinct([figure.name for figure in drawn]), strict=True):
            files.append(out / f"{name}.png")
            files[-1].write_bytes(figure.png)
        return tuple(files)
    except OSError as error:
        raise InputError(f"{out}: cannot write: {error.strerror}") from None


def print_measured(observations: pa.Table, *, as_json: bool) -> None:
    """Print what was measured: a table of bits, quality and saturation, then failures; or everything as JSON.

    Raises
    ------
    InputError
        There is nothing to show.
    """
    measured = summarize_measured(observations)
    if as_json:
        print_json({"schema_version": JSON_SCHEMA_VERSION, **_document(measured)})
        return
    _print_trend(measured)
    _print_failures(measured)


def _write_trends(measured: Measured, out: Path) -> tuple[Path, ...]:
    """Write the figures of bits against quality and saturation; the only one gets the very name asked for."""
    from qplan.report.measured_plots import draw_trends

    trends = [figure for figure in draw_trends(measured) if figure.name.startswith("trend")]
    if not trends:
        raise InputError(f"{out}: no perplexity, KL divergence or saturation to draw; FILE.html shows the rest")
    names = _distinct([figure.name for figure in trends])
    files = [out] if len(trends) == 1 else [out.with_name(f"{out.stem}-{name}.png") for name in names]
    for figure, file in zip(trends, files, strict=True):
        file.write_bytes(figure.png)
    return tuple(files)


def _distinct(names: Sequence[str]) -> list[str]:
    """Give names that come again a number: ``a``, ``a-2``."""
    return [name if (n := names[:i].count(name)) == 0 else f"{name}-{n + 1}" for i, name in enumerate(names)]


def _document(measured: Measured) -> dict[str, Any]:
    document = asdict(measured)
    for name in ("loads", "saturations", "scores", "failures"):
        for item in document[name]:
            variant = item.pop("variant")
            item |= {"system": variant["system"], "quantization": variant["quantization"]}
            item["settings"] = variant["settings"] or None
    return document


def _print_trend(measured: Measured) -> None:
    """Print a table a system, a row a variant: what it costs in quality and what it gains in rate."""
    from qplan.report.measured_page import bracketed

    for system in measured.systems:
        variants = [variant for variant in measured.variants if variant.system == system]
        scores = {
            (s.variant, s.task, s.metric): s.score
            for s in measured.scores
            if s.variant.system == system and s.metric in _MAIN_METRICS
        }
        searches = {_search(s): s.qps for s in measured.saturations if s.variant.system == system}
        kinds = sorted({key[1:] for key in scores}, key=lambda kind: (_MAIN_METRICS.index(kind[1]), kind[0]))
        asked = list(dict.fromkeys(key[1:] for key in searches))
        console().print(str(system), style="bold", markup=False)
        print_table(
            ("quantization", "bits", *(_metric(kind, kinds) for kind in kinds), *map(_asked, asked), "loads"),
            [
                (
                    f"{variant.quantization} {variant.settings}".strip(),
                    "–" if variant.bits is None else f"{variant.bits:.3g}{'' if variant.bits_measured else '*'}",
                    *(bracketed(scores.get((variant, *kind))) for kind in kinds),
                    *(bracketed(searches.get((variant, *search))) for search in asked),
                    sum(load.variant == variant for load in measured.loads),
                )
                for variant in variants
            ],
        )
    if any(variant.bits is not None and not variant.bits_measured for variant in measured.variants):
        console().print("* bits of the catalogue, not measured")
    for note in measured.energy_notes:
        console().print(f"energy: {note}", markup=False)


def _print_failures(measured: Measured) -> None:
    if not measured.failures:
        return
    console().print("\nfailures", style="bold")
    print_table(
        ("quantization", "phase", "point", "status", "times", "reason"),
        [(f.variant.quantization, f.phase, f.point, f.status, f.count, _one_line(f.reason)) for f in measured.failures],
    )


def _search(found: Saturation) -> tuple[Variant, str, str, str]:
    return (found.variant, found.workload, found.slo, found.arrivals)


def _asked(search: tuple[str, str, str]) -> str:
    workload, slo, arrivals = search
    return "\n".join(part for part in ("req/s at saturation", workload, slo, arrivals) if part)


def _metric(kind: tuple[str, str], kinds: Sequence[tuple[str, str]]) -> str:
    task, metric = kind
    several = sum(other == metric for _, other in kinds) > 1
    return f"{metric}\n{task}" if several else metric


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _REASON_LENGTH else f"{line[:_REASON_LENGTH]} ..."
