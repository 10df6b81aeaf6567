"""``qplan profiles``: see, bring in, take out and check observations."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qplan.cli import profiles_pack
from qplan.core.errors import QplanError
from qplan.report.output import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from qplan.profiles.observations import Group

JSON_SCHEMA_VERSION = 1
_PROGRESS_FROM_ROWS = 5_000

app = typer.Typer(help="See, import, export and check the profiles that plans are made from.", no_args_is_help=True)
app.command("findings")(profiles_pack.findings)
app.command("heldout")(profiles_pack.heldout)
app.command("requests")(profiles_pack.requests)

Store = Annotated[
    str, typer.Option("--store", envvar="QPLAN_STORE", help="SQLite file, or URL: postgresql://user@host/db.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files to read.", show_default=False)]
DEFAULT_STORE = "qplan.db"


@app.command("list")
def list_profiles(store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """List the installed packs, and the store if there is one.

    Example: qplan profiles list --json
    """
    from qplan.profiles.packs import Card, installed_packs

    cards = [Card.read(path.with_suffix(".json")) for path in installed_packs().values()]
    groups = _groups_if_any(store)
    if as_json:
        stores = [] if groups is None else [{"store": _shown(store), "rows": _rows(groups)}]
        _print_json(packs=[card.to_json() for card in cards], stores=stores)
        return
    rows = [(card.name, "pack", card.rows, card.provenance, card.date, card.title) for card in cards]
    if groups is not None:
        provenance = ", ".join(sorted({group.provenance for group in groups}))
        rows.append((_shown(store), "store", _rows(groups), provenance, "", "your own observations"))
    print_table(("name", "kind", "rows", "provenance", "date", "what it holds"), rows)


@app.command("show")
def show(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|STORE]", help="A pack, or a store.", show_default=False)
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Show what a pack or a store holds, by deployment, engine and phase.

    Examples: qplan profiles show trtllm-composed, qplan profiles show qplan.db
    """
    from qplan.profiles.observations import SUMMED_COLUMNS, summarize
    from qplan.profiles.packs import read_pack
    from qplan.profiles.store import ProfileStore, is_store

    if name is None or is_store(name):
        with ProfileStore(name or store) as opened:
            groups = opened.summary()
            about: dict[str, Any] = {"store": str(opened)}
    else:
        pack = read_pack(name, columns=SUMMED_COLUMNS)
        about, groups = pack.card.to_json(), summarize(pack.table)
    if as_json:
        _print_json(**about, groups=[asdict(group) for group in groups])
        return
    for field, value in about.items():
        if isinstance(value, str | int):
            typer.echo(f"{field}: {value}")
    if about.get("known_error") is not None:
        typer.echo(f"known error: {json.dumps(about['known_error'])}")
    for note in about.get("notes", ()):
        typer.echo(f"note: {note}")
    print_table(
        ("model", "quantization", "GPU", "TP", "engine", "phase", "provenance", "ok", "rows"),
        [
            (
                g.model,
                g.quantization,
                g.gpu,
                g.tp,
                f"{g.engine} {g.engine_version}",
                g.phase,
                g.provenance,
                g.ok,
                g.rows,
            )
            for g in groups
        ],
    )


