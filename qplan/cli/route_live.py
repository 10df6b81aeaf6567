"""``qplan route serve | litellm``: a routing policy before live replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qplan.core.errors import InputError

EXAMPLES = """
[bold]Examples[/bold]

  qplan route serve policy.json --replicas replicas.yaml

  qplan route serve policy.json --replicas replicas.yaml --host 0.0.0.0 --port 80 --processes 4

[bold]Replicas[/bold]

  replicas:
  - {name: h100-0, url: "http://10.0.0.1:8000", group: h100-fp8}
  - {name: a100-0, url: "http://10.0.0.2:8000", group: a100-bf16,
     model: its-own-name, api_key_env: A100_KEY}
  # /metrics has the joules and watts of these GPUs:
  - {name: local, url: "http://127.0.0.1:8000", group: h100-fp8, gpus: [0, 1]}
  # May sleep, as the policy wants:
  - {name: h100-1, url: "http://10.0.0.3:8000", group: h100-fp8, sleep: vllm}
  - {name: h100-2, url: "http://10.0.0.4:8000", group: h100-fp8,
     sleep: "stop h100-2", wake: "start h100-2"}
  api_keys_file: keys.txt
  limits: {body: 4MiB, queue: 1000, first_token: 60s, stall: 60s}

Clients choose a class with the field x-qplan-class, and keep to a replica with x-session-id. SIGHUP, or a changed
file, reloads; SIGTERM drains. /health and /metrics (Prometheus) need no key. The log goes to standard error as JSON.

[bold]Sleep[/bold]

Replicas with sleep are put to sleep and woken; name it in one router's file only. vllm serve --enable-sleep-mode with
VLLM_SERVER_DEV_MODE=1, or what sleep and wake say, a command or a URL to post to. One that drains or sleeps gets no
requests; it serves again once its health check is good. Requests that wait wake one early.

[bold]Traces[/bold]

With OTEL_EXPORTER_OTLP_ENDPOINT set, a span for each request (pip install 'qplan\\[otel]').
"""

PolicyFile = Annotated[
    Path, typer.Argument(metavar="POLICY", help="Policy of qplan route solve.", exists=True, dir_okay=False)
]
ReplicasFile = Annotated[
    Path, typer.Option("--replicas", metavar="FILE", help="Where the replicas are (YAML).", exists=True, dir_okay=False)
]


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    app.command("serve")(serve)
    app.command("litellm")(litellm)


def serve(
    policy: PolicyFile,
    replicas: ReplicasFile,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="PORT", help="Port; 0 for any.")] = 8080,
    processes: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Processes that share the port.")] = 1,
) -> None:
    """Route live requests: an OpenAI-compatible server before the replicas of a fleet."""
    try:
        from qplan.router.process import Serving
        from qplan.router.serve import serve as run
    except ImportError as error:
        raise InputError(f"the router needs {error.name}: pip install 'qplan[router]'") from None
    run(Serving(policy, replicas, host, port, processes))


def litellm(
    policy: PolicyFile,
    replicas: ReplicasFile,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where to write the two files.")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Model that clients ask for; by default the policy's.")
    ] = None,
) -> None:
    """Write the configuration with which LiteLLM's proxy follows the policy.

    Example: qplan route litellm policy.json --replicas replicas.yaml -o gateway && litellm --config gateway/config.yaml
    """
    from qplan.router.files import read_policy
    from qplan.router.litellm import proxy_files
    from qplan.router.settings import read_settings

    read = read_policy(policy)
    settings = read_settings(replicas, read)
    files = proxy_files(policy, settings, model or read.groups[0].model)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
            typer.echo(f"wrote {out / name}")
    except OSError as error:
        raise InputError(f"--out: cannot write into {out}: {error.strerror}; expected a folder") from None


serve.__doc__ = f"{serve.__doc__}\n{EXAMPLES}"
