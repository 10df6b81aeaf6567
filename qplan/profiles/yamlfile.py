"""A YAML file as entries that know where they stand, so that every complaint names its line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from qplan.core.errors import InputError, nearest
from qplan.core.units import parse_duration, parse_fraction, parse_number

if TYPE_CHECKING:
    import yaml

T = TypeVar("T")

_MOST_ENTRIES = 100_000
_SWITCH = {"true": True, "on": True, "yes": True, "false": False, "off": False, "no": False}


@dataclass(frozen=True, slots=True)
class Entry:
    """One value of a file.

    Attributes
    ----------
    where
        File, line and path of the value: ``plan.yaml:12: quantizations[2]``.
    text
        A scalar as it is written; ``None`` for anything else, and for a value left empty.
    quoted
        Whether the scalar is in quotes.
    items, fields
        Entries of a list, and of a mapping; ``None`` for anything else.
    """

    where: str
    text: str | None = None
    quoted: bool = False
    items: tuple[Entry, ...] | None = None
    fields: Mapping[str, Entry] | None = None

    def wrong(self, expected: str) -> InputError:
        """Return the error that says what was found here and what was expected."""
        if self.text is not None:
            found = f"'{self.text}'"
        elif self.fields is not None:
            found = "a mapping"
        else:
            found = "nothing" if self.items is None else "a list"
        return InputError(f"{self.where}: found {found}; expected {expected}")

    def mapping(self, known: Iterable[str]) -> Mapping[str, Entry]:
        """Return the fields of a mapping whose keys are all `known`."""
        choices = tuple(known)
        if self.fields is None:
            raise self.wrong(f"a mapping with the keys {', '.join(choices)}")
        for key, entry in self.fields.items():
            if key not in choices:
                hint = "; quote a value that holds a comma" if "=" in key else nearest(key, choices)
                raise InputError(f"{entry.where}: unknown key '{key}'; expected one of {', '.join(choices)}{hint}")
        return self.fields

    def listed(self) -> tuple[Entry, ...]:
        """Return the entries of a list; a single value is a list of one."""
        if self.items is None:
            return (self,)
        if not self.items:
            raise self.wrong("at least one value")
        return self.items

    def string(self, expected: str = "a text") -> str:
        """Return a text that is not blank; `expected` says in the error what it is to be."""
        if self.text is None or not self.text.strip():
            raise self.wrong(expected)
        return self.text.strip()

    def one_of(self, choices: Iterable[str]) -> str:
        """Return one of the `choices`."""
        known = tuple(choices)
        if self.text not in known:
            raise InputError(
                f"{self.where}: found '{self.text}'; expected one of {', '.join(known)}"
                f"{nearest(self.text or '', known)}"
            )
        return self.text

    def count(self, least: int = 1, most: int = 1_000_000_000) -> int:
        """Return a whole number from `least` to `most`."""
        if self.text is None or not self.text.strip().isdecimal() or not least <= int(self.text) <= most:
            raise self.wrong(f"a whole number from {least} to {most:,}")
        return int(self.text)

    def duration(self) -> float:
        """Return a positive time in seconds."""
        seconds = parse_duration(self.string(), self.where)
        if seconds <= 0:
            raise self.wrong("a time of more than 0, such as 30s")
        return seconds

    def share(self) -> float:
        """Return a share above 0 and below 1."""
        share = parse_fraction(self.string(), self.where)
        if not 0 < share < 1:
            raise self.wrong("a share between 0 and 1, such as 95%")
        return share

    def switch(self) -> bool:
        """Return ``on`` or ``off`` as a truth value."""
        if self.text is None or self.text.casefold() not in _SWITCH:
            raise self.wrong("on or off")
        return _SWITCH[self.text.casefold()]

    def setting(self) -> str | int | float | bool:
        """Return a scalar as what it looks like: a truth value, a number, else a text."""
        text = self.string()
        if self.quoted:
            return text
        if text.casefold() in _SWITCH:
            return _SWITCH[text.casefold()]
        try:
            number = parse_number(text, self.where)
        except InputError:
            return text
        return int(number) if number == int(number) and "." not in text and "e" not in text.casefold() else number

    def read(self, reader: Callable[[str, str], T], expected: str = "a text") -> T:
        """Return what `reader` makes of the text; it is given the place for its errors."""
        return reader(self.string(expected), self.where)


def read_yaml(text: str, source: str) -> Entry:
    """Read YAML as entries; `source` names the file in errors.

    Raises
    ------
    InputError
        It is not YAML (with the line), or YAML provides for the package that reads it is missing.
    """
    try:
        import yaml
    except ImportError:
        raise InputError(f"{source}: reading YAML needs PyYAML: pip install 'qplan[measure]'") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{source}{line}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply for a plan") from None
    if root is None:
        return Entry(source, fields={})
    return _Reader(source).entry(root, root.start_mark.line + 1, "")


def read_yaml_file(path: Path) -> tuple[Entry, str]:
    """Read a YAML file; return its root and its text."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    return read_yaml(text, str(path)), text


class _Reader:
    """Turns YAML nodes into entries; counts them, since a few aliases can stand for billions."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.count = 0

    def entry(self, node: yaml.Node, line: int, path: str) -> Entry:
        import yaml

        self.count += 1
        where = f"{self.source}:{line}: {path}".rstrip(": ") if path else f"{self.source}:{line}"
        if self.count > _MOST_ENTRIES or path.count(".") + path.count("[") > 20:
            raise InputError(f"{self.source}: more than {_MOST_ENTRIES} values, or nested too deeply for a plan")
        if isinstance(node, yaml.ScalarNode):
            empty = node.tag == "tag:yaml.org,2002:null" and node.style is None
            return Entry(where, text=None if empty else node.value, quoted=node.style is not None)
        if isinstance(node, yaml.SequenceNode):
            children = enumerate(node.value)
            return Entry(where, items=tuple(self.entry(n, n.start_mark.line + 1, f"{path}[{i}]") for i, n in children))
        assert isinstance(node, yaml.MappingNode)
        fields: dict[str, Entry] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            at = key.start_mark.line + 1
            if name in fields:
                raise InputError(f"{self.source}:{at}: '{name}' is given twice")
            fields[name] = self.entry(value, at, f"{path}.{name}" if path else name)
        return Entry(where, fields=fields)
