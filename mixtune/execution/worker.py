"""Units of work and the worker that does them: adapters become files, systems give their answers.

An interrupted unit leaves nothing that counts. A run that fails keeps its error, and the others go
on. A worker has no planner: all it needs is in its portion (portion.py).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path

import torch

from mixtune.engine.activation_cache import ActivationCache
from mixtune.engine.adapter_format import AdapterConfig
from mixtune.engine.decoder import Decoder
from mixtune.engine.model import DTYPES, LocalModel
from mixtune.errors import MixtuneError, ModelError, StoreError, shorten
from mixtune.evaluation.answers import predict_queries
from mixtune.execution.portion import CHECKPOINT_EVERY, Portion, Setting, items_key
from mixtune.identity import digest
from mixtune.models.base import MajorityModel, Model
from mixtune.models.files import check_unchanged, load_tokens
from mixtune.planning.runs import AnswerPlan, Events, RunPlan
from mixtune.records import Prediction, ProbeRow, TrainStep
from mixtune.store.folder import Store
from mixtune.store.states import Unit
from mixtune.tokens import Tokens

FAILURES = (MixtuneError, RuntimeError, ValueError, ArithmeticError, MemoryError)
"""Errors that fail one run and let the study go on. Any other error, and a store that cannot be
written, stops the study."""

BACKWARD = 2.0
"""Cost of a token's backward pass in forward passes, for the ETA only."""


@contextmanager
def unit_of_work(
    store: Store, unit: str, stops: tuple[type[Exception], ...] = ()
) -> Iterator[list[Path]]:
    """Run a unit in the body, which lists its files; it ends done, failed, or planned when stopped.

    `stops`: errors that say nothing against the unit, after which it is planned again. A signal
    that comes on the way into the body, or while the unit is released, leaves it running;
    `started` releases it at the end.
    """
    began = time.monotonic()
    paths: list[Path] = []
    try:
        store.begin(unit)  # inside: a signal may come as soon as the unit is running
        yield paths
        store.finish(unit, paths, time.monotonic() - began)
    except (StoreError, OSError):
        # The disk failed, not the unit; if it cannot even be released, the next start does that.
        with suppress(StoreError):
            store.release(unit)
        raise
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, stops):
            store.fail(unit, error_text(error), time.monotonic() - began)
        else:
            store.release(unit)
        raise


def missing(run: RunPlan, units: Mapping[str, Unit]) -> bool:
    """True where a unit of a run is not done."""
    ids = [answer.id for answer in run.answers]
    ids += [run.system] if run.kind == "trained" else []
    return any(units[unit].state != "done" for unit in ids)


def titles(runs: Sequence[RunPlan]) -> str:
    """Names and seeds of several runs, for messages."""
    return shorten(", ".join(run.title for run in runs), 300)


def error_text(error: BaseException) -> str:
    """Class and message of an error, as stored with the run that failed."""
    return f"{type(error).__name__}: {error}"


@contextmanager
def fails_alone(run: RunPlan, fail: Callable[[RunPlan, Exception], None]) -> Iterator[None]:
    """Give an error of the body to `fail`: it fails one run, unless the store cannot be written."""
    try:
        yield
    except StoreError:
        raise
    except FAILURES as error:
        fail(run, error)


def answer_cost(run: RunPlan, answer: AnswerPlan) -> float:
    """Forward-pass tokens of a set of answers: both forms of the same items share one pass."""
    first = next(a for a in run.answers if (a.task, a.split) == (answer.task, answer.split))
    return float(answer.tokens) if answer.id == first.id else 0.0


