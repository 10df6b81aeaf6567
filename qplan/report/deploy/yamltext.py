"""Documents as YAML text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def yaml_text(documents: Iterable[Mapping[str, Any]], comment: str) -> str:
    """Return documents as one YAML stream under a comment line; long commands stay on one line each."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Without anchors, which readers of manifests stumble over, and with texts of several lines as blocks."""

        def ignore_aliases(self, _data: Any) -> bool:
            return True

    def block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Dumper.add_representer(str, block)
    text = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=2**16, default_flow_style=False)
    return f"# {comment}\n{text}"
