"""The notebooks run from top to bottom, and what they say as stored is what they say when run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks run in the development environment")
nbclient = pytest.importorskip("nbclient", reason="notebooks run in the development environment")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def read(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def verdicts(notebook: Any) -> list[str]:
    """Return the sentences in italics that cells computed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    return [text for text in texts if text.startswith("*")]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_as_run_in_one_go(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for cell in cells for output in cell.outputs} <= {"display_data", "execute_result"}
    assert path.stat().st_size < 400_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_says_what_is_stored(path: Path) -> None:
    notebook = read(path)
    stored = verdicts(notebook)
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(path.parent))
    run = verdicts(notebook)
    again = f"run `jupyter execute --inplace notebooks/{path.name}` and look at what changed"
    assert [_NUMBER.sub("#", text) for text in run] == [_NUMBER.sub("#", text) for text in stored], again
    for now, then in zip(run, stored, strict=True):
        assert figures(now) == pytest.approx(figures(then), rel=0.1, abs=0.1), again


def figures(text: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(text)]
