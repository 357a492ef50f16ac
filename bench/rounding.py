"""What sharing a bank changes in bfloat16: banked against solo runs, seed by seed.

    python -m bench.rounding [--seeds 5] [--out bench/results/rounding.json]
    python -m bench.rounding --model smollm2-135m --steps 40 --lr 1e-3 --items 200

In float32 a banked adapter has the weights of its solo run to about seven digits. In bfloat16 other
rows in the same product may round otherwise, and training would amplify it. What
must not differ is how good they are. A tiny random Llama, or a model of the catalogue, learns a
made task (the label hangs on the last letter of a noisy text) in both ways, with the same rows and
first weights for each seed.

Knows: the engine's interface, a made task. Does not know: peers, speed.
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import load_file

from bench.cuda_made import write_tiny
from bench.machine import provenance
from bench.results import write_or_print
from mixtune.engine.convert import prepare
from mixtune.engine.model import LocalModel
from mixtune.engine.train import Job, Trainer
from mixtune.records import Message, Query
from mixtune.study.spec import Budget, EvalSpec, TrainSpec
from mixtune.tasks.metrics import FloatArray
from mixtune.tokens import Row, Tokens

LABELS = ("up", "down", "flat")
LETTERS = "abc"
HEADER = "Say up, down or flat: "
SPEC = TrainSpec(rank=8, alpha=16, lr=1e-2, compute="bfloat16")
ROWS = 16
NOISE = 0.1
"""Share of labels drawn at random, in training: accuracy then stays below one."""


@dataclass(frozen=True, slots=True)
class How:
    """A base model (None: the tiny one), how an adapter is trained, how many items it answers."""

    model: str | None = None
    spec: TrainSpec = SPEC
    steps: int = 80
    items: int = 300

    @property
    def budget(self) -> Budget:
        """Steps of an adapter."""
        return Budget(steps=self.steps, examples_per_step=ROWS)


@dataclass(frozen=True, slots=True)
class Trained:
    """An adapter's labels for the validation items, and its numbers."""

    labels: list[str]
    weights: FloatArray


def texts(count: int, generator: np.random.Generator, noise: float) -> list[tuple[str, str]]:
    """Texts with their labels."""
    found = []
    for _ in range(count):
        letters = generator.choice(list(LETTERS), size=int(generator.integers(2, 6)))
        label = LABELS[LETTERS.index(letters[-1]) % len(LABELS)]
        if generator.random() < noise:
            label = str(generator.choice(LABELS))
        found.append((" ".join(letters), label))
    return found


def measure(seeds: int, how: How = How()) -> Mapping[str, object]:
    """Validation accuracy of each seed, solo and banked; how far answers and weights are apart.

    `weights_apart`: per seed the largest difference of a weight, over the largest weight.
    """
    with TemporaryDirectory() as made:
        folder = prepare(how.model).folder if how.model else write_tiny(Path(made))
        tokens = Tokens.load(folder)
        solo = [
            _answers(folder, tokens, [_job(seed, tokens, how)], how)[0] for seed in range(seeds)
        ]
        banked = _answers(folder, tokens, [_job(seed, tokens, how) for seed in range(seeds)], how)
    truth = [label for _, label in _validation(how)]
    accuracies = [[_accuracy(each.labels, truth) for each in side] for side in (solo, banked)]
    changes = [b - a for a, b in zip(*accuracies, strict=True)]
    flips = [
        mean(a != b for a, b in zip(one.labels, other.labels, strict=True))
        for one, other in zip(solo, banked, strict=True)
    ]
    apart = [
        float(np.abs(other.weights - one.weights).max() / np.abs(one.weights).max())
        for one, other in zip(solo, banked, strict=True)
    ]
    return {
        "solo": accuracies[0],
        "banked": accuracies[1],
        "mean_difference": mean(changes),
        "sd_of_difference": stdev(changes),
        "sd_between_seeds": stdev(accuracies[0]),
        "flip_rate": mean(flips),
        "weights_apart": apart,
        "model": how.model or "tiny",
        "steps": how.steps,
        "items": how.items,
        "train": how.spec.model_dump(mode="json"),
    }


def _job(seed: int, tokens: Tokens, how: How) -> Job:
    rows = []
    for number, (text, label) in enumerate(
        texts(how.budget.examples, np.random.default_rng(seed), NOISE)
    ):
        prompt = tuple(tokens.prompt_ids((Message("user", HEADER + text),)))
        rows.append(Row("made", str(number), prompt, tuple(tokens.answer_ids(label))))
    return Job(f"seed {seed}", rows, how.spec, how.budget, seed)


def _validation(how: How) -> list[tuple[str, str]]:
    return texts(how.items, np.random.default_rng(10**6), 0.0)


def _answers(folder: Path, tokens: Tokens, jobs: Sequence[Job], how: How) -> list[Trained]:
    """What each adapter answers to the validation items, trained in one bank."""
    model = LocalModel.load(folder, tokens, jobs[0].spec, EvalSpec(), slots=len(jobs))
    trainer = Trainer(model)
    for job in jobs:
        trainer.assign_slot(job)
    while trainer.jobs:
        trainer.step()
    queries = [
        Query(f"{number:04}", "", (Message("user", HEADER + text),), LABELS)
        for number, (text, _) in enumerate(_validation(how))
    ]
    found = []
    for slot in range(len(jobs)):
        model.use_adapter(slot)
        labels = [answer.output for answer in model.rank(queries)]
        found.append(Trained(labels, _weights(model, slot)))
    return found


def _weights(model: LocalModel, slot: int) -> FloatArray:
    """All numbers of an adapter, in one row."""
    with TemporaryDirectory() as made:
        model.save_adapter(Path(made), "base", slot)
        held = load_file(Path(made) / "adapter_model.safetensors")
    return np.concatenate([held[name].astype(np.float64).ravel() for name in sorted(held)])


def _accuracy(answers: Sequence[str], truth: Sequence[str]) -> float:
    return mean(a == b for a, b in zip(answers, truth, strict=True))


def main() -> None:
    """Print or write what was found."""
    parser = argparse.ArgumentParser(description="What does sharing a bank change in bfloat16?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", help="default: a tiny random Llama")
    parser.add_argument("--steps", type=int, default=How().steps)
    parser.add_argument("--lr", type=float, default=How().spec.lr)
    parser.add_argument("--items", type=int, default=How().items)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    how = How(
        given.model,
        How().spec.model_copy(update={"lr": given.lr}),
        given.steps,
        given.items,
    )
    typed = ["python", "-m", "bench.rounding", "--seeds", f"{given.seeds}"]
    typed += ["--model", given.model] if given.model else []
    typed += ["--steps", f"{how.steps}", "--lr", f"{how.spec.lr:g}", "--items", f"{how.items}"]
    facts = {**measure(given.seeds, how), **provenance(shlex.join(typed))}
    write_or_print(facts, given.out)


if __name__ == "__main__":
    main()