# ---- worker -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Settings of a worker; `slots`: adapters in its bank, at most those of the setting.

    `activations`: folder for what the layers below the adapters compute (`train.top_layers`).
    """

    setting: Setting
    slots: int = 1
    checkpoint_every: float = CHECKPOINT_EVERY
    activations: Path | None = None


LoadModel = Callable[[Portion, AdapterConfig | None, Tokens, WorkerOptions], LocalModel]


class Worker:
    """Does portions of a study, one after another; the caller says which and in which order."""

    def __init__(
        self, store: Store, events: Events, options: WorkerOptions, load: LoadModel | None = None
    ) -> None:
        self.store = store
        self.events = events
        self.options = options
        self.failed: list[RunPlan] = []
        self._load = load or load_model
        self._model: LocalModel | None = None
        self._loaded: tuple[str, AdapterConfig | None] | None = None
        self._tokens: dict[tuple[str, bool], Tokens] = {}
        self._began: dict[str, float] = {}

    def model(self, portion: Portion, adapter: AdapterConfig | None = None) -> LocalModel:
        """The portion's base model, with the study's bank or an `adapter` made elsewhere."""
        key = (portion.base.digest, adapter)
        if self._model is None or self._loaded != key:
            self._model = None  # its memory is free before the next one is loaded
            self._model = self._load(portion, adapter, self._tokenizer(portion), self.options)
            check_unchanged(portion.base)
            self._model.on_note = self.events.note
            self._loaded = key
        return self._model

    def start(self, run: RunPlan) -> None:
        """A run begins or goes on."""
        self._began[run.system] = time.monotonic()
        self.events.run_started(run)

    def fail(self, run: RunPlan, error: BaseException) -> None:
        """A run failed; the others go on."""
        self.events.run_failed(run, error_text(error))
        self.failed.append(run)

    # ---- adapters -------------------------------------------------------------------------------

    def save_adapter(
        self, portion: Portion, run: RunPlan, slot: int, log: Sequence[TrainStep], bank: object
    ) -> None:
        """Write an adapter, its steps and facts; `bank`: whom it shared passes with."""
        store = self.store
        with store.new_folder(f"{run.folder}/adapter") as adapter:
            self.model(portion).save_adapter(adapter, portion.base.name, slot)
        paths = [
            *(store.folder / run.folder / "adapter").iterdir(),
            store.write_rows(f"{run.folder}/train.parquet", TrainStep, log),
            store.write_json(f"{run.folder}/run.json", {**self._facts(portion, run), "bank": bank}),
        ]
        store.finish(run.system, paths, sum(step.seconds for step in log))

    def _facts(self, portion: Portion, run: RunPlan) -> dict[str, object]:
        base = portion.base
        return {
            "train_id": run.system,
            "cocktail": list(run.cocktail),
            "seed": run.seed,
            "model": {
                name: getattr(base, name)
                for name in ("name", "source", "note", "revision", "digest")
            },
            "train": portion.train.model_dump(mode="json"),
            "budget": portion.budget.model_dump(mode="json"),
            "course": run.course and asdict(run.course),
            "threads": torch.get_num_threads(),
            "pass_tokens": self.model(portion).pass_tokens,
            "mix": [asdict(row) for row in run.mix],
        }

    # ---- answers --------------------------------------------------------------------------------

    def answer(self, portion: Portion, run: RunPlan) -> None:
        """Make the missing sets of answers of a run; an error fails this run alone.

        Raises:
            StoreError, OSError: results cannot be written.
        """
        with fails_alone(run, self.fail):
            undone = self.store.undone(answer.id for answer in run.answers)
            model = self._ready(portion, run) if undone and run.kind != "majority" else None
            for answer in run.answers:
                if answer.id in undone:
                    with unit_of_work(self.store, answer.id) as paths:
                        paths.append(self._answer_one(portion, run, answer, model))
                    self.events.answered(run, answer, answer_cost(run, answer))
            self.events.run_finished(run, time.monotonic() - self._began[run.system])

    def _ready(self, portion: Portion, run: RunPlan) -> LocalModel:
        """The model that answers for a run.

        A trained run answers with its adapter as it was written, whether trained just now or last
        week, and always in the first slot, so that a resumed study gives what an undisturbed one
        gives.
        """
        if run.kind in ("base", "model"):
            model = self.model(portion)
            model.use_base()
        else:
            home = run.of or run.folder
            folder = self.store.folder / home / "adapter"
            own = run.kind == "trained" or bool(run.of)
            if own:
                self._check_base(portion, home)
            model = self.model(portion, None if own else AdapterConfig.read(folder))
            model.load_adapter(folder, strength=run.strength)
        model.system = run.system
        return model

    def _check_base(self, portion: Portion, home: str) -> None:
        """Refuse an adapter of this study that was trained on other weights than are loaded."""
        name = f"{home}/run.json"
        trained_on = (self.store.read_value(name).get("model") or {}).get("digest")
        if trained_on != portion.base.digest:
            raise ModelError(
                "the adapter is for another base model",
                where=str(self.store.folder / name),
                found=f"digest {trained_on}",
                wanted=f"digest {portion.base.digest}, the base {portion.base.name} that is loaded",
                remedy=f"remove {self.store.folder / home}, and mixtune run trains it again; "
                "or bring back the base model that it was trained on",
            )

    def _answer_one(
        self, portion: Portion, run: RunPlan, answer: AnswerPlan, model: LocalModel | None
    ) -> Path:
        """Write a set of answers of a model, or of the majority class (None)."""
        if answer.form == "likelihood":
            assert model is not None, "the majority class has no likelihood"
            probes = _read_gold(portion, run, answer, model)
            return self.store.write_rows(
                f"{run.answers_folder(answer)}/probes.parquet", ProbeRow, probes
            )
        tokens = self._tokenizer(portion)
        system: Model | None = model
        if system is None:
            counts = portion.train_answers[answer.task]
            train_answers = chain.from_iterable(repeat(each, each.count) for each in counts)
            system = MajorityModel(train_answers, run.system)
        predictions = predict_queries(
            system,
            portion.questions(answer),
            answer.form,
            answer.max_new_tokens,
            lambda query: tokens.prompt_hash(query.messages),
        )
        self.store.drop_scores(run.folder)
        name = f"{run.answers_folder(answer)}/predictions.parquet"
        return self.store.write_rows(name, Prediction, predictions)

    def _tokenizer(self, portion: Portion) -> Tokens:
        base, reasoning = portion.base, portion.train.reasoning == "keep"
        if (base.digest, reasoning) not in self._tokens:
            self._tokens[base.digest, reasoning] = load_tokens(base, reasoning)
        return self._tokens[base.digest, reasoning]


def _read_gold(
    portion: Portion, run: RunPlan, answer: AnswerPlan, model: LocalModel
) -> list[ProbeRow]:
    """Log-probabilities of gold answers under the run's adapter and under its base."""
    items = portion.gold[items_key(answer)]
    rows = [portion.rows[item.row] for item in items]
    return [
        ProbeRow(
            system=run.system,
            task=answer.task,
            split=answer.split,
            example=row.example_id,
            group=item.group,
            prompt_hash=digest(list(row.prompt)),
            tokens=reading.tokens,
            logprob=reading.logprob,
            base_logprob=reading.base_logprob,
            kl=reading.kl / reading.tokens,
        )
        for item, row, reading in zip(items, rows, model.read(rows), strict=True)
    ]


def load_model(
    portion: Portion, adapter: AdapterConfig | None, tokens: Tokens, options: WorkerOptions
) -> LocalModel:
    """Load a portion's base model with fresh adapters: the study's bank, or `adapter`."""
    base, train, device = portion.base, portion.train, options.setting.device
    if adapter is not None:
        decoder = Decoder.load(base.folder, DTYPES[train.compute], device)
        return LocalModel.with_adapters(decoder, adapter, tokens, portion.evaluate)
    model = LocalModel.load(
        base.folder, tokens, train, portion.evaluate, slots=options.slots, device=device
    )
    if options.activations is not None and train.top_layers is not None:
        model.activation_cache = ActivationCache(model.decoder, options.activations, base.digest)
    return model
