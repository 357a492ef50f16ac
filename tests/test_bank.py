"""Adapters trained side by side, only in the top layers, with less memory, or all weights: each
equal to the plain way."""

import itertools
import math

import numpy as np
import pytest
import torch
from engine_kit import (
    EVALUATE,
    HEADER,
    MIXED,
    QUERIES,
    SPEC,
    assert_same,
    gradients,
    load,
    query,
    randomise,
    rows_of,
)
from engine_oracle import (
    FAMILIES,
    log_probability,
    loss_and_gradients,
    peft_network,
    plain_network,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from mixtune.engine import batching, fused
from mixtune.engine import optimizer as optimizer_module
from mixtune.engine import train as train_module
from mixtune.engine.activation_cache import ActivationCache
from mixtune.engine.bank import batched_slots
from mixtune.engine.forest import pack_forest
from mixtune.engine.fused import fuse
from mixtune.engine.loss import token_weights
from mixtune.engine.model import LocalModel
from mixtune.engine.optimizer import AdamW, StepSettings
from mixtune.engine.train import Diverged, Job, Trainer, accumulate, train
from mixtune.errors import ModelError
from mixtune.study.spec import Budget, TrainSpec
from mixtune.tokens import Tokens

BUDGET = Budget(steps=3, examples_per_step=4)


def job(number, **spec):
    """A job with data, learning rate and seed of its own."""
    shapes = [
        ("ab"[(i + number) % 2], 40 + 5 * number, 1 + (7 * i + number) % 20, i % 3)
        for i in range(12)
    ]
    rows = rows_of(*shapes, seed=number)
    settings = SPEC.model_copy(update={"lr": 1e-2 / (1 + number), **spec})
    return Job(f"job{number}", rows, settings, BUDGET, seed=number)


def bank(folder, slots, **spec):
    settings = SPEC.model_copy(update=spec)
    return LocalModel.load(folder, Tokens.load(folder), settings, EVALUATE, slots=slots)


def trained(folder, jobs, slots):
    """Jobs through a bank of some slots: their logs and weights."""
    model = bank(folder, slots)
    trainer = Trainer(model)
    waiting, weights = list(jobs), {}
    while waiting or trainer.jobs:
        while waiting and trainer.free_slots:
            trainer.assign_slot(waiting.pop(0))
        for slot, done in trainer.step():
            weights[done.name] = model.bank.weights[slot].clone()
    return weights


def packing(stacked):
    """`pack_forest` as on a GPU (stacked) or a CPU."""
    return lambda branches, device, **_: pack_forest(branches, device, stacked=stacked)


def eight_jobs():
    jobs = [job(number) for number in range(8)]
    jobs[1].budget = Budget(steps=2, examples_per_step=6)
    return jobs


@pytest.fixture(scope="module")
def solo(folders):
    """Weights and losses of eight jobs, each trained by itself."""
    jobs = eight_jobs()
    weights = {each.name: trained(folders("llama"), [each], 1)[each.name] for each in jobs}
    return weights, {each.name: [step.loss for step in each.log] for each in jobs}


@pytest.fixture(scope="module")
def made(folders, tmp_path_factory):
    """A bank of four with weights, and the same four adapters on PEFT."""
    model, oracles = bank(folders("llama"), 4), []
    folder = tmp_path_factory.mktemp("adapters")
    for slot in range(4):
        model.bank.reset(slot, slot)
        with torch.no_grad():
            for layer in model.bank.layers.values():
                layer.B[slot].fill_(0.02 * (slot + 1))
        model.save_adapter(folder / str(slot), "base", slot)
        oracles.append(peft_network(folders("llama"), folder / str(slot), trainable=True))
    return model, oracles


class TestBank:
    @pytest.mark.parametrize("slots", [1, 3, 8])
    def test_each_adapter_gets_the_weights_of_its_solo_run(self, folders, solo, slots):
        """Other data, seeds, rates, and lengths of training; slots are filled again."""
        jobs = eight_jobs()
        together = trained(folders("llama"), jobs, slots)
        for each in jobs:
            weights, losses = (values[each.name] for values in solo)
            moved = together[each.name]
            assert float((moved - weights).norm() / weights.norm()) < 1e-5
            assert [step.loss for step in each.log] == pytest.approx(losses, abs=1e-5)

    # One slot of every family: test_engine.
    @pytest.mark.parametrize(
        ("family", "slots"), [*((family, 3) for family in FAMILIES), ("llama", 8)]
    )
    def test_gradients_are_the_plain_ones(self, folders, tmp_path, family, slots):
        model = bank(folders(family), slots)
        batches, oracles = [], []
        for slot in range(slots):
            model.bank.reset(slot, slot)
            generator = torch.Generator().manual_seed(slot)
            for layer in model.bank.layers.values():
                drawn = torch.randn(layer.B[slot].shape, generator=generator)
                with torch.no_grad():
                    layer.B[slot].copy_(drawn * 0.1)
            shapes = [("a", 50, 3 + i * (slot + 1) % 9, i) for i in range(2 + slot % 3)]
            batches.append(rows_of(*shapes, seed=slot))
            model.save_adapter(tmp_path / str(slot), "base", slot)
            network = peft_network(folders(family), tmp_path / str(slot), trainable=True)
            oracles.append(loss_and_gradients(network, batches[-1]))
        rows = list(itertools.chain(*batches))
        slots_of = [slot for slot, batch in enumerate(batches) for _ in batch]
        weights = [w for batch in batches for w in token_weights(batch, "example-mean")]
        losses = [0.0] * slots
        for slot, part in accumulate(model, rows, slots_of, weights):
            losses[slot] += part
        for slot, oracle in enumerate(oracles):
            grads = {key: g.clone() for key, g in model.bank.named_parameters(slot, gradients=True)}
            assert_same((losses[slot], grads), oracle)

    def test_equally_long_slices_are_one_product(self, made, monkeypatch):
        """The path of many adapters on a GPU, here on the CPU: stacked blocks, batched products."""
        model, oracles = made
        monkeypatch.setattr(batching, "pack_forest", packing(stacked=True))
        model.bank.gradients.zero_()
        shapes = [[("a", 50, 6 + i + 3 * s * i, 2) for i in range(3)] for s in range(4)]
        batches = [rows_of(*shapes[s], seed=s) for s in range(4)]
        slots = [slot for slot in range(4) for _ in range(3)]
        with_mean = [1 / (3 * len(row.answer)) for batch in batches for row in batch]
        accumulate(model, list(itertools.chain(*batches)), slots, with_mean)
        assert batched_slots(model.decoder.routing.slices) is not None
        for slot, (network, batch) in enumerate(zip(oracles, batches, strict=True)):
            network.zero_grad()
            wanted = loss_and_gradients(network, batch)
            grads = dict(model.bank.named_parameters(slot, gradients=True))
            assert_same((wanted[0], grads), wanted)

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 3),
                st.sampled_from("ab"),
                st.sampled_from([0, 30, 60]),
                st.integers(0, 20),
                st.integers(0, 5),
            ),
            min_size=1,
            max_size=10,
        ),
        st.sampled_from([60, 4096]),
    )
    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        derandomize=True,
    )
    def test_any_mixture_of_adapters(self, folders, made, shapes, budget):
        """Also identical prompts, no prompt in common, adapters without rows."""
        model, oracles = made
        # A prompt needs a token of its own.
        rows = rows_of(*[(i, h, max(r, 1 - h), a) for _, i, h, r, a in shapes])
        slots = [slot for slot, *_ in shapes]
        model.bank.gradients.zero_()
        model.pass_tokens = budget
        accumulate(model, rows, slots, token_weights(rows, "example-mean"))
        for slot, network in enumerate(oracles):
            network.zero_grad()
            mine = [row for row, owner in zip(rows, slots, strict=True) if owner == slot]
            if not mine:
                assert not model.bank.gradients[slot].any()
                continue
            _, wanted = loss_and_gradients(network, mine)
            share = len(mine) / len(rows)
            grads = dict(model.bank.named_parameters(slot, gradients=True))
            assert_same((0.0, grads), (0.0, {key: g * share for key, g in wanted.items()}))

    def test_interrupted_is_uninterrupted(self, folders):
        """Three adapters, stopped after every step, in a fresh process's stead: the same bits."""
        through = Trainer(bank(folders("llama"), 3))
        for number in range(3):
            through.assign_slot(job(number))
        for _ in range(BUDGET.steps):
            through.step()
        jobs = {number: job(number) for number in range(3)}
        state = None
        for step in range(BUDGET.steps):
            trainer = Trainer(bank(folders("llama"), 3))
            if state is None:
                for each in jobs.values():
                    trainer.assign_slot(each)
            else:
                trainer.resume(jobs, state)
            last = dict(trainer.jobs)
            trainer.step()
            assert len(jobs[0].log) == step + 1
            trainer.jobs = trainer.jobs or last
            state = {key: value.clone() for key, value in trainer.state_dict().items()}
        assert torch.equal(through.model.bank.weights, trainer.model.bank.weights)

    def test_a_job_that_diverges_leaves_the_others_alone(self, folders):
        trainer = Trainer(bank(folders("llama"), 2))
        for number in range(2):
            trainer.assign_slot(job(number))
        trainer.model.bank.weights[1] = math.nan
        with pytest.raises(Diverged, match="step 0: loss nan") as caught:
            trainer.step()
        assert caught.value.job.name == "job1"
        assert [j.name for j in trainer.jobs.values()] == ["job0"]
        assert len(trainer.jobs[0].log) == 1
        assert torch.isfinite(trainer.model.bank.weights[0]).all()

    @pytest.mark.parametrize("stacked", [False, True])
    def test_not_a_number_stays_with_its_adapter(self, folders, monkeypatch, stacked):
        """Rows that are padded in one block, and zero times what is masked there."""
        monkeypatch.setattr(batching, "pack_forest", packing(stacked))
        grads = []
        for broken in (False, True):
            model = bank(folders("llama"), 3)
            for slot in range(3):
                model.bank.reset(slot, slot)
            if broken:
                model.bank.weights[0] = math.nan
            rows = [
                row for s in range(3) for row in rows_of(("a", 40, 3 + 9 * s, 2), ("a", 40, 5, 1))
            ]
            accumulate(model, rows, [0, 0, 1, 1, 2, 2], [1.0] * 6)
            grads.append(model.bank.gradients.clone())
        assert torch.isnan(grads[1][0]).any()
        assert torch.equal(grads[0][1:], grads[1][1:])

    def test_another_rank_is_refused(self, folders):
        trainer = Trainer(bank(folders("llama"), 2))
        with pytest.raises(ValueError, match=r"job0 has rank 7.*its bank rank 4"):
            trainer.assign_slot(job(0, rank=7))

    def test_a_full_bank_is_said(self, folders):
        trainer = Trainer(bank(folders("llama"), 1))
        trainer.assign_slot(job(0))
        with pytest.raises(ValueError, match="no slot for job1"):
            trainer.assign_slot(job(1))


