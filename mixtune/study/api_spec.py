"""The keys of a study file about models behind APIs: which, how asked, at what cost."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from mixtune.study.fields import Float, Frozen, Int, Name, Seed, Text, secret

MOST_TOKENS = 100_000
"""Limit of one generated answer."""
OMITTABLE = ("seed", "temperature", "max_tokens", "max_completion_tokens")
"""Parameters of a request that an entry can leave out."""


_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"


def _lines(value: str) -> str:
    if not all(c.isprintable() or c == "\n" for c in value):
        raise ValueError("holds control characters")
    return value


def _no_key(value: str) -> str:
    # The message shows no value: it may be the key itself.
    is_key = len(value) >= 20 and re.search("[a-z]", value) and re.search("[0-9]", value)
    if is_key or not re.search(_VARIABLE, value):
        remedy = "export MY_KEY=… in the shell, and key_env: MY_KEY here"
        raise secret("should be the name of an environment variable, not a key itself", remedy)
    return value


Variable = Annotated[
    str, AfterValidator(_no_key), WithJsonSchema({"pattern": _VARIABLE, "type": "string"})
]
Instruction = Annotated[str, Field(max_length=8000), AfterValidator(_lines)]
Price = Annotated[Float, Field(ge=0, le=100_000)]


class ApiEntry(Frozen):
    """A model behind an OpenAI-compatible API. Null keys are taken from the preset, if any."""

    name: Name
    """Name in tables."""
    preset: Name | None = None
    """Known model to take settings from: gpt-4o, gpt-4o-mini. A plain name in the list means the
    preset of that name."""
    model: Annotated[Text, Field(max_length=200)] | None = None
    """Name of the model at the endpoint."""
    base_url: Annotated[Text, Field(max_length=400)] | None = None
    """URL of the endpoint without `/chat/completions`; null is OpenAI's."""
    key_env: Variable | None = None
    """Environment variable that holds the key; null is OPENAI_API_KEY for OpenAI's own endpoint,
    and no key elsewhere. The key itself is never written anywhere."""
    price_in: Price | None = None
    """US dollars per million prompt tokens."""
    price_out: Price | None = None
    """US dollars per million generated tokens."""
    shots: Annotated[Int, Field(ge=0, le=64)] = 0
    """Examples shown before each question, drawn from the task's train split."""
    seed: Seed = 1
    """Seed of the shots; also sent with each request, for endpoints that sample."""
    variants: tuple[Instruction, ...] = ()
    """Instructions to try as a system message ("" is the task's prompt alone). Of several, the one
    with the best validation score is used for all of a task; results show how many were tried."""
    max_new_tokens: Annotated[Int, Field(gt=0, le=MOST_TOKENS)] | None = None
    """Longest answer in the endpoint's tokens; null is evaluate.max_new_tokens or follows from the
    gold answers, with room to reason for open answers."""
    reasoning_effort: Literal["minimal", "low", "medium", "high"] | None = None
    """For models that reason before they answer: sent unchanged, and without a temperature, which
    such models refuse."""
    structured: bool | None = None
    """The endpoint can constrain answers to a JSON schema; null is true. Otherwise the model is
    asked for text only."""
    omit: tuple[Literal["seed", "temperature", "max_tokens", "max_completion_tokens"], ...] = ()
    """Parameters that the endpoint refuses and that are not sent. Without max_tokens the limit of
    an answer is sent as max_completion_tokens, and the other way round."""

    @model_validator(mode="after")
    def _complete(self) -> "ApiEntry":
        if self.model is None and self.preset is None:
            raise ValueError("needs a model or a preset")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out belong together; give both or neither")
        if len(set(self.variants)) != len(self.variants):
            raise ValueError("variants names the same instruction twice")
        if {"max_tokens", "max_completion_tokens"} <= set(self.omit):
            raise ValueError("omit leaves out both limits; one bounds the cost, so keep one")
        return self


class ApiSpec(Frozen):
    """Requests to models behind APIs. Nothing here changes an answer or an id."""

    max_cost: Annotated[Float, Field(gt=0, le=1_000_000)] | None = None
    """Limit in US dollars for all requests of the study together; requests stop before it is
    exceeded. null is no limit."""
    concurrency: Annotated[Int, Field(gt=0, le=256)] = 8
    """Requests in flight at the same time."""
    timeout: Annotated[Float, Field(gt=0, le=3600)] = 120.0
    """Seconds after which a request is abandoned and tried again."""
    retries: Annotated[Int, Field(ge=0, le=20)] = 6
    """Retries of a request that failed for a temporary reason."""


def _named(value: Any) -> Any:  # noqa: ANN401 - raw YAML
    """Read a plain name as the preset of that name."""
    return {"name": value, "preset": value} if isinstance(value, str) else value


ApiEntries = tuple[Annotated[ApiEntry, BeforeValidator(_named)], ...]
