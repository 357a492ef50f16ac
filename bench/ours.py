"""mixtune's side: workers that train, score and co-train with its engine.

Knows: the engine's interface. Does not know: peers, repeats, ratios.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.data import read_scoring, read_training
from bench.errors import NotThere
from bench.machine import Memory, device_name, synchronise, use_threads
from bench.pipe import Channel
from bench.work import Counts, Shape, counts, training_flops
from mixtune.engine.activation_cache import ActivationCache
from mixtune.engine.batching import training_sequence
from mixtune.engine.convert import prepare
from mixtune.engine.model import LocalModel
from mixtune.engine.rates import matmul_rates
from mixtune.engine.train import Job, Trainer, train
from mixtune.study.spec import Budget, EvalSpec, TrainSpec
from mixtune.tokens import Row, Tokens, encode_rows

STEP = 16
"""Examples of an optimiser step, for every side."""

_CHECKED = 8
"""Items whose log-probabilities are sent back, to be compared with the peer's."""


def prepare_model(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: the base model's folder, fetched and converted where that is needed; our format.

    "auto" is the number format whose matrix products are faster here.
    """
    use_threads()
    files = prepare(arguments["model"])
    rates = matmul_rates(files.folder, device=arguments["device"])
    given = arguments["compute"]
    channel.ready(
        folder=str(files.folder),
        digest=files.digest,
        device=device_name(arguments["device"]),
        compute=max(rates, key=rates.__getitem__) if given == "auto" else given,
        gflops={name: rate / 1e9 for name, rate in rates.items()},
    )


def measure_training(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: each go trains `steps` steps on the rows from `start` on."""
    use_threads()
    spec = _spec(arguments)
    rows = _rows(arguments)
    memory = Memory(arguments["device"])
    model = _load(arguments, spec)
    model.reset(1)
    kept = TemporaryDirectory()
    if spec.top_layers is not None:
        _keep_states(model, rows, Path(kept.name))
    train(model, rows[:STEP], spec, Budget(steps=1, examples_per_step=STEP), None)
    budget = Budget(steps=arguments["steps"], examples_per_step=STEP)
    shape = Shape.of(Path(arguments["folder"]))
    channel.ready(train=spec.model_dump(mode="json"))
    while (order := channel.next()) is not None:
        part = rows[order["start"] : order["start"] + budget.examples]
        seconds = _timed(arguments["device"], train, model, part, spec, budget)
        channel.reply(
            seconds=seconds,
            examples=len(part),
            peak_bytes=memory.peak(),
            **_needed(part, shape, spec.rank),
        )


def _keep_states(model: LocalModel, rows: Sequence[Row], folder: Path) -> None:
    """What the lower layers compute of every row: done once for a whole study, so not timed."""
    model.activation_cache = ActivationCache(model.decoder, folder, "bench")
    for row in rows:
        model.activation_cache.sequence_states(training_sequence(row))


def _needed(rows: Sequence[Row], shape: Shape, rank: int) -> dict[str, float]:
    """Tokens of a stretch of steps, and what they need at least."""
    total = Counts(0, 0, 0)
    for start in range(0, len(rows), STEP):
        total += counts(rows[start : start + STEP])
    return {
        "tokens": total.tokens,
        "unique_tokens": total.unique,
        "supervised": total.supervised,
        "useful_flops": training_flops(shape, rank, total.unique, total.supervised),
        "every_token_flops": training_flops(shape, rank, total.tokens, total.supervised),
    }


def measure_scoring(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: each go ranks the choices of items `start` to `stop`."""
    use_threads()
    queries = read_scoring(Path(arguments["rows"]))
    memory = Memory(arguments["device"])
    model = _load(arguments, _spec(arguments))
    model.load_adapter(Path(arguments["adapter"]))
    model.rank(queries[: arguments["warm"]])
    channel.ready(choices=len(queries[0].choices), items=len(queries))
    while (order := channel.next()) is not None:
        asked = queries[order["start"] : order["stop"]]
        model.clear_answers()
        began = time.perf_counter()
        answers = model.rank(asked)
        synchronise(arguments["device"])
        channel.reply(
            seconds=time.perf_counter() - began,
            examples=len(asked),
            peak_bytes=memory.peak(),
            logprobs=[list(answer.logprobs) for answer in answers[:_CHECKED]],
        )


def make_adapter(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: an adapter trained for a few steps and saved, for both sides to score with."""
    use_threads()
    spec, rows = _spec(arguments), _rows(arguments)
    model = _load(arguments, spec)
    model.reset(1)
    budget = Budget(steps=len(rows) // STEP, examples_per_step=STEP)
    train(model, rows, spec, budget, None)
    model.save_adapter(Path(arguments["adapter"]), "base")
    channel.ready(steps=budget.steps)


def measure_bank(arguments: dict[str, Any], channel: Channel) -> None:
    """Worker: each go trains `adapters` fresh adapters together, each on its own rows."""
    use_threads()
    spec, rows = _spec(arguments), _rows(arguments)
    memory = Memory(arguments["device"])
    model = _load(arguments, spec, arguments["adapters"])
    each = len(rows) // arguments["adapters"]
    budget = Budget(steps=each // STEP, examples_per_step=STEP)
    parts = [rows[start : start + each] for start in range(0, each * arguments["adapters"], each)]
    first = Budget(steps=1, examples_per_step=STEP)
    train_bank(model, _jobs([part[:STEP] for part in parts], spec, first))
    channel.ready(adapters=len(parts), steps=budget.steps)
    while channel.next() is not None:
        jobs = _jobs(parts, spec, budget)
        seconds = _timed(arguments["device"], train_bank, model, jobs)
        examples = sum(len(job.rows) for job in jobs)
        channel.reply(seconds=seconds, examples=examples, peak_bytes=memory.peak())


def _jobs(parts: Sequence[list[Row]], spec: TrainSpec, budget: Budget) -> list[Job]:
    return [Job(f"{n}", part, spec, budget, seed=n) for n, part in enumerate(parts, start=1)]


def train_bank(model: LocalModel, jobs: Sequence[Job]) -> None:
    """Train one adapter for each job in the same passes over the base."""
    trainer = Trainer(model)
    for job in jobs:
        trainer.assign_slot(job)
    while trainer.jobs:
        trainer.step()


def _spec(arguments: dict[str, Any]) -> TrainSpec:
    """Default settings of a study, in the number format of our side, with some changed.

    Raises:
        NotThere: a setting that this version does not have.
    """
    changed = {"compute": arguments["compute"], **arguments.get("train", {})}
    unknown = sorted(set(changed) - set(TrainSpec.model_fields))
    if unknown:
        raise NotThere(f"TrainSpec of this version has no {', '.join(unknown)}")
    return TrainSpec(**changed)


def _rows(arguments: dict[str, Any]) -> list[Row]:
    """Token rows of a training workload, in training order."""
    named = read_training(Path(arguments["rows"]), arguments["count"])
    tokens = Tokens.load(Path(arguments["folder"]))
    return encode_rows(named, tokens, TrainSpec().max_length, "error").rows


def _load(arguments: dict[str, Any], spec: TrainSpec, adapters: int = 1) -> LocalModel:
    folder = Path(arguments["folder"])
    more: dict[str, Any] = {"slots": adapters} if adapters > 1 else {}
    return LocalModel.load(
        folder, Tokens.load(folder), spec, EvalSpec(), device=arguments["device"], **more
    )


def _timed(device: str, function: Any, *arguments: Any) -> float:  # noqa: ANN401
    """Seconds that a call takes, until the device has done it."""
    began = time.perf_counter()
    function(*arguments)
    synchronise(device)
    return time.perf_counter() - began
