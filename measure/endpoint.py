"""Where requests go: an OpenAI-compatible server."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from qplan.core.errors import InputError

APIS = ("completions", "chat")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OpenAI-compatible server and the model asked of it.

    Attributes
    ----------
    url
        Base address without ``/v1``, such as ``http://host:8000``.
    model
        Name by which the server knows the model.
    api
        ``completions`` (``/v1/completions``) or ``chat`` (``/v1/chat/completions``).
    api_key
        Bearer token; never printed.
    """

    url: str
    model: str
    api: str = "completions"
    api_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.api not in APIS:
            raise InputError(f"unknown API '{self.api}'; expected one of {', '.join(APIS)}")

    @classmethod
    def parse(
        cls, url: str, model: str, api: str = "completions", api_key: str | None = None, where: str = "--url"
    ) -> Endpoint:
        """Read an address as typed, with or without ``/v1`` and the route; `where` names the flag in an error."""
        text = url.strip()
        wrong = InputError(f"{where}: cannot read '{url}'; expected an address such as http://host:8000")
        try:
            parts = urlsplit(text if "://" in text else f"http://{text}")
            _ = parts.port  # read for its check
        except ValueError:
            raise wrong from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise wrong
        if not text.isprintable() or " " in text:
            raise wrong
        if "@" in parts.netloc:
            raise InputError(f"{where}: an address with a user or password in it; a key belongs in the environment")
        base = f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")
        for end in ("/chat/completions", "/completions", "/v1"):
            base = base.removesuffix(end)
        return cls(base, model, api, api_key)

    @property
    def route(self) -> str:
        """Full address of the route that requests are posted to."""
        return f"{self.url}/v1/{'chat/completions' if self.api == 'chat' else 'completions'}"