class TestPrefix:
    """What all prompts of a task begin with is computed once for all chunks."""

    MANY = (*QUERIES, *(query(20 + i, HEADER + "and" + " so" * i) for i in range(6)))

    @pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2"])
    def test_sums_and_text_are_those_without(self, models, monkeypatch, family):
        """Also of keys beyond a sliding window, and of capped scores."""
        found = []
        for kept in (True, False):
            model = models(family)
            if not kept:
                monkeypatch.setattr(LocalModel, "_prefill_prefix", lambda *_: None)
            answers = [model.rank(self.MANY)]
            model.use_base()
            answers.append(model.rank(self.MANY))
            model.use_adapter()
            texts = [a.output for a in model.generate(self.MANY, 6)]
            found.append(([[a.logprobs for a in each] for each in answers], texts))
        (sums, texts), (plain_sums, plain_texts) = found
        assert texts == plain_texts
        for each, plain in zip(sums, plain_sums, strict=True):
            for one, other in zip(each, plain, strict=True):
                assert one == pytest.approx(other, abs=1e-4)

    def test_it_is_used(self, models, monkeypatch):
        model, lengths = models(), []
        prefill = model.decoder.prefill
        monkeypatch.setattr(
            model.decoder, "prefill", lambda *args: lengths.append(len(args[0])) or prefill(*args)
        )
        model.rank(self.MANY)
        (length,) = lengths
        assert length > 30
        model.rank(self.MANY[:3])  # one chunk: nothing to save
        assert len(lengths) == 1


