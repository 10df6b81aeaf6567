"""Behaves like the command of lm-eval 0.4.13: asks the server once, and writes results and samples in its format."""

import json
import os
import sys
import urllib.request
from pathlib import Path

given = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
if given["--tasks"] == "broken":
    sys.stderr.write("Traceback (most recent call last):\nValueError: Tasks not found: broken\n")
    sys.exit(1)
arguments = dict(pair.split("=", 1) for pair in given["--model_args"].split(","))
request = urllib.request.Request(
    arguments["base_url"],
    json.dumps({"prompt": "item", "messages": [], "chat": "--apply_chat_template" in sys.argv}).encode(),
    {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"},
)
with urllib.request.urlopen(request) as response:
    choice = json.load(response)["choices"][0]
right = int(choice.get("text") or choice["message"]["content"])
count = int(given.get("--limit", "10"))
task = given["--tasks"]
folder = Path(given["--output_path"]) / arguments["model"].replace("/", "__")
folder.mkdir(parents=True)
stamp = "2026-01-02T03-04-05.678901"
scores = [float(number < right) for number in range(count)]
mean = sum(scores) / count
results = {
    "results": {
        task: {
            "alias": task,
            "acc,none": mean,
            "acc_stderr,none": 0.1,
            "exact_match,flexible-extract": mean,
            "exact_match_stderr,flexible-extract": "N/A",
            "perplexity,none": 12.5,
            "perplexity_stderr,none": 0.5,
        }
    },
    "n-samples": {task: {"original": 100, "effective": count}},
}
(folder / f"results_{stamp}.json").write_text(json.dumps(results))
with (folder / f"samples_{task}_{stamp}.jsonl").open("w") as file:
    for label, metrics in (("none", ("acc", "perplexity")), ("flexible-extract", ("exact_match",))):
        for number, score in enumerate(scores):
            values = {metric: -2.5 if metric == "perplexity" else score for metric in metrics}
            sample = {"doc_id": number, "doc": {}, "target": "0", "filter": label, "metrics": list(metrics)}
            file.write(json.dumps(sample | {"resps": [["x"]], "filtered_resps": ["x"]} | values) + "\n")
