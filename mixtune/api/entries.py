"""API entries of a study → resolved systems: endpoint, model, decoding parameters, price."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from mixtune.errors import SpecError, did_you_mean
from mixtune.identity import make_id
from mixtune.study.api_spec import ApiEntry
from mixtune.study.fields import Frozen
from mixtune.study.yaml import read_yaml

OPENAI = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
OWN_PRICE = "stated in the study"
PICO = 10**12
"""Picodollars in a US dollar: costs are integers, so that their sums are exact."""


class Preset(Frozen):
    """A known API model with its list price in US dollars per million tokens."""

    model: str
    price_in: float
    price_out: float
    price_source: str


@dataclass(frozen=True, slots=True)
class Price:
    """Picodollars per prompt and per generated token; `source`: origin of the figures."""

    token_in: int
    token_out: int
    source: str

    @classmethod
    def per_million(cls, price_in: float, price_out: float, source: str) -> "Price":
        """From US dollars per million tokens."""
        return cls(round(price_in * PICO / 10**6), round(price_out * PICO / 10**6), source)

    def of(self, tokens_in: int, tokens_out: int) -> int:
        """Cost in picodollars."""
        return self.token_in * tokens_in + self.token_out * tokens_out


@dataclass(frozen=True, slots=True)
class ApiSystem:
    """A resolved API model; `price` is None where neither the study nor a preset states one.

    `key_env`: the variable that holds its key, None where none is sent. `max_new_tokens`: None
    where the task determines it.
    """

    name: str
    model: str
    base_url: str
    key_env: str | None
    price: Price | None
    shots: int = 0
    seed: int = 1
    variants: tuple[str, ...] = ("",)
    max_new_tokens: int | None = None
    reasoning_effort: str | None = None
    structured: bool = True
    omit: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """Host of the endpoint, with its port if the URL states one."""
        return urlsplit(self.base_url).netloc

    @property
    def origin(self) -> str:
        """Model and host, for tables."""
        return f"API {self.model} at {self.host}"

    @property
    def id(self) -> str:
        """System id: a digest of endpoint, model, decoding parameters and prompting."""
        parts: dict[str, Any] = {"host": self.host, "model": self.model, "seed": self.seed}
        if self.shots:
            parts["shots"] = self.shots
        if self.variants != ("",):
            parts["variants"] = list(self.variants)
        if self.reasoning_effort is not None:
            parts["reasoning_effort"] = self.reasoning_effort
        if self.omit:
            parts["omit"] = sorted(self.omit)
        return make_id("api", parts)

    def decoding(self, max_new_tokens: int) -> dict[str, Any]:
        """Decoding parameters of a request; reasoning models accept no temperature."""
        limits = ["max_tokens", "max_completion_tokens"]
        if self.reasoning_effort is not None:
            limits.reverse()
        # A limit is always sent, because the cost of a request is bounded by it.
        limit = next(name for name in limits if name not in self.omit)
        other = {"temperature": 0} if self.reasoning_effort is None else {}
        effort = (
            {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        )
        sent = {limit: max_new_tokens, **other, **effort, "seed": self.seed}
        return {name: value for name, value in sent.items() if name not in self.omit}


@cache
def presets() -> dict[str, Preset]:
    """Every preset by name."""
    path = Path(__file__).parent / "presets.yaml"
    raw = read_yaml(path.read_text(encoding="utf-8"), path.name, SpecError).value
    return TypeAdapter(dict[str, Preset]).validate_python(raw)


def resolve(entries: Sequence[ApiEntry]) -> list[ApiSystem]:
    """Entries completed from their presets and the defaults.

    Raises:
        SpecError: unknown preset, invalid endpoint, or two entries for the same system.
    """
    systems = [_resolved(entry) for entry in entries]
    names: dict[str, str] = {}
    for system in systems:
        first = names.setdefault(system.id, system.name)
        if first != system.name:
            raise SpecError(
                f"api_models: {first} and {system.name} are the same system",
                wanted="another model, endpoint, number of shots or instruction",
                remedy="keep one of them",
            )
    return systems


def _resolved(entry: ApiEntry) -> ApiSystem:
    preset = None if entry.preset is None else _preset(entry.preset)
    base_url = _endpoint(entry.name, entry.base_url or OPENAI)
    price = None
    if entry.price_in is not None and entry.price_out is not None:
        price = Price.per_million(entry.price_in, entry.price_out, OWN_PRICE)
    # A preset's price does not apply to another model or endpoint.
    elif preset is not None and not entry.model and not entry.base_url:
        price = Price.per_million(preset.price_in, preset.price_out, preset.price_source)
    return ApiSystem(
        name=entry.name,
        model=entry.model or (preset.model if preset else ""),
        base_url=base_url,
        # A key is only ever sent to the endpoint that it belongs to.
        key_env=entry.key_env or (OPENAI_KEY if base_url == OPENAI else None),
        price=price,
        shots=entry.shots,
        seed=entry.seed,
        variants=entry.variants or ("",),
        max_new_tokens=entry.max_new_tokens,
        reasoning_effort=entry.reasoning_effort,
        structured=entry.structured is not False,
        omit=entry.omit,
    )


def _preset(name: str) -> Preset:
    if name not in presets():
        raise SpecError(
            f"api_models: no preset is called {name!r}",
            wanted=did_you_mean(name, presets()),
            remedy="or give {name, model, base_url} of any OpenAI-compatible endpoint",
        )
    return presets()[name]


def _endpoint(name: str, url: str) -> str:
    """The URL without a trailing slash; rejected where it may contain a secret."""
    where = f"api_models: {name}: base_url"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        expected = "http(s)://host[:port]/path, such as http://127.0.0.1:8000/v1"
        host = url.rpartition("@")[2]
        raise SpecError("not an endpoint", where=where, found=host, wanted=expected)
    if parts.username is not None or parts.query or parts.fragment:
        raise SpecError(
            "an endpoint has no user, password, query or fragment",
            where=where,
            found=f"{parts.scheme}://{parts.hostname}/…",
            remedy="put the key into a variable and name it with key_env",
        )
    return url.rstrip("/")
