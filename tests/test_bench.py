"""The benchmark's arithmetic, files and table, without any peer."""

import io
import json

import pytest
from engine_oracle import write_base

from bench import __main__ as command
from bench import bookkeeping, cases
from bench.data import (
    Source,
    fingerprint,
    read_scoring,
    read_training,
    write_scoring,
    write_training,
)
from bench.errors import BenchError, NotThere
from bench.pipe import Channel, Worker
from bench.results import TARGETS, Outcome, Results, Target, pair_ratios
from bench.table import BEGIN, END, table, write_table
from bench.tuning import (
    DOCUMENTED,
    best_of,
    give_up_below,
    hopeless,
    score_settings,
    settings_of,
    worth,
)
from bench.work import Shape, counts, training_flops
from mixtune.store.folder import Store
from mixtune.tokens import Row

ABOUT = {"model": "m", "data": "real", "device": "cpu", "quick": False}
MADE = {
    "command": "python -m bench",
    "date": "2026-01-02T03:04:05+00:00",
    "minutes": 1.5,
    "commit": "abc",
    "machine": {
        "cpu": "one",
        "cores": 2,
        "memory_gib": 8,
        "versions": {"torch": "2"},
        "device": "cpu",
    },
}


def row(prompt, answer=(9, 0)):
    return Row("a", "1", tuple(prompt), tuple(answer))


def pair(ours, peer):
    return {"ours": {"rate": ours, "peak_bytes": ours}, "peer": {"rate": peer, "peak_bytes": peer}}


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "out", ABOUT)


class TestWork:
    def test_shared_starts_count_once_and_the_last_token_never(self):
        found = counts([row([1, 2, 3]), row([1, 2, 4, 5]), row([7]), row([1, 2, 3])])
        # Inputs: 1 2 3 9, 1 2 4 5 9, 7 9, and the first again; 4 + 3 + 2 + 0 are new.
        assert (found.tokens, found.unique, found.supervised) == (15, 9, 8)

    def test_a_row_that_begins_another(self):
        assert counts([row([1], [2, 0]), row([1, 2, 3], [4, 0])]).unique == 4

    def test_steps_add_up(self):
        one = counts([row([1, 2])])
        assert one + one == type(one)(6, 6, 4)

    def test_flops_by_hand(self):
        """One layer of 2 × 3, rank 5, vocabulary 7, width 2."""
        shape = Shape(((2, 3),), 1, 2, 7)
        assert shape.base == 6
        assert shape.adapter(5) == 25
        base, adapter, head = 4 * 6, 6 * 25, 4 * 7 * 2
        assert training_flops(shape, 5, 10, 3) == 10 * (base + adapter) + 3 * head

    def test_shape_of_a_llama(self, tmp_path):
        config = {
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "vocab_size": 11,
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        shape = Shape.of(tmp_path)
        assert shape.base == 3 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 12)
        assert (shape.layers, shape.width, shape.vocabulary) == (3, 8, 11)


class TestTuning:
    def test_grid_is_whole(self):
        grid = settings_of(("float32", "bfloat16"), (2, 4, 8, 16))
        assert len(grid) == 16
        assert DOCUMENTED in grid
        assert len(score_settings(("float32",), (1, "auto"))) == 2

    def test_given_up_beside_the_same_batch_in_another_format(self):
        one, other, packed = (
            {"dtype": dtype, "batch": 2, "packing": packing}
            for dtype, packing in (("float32", False), ("bfloat16", False), ("bfloat16", True))
        )
        grid = [{"setting": one, "rate": 3.0}]
        assert give_up_below(grid, one | {"batch": 4}) == 0
        assert give_up_below(grid, other) == pytest.approx(1)
        assert give_up_below(grid, packed) == 0
        assert (
            give_up_below([{"setting": DOCUMENTED | {"dtype": "float32"}, "rate": 9}], DOCUMENTED)
            == 0
        )
        grid.append({"setting": other, "rate": 0.5, "stopped": True})
        assert hopeless(grid, other | {"batch": 4})
        assert not hopeless(grid, packed | {"batch": 4})
        assert not hopeless(grid, DOCUMENTED)

    def test_best(self):
        def entry(dtype, packing, rate, **more):
            setting = {"dtype": dtype, "batch": 2, "packing": packing}
            return {"setting": setting, "rate": rate, **more}

        grid = [
            entry("float32", False, 2.0),
            entry("float32", True, 3.0),
            entry("bfloat16", False, 5.0, stopped=True),
            entry("bfloat16", True, 0.4),
        ]
        found = best_of(grid)
        assert found["best"]["rate"] == 3
        assert found["best_padded"]["rate"] == 2
        assert found["best_bfloat16"]["rate"] == 0.4
        assert best_of(grid[:2])["best_bfloat16"] is None
        grid[2]["rate"] = 0.1
        tuned = {"extras": best_of(grid)}
        assert worth(tuned, ("float32", "bfloat16", "float16")) == ("float32", "float16")


