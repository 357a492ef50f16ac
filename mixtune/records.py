"""Rows that flow from room to room: facts, scores, estimates, claims; and their Arrow schemas."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import pyarrow as pa

Split = Literal["train", "validation", "test"]

JUDGED_ON: Split = "test"
"""The split on which judged datasets are answered: nothing is chosen by them."""
Form = Literal["strict", "lenient", "constrained", "schema"]
Status = Literal["ok", "unparsed", "truncated", "refused"]
State = Literal["planned", "running", "done", "failed"]

LENIENT = "lenient"
"""Second parse of a strict answer, for its content. Nothing is chosen by it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `reasoning`: what the assistant wrote before its answer."""

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Example:
    """One item of a dataset: messages in, target out.

    `group`: the unit of independence (document, page, headline) that splits are carved and
    intervals resampled by. `stratum`: the sub-question ("" where there is one question) that the
    majority floor is taken by. `choices`: empty for open answers. `cue`: a part of the prompt, such
    as a marked entity, that the floor may look up in train; "" for none. `record`: the id of the
    record it was made of; `own_text`: that record's words, without instruction and answer.
    `reasoning`: the text before the target in an answer to train on; no part of the gold answer.
    `place`: its file and line. `group_text`: the text that `group` names, where that is neither the
    record's own text nor a field.
    """

    task: str
    id: str
    split: Split
    group: str
    stratum: str
    messages: tuple[Message, ...]
    target: str
    choices: tuple[str, ...] = ()
    cue: str = ""
    record: str = ""
    own_text: str = ""
    reasoning: str = ""
    place: str = ""
    group_text: str = ""

    @property
    def has_reasoning(self) -> bool:
        """True where the answer, or one of the assistant's turns before it, has reasoning."""
        return bool(self.reasoning) or any(message.reasoning for message in self.messages)

    @property
    def compared_text(self) -> str:
        """The text that splits are compared by: its own, or without one all user messages."""
        return self.own_text or "\n".join(m.content for m in self.messages if m.role == "user")


class TrainExample(NamedTuple):
    """An example to train on, and the ingredient that it comes from."""

    ingredient: str
    example: Example


@dataclass(frozen=True, slots=True)
class Query:
    """An example as a model sees it: everything but the answer."""

    id: str
    stratum: str
    messages: tuple[Message, ...]
    choices: tuple[str, ...]
    cue: str = ""


class ReasonedText(NamedTuple):
    """An assistant's text in two: its reasoning, "" for none, and its answer."""

    reasoning: str
    answer: str


class ReasoningBlock(NamedTuple):
    """Opening and closing marks of the text that a model writes before its answer.

    `own_turn`: the answer stands in a turn of its own, so that the mark of a turn's end and the
    header "assistant" come before the closing mark.
    """

    opening: str
    closing: str
    own_turn: bool = False


REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys under which datasets store an answer's reasoning apart from its text, and from which chat
templates write it; of a template the first that it writes."""
REASONING_BLOCKS = (
    ReasoningBlock("<think>", "</think>"),  # DeepSeek, Qwen, GLM, SmolLM, Nemotron
    ReasoningBlock("<thinking>", "</thinking>"),
    ReasoningBlock("[THINK]", "[/THINK]"),  # Magistral
    ReasoningBlock("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningBlock("<|channel>thought", "<channel|>"),  # Gemma 4
    # gpt-oss; Muse
    ReasoningBlock("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", own_turn=True),
    ReasoningBlock("to=self<|message|>", "to=user<|message|>", own_turn=True),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to one query: text for `strict`, log-probabilities for `constrained`.

    `logprobs`: for each choice the natural log of the probability of its tokens and the end of
    turn, summed, no length normalisation. `finish`: "length" is cut off. `reasoning`: text before
    the answer that a server returns in a field of its own.
    """

    output: str
    logprobs: tuple[float, ...] = ()
    finish: Literal["stop", "length", "refused"] = "stop"
    latency: float = 0.0
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class OfExample:
    """A system, and an example that it was asked: the first columns of several rows."""

    system: str
    task: str
    split: str
    example: str


