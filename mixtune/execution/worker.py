"""State of one worker: the store, the model that is loaded, and the runs that failed.

Here adapters become files and systems give their answers; each is a unit with its own state. An
interrupted unit leaves nothing that counts. A run that fails keeps its error, and the others go on.

Knows: which files a run has, which model answers for it. Does not know: planners, the order of
runs, how training and answering work.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path

import torch

from mixtune.engine.activation_cache import ActivationCache
from mixtune.engine.adapter_format import AdapterConfig
from mixtune.engine.decoder import Decoder
from mixtune.engine.model import DTYPES, LocalModel
from mixtune.errors import ModelError, StoreError
from mixtune.evaluation.predict import predict_queries
from mixtune.execution.options import CHECKPOINT_EVERY, Setting
from mixtune.execution.portion import Portion, items_key
from mixtune.execution.units import FAILURES, answer_cost, error_text, unit_of_work
from mixtune.identity import digest
from mixtune.models.base import MajorityModel, Model
from mixtune.planning.events import Events
from mixtune.planning.runs import AnswerPlan, RunPlan
from mixtune.records import Prediction, ProbeRow, TrainStep
from mixtune.store.folder import Store
from mixtune.tokens import Tokens


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Settings of a worker; `slots`: adapters in its bank, at most those of the setting.

    `checkpoint_every`: seconds between two checkpoints of a bank; 0 is after every step.
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
        """Load nothing yet; `load` replaces `load_model`."""
        self.store = store
        self.events = events
        self.options = options
        self.failed: list[RunPlan] = []
        self._load = load or load_model
        self._model: LocalModel | None = None
        self._loaded: tuple[str, AdapterConfig | None] | None = None
        self._tokens: dict[str, Tokens] = {}
        self._began: dict[str, float] = {}

    def model(self, portion: Portion, adapter: AdapterConfig | None = None) -> LocalModel:
        """The portion's base model, loaded when first needed.

        `adapter`: configuration of one that was not trained here; None has the study's own bank.
        """
        key = (portion.base.digest, adapter)
        if self._model is None or self._loaded != key:
            self._model = None  # its memory is free before the next one is loaded
            self._model = self._load(portion, adapter, self._tokenizer(portion), self.options)
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
        """Write a trained adapter with its steps and facts; its unit is done.

        `bank`: entry of run.json on the adapters it shared passes with.
        """
        store = self.store
        with store.new_folder(f"{run.folder}/adapter") as adapter:
            self.model(portion).save_adapter(adapter, portion.base.name, slot)
        facts = json.dumps({**self._facts(portion, run), "bank": bank}, indent=1) + "\n"
        paths = [
            *(store.folder / run.folder / "adapter").iterdir(),
            store.write_rows(f"{run.folder}/train.parquet", TrainStep, log),
            store.write_text(f"{run.folder}/run.json", facts),
        ]
        store.finish(run.system, paths, sum(step.seconds for step in log))

    def _facts(self, portion: Portion, run: RunPlan) -> dict[str, object]:
        base = portion.base
        return {
            "train_id": run.system,
            "cocktail": list(run.cocktail),
            "seed": run.seed,
            "model": {
                "name": base.name,
                "source": base.source,
                "note": base.note,
                "revision": base.revision,
                "digest": base.digest,
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
        try:
            self._answer_missing(portion, run)
        except StoreError:
            raise
        except FAILURES as error:
            self.fail(run, error)
        else:
            self.events.run_finished(run, time.monotonic() - self._began[run.system])

    def _answer_missing(self, portion: Portion, run: RunPlan) -> None:
        undone = self.store.undone(answer.id for answer in run.answers)
        missing = [answer for answer in run.answers if answer.id in undone]
        if not missing:
            return
        model = None if run.kind == "majority" else self._ready(portion, run)
        for answer in missing:
            with unit_of_work(self.store, answer.id) as paths:
                if answer.form == "likelihood":
                    assert model is not None, "the majority class has no likelihood"
                    paths.append(self._read_gold(portion, run, answer, model))
                else:
                    system = model or _majority(portion, run, answer)
                    paths.append(self._predict(portion, run, answer, system))
            self.events.answered(run, answer, answer_cost(run, answer))

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
                found=f"trained on the base with digest {trained_on}",
                wanted=f"digest {portion.base.digest}, the base {portion.base.name} that is loaded",
                remedy=f"remove {self.store.folder / home}, and mixtune run trains it again; "
                "or bring back the base model that it was trained on",
            )

    def _predict(self, portion: Portion, run: RunPlan, answer: AnswerPlan, model: Model) -> Path:
        assert answer.form != "likelihood"
        tokens = self._tokenizer(portion)
        predictions = predict_queries(
            model,
            portion.questions(answer),
            answer.form,
            answer.max_new_tokens,
            lambda query: tokens.prompt_hash(query.messages),
        )
        self.store.drop_scores(run.folder)
        name = f"{run.answers_folder(answer)}/predictions.parquet"
        return self.store.write_rows(name, Prediction, predictions)

    def _tokenizer(self, portion: Portion) -> Tokens:
        base = portion.base
        if base.digest not in self._tokens:
            self._tokens[base.digest] = Tokens.load(base.folder)
        return self._tokens[base.digest]

    def _read_gold(
        self, portion: Portion, run: RunPlan, answer: AnswerPlan, model: LocalModel
    ) -> Path:
        """Log-probabilities of gold answers under the run's adapter and under its base."""
        items = portion.gold[items_key(answer)]
        rows = [portion.rows[item.row] for item in items]
        readings = model.read(rows)
        probes = [
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
            for item, row, reading in zip(items, rows, readings, strict=True)
        ]
        name = f"{run.answers_folder(answer)}/probes.parquet"
        return self.store.write_rows(name, ProbeRow, probes)


def _majority(portion: Portion, run: RunPlan, answer: AnswerPlan) -> MajorityModel:
    counts = portion.train_answers[answer.task]
    return MajorityModel(chain.from_iterable(repeat(c, c.count) for c in counts), run.system)


def load_model(
    portion: Portion, adapter: AdapterConfig | None, tokens: Tokens, options: WorkerOptions
) -> LocalModel:
    """Load a portion's base model with fresh adapters: the study's bank, or `adapter`.

    Raises:
        ModelError: the weights cannot be read or run, or they have none of its layers.
    """
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
