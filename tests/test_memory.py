"""The estimate of memory against what is allocated."""

import pytest
import torch
from engine_oracle import write_base

from mixtune.engine.batching import PASS_TOKENS, make_passes, training_sequence
from mixtune.engine.decoder import LOGIT_ROWS
from mixtune.engine.model import LocalModel
from mixtune.engine.train import Trainer, accumulate
from mixtune.models.memory import (
    Load,
    free_memory,
    gigabytes,
    largest,
    main_memory,
    need,
    shape_of,
)
from mixtune.study.spec import EvalSpec, TrainSpec
from mixtune.tokens import Row, Tokens

RANK = TrainSpec(rank=4, alpha=8)
SLOTS = 3


def rows(count, length):
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(count):
        ids = torch.randint(0, 250, (length,), generator=generator).tolist()
        found.append(
            Row(ingredient="a", example_id=str(number), prompt=tuple(ids), answer=(5, 258))
        )
    return found


def load(folder, train, slots):
    return LocalModel.load(folder, Tokens.load(folder), train, EvalSpec(), slots=slots)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = write_base(tmp_path_factory.mktemp(family) / "base", family)
        return made[family]

    return folder


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "mistral", "gemma3"])
@pytest.mark.parametrize("train", [RANK, RANK.model_copy(update={"top_layers": 1})])
def test_weights_and_adapters_are_exact(folders, family, train):
    folder = folders(family)
    model = load(folder, train, SLOTS)
    optimizer = Trainer(model).optimizer
    held = (model.bank.weights, model.bank.gradients, optimizer.exp_avg, optimizer.exp_avg_sq)
    told = need(shape_of(folder), train, SLOTS, Load(PASS_TOKENS, LOGIT_ROWS, 100, 50))
    assert told.adapters == sum(tensor.nbytes for tensor in held)
    own = {id(p): p.nbytes for p in model.decoder.network.parameters() if not p.requires_grad}
    assert told.weights == pytest.approx(sum(own.values()), rel=1e-6)


def test_full_fine_tuning_trains_all(folders):
    train = TrainSpec(method="full")
    model = load(folders("llama"), train, 1)
    told = need(shape_of(folders("llama")), train, 1, Load(PASS_TOKENS, LOGIT_ROWS, 100, 50))
    assert told.adapters == 4 * model.bank.weights.nbytes


@pytest.mark.parametrize(("count", "length"), [(6, 40), (2, 200)])
def test_activations_are_of_the_right_order(folders, count, length):
    """What autograd keeps of one pass of two adapters; each storage counted once."""
    model = load(folders("llama"), RANK, 2)
    batch = rows(count, length)
    network = model.decoder.network
    known = {p.untyped_storage().data_ptr() for p in network.parameters()}
    known.add(model.bank.weights.untyped_storage().data_ptr())
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    slots = [number % 2 for number in range(count)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        accumulate(model, batch, slots, [0.1] * count)
    (work,) = make_passes(
        [training_sequence(row, slot) for row, slot in zip(batch, slots, strict=True)]
    )
    per_step = work.num_tokens // 2
    told = need(
        shape_of(folders("llama")), RANK, 2, Load(PASS_TOKENS, LOGIT_ROWS, per_step, length)
    )
    assert told.activations / 3 < sum(kept.values()) < told.activations * 3


def test_checkpointing_keeps_less(folders):
    shape = shape_of(folders("llama"))
    less = RANK.model_copy(update={"gradient_checkpointing": True})
    work = Load(PASS_TOKENS, LOGIT_ROWS, 1000, 100)
    plain, twice = (need(shape, train, 2, work) for train in (RANK, less))
    assert twice.activations < plain.activations
    assert twice.adapters == plain.adapters


def test_as_many_as_fit(folders):
    shape, work = shape_of(folders("llama")), Load(PASS_TOKENS, LOGIT_ROWS, 1000, 100)
    room = need(shape, RANK, 5, work).total
    assert largest(shape, RANK, work, room, 64) == 5
    assert largest(shape, RANK, work, room - 1, 64) == 4
    assert largest(shape, RANK, work, room, 2) == 2
    assert largest(shape, RANK, work, 10, 64) == 0


def test_a_pass_holds_no_more_than_it_may(folders):
    shape, work = shape_of(folders("llama")), Load(PASS_TOKENS, LOGIT_ROWS, 3000, 100)
    two, nine = (need(shape, RANK, slots, work) for slots in (2, 9))
    assert nine.activations == two.activations
    assert nine.adapters == 4.5 * two.adapters


def test_free_memory_is_part_of_the_machines():
    assert 0 < free_memory() <= main_memory()


@pytest.mark.parametrize(
    ("size", "text"), [(3_140_000_000, "3.1 GB"), (25_000_000, "25.0 MB"), (10**8, "0.1 GB")]
)
def test_sizes_in_words(size, text):
    assert gigabytes(size) == text