@app.command("import")
def import_files(
    files: Files,
    format_name: Annotated[
        str, typer.Option("--format", help="vllm, guidellm, aiperf, csv or parquet.", show_default=False)
    ],
    store: Store = DEFAULT_STORE,
    model: Annotated[str | None, typer.Option(help="Model that was served.")] = None,
    quant: Annotated[str | None, typer.Option(help="Quantization: W4A16, W8A8KV8-FP, BF16 ...")] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU: H100-SXM5-80GB, l40s ...")] = None,
    tp: Annotated[int | None, typer.Option(min=1, help="GPUs of the replica.")] = None,
    engine: Annotated[str | None, typer.Option(help="trtllm, vllm, sglang or llamacpp.")] = None,
    engine_version: Annotated[str | None, typer.Option(help="Version of the engine.")] = None,
    workload: Annotated[str | None, typer.Option(help="Name of the request mix.")] = None,
    repeat: Annotated[int, typer.Option(min=0, help="Number of the repetition.")] = 0,
    column_map: Annotated[
        list[str] | None, typer.Option("--map", help="CSV: SOURCE=COLUMN or SOURCE=COLUMN:UNIT.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--replace", help="Overwrite what differs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring results of other tools into a store: all files or, on any error, none.

    Example: qplan profiles import run.json --format vllm --quant W4A16 --gpu h100 --tp 1 --engine vllm
    --engine-version 0.33.0

    Example: qplan profiles import t.csv --format csv --map "p50 ttft=ttft_p50_s:ms" --map note= --tp 1 ...
    """
    import pyarrow as pa

    from qplan.profiles.importers import Given, read_file
    from qplan.profiles.store import ProfileStore

    given = Given(
        model=model,
        quantization=quant,
        gpu=gpu,
        tp=tp,
        engine=engine,
        engine_version=engine_version,
        workload=workload,
        repeat=repeat,
        column_map=tuple(column_map or ()),
    )
    table = pa.concat_tables([read_file(file, format_name, given) for file in files])
    with ProfileStore(store) as opened, _Progress(table.num_rows) as progress:
        added = opened.add(table, source=", ".join(map(str, files)), replace=overwrite, progress=progress.advance)
    if as_json:
        _print_json(store=_shown(store), **asdict(added))
        return
    typer.echo(f"{_shown(store)}: {added.new} new, {added.unchanged} unchanged, {added.replaced} replaced")


@app.command("export")
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT.parquet", help="Pack to write.", show_default=False)],
    store: Store = DEFAULT_STORE,
    title: Annotated[str | None, typer.Option(help="Title of the pack.")] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier of its licence.")] = None,
    made_by: Annotated[str | None, typer.Option(metavar="COMMAND", help="What makes the pack again.")] = None,
    note: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What a reader must know of the numbers; repeatable.")
    ] = None,
    requests: Annotated[
        bool, typer.Option("--requests", help="Also write OUT.requests.parquet: timestamps of the loads' requests.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write everything in a store as a pack: a Parquet file and its JSON card.

    Example: qplan profiles export ours.parquet --store qplan.db --title "Our H100s, autumn 2026"
    """
    from qplan.measure.campaign.shipping import notes_of, requests_of
    from qplan.profiles.packs import Pack, write_pack
    from qplan.profiles.store import ProfileStore
    from qplan.profiles.timestamps import requests_path, write_requests

    with ProfileStore(store) as opened:
        pack = Pack.of_store(str(opened), opened.read())
        notes = (*(note or ()), *notes_of(opened))
        sent = requests_of(opened) if requests else None
    card = replace(
        pack.card,
        title=title or pack.card.title,
        licence=licence or pack.card.licence,
        made_by=made_by or pack.card.made_by,
        notes=notes,
        # The sources of a campaign's rows name their points, which a card need not.
        made_from=sorted({str(source).partition(" point ")[0] for source in pack.table["source"].to_pylist()}),
    )
    if sent is not None:
        beside = f"timestamps of {sent.num_rows} requests: {requests_path(out).name}"
        card = replace(card, details={**card.details, "requests": beside})
    card = write_pack(out, card, pack.table)
    if sent is not None:
        write_requests(out, sent)
    if as_json:
        _print_json(file=str(out), **card.to_json())
        return
    typer.echo(f"{out}: {card.rows} observations, with {out.with_suffix('.json').name}")
    if sent is not None:
        typer.echo(f"{requests_path(out)}: {sent.num_rows} requests, {requests_path(out).stat().st_size:,} bytes")


@app.command("validate")
def validate_files(files: Files, as_json: AsJson = False) -> None:
    """Check packs, and other Parquet files of observations, against the schema; exit 2 if one is wrong.

    Example: qplan profiles validate ours.parquet
    """
    from qplan.profiles.importers import Given, read_file
    from qplan.profiles.packs import read_pack

    problems: dict[str, list[str]] = {}
    for file in files:
        try:
            if file.with_suffix(".json").is_file():
                read_pack(file)
            else:
                read_file(file, "parquet", Given())
        except QplanError as error:
            problems[str(file)] = str(error).splitlines()
    if as_json:
        found = [{"file": str(file), "problems": problems.get(str(file), [])} for file in files]
        _print_json(valid=not problems, files=found)
    else:
        for file in files:
            for line in problems.get(str(file), [f"{file}: ok"]):
                typer.echo(line)
    if problems:
        raise typer.Exit(2)


class _Progress:
    """A progress bar on stderr while many rows are written; nothing for few."""

    def __init__(self, rows: int) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=rows < _PROGRESS_FROM_ROWS)
        self._task = self._bar.add_task("writing", total=rows)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, rows: int) -> None:
        self._bar.advance(self._task, rows)


def _groups_if_any(store: str) -> tuple[Group, ...] | None:
    """Sum up a store; ``None`` where the SQLite file is not there."""
    from qplan.profiles.store import ProfileStore

    if "://" not in store and not Path(store).exists():
        return None
    with ProfileStore(store) as opened:
        return opened.summary()


def _shown(store: str) -> str:
    """Print a store's name without a password."""
    from qplan.profiles.store import ProfileStore

    return str(ProfileStore(store))


def _rows(groups: Iterable[Group]) -> int:
    return sum(group.rows for group in groups)


def _print_json(**fields: Any) -> None:
    print_json({"schema_version": JSON_SCHEMA_VERSION} | fields)