class TestResults:
    def test_ratios_are_taken_pair_by_pair(self, results):
        repeats = [{"trl": pair(*numbers)} for numbers in ((10, 1), (20, 4), (9, 3))]
        values = pair_ratios(repeats, "trl")
        assert values == [10, 5, 3]
        assert pair_ratios(repeats, "trl", "peak_bytes", inverse=True)[0] == 0.1
        results.save("train_fpb", Outcome({"train_fpb_vs_trl": values}, repeats), MADE)
        held = json.loads((results.folder / "latest.json").read_text())
        # The median of the ratios; that of 10, 20, 9 over that of 1, 4, 3 would be 10 / 3.
        assert held["ratios"] == {"train_fpb_vs_trl": 5}
        assert held["values"] == {"train_fpb_vs_trl": [10, 5, 3]}
        assert held["made"]["cases"]["train_fpb"]["repeats"] == 3

    def test_latest_joins_cases_and_leaves_out_what_was_measured_otherwise(self, results):
        Results(results.folder, ABOUT | {"data": "other"}).save(
            "score3", Outcome({"score3_vs_lm_eval": [4.0]}), MADE
        )
        results.save("top_layers", Outcome({"top_layers_vs_all": [3.0]}, extras={"n": 1}), MADE)
        results.save("train_mix", Outcome({"train_mix_vs_trl_best": [2.0]}), MADE)
        latest = results.latest()
        assert latest["ratios"] == {"train_mix_vs_trl_best": 2, "top_layers_vs_all": 3}
        assert latest["extras"] == {"top_layers": {"n": 1}}
        assert set(latest["targets"]) == set(TARGETS)

    def test_finished_only_for_the_same_model_data_and_device(self, results):
        assert not results.finished("score3")
        with pytest.raises(BenchError, match="score3"):
            results.load("score3")
        results.save("score3", Outcome({"score3_vs_lm_eval": [4.0]}), MADE)
        assert results.finished("score3")
        assert not Results(results.folder, ABOUT | {"model": "other"}).finished("score3")

    def test_targets(self):
        assert [Target("", 2, 4).reached(v) for v in (1, 2, 4)] == ["short", "at least", "aim"]
        assert [Target("", 0.8, 0.5, lower=True).reached(v) for v in (0.9, 0.8, 0.5)] == [
            "short",
            "at least",
            "aim",
        ]


class TestTable:
    def test_between_the_markers_only(self, results, tmp_path):
        results.save("score3", Outcome({"score3_vs_lm_eval": [3.0, 4.0, 9.0]}), MADE)
        results.save("train_mix", Outcome({"train_mix_vs_trl_best": [2.0]}), MADE)
        page = tmp_path / "performance.md"
        page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        for _ in range(2):
            write_table(results.latest(), page)
            text = page.read_text()
            assert text.startswith("before\n")
            assert text.endswith("after\n")
            assert "old" not in text
        assert "| 4 | 3 – 9 | 4 | 8 | minimum met |" in text
        assert "| 2 (1 of 3 repeats) | 2 – 2 | 3 | 6 | **below minimum** |" in text
        assert "Below the minimum: `train_mix_vs_trl_best`." in text
        assert "Not measured: `train_fpb_vs_trl`" in text
        assert "2026-01-02 at abc on one, 2 cores" in text

    def test_other_machines_below(self, results, tmp_path):
        results.save("score3", Outcome({"score3_vs_lm_eval": [4.0] * 3}), MADE)
        slower = Results(results.folder / "slower", ABOUT)
        slower.save("score3", Outcome({"score3_vs_lm_eval": [3.0] * 3}), MADE)
        Results(results.folder / "strange", ABOUT | {"model": "x"}).save("a", Outcome(), MADE)
        page = tmp_path / "new.md"
        write_table(results.latest(), page, results.others())
        own, below = page.read_text().split("### slower")
        assert "| 4 | 4 – 4 | 4 | 8 | minimum met |" in own
        assert "| 3 | 3 – 3 | 4 | 8 | **below minimum** |" in below
        assert "strange" not in below

    def test_a_new_page_and_one_without_markers(self, results, tmp_path):
        page = tmp_path / "new.md"
        write_table(results.latest(), page)
        assert table(results.latest()) in page.read_text()
        page.write_text("nothing")
        with pytest.raises(BenchError, match="no place"):
            write_table(results.latest(), page)


class TestCases:
    def test_what_is_needed_comes_first_and_once(self):
        assert cases.in_order(["score20", "score3"]) == [
            "tune_score3",
            "tune_score20",
            "score20",
            "score3",
        ]
        assert sorted(cases.in_order([])) == sorted(cases.CASES)
        with pytest.raises(BenchError, match="no case is called nonsense"):
            cases.in_order(["nonsense"])

    def test_every_target_has_one_case_that_is_listed(self):
        assert all(case.about for case in cases.CASES.values())


