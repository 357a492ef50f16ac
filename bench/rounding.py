"""What sharing a bank changes in bfloat16: banked against solo runs, seed by seed.

    python -m bench.rounding [--seeds 5] [--out bench/results/rounding.json]

In float32 a banked adapter has the weights of its solo run to about seven digits. In bfloat16 other
rows in the same product round otherwise, and training amplifies it: adapters differ visibly. What
must not differ is how good they are. A tiny random Llama learns a made task (the label hangs on the
last letter of a noisy text) in both ways, with the same rows and first weights for each seed.

Knows: the engine's interface, a made task. Does not know: peers, speed.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import numpy as np

from bench.cuda_made import write_tiny
from bench.machine import provenance
from bench.results import write_or_print
from mixtune.engine.model import LocalModel
from mixtune.engine.train import Job, Trainer
from mixtune.records import Message, Query
from mixtune.spec import Budget, EvalSpec, TrainSpec
from mixtune.tokens import Row, Tokens

LABELS = ("up", "down", "flat")
LETTERS = "abc"
HEADER = "Say up, down or flat: "
SPEC = TrainSpec(rank=8, alpha=16, lr=1e-2, compute="bfloat16")
BUDGET = Budget(steps=80, examples_per_step=16)
ITEMS = 300
NOISE = 0.1
"""Share of labels drawn at random, in training: accuracy then stays below one."""


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


def measure(seeds: int, dtype: str = "bfloat16") -> Mapping[str, object]:
    """Validation accuracy of each seed, solo and banked, and how many answers differ."""
    spec = SPEC.model_copy(update={"compute": dtype})
    with TemporaryDirectory() as made:
        folder = write_tiny(Path(made))
        tokens = Tokens.load(folder)
        jobs = [_job(seed, tokens, spec) for seed in range(seeds)]
        solo = [_answers(folder, tokens, [job])[0] for job in jobs]
        banked = _answers(folder, tokens, [_job(seed, tokens, spec) for seed in range(seeds)])
    truth = [label for _, label in _validation()]
    accuracies = [[_accuracy(each, truth) for each in side] for side in (solo, banked)]
    changes = [b - a for a, b in zip(*accuracies, strict=True)]
    flips = [
        mean(a != b for a, b in zip(one, other, strict=True))
        for one, other in zip(solo, banked, strict=True)
    ]
    return {
        "solo": accuracies[0],
        "banked": accuracies[1],
        "mean_difference": mean(changes),
        "sd_of_difference": stdev(changes),
        "sd_between_seeds": stdev(accuracies[0]),
        "flip_rate": mean(flips),
        "items": ITEMS,
        "compute": dtype,
    }


def _job(seed: int, tokens: Tokens, spec: TrainSpec) -> Job:
    rows = []
    for number, (text, label) in enumerate(
        texts(BUDGET.examples, np.random.default_rng(seed), NOISE)
    ):
        prompt = tuple(tokens.prompt_ids((Message("user", HEADER + text),)))
        rows.append(Row("made", str(number), prompt, tuple(tokens.answer_ids(label))))
    return Job(f"seed {seed}", rows, spec, BUDGET, seed)


def _validation() -> list[tuple[str, str]]:
    return texts(ITEMS, np.random.default_rng(10**6), 0.0)


def _answers(folder: Path, tokens: Tokens, jobs: Sequence[Job]) -> list[list[str]]:
    """Labels that each adapter gives to the validation items, trained in one bank."""
    model = LocalModel.load(folder, tokens, jobs[0].spec, EvalSpec(), slots=len(jobs))
    trainer = Trainer(model)
    for job in jobs:
        trainer.seat(job)
    while trainer.jobs:
        trainer.step()
    queries = [
        Query(f"{number:04}", "", (Message("user", HEADER + text),), LABELS)
        for number, (text, _) in enumerate(_validation())
    ]
    found = []
    for slot in range(len(jobs)):
        model.use_adapter(slot)
        found.append([answer.output for answer in model.rank(queries)])
    return found


def _accuracy(answers: Sequence[str], truth: Sequence[str]) -> float:
    return mean(a == b for a, b in zip(answers, truth, strict=True))


def main() -> None:
    """Print or write what was found."""
    parser = argparse.ArgumentParser(description="What does sharing a bank change in bfloat16?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    facts = {
        **measure(given.seeds),
        **provenance(f"python -m bench.rounding --seeds {given.seeds}"),
    }
    write_or_print(facts, given.out)


if __name__ == "__main__":
    main()
