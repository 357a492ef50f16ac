"""Models behind APIs in a plan: forms, limits, ids, examples shown, requests and their cost.

Knows: entries resolved, train rows that may be shown, when an answer changes. Does not know: HTTP,
keys, what was answered.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mixtune.api.entries import ApiSystem, resolve
from mixtune.api.ledger import Cache, dollars, request_key
from mixtune.api.model import Prompting, cost_of, request_body
from mixtune.datasets.leakage import find_leaked
from mixtune.datasets.registry import Registry
from mixtune.errors import SpecError
from mixtune.identity import generator, make_id
from mixtune.planning.corpus import EVALUATED, Corpus, answered, gold_answers
from mixtune.planning.mixing import percentile_99
from mixtune.planning.runs import AnswerPlan
from mixtune.records import Example, Form, Split
from mixtune.study.spec import Study
from mixtune.tasks.examples import fingerprint, query_of
from mixtune.tasks.parsers.labels import as_json
from mixtune.tasks.task import Task

LEAST = 16
"""Tokens of the shortest limit: a label with a word or two around it is answered, not cut off."""
ROOM = 1024
"""Tokens beside the answer where it is open, for reasoning that leads to it."""
THOUGHT = 8192
"""Tokens beside the answer for models that reason before they answer: these are counted, too."""
BYTES_PER_TOKEN = 4
"""By which prompts are estimated before anything is asked."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Requests, tokens and cost of an API model's answers. `kept`: requests that are cached.

    Costs are of what is left, in US dollars, None without a price: `cost_about` with prompts at
    `BYTES_PER_TOKEN` and answers as long as the right ones; `cost_most` is what a ceiling counts.
    """

    name: str
    model: str
    host: str
    requests: int
    kept: int
    tokens_in: int
    tokens_out: int
    cost_about: float | None
    cost_most: float | None
    price_source: str
    estimated_with: str
    shots: int
    variants: int


class Remote:
    """The API models of a study on its items."""

    def __init__(self, study: Study, registry: Registry, corpus: Corpus) -> None:
        """Nothing is sent.

        Raises:
            SpecError: an entry that cannot be used, or a ceiling without a price.
        """
        self.systems = resolve(study.api_models)
        self._study, self._registry, self._corpus = study, registry, corpus
        self._shots: dict[tuple[str, str], tuple[Example, ...]] = {}
        self._labels_asked = "constrained" in study.evaluate.forms
        for system in self.systems:
            if not any(self.forms(system, registry.get(name)) for name in study.tasks):
                raise SpecError(
                    "there is nothing that it could answer",
                    where=f"api_models: {system.name}",
                    found=f"evaluate.forms {list(study.evaluate.forms)}, "
                    f"structured {str(system.structured).lower()}",
                    remedy="add strict to evaluate.forms, or leave the model out",
                )
            if study.api.max_cost is not None and system.price is None:
                raise SpecError(
                    "api.max_cost is set, and nobody has said what this model costs",
                    where=f"api_models: {system.name}",
                    wanted="price_in and price_out, US dollars per million tokens",
                    remedy="state both (0 for an endpoint of your own), or take the ceiling out",
                )

    def __getitem__(self, system: str) -> ApiSystem:
        """A model by its id."""
        return next(model for model in self.systems if model.id == system)

    def floors(self, kind: str) -> list[Form]:
        """Forms in which a system of this kind answers only as a floor of API models."""
        structured = any(system.structured for system in self.systems) and self._labels_asked
        return ["schema"] if kind == "majority" and structured else []

    def forms(self, system: ApiSystem, task: Task) -> list[Form]:
        """Forms in which a model answers a task: text, and by schema where labels are ranked."""
        text = task.judged or "strict" in self._study.evaluate.forms
        forms: list[Form] = ["strict"] if text else []
        if task.kind == "label" and system.structured and self._labels_asked:
            forms.append("schema")
        return forms

    def answers(
        self, system: ApiSystem, items_digest: Callable[[str, Split], str]
    ) -> tuple[AnswerPlan, ...]:
        """Every set of answers of a model; no tokens are counted here."""
        answers = []
        for name, split in answered(self._study):
            task, digest = self._registry.get(name), items_digest(name, split)
            for form in self.forms(system, task):
                longest = self.longest(system, task, form)
                parts: dict[str, Any] = {
                    "system": system.id,
                    "task": name,
                    "split": split,
                    "form": form,
                    "prompt": task.prompt_version,
                    "items": digest,
                    "decoding": {"max_new_tokens": longest},
                }
                if shots := self.shots(system, name):
                    parts["shots"] = fingerprint(shots)
                if len(system.variants) > 1 and not task.judged:
                    parts["chosen_on"] = items_digest(name, "validation")
                key, items = make_id("answer", parts), len(self._corpus.items[name, split])
                answers.append(AnswerPlan(key, name, split, form, items, 0, digest, longest))
        return tuple(answers)

    def longest(self, system: ApiSystem, task: Task, form: Form) -> int:
        """Tokens that an answer may have, by the endpoint's count.

        The endpoint's tokenizer is not known here. A gold answer has no more tokens than bytes; the
        99th percentile of the gold answers' bytes cuts off as little as the limit of local models.
        """
        limit = system.max_new_tokens or self._study.evaluate.max_new_tokens
        if limit is None:
            gold = gold_answers(self._corpus.datasets[task.name])
            limit = max(LEAST, percentile_99([len(text.encode()) for text in gold]))
            limit += 0 if task.kind == "label" else ROOM
            limit += THOUGHT if system.reasoning_effort else 0
        return limit + (len(as_json("")) if form == "schema" else 0)

    def shots(self, system: ApiSystem, task: str) -> tuple[Example, ...]:
        """Train rows shown before each question of a task, none of which stands in its evaluation.

        Drawn by the entry's seed and the task's name, so that another task changes nothing. A
        judged dataset has none: it is never trained on, and neither is it shown.

        Raises:
            SpecError: fewer train rows than shots.
        """
        if not system.shots or self._registry.get(task).judged:
            return ()
        if (system.id, task) not in self._shots:
            self._shots[system.id, task] = self._drawn(system, task)
        return self._shots[system.id, task]

    def _drawn(self, system: ApiSystem, task: str) -> tuple[Example, ...]:
        dataset = self._corpus.datasets[task]
        train = dataset.examples("train") if "train" in dataset.splits else []
        leaked = find_leaked(train, [e for split in EVALUATED for e in dataset.examples(split)])
        rows = sorted((row for row in train if row.id not in leaked), key=lambda row: row.id)
        if len(rows) < system.shots:
            raise SpecError(
                "there are fewer train rows than shots",
                where=f"api_models: {system.name}, task {task}",
                found=f"{len(rows)} train rows that stand in no evaluation split",
                wanted=f"at least {system.shots}",
                remedy="lower shots, or leave the task out",
            )
        order = generator(system.seed, "api-shots", task).permutation(len(rows))
        return tuple(rows[place] for place in order[: system.shots])

    # ---- what it takes --------------------------------------------------------------------------

    def estimates(self) -> list[Estimate]:
        """One row per model."""
        cache = Cache()
        return [self._estimate(system, cache) for system in self.systems]

    def _estimate(self, system: ApiSystem, cache: Cache) -> Estimate:
        requests = cached = tokens_in = tokens_out = most = 0
        for body, gold in self._requests(system):
            requests += 1
            if cache.get(request_key(system.base_url, body)) is not None:
                cached += 1
                continue
            texts = sum(len(turn["content"].encode()) for turn in body["messages"])
            tokens_in += -(-texts // BYTES_PER_TOKEN)
            tokens_out += -(-len(gold.encode()) // BYTES_PER_TOKEN)
            most += cost_of(system, body)
        price = system.price
        return Estimate(
            name=system.name,
            model=system.model,
            host=system.host,
            requests=requests,
            kept=cached,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_about=dollars(price.of(tokens_in, tokens_out)) if price else None,
            cost_most=dollars(most) if price else None,
            price_source=price.source if price else "",
            estimated_with=f"{BYTES_PER_TOKEN} bytes per token; answers as long as the right ones",
            shots=system.shots,
            variants=len(system.variants),
        )

    def _requests(self, system: ApiSystem) -> Iterator[tuple[dict[str, Any], str]]:
        """Every request that may be made, with the right answer; each variant where it is tried."""
        longest = max(system.variants, key=len)
        for name, split in answered(self._study):
            task = self._registry.get(name)
            forms = self.forms(system, task)
            for form in forms:
                tried = split == "validation" and form == forms[0]
                limit = self.longest(system, task, form)
                for instruction in system.variants if tried else (longest,):
                    for item in self._corpus.items[name, split]:
                        prompting = Prompting(self.shots(system, name), instruction)
                        request = query_of(item), prompting, limit, form == "schema"
                        yield request_body(system, *request), item.target
