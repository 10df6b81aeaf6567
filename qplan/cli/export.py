"""``qplan export``: what runs a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplan.core.errors import InputError, nearest

EXAMPLES = """
[bold]Examples[/bold]

  qplan capacity --qps 40 --slo ttft=1s --json > plan.json && qplan export plan.json -o deploy

  qplan export plan.json -o deploy --kind kubernetes --kind routing --weights llama-3.1-8b:W4A16=/models/llama-awq

  qplan export plan.json -o deploy --kind compose --machine-gpus 4
"""


def export(
    plan: Annotated[Path, typer.Argument(help="Plan of qplan capacity --json.", metavar="PLAN", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="A new folder to write into.")],
    kind: Annotated[
        list[str] | None,
        typer.Option(help="commands, compose, kubernetes, kserve, routing; repeatable; default: all.", metavar="KIND"),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="MODEL:QUANTIZATION=WHERE, a folder or a Hugging Face id; repeatable.", metavar="ENTRY"),
    ] = None,
    machine_gpus: Annotated[int, typer.Option(help="GPUs of a machine, for compose files.", min=1, metavar="N")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print the files and notes as JSON.")] = False,
) -> None:
    """Write launch commands, compose files, Kubernetes manifests and the routing table of a plan."""
    from qplan.report.deploy import KINDS, read_launches, write_deployment
    from qplan.report.output import print_json

    kinds = tuple(kind or KINDS)
    for name in kinds:
        if name not in KINDS:
            raise InputError(f"--kind: unknown '{name}'; expected {', '.join(KINDS)}{nearest(name, KINDS)}")
    given = dict(map(_entry, weights or ()))
    files, notes = write_deployment(read_launches(plan), out, kinds, given, machine_gpus)
    if as_json:
        print_json({"files": list(map(str, files)), "notes": list(notes)})
        return
    for file in files:
        typer.echo(f"wrote {file}")
    for note in notes:
        typer.echo(f"to do  {note}")


def _entry(text: str) -> tuple[str, str]:
    key, _, where = text.partition("=")
    if ":" not in key or not where:
        raise InputError(f"--weights: '{text}'; expected MODEL:QUANTIZATION=WHERE: llama-3.1-8b:W4A16=/models/awq")
    return key, where


export.__doc__ = f"{export.__doc__}\n{EXAMPLES}"
