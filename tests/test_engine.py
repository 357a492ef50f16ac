"""The engine against plain transformers + PEFT, one example at a time."""

import dataclasses
import json
import math

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
    hidden,
    load,
    query,
    rows_of,
)
from engine_oracle import (
    END,
    FAMILIES,
    greedy,
    log_probability,
    loss_and_gradients,
    peft_network,
    plain_network,
    write_base,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixtune.engine import decoder as forward
from mixtune.engine.batching import InputSequence, make_passes, training_sequence
from mixtune.engine.forest import Branch, pack_forest
from mixtune.engine.model import LocalModel
from mixtune.engine.rank import ChoiceTrie
from mixtune.engine.train import Job, learning_rate, train
from mixtune.errors import ModelError, RunFailed
from mixtune.records import TrainStep
from mixtune.study.spec import Budget, RunLength, TrainSpec
from mixtune.tokens import Row, Tokens

SHAPES = {
    "header": [("a", 60, n, 2) for n in (5, 9, 7, 30)],
    "no-header": [("a", 0, n, 3) for n in (5, 12, 8)],
    "two-headers": [("a", 50, 6, 1), ("b", 60, 8, 4), ("a", 50, 9, 2), ("b", 60, 1, 1)],
    "identical": [("a", 80, 0, 1)] * 3,
    "one": [("a", 10, 5, 6)],
}


class TestTraining:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_loss_and_gradients_are_the_plain_ones(self, models, folders, tmp_path, family, shape):
        model, rows = models(family), rows_of(*SHAPES[shape])
        model.save_adapter(tmp_path, "base")
        oracle = peft_network(folders(family), tmp_path, trainable=True)
        assert_same(gradients(model, rows), loss_and_gradients(oracle, rows))

    @given(
        st.lists(
            st.tuples(
                st.sampled_from("ab"),
                st.sampled_from([0, 20, 70]),
                st.integers(1, 25),
                st.integers(0, 6),
            ),
            min_size=1,
            max_size=9,
        ),
        st.sampled_from([1, 100, 4096]),
    )
    @settings(
        max_examples=15,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        derandomize=True,
    )
    def test_any_rows_and_any_split(self, models, folders, tmp_path, shapes, limit):
        model, rows = models(), rows_of(*shapes)
        model.save_adapter(tmp_path, "base")
        oracle = peft_network(folders("llama"), tmp_path, trainable=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(make_passes, "__defaults__", (limit, None))
            found = gradients(model, rows)
        assert_same(found, loss_and_gradients(oracle, rows))

    def test_headers_are_shared_in_these_tests(self, models):
        """Without this the equivalence tests could pass on the plain path alone."""
        rows = rows_of(*SHAPES["two-headers"], *SHAPES["header"])
        (work,) = make_passes([training_sequence(row) for row in rows])
        assert sum(row.shared > 40 for row in work.rows) > 4

    def test_logits_in_blocks_change_nothing(self, models, monkeypatch):
        rows = rows_of(*[("a", 0, 5, 9)] * 4)
        whole = gradients(models(), rows)
        monkeypatch.setattr("mixtune.engine.loss.LOGIT_ROWS", 7)
        assert_same(gradients(models(), rows), whole)

    def test_same_seed_same_bits(self, models, tmp_path):
        rows = rows_of(*[("ab"[i % 2], 60, 4 + i, 2) for i in range(8)])
        budget = Budget(steps=2, examples_per_step=4)
        for name, seed in (("one", 3), ("two", 3), ("three", 4)):
            model = models()
            model.reset(seed)
            train(model, rows, SPEC, budget, None)
            model.save_adapter(tmp_path / name, "base")
        one, two, three = (
            (tmp_path / name / "adapter_model.safetensors").read_bytes()
            for name in ("one", "two", "three")
        )
        assert one == two
        assert one != three

    def test_steps_are_recorded_and_follow_adamw(self, models, folders, tmp_path):
        """Two steps, clipping on, against torch's AdamW on PEFT's parameters."""
        model, rows = models(), rows_of(*[("a", 60, 4 + i, 1 + i) for i in range(6)])
        model.save_adapter(tmp_path, "base")
        spec = SPEC.model_copy(update={"weight_decay": 0.1, "clip": 0.5})
        seen = []
        steps = train(model, rows, spec, Budget(steps=2, examples_per_step=3), seen.append)
        oracle = peft_network(folders("llama"), tmp_path, trainable=True)
        mine = [p for p in oracle.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(mine, weight_decay=0.1)
        for step in range(2):
            part = rows[3 * step : 3 * step + 3]
            optimiser.param_groups[0]["lr"] = learning_rate(step, spec, 2)
            optimiser.zero_grad()
            loss, _ = loss_and_gradients(oracle, part)
            norm = torch.nn.utils.clip_grad_norm_(mine, 0.5)
            optimiser.step()
            assert steps[step].loss == pytest.approx(loss, abs=1e-5)
            assert steps[step].grad_norm == pytest.approx(norm.item(), rel=1e-4)
            assert steps[step].tokens == sum(row.length for row in part)
            assert steps[step].supervised_tokens == sum(len(row.answer) for row in part)
        assert seen == steps
        assert norm > 0.5, "clipping was not exercised"
        found = dict(model.bank.named_parameters(0))
        for name, parameter in oracle.named_parameters():
            if parameter.requires_grad:
                mine = found[name.replace(".default", "")]
                assert torch.allclose(mine, parameter, atol=2e-4), name

    def test_learns_and_stops(self, models):
        """A task that can be learnt is learnt, and generation then ends its turn."""
        model, tokens = models(), models().tokens
        model.reset(1)
        pairs = [(query(i, HEADER + word), word) for i, word in enumerate(("up", "down"))]
        rows = [
            Row("a", q.id, tuple(tokens.prompt_ids(q.messages)), tuple(tokens.answer_ids(word)))
            for q, word in pairs
        ]
        steps = train(model, rows * 40, SPEC, Budget(steps=40, examples_per_step=2), None)
        assert steps[-1].loss < 0.1 < steps[0].loss
        answers = model.generate([q for q, _ in pairs], 10)
        assert [(a.output, a.finish) for a in answers] == [("up", "stop"), ("down", "stop")]
        assert [a.output for a in model.rank([q for q, _ in pairs])] == ["up", "down"]

    def test_divergence_fails_the_run(self, models):
        model = models()
        with torch.no_grad():
            model.bank.weights.fill_(math.nan)
        with pytest.raises(RunFailed, match="step 0: loss nan"):
            train(model, rows_of(("a", 0, 4, 2)), SPEC, Budget(steps=1, examples_per_step=1), None)

    def test_rows_must_fill_the_budget(self, models):
        with pytest.raises(ValueError, match="1 rows for 2 examples"):
            train(models(), rows_of(("a", 0, 4, 2)), SPEC, Budget(steps=2, examples_per_step=1))

    def test_bfloat16_trains_float32_weights(self, folders):
        model = load(folders("llama"), SPEC.model_copy(update={"compute": "bfloat16"}))
        model.reset(1)
        rows = rows_of(*[("a", 60, 5, 2)] * 4)
        losses = [
            step.loss for step in train(model, rows * 5, SPEC, Budget(steps=5, examples_per_step=4))
        ]
        assert losses[-1] < losses[0]
        assert model.bank.weights.dtype == torch.float32
        assert model.decoder.dtype == torch.bfloat16


class TestLearningRate:
    @pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
    def test_rises_then_follows_the_schedule(self, schedule):
        spec = TrainSpec(lr=1.0, warmup=0.11, schedule=schedule)
        rates = [learning_rate(step, spec, 20) for step in range(20)]
        assert rates[:3] == pytest.approx([0.25, 0.5, 0.75])
        assert rates[3] == 1.0
        half = 3 + 17 / 2
        assert rates == sorted(rates[:4]) + sorted(rates[4:], reverse=True)
        assert rates[19] > 0
        if schedule == "constant":
            assert set(rates[3:]) == {1.0}
        else:
            assert (rates[11] + rates[12]) / 2 == pytest.approx(0.5, abs=0.01), half
            assert rates[19] < 0.1

    def test_no_warmup(self):
        assert learning_rate(0, TrainSpec(lr=0.5, warmup=0), 10) == 0.5

    def test_steps_of_warm_up_instead_of_a_share(self):
        shared, given = TrainSpec(warmup=0.2), TrainSpec(warmup=0.9, warmup_steps=4)
        rates = [[learning_rate(step, spec, 20) for step in range(20)] for spec in (shared, given)]
        assert rates[0] == rates[1]
        longer = TrainSpec(warmup_steps=30)
        assert [learning_rate(s, longer, 3) for s in range(3)] == sorted(
            learning_rate(s, longer, 3) for s in range(3)
        )

    def test_the_last_step_has_what_is_left_and_steps_may_differ(self):
        rows = rows_of(*[("a", 0, 3, 2)] * 7)
        for course, wanted in (
            (RunLength(7, 3), [3, 3, 1]),
            (RunLength(7, 2, sizes=(4, 3)), [4, 3]),
        ):
            job = Job("x", rows, SPEC, course, 1)
            sizes = []
            while not job.done:
                sizes.append(len(job.batch()))
                job.log.append(TrainStep(len(job.log), 0, 0, 0, 0, 0, 0, 0))
            assert sizes == wanted


class TestBatching:
    @staticmethod
    def seated(rows, slots=None, **limits):
        texts = [
            training_sequence(row, slot)
            for row, slot in zip(rows, slots or [0] * len(rows), strict=True)
        ]
        return texts, make_passes(texts, **limits)

    def test_every_row_once_within_the_budget(self):
        rows = rows_of(*[("abc"[i % 3], 70, 1 + 37 * i % 200, 2) for i in range(40)])
        _, found = self.seated(rows, max_tokens=900)
        assert sorted(row.index for work in found for row in work.rows) == list(range(40))
        assert all(work.num_tokens <= 900 for work in found)
        assert len(found) > 1

    def test_a_row_is_what_stands_on_its_way_to_the_root(self):
        """Headers of two levels, several adapters, identical prompts: no token lost or doubled."""
        rows = rows_of(*[("ab"[i % 2], 40, i % 4, 1 + i % 3) for i in range(30)])
        system = tuple(range(3, 40))
        rows = [dataclasses.replace(row, prompt=system + row.prompt) for row in rows]
        slots = [i % 3 for i in range(30)]
        _, found = self.seated(rows, slots)
        levels = set()
        for work in found:
            for row in work.rows:
                way, index, level = [], row.branch, 0
                while index >= 0:
                    branch = work.branches[index]
                    assert branch.slot == row.slot == slots[row.index]
                    way[:0] = branch.tokens
                    index, level = branch.parent, level + 1
                levels.add(level)
                assert way == [*rows[row.index].prompt, *rows[row.index].answer[:-1]]
                skipped = len(way) - len(work.branches[row.branch].tokens)
                assert row.shared == skipped < len(rows[row.index].prompt)
        assert max(levels) == 3, "no header of two levels in this test"

    def test_headers_only_where_they_pay(self):
        def tokens(*prompts):
            texts = [InputSequence(0, prompt, (9,)) for prompt in prompts]
            return [work.num_tokens for work in make_passes(texts)]

        long = [[*range(90), row] for row in range(3)]
        assert tokens(*long) == [90 + 3 * 2]
        assert tokens(long[0]) == [92]
        assert tokens([1, 2, 3], [1, 2, 4]) == [8]
        assert tokens([5] * 60, [5] * 60) == [59 + 2 * 2]

    def test_adapters_share_no_header(self):
        rows = rows_of(("a", 60, 4, 2), ("a", 60, 5, 2))
        _, (work,) = self.seated(rows, [0, 1])
        assert len(work.branches) == 2

    def test_rows_too_long_for_the_limit_go_alone(self):
        rows = rows_of(("a", 0, 3000, 2), ("a", 0, 3000, 2), ("a", 0, 30, 2))
        _, found = self.seated(rows, max_tokens=2000)
        assert sorted(len(work.rows) for work in found) == [1, 1, 1]
        _, found = self.seated(rows, packing_limit=100, max_tokens=10**6)
        assert sorted(len(work.rows) for work in found) == [1, 1, 1]

    def test_order_of_rows_does_not_matter(self):
        rows = rows_of(*[("ab"[i % 2], 60, 5 + i, 2) for i in range(9)])
        _, there = self.seated(rows)
        _, back = self.seated(rows[::-1])
        assert [work.branches for work in there] == [work.branches for work in back]

    @pytest.mark.parametrize("part", ["prompt", "answer"])
    def test_rows_with_nothing_in_them_are_refused(self, part):
        (row,) = rows_of(("a", 0, 3, 2))
        with pytest.raises(ValueError, match="a/0"):
            training_sequence(dataclasses.replace(row, **{part: ()}))

    def test_children_of_strangers_are_refused(self):
        with pytest.raises(ValueError, match="branch 1 cannot continue branch 0"):
            pack_forest([Branch([1]), Branch([2], parent=0, slot=1)], torch.device("cpu"))


class TestRank:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_sums_are_the_plain_ones(self, models, folders, tmp_path, family):
        """Labels that prefix one another and share first tokens; chunks with other choices."""
        model = models(family)
        model.save_adapter(tmp_path, "base")
        oracle = peft_network(folders(family), tmp_path)
        for answer, asked in zip(model.rank(MIXED), MIXED, strict=True):
            prompt = model.tokens.prompt_ids(asked.messages)
            wanted = [
                log_probability(oracle, prompt, model.tokens.answer_ids(text))
                for text in asked.choices
            ]
            assert answer.logprobs == pytest.approx(wanted, abs=1e-4)
            assert answer.output == asked.choices[wanted.index(max(wanted))]
            assert answer.finish == "stop"
            assert answer.latency > 0

    def test_logits_in_blocks_change_nothing(self, models, monkeypatch):
        whole = models().rank(MIXED)
        monkeypatch.setattr("mixtune.engine.rank.LOGIT_ROWS", 5)
        for one, other in zip(whole, models().rank(MIXED), strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)

    def test_order_of_queries_does_not_matter(self, models):
        there, back = models().rank(QUERIES), models().rank(QUERIES[::-1])[::-1]
        assert [a.logprobs for a in there] == [a.logprobs for a in back]

    def test_no_choices_is_an_error(self, models):
        with pytest.raises(ValueError, match="q07 has no choices"):
            models().rank([query(7, "?", ())])

    def test_no_queries_no_answers(self, models):
        assert models().rank([]) == []

    def test_tree_shares_starts(self):
        tree = ChoiceTrie.build([[1, 2, 9], [1, 9], [3, 9], [1, 2, 4, 9]])
        assert tree.tokens == [1, 2, 3, 4]
        assert tree.parents == [-1, 0, -1, 1]
        assert tree.depths() == [0, 1, 0, 2]
        assert tree.paths[1] == [(-1, 1), (0, 9)]
        assert tree.mask().int().tolist() == [
            [1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [1, 1, 0, 1],
        ]


class TestGenerate:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_text_is_transformers_own(self, models, folders, tmp_path, family):
        model = models(family)
        model.save_adapter(tmp_path, "base")
        oracle = peft_network(folders(family), tmp_path)
        for answer, asked in zip(model.generate(MIXED, 8), MIXED, strict=True):
            ids = greedy(oracle, model.tokens.prompt_ids(asked.messages), 8)
            assert answer.output == model.tokens.decode([i for i in ids if i != END])
            assert answer.finish == ("stop" if END in ids else "length")
            assert answer.latency > 0

    def test_rows_that_stop_early_leave_the_others_alone(self, models, folders, tmp_path):
        """Pretend that a common token ends the turn: rows then stop at different steps."""
        model = models()
        model.save_adapter(tmp_path, "base")
        oracle = peft_network(folders("llama"), tmp_path)
        ids = [greedy(oracle, model.tokens.prompt_ids(q.messages), 8) for q in QUERIES]
        stop = ids[0][3]
        tokens = Tokens.load(folders("llama"))
        tokens.eos_ids = {stop}
        other = LocalModel(model.decoder, model.bank, tokens, EVALUATE)
        answers = other.generate(QUERIES, 8)
        assert {a.finish for a in answers} == {"stop", "length"}
        for answer, row in zip(answers, ids, strict=True):
            kept = row[: row.index(stop)] if stop in row else row
            assert answer.output == tokens.decode(kept)

    def test_end_of_turn_of_several_tokens_is_cut_off(self, models, folders):
        tokens = Tokens.load(folders("llama"))
        ids = models().tokens.answer_ids("up")
        tokens.end_of_turn = tuple(ids[1:])
        from mixtune.engine.generate import answer_of

        assert answer_of(ids, tokens, 0.0).output == "u"
        assert answer_of(ids[:-1], tokens, 0.0).finish == "length"

    def test_limit_must_be_positive(self, models):
        with pytest.raises(ValueError, match="max_new_tokens is 0"):
            models().generate(QUERIES, 0)


@pytest.mark.parametrize("verb", ["rank", "generate"])
def test_over_long_prompts_are_refused(models, verb):
    model = models()
    asked = query(3, "x" * 500)
    call = model.rank if verb == "rank" else lambda queries: model.generate(queries, 4)
    with pytest.raises(ModelError, match=r"(?s)q03.*5\d\d tokens.*at most 400.*max_prompt_length"):
        call([*QUERIES, asked])


class TestContext:
    """A text beyond the model's 512 positions is refused, wherever it comes in."""

    def test_in_training(self, models):
        model = models()
        gradients(model, rows_of(("a", 0, 510, 1)))
        with pytest.raises(ModelError, match=r"(?s)model's context.*513 tokens.*at most 512"):
            gradients(model, rows_of(("a", 0, 512, 1)))

    def test_in_answers(self, folders):
        model = load(
            folders("llama"), evaluate=EVALUATE.model_copy(update={"max_prompt_length": 600})
        )
        asked = query(1, "x" * 480)
        length = len(model.tokens.prompt_ids(asked.messages))
        assert len(model.generate([asked], 512 - length + 1)) == 1
        with pytest.raises(ModelError, match="model's context"):
            model.generate([query(1, "x" * 480, ())], 512 - length + 2)
        with pytest.raises(ModelError, match="model's context"):
            model.rank([query(1, "x" * 520)])


class TestAdapterFiles:
    def test_peft_computes_the_same(self, models, folders, tmp_path):
        model = models()
        model.save_adapter(tmp_path, "org/base")
        ids = torch.arange(3, 40).unsqueeze(0)
        with torch.no_grad():
            mine = model.decoder.logits(hidden(model, ids[0].tolist()))
            peft = peft_network(folders("llama"), tmp_path)(input_ids=ids).logits
            base = plain_network(folders("llama"))(input_ids=ids).logits
        assert torch.allclose(mine, peft, atol=1e-5)
        assert not torch.allclose(mine, base, atol=1e-2)

    def test_base_alone_is_the_plain_model(self, models, folders):
        model = models()
        model.use_base()
        ids = torch.arange(3, 40).unsqueeze(0)
        with torch.no_grad():
            mine = model.decoder.logits(hidden(model, ids[0].tolist()))
            plain = plain_network(folders("llama"))(input_ids=ids).logits
        assert torch.allclose(mine, plain, atol=1e-5)

    def test_fresh_adapter_is_the_base(self, models):
        model = models()
        model.use_base()
        base = model.rank(QUERIES)
        model.reset(7)
        for one, other in zip(base, model.rank(QUERIES), strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-6)

    def test_round_trip(self, models, folders, tmp_path):
        model = models()
        model.save_adapter(tmp_path / "a", "base")
        before = model.rank(QUERIES)
        other = load(folders("llama"))
        other.use_base()
        other.load_adapter(tmp_path / "a")
        other.save_adapter(tmp_path / "b", "base")
        assert [a.logprobs for a in other.rank(QUERIES)] == [a.logprobs for a in before]
        one, two = (
            (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("a", "b")
        )
        assert one == two

    @pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
    def test_missing_and_truncated_files(self, models, tmp_path, name):
        model = models()
        model.save_adapter(tmp_path, "base")
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(ModelError, match=name):
            model.load_adapter(tmp_path)
        path.unlink()
        with pytest.raises(ModelError, match=name):
            model.load_adapter(tmp_path)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("r", 8),
            ("lora_alpha", 7),
            ("target_modules", ["q_proj"]),
            ("peft_type", "IA3"),
            ("use_rslora", True),
        ],
    )
    def test_foreign_settings(self, models, tmp_path, key, value):
        model = models()
        model.save_adapter(tmp_path, "base")
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
        with pytest.raises(ModelError, match=f"differs in {key}"):
            model.load_adapter(tmp_path)

    def test_weights_of_another_model(self, models, tmp_path):
        models("qwen2").save_adapter(tmp_path, "base")
        (tmp_path / "other").mkdir()
        models("phi3").save_adapter(tmp_path / "other", "base")
        weights = (tmp_path / "other" / "adapter_model.safetensors").read_bytes()
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
        with pytest.raises(ModelError, match="do not fit the base model"):
            models("qwen2").load_adapter(tmp_path)

    def test_a_failed_load_changes_nothing(self, models, tmp_path):
        model = models()
        before = model.rank(QUERIES)
        with pytest.raises(ModelError):
            model.load_adapter(tmp_path)
        assert [a.logprobs for a in model.rank(QUERIES)] == [a.logprobs for a in before]

    def test_every_linear_but_the_head(self, models):
        model = models()
        assert len(model.bank.layers) == 2 * 7
        assert not any("lm_head" in name for name in model.bank.layers)
        assert not any(p.requires_grad for p in model.decoder.head.parameters())


class TestLoading:
    def test_windows_need_no_span(self, models):
        """Sliding windows are exact in any pass; only stretched rotations are not."""
        assert models("gemma3").decoder.packing_limit is None
        assert models("llama").decoder.packing_limit is None

    def test_no_folder(self, folders, tmp_path):
        with pytest.raises(ModelError, match="cannot be loaded"):
            LocalModel.load(tmp_path / "none", Tokens.load(folders("llama")), SPEC, EVALUATE)

    def test_missing_weights_are_not_invented(self, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = write_base(tmp_path, "llama")
        held = load_file(folder / "model.safetensors")
        held.pop("model.layers.1.mlp.up_proj.weight")
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"(?s)lacks weights.*up_proj"):
            load(folder)

    def test_unknown_logits_are_refused(self, folders):
        network = plain_network(folders("llama"))
        network.register_forward_hook(lambda _model, _args, out: type(out)(logits=out.logits * 2))
        with pytest.raises(ModelError, match="does more than attention"):
            forward.Decoder(network)

    def test_rounding_is_no_other_architecture(self, smollm2):
        """Equal ways of computing differ by a third at SmolLM2's special tokens in bfloat16."""
        spec = TrainSpec(compute="bfloat16")
        assert load(smollm2.folder, spec).decoder.dtype == torch.bfloat16