class TestLoss:
    def test_batch_token_mean_is_torchs(self, models, folders, tmp_path):
        model, rows = models(), rows_of(("a", 30, 4, 0), ("a", 30, 4, 9), ("b", 0, 4, 3))
        model.save_adapter(tmp_path, "base")
        network = peft_network(folders("llama"), tmp_path, trainable=True)
        total = sum(len(row.answer) for row in rows)
        wanted = 0.0
        for row in rows:
            ids = torch.tensor([[*row.prompt, *row.answer]])
            logits = network(input_ids=ids).logits[0, len(row.prompt) - 1 : -1]
            nats = functional.cross_entropy(logits, torch.tensor(row.answer), reduction="sum")
            (nats / total).backward()
            wanted += nats.item() / total
        grads = {
            name.replace(".default", ""): p.grad
            for name, p in network.named_parameters()
            if p.grad is not None
        }
        model.bank.gradients.zero_()
        weights = token_weights(rows, "batch-token-mean")
        mine = sum(part for _, part in accumulate(model, rows, [0, 0, 0], weights))
        assert_same((mine, dict(model.bank.named_parameters(0, gradients=True))), (wanted, grads))


class TestFused:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_what_is_replaced(self, folders, dtype):
        """Otherwise the comparisons with the plain path could pass on the plain modules."""
        counts = {}
        for family in FAMILIES:
            counts[family] = fuse(plain_network(folders(family)).to(dtype))
        # Two norms a layer, one at the end, two layers; gated SiLU where the family has it.
        assert counts["llama"] == counts["mistral"] == counts["qwen2"] == 5 + 2
        assert counts["qwen3"] == 5 + 2 + 4
        assert counts["phi3"] == 5
        assert counts["gemma3"] == 9 + 4

    def test_a_module_that_computes_something_else_is_left_alone(self, folders):
        network = plain_network(folders("llama"))
        norm = network.model.norm
        norm.forward = lambda x: x * 2
        assert fuse(network) == 6
        assert torch.equal(norm(torch.ones(1, 1, 64)), torch.full((1, 1, 64), 2.0))

    def test_gradients_are_autograds(self):
        generator = torch.Generator().manual_seed(0)
        x, up = (torch.randn(3, 5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
        weight = torch.rand(8, generator=generator, dtype=torch.float64) + 0.5
        x.requires_grad_()
        up.requires_grad_()
        assert torch.autograd.gradcheck(lambda a: fused._Norm.apply(a, weight, 1e-5), (x,))
        assert torch.autograd.gradcheck(fused._Gated.apply, (x, up))

    @pytest.mark.parametrize("family", ["llama", "gemma3"])
    def test_in_bfloat16_norms_round_where_the_network_does(self, folders, family):
        """In its own order: numbers differ where two float32 sums round to different neighbours."""
        norm = plain_network(folders(family)).bfloat16().model.norm
        norm.weight.data.uniform_(-0.4, 0.4)
        norm.requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        x, grad = (torch.randn(1, 400, 64, generator=generator).bfloat16() for _ in range(2))
        found = []
        for forward in (norm.forward, fused._norm_of(norm)):
            given = x.clone().requires_grad_()
            out = forward(given)
            out.backward(grad)
            found.append((out.detach().float(), given.grad.float()))
        (theirs, theirs_back), (mine, mine_back) = found
        assert (mine != theirs).float().mean() < 0.005
        assert (mine - theirs).norm() < 1e-3 * theirs.norm()
        assert (mine_back - theirs_back).norm() < 3e-3 * theirs_back.norm()


class TestMemory:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_checkpointing_changes_nothing(self, models, folders, family):
        rows = rows_of(*[("a", 50, 3 + i, 2) for i in range(4)])
        plain = models(family)
        again = bank(folders(family), 1, gradient_checkpointing=True)
        randomise(again)
        assert_same(gradients(again, rows), gradients(plain, rows))

    def test_less_is_kept_with_checkpointing(self, folders):
        """Otherwise the test above could pass with it off."""
        kept = []
        for on in (False, True):
            model = bank(folders("llama"), 1, gradient_checkpointing=on)
            count = 0

            def pack(tensor):
                nonlocal count
                count += 1
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                gradients(model, rows_of(("a", 20, 3, 2)))
            kept.append(count)
        assert kept[1] != kept[0]

    def test_a_pass_that_does_not_fit_is_halved_once(self, folders, monkeypatch):
        model, said = bank(folders("llama"), 1), []
        model.on_note = said.append
        model.reset(1)
        calls = []

        def tight(*args):
            calls.append(model.pass_tokens)
            if model.pass_tokens == batching.PASS_TOKENS:
                model.bank.gradients += 7.0  # what an unfinished pass may have added
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")
            return accumulate(*args)

        monkeypatch.setattr(train_module, "accumulate", tight)
        rows = rows_of(*[("a", 50, 5, 2)] * 4)
        budget = Budget(steps=2, examples_per_step=2)
        log = train(model, rows, SPEC, budget)
        assert calls == [4096, 2048, 2048]
        assert len(said) == 1
        assert "2048 tokens a pass" in said[0]
        plain = bank(folders("llama"), 1)
        plain.reset(1)
        monkeypatch.undo()
        assert [s.loss for s in train(plain, rows, SPEC, budget)] == [s.loss for s in log]

    def test_still_too_large_is_an_error(self, folders, monkeypatch):
        model = bank(folders("llama"), 1)
        model.reset(1)

        def full(*_):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")

        monkeypatch.setattr(train_module, "accumulate", full)
        with pytest.raises(RuntimeError, match="allocate"):
            train(model, rows_of(("a", 0, 5, 2)), SPEC, Budget(steps=1, examples_per_step=1))


class TestTopLayers:
    TOP = SPEC.model_copy(update={"top_layers": 1})

    def model(self, folder, cache):
        model = load(folder, self.TOP)
        if cache is not None:
            model.activation_cache = ActivationCache(model.decoder, cache, "base")
        randomise(model)
        return model

    @pytest.mark.parametrize("family", FAMILIES)
    def test_kept_states_give_the_plain_gradients_and_sums(self, folders, tmp_path, family):
        rows = rows_of(*[("a", 50, 3 + i, 2) for i in range(4)], ("b", 0, 6, 1))
        model = self.model(folders(family), tmp_path / "trunk")
        model.save_adapter(tmp_path / "adapter", "base")
        oracle = peft_network(folders(family), tmp_path / "adapter", trainable=True)
        wanted = loss_and_gradients(oracle, rows)
        assert len(wanted[1]) < 2 * len(list(oracle.parameters()))
        for _ in range(2):  # first computed, then read
            assert_same(gradients(model, rows), wanted)
        for answer, asked in zip(model.rank(MIXED), MIXED, strict=True):
            prompt = model.tokens.prompt_ids(asked.messages)
            sums = [
                log_probability(oracle, prompt, model.tokens.answer_ids(text))
                for text in asked.choices
            ]
            assert answer.logprobs == pytest.approx(sums, abs=1e-4)

    def test_states_are_computed_once(self, folders, tmp_path, monkeypatch):
        model = self.model(folders("llama"), tmp_path)
        rows = rows_of(*[("a", 50, 3 + i, 2) for i in range(4)])
        first = gradients(model, rows)
        files = sorted(tmp_path.iterdir())
        assert len(files) == 4
        assert np.load(files[0]).dtype == np.int32
        monkeypatch.setattr(model.decoder, "forward_lower", None)
        other = self.model(folders("llama"), tmp_path)
        monkeypatch.setattr(other.decoder, "forward_lower", None)
        again = gradients(other, rows)
        assert again[0] == first[0]
        assert all(torch.equal(again[1][key], grad) for key, grad in first[1].items())

    def test_another_base_or_cut_is_another_file(self, folders, tmp_path):
        model = self.model(folders("llama"), tmp_path)
        rows = rows_of(("a", 20, 3, 2))
        gradients(model, rows)
        model.activation_cache = ActivationCache(model.decoder, tmp_path, "another base")
        gradients(model, rows)
        assert len(list(tmp_path.iterdir())) == 2

    def test_only_the_top_layers_are_adapted(self, folders, tmp_path):
        model = self.model(folders("llama"), None)
        assert all("layers.1." in name for name in model.bank.layers)
        assert len(model.bank.layers) == 7

    def test_generation_is_that_of_the_whole_network(self, folders, tmp_path):
        kept, plain = (self.model(folders("llama"), c) for c in (tmp_path, None))
        answers = [[a.output for a in m.generate(QUERIES, 6)] for m in (kept, plain)]
        assert answers[0] == answers[1]

    @pytest.mark.parametrize("top", [2, 9])
    def test_no_layer_below_is_an_error(self, folders, top):
        with pytest.raises(ModelError, match=r"(?s)leaves no layer below.*1 to 1 of the model's 2"):
            load(folders("llama"), SPEC.model_copy(update={"top_layers": top}))


class TestFull:
    FULL = TrainSpec(method="full", lr=1e-3, weight_decay=0.1)

    @pytest.mark.parametrize("family", ["llama", "phi3", "gemma3"])
    def test_two_steps_are_torchs_own(self, folders, tmp_path, family):
        model = load(folders(family), self.FULL)
        model.reset(1)
        rows = rows_of(*[("a", 40, 4 + i, 1 + i) for i in range(6)])
        log = train(model, rows, self.FULL, Budget(steps=2, examples_per_step=3))
        network = plain_network(folders(family))
        optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
        for step in range(2):
            optimiser.param_groups[0]["lr"] = log[step].lr
            optimiser.zero_grad()
            wanted_loss, _ = loss_and_gradients(network, rows[3 * step : 3 * step + 3])
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            assert log[step].loss == pytest.approx(wanted_loss, abs=1e-5)
        wanted = dict(network.named_parameters())
        for name, weight in model.bank.named_parameters():
            assert torch.allclose(weight, wanted[name], atol=2e-4), name
        model.save_adapter(tmp_path, "base")
        again = plain_network(tmp_path)
        for name, parameter in again.named_parameters():
            assert torch.equal(parameter, dict(model.bank.named_parameters())[name])

    def test_base_and_trained_model_answer_in_turn(self, folders, tmp_path):
        model = load(folders("llama"), self.FULL)
        model.reset(1)
        base = [a.logprobs for a in model.rank(QUERIES)]
        train(
            model, rows_of(*[("a", 9, 4, 2)] * 4), self.FULL, Budget(steps=2, examples_per_step=2)
        )
        model.use_adapter()
        tuned = [a.logprobs for a in model.rank(QUERIES)]
        assert tuned != base
        model.save_adapter(tmp_path, "base")
        model.use_base()
        assert [a.logprobs for a in model.rank(QUERIES)] == base
        model.load_adapter(tmp_path)
        assert [a.logprobs for a in model.rank(QUERIES)] == tuned

    def test_bfloat16_has_float32_masters(self, folders):
        spec = self.FULL.model_copy(update={"compute": "bfloat16", "lr": 1e-6})
        model = load(folders("llama"), spec)
        model.reset(1)
        before = model.bank.weights.clone()
        train(model, rows_of(*[("a", 9, 4, 2)] * 4), spec, Budget(steps=2, examples_per_step=2))
        moved = (model.bank.weights - before).abs().max()
        assert 0 < float(moved) < 1e-4, "steps smaller than bfloat16 can hold are kept"
        assert model.decoder.dtype == torch.bfloat16

    def test_weights_of_another_model(self, folders):
        model = load(folders("llama"), self.FULL)
        with pytest.raises(ModelError, match="cannot be used"):
            model.load_adapter(folders("phi3"))

    def test_a_bank_of_several_is_refused(self, folders):
        with pytest.raises(ModelError, match=r"(?s)one run at a time.*--bank 1"):
            bank(folders("llama"), 2, method="full")


@pytest.mark.parametrize("part", [16, optimizer_module.CHUNK])
def test_adamw_is_torchs(monkeypatch, part):
    monkeypatch.setattr(optimizer_module, "CHUNK", part)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 50, generator=generator)
    theirs = torch.nn.Parameter(weights[1].clone())
    mine = AdamW(weights, torch.zeros(2, 50))
    optimiser = torch.optim.AdamW([theirs], weight_decay=0.3)
    still = weights[0].clone()
    for step in range(20):
        gradient = torch.randn(50, generator=generator) * 10 ** (step % 4 - 2)
        mine.gradients[1] = gradient
        norm = mine.grad_norms()[1]
        mine.step(1, norm, StepSettings(0.01 * step, 0.3, 1.0))
        theirs.grad = gradient.clone()
        wanted = float(torch.nn.utils.clip_grad_norm_([theirs], 1.0))
        optimiser.param_groups[0]["lr"] = 0.01 * step
        optimiser.step()
        assert norm == pytest.approx(wanted, rel=1e-5)
        assert torch.allclose(weights[1], theirs, atol=1e-6)
        assert not mine.gradients[1].any()
    assert torch.equal(weights[0], still)
