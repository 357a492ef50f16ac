"""Models, rows and queries for tests of the engine.

Knows: the engine's interfaces. Does not know: what is tested with them.
"""

import pytest
import torch
from engine_oracle import END

from mixtune.engine.forest import Branch, pack_forest
from mixtune.engine.loss import token_weights
from mixtune.engine.model import LocalModel
from mixtune.engine.train import accumulate
from mixtune.records import Message, Query
from mixtune.study.spec import EvalSpec, TrainSpec
from mixtune.tokens import Row, Tokens

SPEC = TrainSpec(rank=4, alpha=6.0, lr=1e-2)
EVALUATE = EvalSpec(batch_size=4, max_prompt_length=400)
CHOICES = ("up", "up a lot", "upper", "down", "d")
HEADER = "Where is it going? Say up or down. "


def load(folder, spec=SPEC, evaluate=EVALUATE):
    return LocalModel.load(folder, Tokens.load(folder), spec, evaluate)


def randomise(model, seed=5):
    """B is zero after a reset, which would leave half of the gradients untested."""
    model.reset(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.bank.layers.values():
            layer.B.copy_(torch.randn(layer.B.shape, generator=generator) * 0.1)


def hidden(model, ids):
    """Last hidden states of one plain row under the adapter that answers."""
    row = Branch(ids, slot=model.slot)
    return model.decoder.forward(pack_forest([row], model.decoder.device))


def rows_of(*shapes, seed=0):
    """Random rows from (ingredient, header length, rest length, answer length)."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number, (ingredient, header, rest, answer) in enumerate(shapes):
        ids = torch.randint(3, 256, (rest + answer,), generator=generator).tolist()
        shared = [3 + (7 * i + ord(ingredient)) % 250 for i in range(header)]
        rows.append(Row(ingredient, str(number), (*shared, *ids[:rest]), (*ids[rest:], END)))
    return rows


def gradients(model, rows):
    """Loss and gradients by the engine, under PEFT's names."""
    model.bank.gradients.zero_()
    weights = token_weights(rows, "example-mean")
    loss = sum(part for _, part in accumulate(model, rows, [0] * len(rows), weights))
    return loss, {key: grad.clone() for key, grad in model.bank.named_parameters(0, gradients=True)}


def assert_same(found, wanted):
    loss, grads = found
    assert loss == pytest.approx(wanted[0], abs=1e-5)
    assert grads.keys() == wanted[1].keys()
    # Gradients that are zero in exact arithmetic (queries of a single token) differ by rounding.
    floor = 1e-3 * torch.stack([gradient.norm() for gradient in wanted[1].values()]).norm()
    for key, gradient in wanted[1].items():
        error = (grads[key] - gradient).norm() / (gradient.norm() + floor)
        assert error < 1e-4, key


def query(number, text, choices=CHOICES):
    return Query(f"q{number:02}", "", (Message("user", text),), choices)


QUERIES = [query(i, HEADER + "it went" + " so" * (i % 4) + f" {i * i}") for i in range(10)]
MIXED = [*QUERIES[:3], query(90, "?", ("yes", "no")), query(91, "Why not", ("yes",)), *QUERIES[3:6]]