class TestCommand:
    @pytest.fixture
    def measured(self, monkeypatch, tmp_path):
        """Two cases, one needing the other, that only count how often they run."""
        runs = []

        def first(run):
            """First."""
            runs.append("first")
            return Outcome({"score3_vs_lm_eval": [5.0] * run.repeats})

        def second(run):
            """Second."""
            runs.append("second")
            if (tmp_path / "absent").exists():
                raise NotThere("no such engine")
            return Outcome(
                {"top_layers_vs_all": [run.results.load("first")["ratios"]["score3_vs_lm_eval"]]}
            )

        made = {"first": cases.Case(first), "second": cases.Case(second, ("first",))}
        monkeypatch.setattr(cases, "CASES", made)
        monkeypatch.setattr(command, "CASES", made)
        monkeypatch.setattr(
            command.Run,
            "base",
            {"folder": "", "digest": "d", "device": "cpu", "compute": "float32", "gflops": {}},
            raising=False,
        )
        return runs

    def call(self, tmp_path, *more):
        return command.main([*more, "--out", str(tmp_path / "out"), "--json"])

    def test_finished_cases_are_kept_unless_asked_again(self, measured, tmp_path, capsys):
        assert self.call(tmp_path, "second") == 0
        assert json.loads(capsys.readouterr().out)["ratios"]["top_layers_vs_all"] == 5
        assert self.call(tmp_path) == 0
        assert measured == ["first", "second"]
        assert self.call(tmp_path, "second", "--again") == 0
        assert measured == ["first", "second", "second"]
        assert "first: finished" in capsys.readouterr().err

    def test_a_case_that_cannot_be_measured_stops_no_other(self, measured, tmp_path, capsys):
        (tmp_path / "absent").touch()
        assert self.call(tmp_path) == 1
        assert "second: not there yet: no such engine" in capsys.readouterr().err
        assert (tmp_path / "out" / "first.json").is_file()
        assert not (tmp_path / "out" / "second.json").exists()

    def test_no_path_of_this_machine_in_a_result(self, measured, tmp_path, capsys):
        self.call(tmp_path, "--data-dir", str(tmp_path))
        capsys.readouterr()
        for path in (tmp_path / "out").glob("*.json"):
            assert str(tmp_path) not in path.read_text()
        held = json.loads((tmp_path / "out" / "first.json").read_text())
        assert held["command"] == "python -m bench --data-dir DATA --repeats 3"


class TestPipe:
    def test_a_channel_says_ready_hears_orders_and_replies(self):
        said = io.StringIO()
        channel = Channel(io.StringIO('{"start": 3}\n'), said)
        channel.ready(n=1)
        assert channel.next() == {"start": 3}
        channel.reply(seconds=2)
        assert channel.next() is None
        channel.refuse(NotThere("no"))
        lines = [json.loads(line) for line in said.getvalue().splitlines()]
        assert lines == [{"ready": {"n": 1}}, {"reply": {"seconds": 2}}, {"not-there": "no"}]

    def test_a_worker_that_dies_says_why(self, tmp_path):
        with pytest.raises(BenchError, match="KeyError: 'nobody'"):
            Worker("nobody", {}, tmp_path / "log")


class TestData:
    def test_rows_go_through_a_file_unchanged(self, tmp_path):
        source = Source(None)
        rows = source.training("finance-mix", 30)
        assert len(rows) == 30
        assert {name for name, _ in rows[:30]} >= {"toy-sentiment", "toy-general", "toy-maths"}
        write_training(tmp_path / "rows", rows)
        assert read_training(tmp_path / "rows") == rows
        assert read_training(tmp_path / "rows", 5) == rows[:5]
        asked = source.scoring("labels-20", 6)
        assert len(asked) == 6
        assert len(asked[0].choices) == 4
        write_scoring(tmp_path / "asked", asked)
        assert read_scoring(tmp_path / "asked") == asked
        assert fingerprint(rows) == source_fingerprint()

    def test_twenty_labels_stand_in_the_header(self, tmp_path):
        folder = tmp_path / "twitter_topic"
        folder.mkdir()
        rows = [{"id": str(i), "text": f"t\u2028{i}", "label": "ab"[i % 2]} for i in range(9)]
        (folder / "test.jsonl").write_text(
            "".join(f"{json.dumps(r, ensure_ascii=False)}\n" for r in rows)
        )
        asked = Source(tmp_path).scoring("labels-20", 4)
        assert [query.id for query in asked] == ["0", "2", "4", "6"]
        assert asked[0].choices == ("a", "b")
        assert "a, b.\n\nt\u20280" in asked[0].messages[0].content


def test_the_stand_in_for_a_model_goes_through_all_that_a_run_asks_of_one(tmp_path):
    """No type checker sees that it is one; the engine's signatures have left it behind before."""
    base = write_base(tmp_path / "base", "llama")
    found = bookkeeping._seconds(str(base), 10, tmp_path / "dry")
    assert set(found) == {"plan", "save", "start", "carry", "look"}
    states = {unit.state for unit in Store(tmp_path / "dry").units().values()}
    assert states == {"done"}


def source_fingerprint():
    return fingerprint(Source(None).training("finance-mix", 30))