@dataclass(frozen=True, slots=True)
class Prediction(OfExample):
    """A fact: the answer of a system to an example, and the reasoning that it wrote before it.

    Latency in seconds per example.
    """

    form: str
    prompt_hash: str
    output: str
    choices: tuple[str, ...]
    logprobs: tuple[float, ...]
    finish: str
    latency: float
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage of one question to an API: tokens as the endpoint counts them, US dollars, tries.

    `cost`: of the request, whenever it was paid; None where no price is known. `tries`: 0 where the
    answer was on this machine already. `served`: the model named in the response.
    """

    example: str
    tokens_in: int | None
    tokens_out: int | None
    cost: float | None
    tries: int
    served: str


@dataclass(frozen=True, slots=True)
class ProbeRow(OfExample):
    """A fact: probability of the gold answer to an example, under a system and under its base.

    `tokens`: of the answer, with its end of turn. `logprob`: natural log of the whole answer's
    probability. `kl`: KL(system ‖ base) over the vocabulary in nats, a mean over the tokens.
    """

    group: str
    prompt_hash: str
    tokens: int
    logprob: float
    base_logprob: float
    kl: float


@dataclass(frozen=True, slots=True)
class Judgement(OfExample):
    """A fact: a judge's verdict on one answer, shown after or before the reference answer.

    `verdict`: 0 wrong, 1 partly right, 2 right, None unparsable. `order`: "reference-first" or
    "answer-first". `repeat` counts repeated questions, from 0.
    """

    group: str
    judge: str
    rubric: str
    order: str
    repeat: int
    verdict: int | None
    output: str
    finish: str


@dataclass(frozen=True, slots=True)
class Score(OfExample):
    """One answer scored in one form: `value` is 1.0 or 0.0 (a list is right as a whole)."""

    form: str
    group: str
    stratum: str
    parsed: str | None
    gold: str
    value: float
    status: str


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One optimizer step, from 0: mean loss of its examples, lr, gradient norm, counts."""

    step: int
    loss: float
    lr: float
    grad_norm: float
    examples: int
    supervised_tokens: int
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MixRow:
    """Requested and actual rows of one ingredient in one run (rows are examples).

    `rows_asked`: the size of its pool. Shares of the mix (0 to 1) are measured in `unit`: rows,
    tokens or supervised_tokens. `exhausted`: "stopped" where its supply is used up, "repeated"
    where it went on beyond rows × repeat, else "".
    """

    ingredient: str
    rows_asked: int
    rows_available: int
    rows_got: int
    rows_distinct: int
    repeats: float
    supervised_tokens: int
    tokens: int
    dropped_overlong: int
    dropped_leaked: int
    unit: str
    share_asked: float | None
    share_got: float | None
    exhausted: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval. `low` and `high` are None where n is too small for one.

    `p`: two-sided p-value under H0: no difference; None where no test is valid. `adjusted`: by
    Benjamini and Hochberg over all comparisons of its kind. `tied`: the result of an equivalence
    test within ±`margin`, None without a test or with too few clusters. `chance_best` and
    `chance_above`: posterior probability of being a target's best cell, and of a gain above
    `margin`.
    """

    quantity: str
    subject: str
    reference: str
    target: str
    split: str
    form: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    seeds: int
    method: str
    seed: int
    p: float | None = None
    adjusted: float | None = None
    tied: bool | None = None
    margin: float | None = None
    chance_best: float | None = None
    chance_above: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The choice for a target on validation, in both arms: the cocktail, and the target alone.

    Values are means over `seeds`, those that every candidate has. `tried`: runs whose score on the
    target was looked at. `plain`: the single cell under the study's own settings, so step-matched.
    """

    target: str
    form: str
    metric: str
    cocktail: str
    value: float
    single: str
    single_value: float
    plain: str
    seeds: tuple[int, ...]
    tried: int
    tried_single: int

    def __str__(self) -> str:
        return (
            f"{self.cocktail} ({self.value:.4f}, {self.tried} runs) against {self.single} "
            f"({self.single_value:.4f}, {self.tried_single} runs)"
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """The choices of `mixtune confirm`, written before the runs that they are tested on exist.

    `at`: time in UTC. `fresh`: seeds that nothing was chosen by; `spent`: those used before.
    `against`: target → cells that the chosen one is compared with; `exposed`: target → examples of
    it in the chosen cell, where its single task has another number. `items`: task → digest of the
    validation items read. `reasons`: target → why nothing can be confirmed there, where known.
    `again`: choices made before this one.
    """

    at: str
    margin: float
    fresh: tuple[int, ...]
    single_runs: int
    choices: tuple[Choice, ...]
    against: dict[str, tuple[str, ...]]
    exposed: dict[str, int]
    items: dict[str, str]
    reasons: dict[str, str]
    test_reads: int
    spent: tuple[int, ...] = ()
    again: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim about one target: the chosen cocktail against the single-task procedure.

    `value` with its interval is the smallest of the differences to the single task as tuned, at
    equal steps and at equal exposure (`reference` names it), `p` the largest of their p-values,
    `adjusted` that by Holm over the targets. `tried`: runs whose validation score on the target was
    looked at before choosing. `verdict`: confirmed, not confirmed, tie or exploratory, with its
    `reason`. `sentence`: the claim in words. `alpha`: the error rate that `adjusted` is tested at;
    `again`: earlier choices; `test_reads`: looks at test scores before this one; `seal`: digest of
    what was chosen.
    """

    target: str
    subject: str
    reference: str
    split: str
    form: str
    metric: str
    value: float
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None
    n: int
    clusters: int
    seeds: int
    margin: float
    tried: int
    tried_single: int
    verdict: str
    reason: str
    sentence: str
    method: str
    seed: int
    alpha: float
    again: int = 0
    test_reads: int = 0
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a study, with its answer in words and the estimates it rests on.

    `answered`: false where the study cannot answer, for the `reason`. `topic`: two or three words.
    """

    key: str
    title: str
    answer: str
    answered: bool
    rows: tuple[Estimate, ...]
    topic: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One row of `mixtune results`: a system's metric on a task, with interval and floor."""

    system: str
    cocktail: str
    seed: int | None
    task: str
    split: str
    form: str
    metric: str
    value: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    unparsed: float
    chance: float | None
    majority: float | None
    floor: float | None
    method: str
    training: str = ""
    """Unusual settings of training, in words; "" where nothing is unusual."""


_ARROW: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
    tuple[float, ...]: pa.list_(pa.float64()),
    tuple[int, ...]: pa.list_(pa.int64()),
    str | None: pa.string(),
    int | None: pa.int64(),
    float | None: pa.float64(),
    bool | None: pa.bool_(),
}


def schema_of(row_type: type) -> pa.Schema:
    """Arrow schema of a row type, in the order of its fields."""
    return pa.schema([pa.field(f.name, _ARROW[f.type]) for f in fields(row_type)])


@dataclass(frozen=True, slots=True)
class DataRow:
    """Rows read of one dataset's split: records in the source, dropped and why, leaked, remaining.

    `dropped`: records that the task skips; `leaked`: examples that the leakage gate took out;
    `examples`: those that remain; `noted`: changes to their records, such as contexts cut.
    `matched`: examples found in a later split, by the strictest kind of match (Leaks.data_rows).
    """

    dataset: str
    split: str
    source: str
    records: int
    dropped: int
    why: str
    leaked: int
    examples: int
    noted: str
    matched: Mapping[str, int]
