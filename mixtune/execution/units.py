"""A unit of work from running to done, failed, or planned again.

Knows: states, what makes one unit fail and what stops a study. Does not know: what a unit does.

What a worker process works with: the study's plan, where its results go, who listens, the model.

Here adapters become files and systems give their answers; each is a unit with its own state. A
unit that was cut off leaves nothing that counts. A run that fails keeps its error, and the others
go on.

Knows: units, which files a run has, what answers for it. Does not know: in which order, how
training, answering or scoring work.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch

from mixtune.engine.model import LocalModel
from mixtune.errors import MixtuneError, ModelError, StoreError
from mixtune.evaluation.predict import predict
from mixtune.models.base import MajorityModel, Model
from mixtune.planning.events import Events
from mixtune.planning.plan import Planner
from mixtune.planning.runs import AnswerPlan, RunPlan
from mixtune.records import Prediction, ProbeRow, TrainExample, TrainStep
from mixtune.store.folder import Store
from mixtune.tokens import encode_rows

FAILURES = (MixtuneError, RuntimeError, ValueError, ArithmeticError, MemoryError)
"""What makes one run fail and lets the study go on; anything else, and a store that cannot be
written, stops the study."""


@contextmanager
def unit_of_work(
    store: Store, unit: str, stops: tuple[type[Exception], ...] = ()
) -> Iterator[list[Path]]:
    """Running → done with the files listed, failed on an error, planned when stopped.

    `stops`: errors that say nothing against the unit, after which it is planned again. A signal
    that comes on the way into the body or while the unit is given back leaves it running; whoever
    holds the study's lock gives it back at the end (worker.begin).
    """
    begun = time.monotonic()
    paths: list[Path] = []
    try:
        store.begin(unit)  # inside: a signal may come as soon as the unit is running
        yield paths
        store.finish(unit, paths, time.monotonic() - begun)
    except (StoreError, OSError):
        # The disk failed, not the unit; if it cannot even be given back, the next start does.
        with suppress(StoreError):
            store.release(unit)
        raise
    except Exception as error:
        if isinstance(error, stops):
            store.release(unit)
        else:
            store.fail(unit, said(error), time.monotonic() - begun)
        raise
    except BaseException:
        store.release(unit)
        raise


def said(error: BaseException) -> str:
    """An error as a run keeps it."""
    return f"{type(error).__name__}: {error}"


class Desk:
    """One process's means; `failed` collects the runs that failed on it."""

    def __init__(
        self,
        planner: Planner,
        store: Store,
        load_model: Callable[[], LocalModel],
        events: Events,
    ) -> None:
        self.planner = planner
        self.store = store
        self.events = events
        self.failed: list[RunPlan] = []
        self._load_model = load_model
        self._model: LocalModel | None = None
        self._began: dict[str, float] = {}

    @property
    def model(self) -> LocalModel:
        """The base model, loaded when first needed."""
        if self._model is None:
            self._model = self._load_model()
            self._model.on_note = self.events.note
        return self._model

    def announce(self, run: RunPlan, number: int, of: int) -> None:
        """A run begins or goes on."""
        self._began[run.system] = time.monotonic()
        self.events.run_started(run, number, of)

    def fail(self, run: RunPlan, error: BaseException) -> None:
        """A run failed; the others go on."""
        self.events.run_failed(run, said(error))
        self.failed.append(run)

    # ---- adapters -------------------------------------------------------------------------------

    def keep(self, run: RunPlan, slot: int, log: Sequence[TrainStep], bank: object) -> None:
        """Write an adapter that is trained, with its steps and facts, and call it done.

        `bank`: what run.json says of those it was trained beside.
        """
        assert self.planner.files is not None
        store = self.store
        with store.new_folder(f"{run.folder}/adapter") as adapter:
            self.model.save_adapter(adapter, self.planner.files.name, slot)
        facts = json.dumps({**self._facts(run), "bank": bank}, indent=1) + "\n"
        paths = [
            *(store.folder / run.folder / "adapter").iterdir(),
            store.write_rows(f"{run.folder}/train.parquet", TrainStep, log),
            store.write_text(f"{run.folder}/run.json", facts),
        ]
        store.finish(run.system, paths, sum(step.seconds for step in log))

    def _facts(self, run: RunPlan) -> dict[str, object]:
        files = self.planner.files
        assert files is not None
        return {
            "train_id": run.system,
            "cocktail": list(run.cocktail),
            "seed": run.seed,
            "model": {
                "name": files.name,
                "source": files.source,
                "note": files.note,
                "revision": files.revision,
                "digest": files.digest,
            },
            "train": self.planner.study.train.model_dump(mode="json"),
            "budget": self.planner.study.budget.model_dump(mode="json"),
            "course": run.course and asdict(run.course),
            "threads": torch.get_num_threads(),
            "pass_tokens": self.model.pass_tokens,
            "mix": [asdict(row) for row in run.mix],
        }

    # ---- answers --------------------------------------------------------------------------------

    def answer(self, run: RunPlan) -> None:
        """Make what is missing of a run's sets of answers; what fails fails this run alone."""
        try:
            self._answers(run)
        except StoreError:
            raise
        except FAILURES as error:
            self.fail(run, error)
        else:
            self.events.run_finished(run, time.monotonic() - self._began[run.system])

    def _answers(self, run: RunPlan) -> None:
        undone = self.store.undone(answer.id for answer in run.answers)
        missing = [answer for answer in run.answers if answer.id in undone]
        if not missing:
            return
        answering = self._answering(run)
        for answer in missing:
            with unit_of_work(self.store, answer.id) as paths:
                paths.append(self._answer(run, answer, answering(answer)))
            self.events.answered(run, answer, answer_cost(run, answer))

    def _answering(self, run: RunPlan) -> Callable[[AnswerPlan], Model]:
        """What answers for this run, for a set of answers.

        A trained run answers with its adapter as it was written, whether trained just now or last
        week, and always in the first slot, so that a resumed study gives what an undisturbed one
        gives.
        """
        if run.kind == "majority":
            known = self.planner.corpus.known
            return lambda answer: MajorityModel(known[answer.task], run.system)
        model = self.model
        if run.kind in ("base", "model"):
            model.use_base()
        else:
            home = run.of or run.folder
            if run.kind == "trained" or run.of:
                self._check_base(home)
            model.load_adapter(self.store.folder / home / "adapter", strength=run.strength)
        model.system = run.system
        return lambda answer: model

    def _check_base(self, home: str) -> None:
        """Refuse an adapter of this study that was trained on other weights than are loaded."""
        assert self.planner.files is not None
        name = f"{home}/run.json"
        found = (self.store.read_value(name).get("model") or {}).get("digest")
        wanted = self.planner.files.digest
        if found != wanted:
            raise ModelError(
                "the adapter is for another base model",
                where=str(self.store.folder / name),
                found=f"trained on the base with digest {found}",
                wanted=f"digest {wanted}, the base {self.planner.files.name} that is loaded",
                remedy=f"remove {self.store.folder / home}, and mixtune run trains it again; "
                "or bring back the base model that it was trained on",
            )

    def _answer(self, run: RunPlan, answer: AnswerPlan, model: Model) -> Path:
        planner = self.planner
        if answer.form == "likelihood":
            return self._read(run, answer)
        predictions = predict(
            model,
            planner.items(answer),
            answer.form,
            answer.split,
            answer.max_new_tokens,
            planner.prompt_hash,
        )
        self.store.drop_scores(run.folder)
        name = f"{run.answers_folder(answer)}/predictions.parquet"
        return self.store.write_rows(name, Prediction, predictions)

    def _read(self, run: RunPlan, answer: AnswerPlan) -> Path:
        """Gold answers, read to the run's adapter and to its base."""
        tokens = self.planner.tokens
        assert tokens is not None
        examples = self.planner.items(answer)
        named = [TrainExample(answer.task, example) for example in examples]
        # Prompts are held to their own limit in the plan; the model's context bounds the rest.
        rows = encode_rows(named, tokens, sys.maxsize, "error").rows
        readings = self.model.read(rows)
        found = [
            ProbeRow(
                system=run.system,
                task=answer.task,
                split=answer.split,
                example=example.id,
                group=example.group,
                prompt_hash=tokens.prompt_hash(example.messages),
                tokens=reading.tokens,
                logprob=reading.logprob,
                base_logprob=reading.base_logprob,
                kl=reading.kl / reading.tokens,
            )
            for example, reading in zip(examples, readings, strict=True)
        ]
        name = f"{run.answers_folder(answer)}/probes.parquet"
        return self.store.write_rows(name, ProbeRow, found)


def answer_cost(run: RunPlan, answer: AnswerPlan) -> float:
    """Forward-pass tokens of a set of answers: both forms of the same items share one pass."""
    first = next(a for a in run.answers if (a.task, a.split) == (answer.task, answer.split))
    return float(answer.tokens) if answer.id == first.id else 0.0
