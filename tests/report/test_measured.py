from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from qplan.core.errors import InputError
from qplan.profiles.observations import from_rows
from qplan.report.measured import print_measured, write_report

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags of a page, its text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def some(table: pa.Table, **only: Any) -> pa.Table:
    rows = [row for row in table.to_pylist() if all(row[name] in values for name, values in only.items())]
    return from_rows(rows, "made")


@pytest.fixture(scope="module")
def few(campaign: pa.Table) -> pa.Table:
    """Two schemes, one workload."""
    return some(campaign, quantization=("FP16", "Q4_0"), workload=(None, "chat"))


@pytest.fixture(scope="module")
def folder(campaign_with_energy: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole campaign, with energy."""
    out = tmp_path_factory.mktemp("reported") / "a" / "report"
    files = write_report(campaign_with_energy, out, title="A campaign")
    assert sorted(files) == sorted(out.iterdir())
    return out


@pytest.mark.slow
def test_a_folder_holds_the_page_and_every_figure(folder: Path) -> None:
    names = sorted(file.name for file in folder.iterdir())
    assert names == [
        "energy-smollm2-135m-instruct-llamacpp-chat.png",
        "energy-smollm2-135m-instruct-llamacpp-isl-64-osl-16.png",
        "goodput-smollm2-135m-instruct-llamacpp-chat.png",
        "goodput-smollm2-135m-instruct-llamacpp-isl-64-osl-16.png",
        "latency-smollm2-135m-instruct-llamacpp-chat.png",
        "latency-smollm2-135m-instruct-llamacpp-isl-64-osl-16.png",
        "report.html",
        "tasks-smollm2-135m-instruct.png",
        "trend-smollm2-135m-instruct.png",
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in folder.glob("*.png"))


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    sources = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 8
    for source in sources:
        kind, _, data = source.partition(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert not any("href" in attributes for _, attributes in page.tags)


@pytest.mark.slow
def test_the_page_has_a_row_for_every_point_and_says_where_it_is_from(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    points = 8 * 2 * (3 + 2 + 2 * 6)  # schemes x KV formats x (metrics, searches, loads)
    provenance = 1 + 16 + 4  # systems, bits, facts
    assert page.count("tr") == points + provenance + 6  # a header each table
    for said in (
        "720 observations of 16 configurations, measured 2026-11-21; 0 failed",
        "llamacpp b11549",
        "Some CPU, 2 cores",
        '["server", "--port", "8000"]',
        "What these numbers are not",
        "p90:ttft=0.5s,p90:tpot=50ms",
    ):
        assert said in page.words


@pytest.mark.slow
def test_missing_energy_is_said_with_its_reason(few: pa.Table, tmp_path: Path) -> None:
    (file,) = write_report(few, tmp_path / "report.html")
    page = Page(file.read_text(encoding="utf-8"))
    assert "No energy was measured." in page.words
    assert "no energy counter: RAPL: no folder /sys/class/powercap" in page.words
    assert "J/token" not in page.words


def test_failures_are_listed_and_what_they_say_is_text(few: pa.Table, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> & \"quotes\" 'n' $x^2$"
    rows = [
        {name: evil if name in ("model", "workload", "host", "source") else v for name, v in row.items()}
        for row in some(few, phase=("saturation",)).to_pylist()
    ]
    bad = {"status": "failed", "reason": f"{evil}\nlast line", "saturation_qps": None, "saturation_low_qps": None}
    rows[0] |= {**bad, "saturation_high_qps": None}
    (file,) = write_report(from_rows(rows, "made"), tmp_path / "report.html", title=evil)
    page = Page(file.read_text(encoding="utf-8"))
    assert page.count("script") == 0
    assert f"{evil}\nlast line" in page.words
    assert "1 failed" in page.words


def test_a_table_of_failures_alone_still_makes_a_page(few: pa.Table, tmp_path: Path) -> None:
    (row, *_) = some(few, phase=("quality",)).to_pylist()
    row |= {"status": "oom", "reason": "does not fit", "score": None, "score_low": None, "score_high": None}
    row |= {"baseline_score": None} | {f"score_change{end}": None for end in ("", "_low", "_high")}
    table = from_rows([row], "made")
    (file,) = write_report(table, tmp_path / "report.html")
    page = Page(file.read_text(encoding="utf-8"))
    assert "does not fit" in page.words
    assert page.count("img") == 0
    with pytest.raises(InputError, match="no perplexity, KL divergence or saturation to draw"):
        write_report(table, tmp_path / "report.png")


def test_a_png_shows_the_trend_and_each_model_its_own(few: pa.Table, tmp_path: Path) -> None:
    out = tmp_path / "trend.png"
    one = some(few, phase=("saturation",))
    assert write_report(one, out) == (out,)
    both = pa.concat_tables([one, from_rows([{**row, "model": "Other"} for row in one.to_pylist()], "made")])
    files = write_report(both, out)
    assert [file.name for file in files] == ["trend-trend-other.png", "trend-trend-smollm2-135m-instruct.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_what_cannot_be_written_is_refused(few: pa.Table, tmp_path: Path) -> None:
    search = some(few, phase=("saturation",))
    with pytest.raises(InputError, match=r"expected a name that ends in \.html or \.png, or a folder"):
        write_report(search, tmp_path / "report.pdf")
    with pytest.raises(InputError, match="cannot write: No such file"):
        write_report(search, tmp_path / "none" / "report.html")
    with pytest.raises(InputError, match="cannot write: No such file"):
        write_report(search, tmp_path / "none" / "report.png")


def test_without_matplotlib_the_extra_is_named(few: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=re.escape("pip install 'qplan[plots]'")):
        write_report(few, tmp_path / "report.html")


def test_the_terminal_shows_bits_quality_and_saturation(campaign: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    print_measured(campaign, as_json=False)
    said = capsys.readouterr().out
    assert "SmolLM2-135M-Instruct, llamacpp b11549 on CPU" in said
    rows = [line for line in said.splitlines() if line.startswith(("FP16", "Q"))]
    assert len(rows) == 16
    assert rows[0].split()[:4] == ["FP16", "16", "12.3", "[11.7,"]
    assert "no energy counter: RAPL" in said
    assert "failures" not in said


def test_the_terminal_shows_the_score_of_a_task_alone(few: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    row = next(row for row in few.to_pylist() if row["metric"] == "perplexity")
    judged = {**row, "metric": "accuracy", "task": "choice:sample", "score": 0.725, "score_low": 0.57}
    print_measured(from_rows([judged | {"score_high": 0.84}], "made"), as_json=False)
    said = capsys.readouterr().out
    assert "accuracy" in said
    assert "0.725 [0.57, 0.84]" in said


def test_the_terminal_lists_failures_on_one_line_each(few: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    row = few.to_pylist()[0]
    bad = {**row, "phase": "serving", "task": None, "metric": None, "workload": "chat", "offered_qps": 3.0}
    bad = {name: value for name, value in bad.items() if not name.startswith(("score", "baseline"))}
    bad |= {"status": "failed", "reason": "engine died [bold]now[/bold]\n" + "long " * 200, "bits_per_weight": None}
    print_measured(from_rows([bad], "made"), as_json=False)
    said = capsys.readouterr().out
    assert "chat, 3 req/s" in said
    assert "engine died [bold]now[/bold] long" in said
    assert len(said) < 1500


def test_json_holds_everything(few: pa.Table, capsys: pytest.CaptureFixture[str]) -> None:
    print_measured(few, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["schema_version"] == 1
    assert (len(document["scores"]), len(document["saturations"]), len(document["loads"])) == (6, 2, 12)
    (load, *_) = document["loads"]
    assert load["quantization"] == "FP16"
    assert load["system"]["engine"] == "llamacpp"
    assert set(load["values"]["ttft_p50_s"]) == {"value", "low", "high", "count"}
    assert document["facts"]["host"] == ["Some CPU, 2 cores"]
