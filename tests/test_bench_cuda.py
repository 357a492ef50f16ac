"""`python -m bench --cuda`, tiny and on a CPU: all that a GPU would run, and its arithmetic."""

import argparse
import json

import pytest
import torch

from bench import cuda, cuda_bank, cuda_exact, cuda_plain
from bench.cuda_bank import Steps, jobs_of, measure, shape_of
from bench.cuda_made import FPB, LONG, VOCABULARY, phi3_mini, rows_of, write_tiny
from bench.cuda_plain import Solo
from bench.work import counts
from mixtune.engine.bank import batched_slots
from mixtune.engine.model import LocalModel
from mixtune.study.spec import EvalSpec, TrainSpec
from mixtune.tokens import Tokens

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def bank(tiny):
    def load(slots):
        spec = TrainSpec(rank=16, alpha=32.0, compute="bfloat16")
        return LocalModel.load(tiny, Tokens.load(tiny), spec, EvalSpec(), slots=slots)

    return load


def run(capsys, *arguments):
    """The command on a CPU: exit status, what it printed."""
    status = cuda.main(["--cuda", "--small", "--device", "cpu", "--json", *map(str, arguments)])
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture
def measures_nothing(monkeypatch):
    """The case large, where what is done with its numbers is looked at."""
    monkeypatch.setitem(cuda.CASES, "large", lambda bench: {"banks": []})


class TestCommand:
    def test_all_cases(self, capsys, tmp_path):
        status, found = run(capsys, "--out", tmp_path / "results")
        assert status == 0
        assert json.loads((tmp_path / "results" / "cuda-cpu.json").read_text()) == found
        cases = found["cases"]
        assert list(cases) == ["exact", "bank", "large"]
        assert cases["exact"]["passed"]
        assert {check["way"] for check in cases["exact"]["checks"]} == {
            "cpu",
            "cpu, by a GPU's paths",
        }
        for name, rows in (("bank", ["ragged", "ragged", "equal"]), ("large", None)):
            entries = cases[name]["banks"]
            assert [one["rows"] for one in entries] == (
                rows or ["ragged", "long", "ragged", "equal", "long"]
            )
            assert all(one["useful_share"] > 0 for one in entries)
            assert [one["batched_products"] for one in entries if one["rows"] == "equal"] == [
                [True]
            ]
            assert entries[-1]["profile"]["top"]
        assert cases["bank"]["solo"]["by"] == "peft"
        assert all(one["ratio"] > 0 for one in cases["bank"]["banks"])
        assert "/" not in cases["bank"]["made"]["command"]

    @pytest.mark.usefixtures("measures_nothing")
    def test_nothing_is_written_unasked_when_small(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setattr(cuda, "RESULTS", tmp_path)
        run(capsys, "--cases", "large")
        assert not list(tmp_path.iterdir())

    @pytest.mark.usefixtures("measures_nothing")
    def test_cases_of_the_same_machine_are_kept(self, capsys, tmp_path):
        run(capsys, "--cases", "large", "--out", tmp_path)
        path = tmp_path / "cuda-cpu.json"
        held = json.loads(path.read_text())
        held["cases"]["exact"] = {"passed": True, "earlier": True}
        path.write_text(json.dumps(held))
        assert list(run(capsys, "--cases", "large", "--out", tmp_path)[1]["cases"]) == [
            "large",
            "exact",
        ]
        held["hardware"]["name"] = "another"
        path.write_text(json.dumps(held))
        assert list(run(capsys, "--cases", "large", "--out", tmp_path)[1]["cases"]) == ["large"]

    def test_without_a_gpu_small_is_wanted(self, capsys):
        with pytest.raises(SystemExit):
            cuda.main(["--cuda", "--device", "cpu"])
        assert "--small runs tiny sizes on a CPU" in capsys.readouterr().err

    def test_unknown_case(self, capsys):
        with pytest.raises(SystemExit):
            cuda.main(["--small", "--cases", "fast"])
        assert "no case fast" in capsys.readouterr().err

    def test_names_of_files(self):
        assert cuda._slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


class TestExact:
    @pytest.mark.parametrize(
        "fault",
        [
            (cuda_exact, "token_weights", lambda rows, _: [1 / len(rows) + 1e-3] * len(rows)),
            (cuda_exact, "batched_slots", lambda _: None),
        ],
    )
    def test_a_fault_is_found(self, monkeypatch, capsys, fault):
        """Another loss; equal slices that are not batched."""
        monkeypatch.setattr(cuda_exact, "BANKS", (2,))
        monkeypatch.setattr(cuda_exact, "_answers", lambda *_: [])
        monkeypatch.setattr(*fault)
        status, found = run(capsys, "--cases", "exact")
        assert status == 1
        checks = found["cases"]["exact"]["checks"]
        assert [check["passed"] for check in checks] == [False, False]

    def test_other_answers_are_found(self, monkeypatch, capsys):
        monkeypatch.setattr(cuda_exact, "BANKS", ())
        monkeypatch.setattr(cuda_exact, "plain_greedy", lambda *_: [70])
        monkeypatch.setattr(cuda_exact, "plain_log_probability", lambda *_: -1.0)
        _, found = run(capsys, "--cases", "exact")
        check = found["cases"]["exact"]["checks"][0]
        assert check["log_probability"] > 1
        assert check["texts_that_differ"] == 48


class TestMemory:
    def test_out_of_memory_is_recorded_after_smaller_passes(self, monkeypatch, capsys):
        tried = []

        def full(model, lengths, steps):
            tried.append(steps.pass_tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        monkeypatch.setattr(cuda, "measure", full)
        status, found = run(capsys, "--cases", "bank", "--banks", 1)
        (entry,) = found["cases"]["bank"]["banks"]
        assert status == 0
        assert entry["out_of_memory"]
        assert entry["said"] == "CUDA out of memory"
        assert tried == [None, 2048, 2048]

    def test_a_pass_that_was_asked_for_is_not_halved(self, monkeypatch, capsys):
        tried = []

        def full(model, lengths, steps):
            tried.append(steps.pass_tokens)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

        monkeypatch.setattr(cuda, "measure", full)
        run(capsys, "--cases", "bank", "--banks", 1, "--pass-tokens", 700)
        assert tried == [700]

    @pytest.mark.parametrize("room", [10**9, 10**8])
    def test_a_pass_fills_what_is_free(self, bank, monkeypatch, room):
        """A token costs 50 kB here; whole adapters share a pass where not all fit."""

        class Peak:
            def __init__(self, device):
                self.device = device

            def bytes(self):
                return 50_000 * counts(jobs[0].rows[: 2048 // 92]).unique

        model, lengths = bank(3), FPB.equal
        jobs = jobs_of(3, Steps(), lengths, VOCABULARY)
        monkeypatch.setattr(cuda_bank, "free_memory", lambda device: room)
        monkeypatch.setattr(cuda_bank, "Peak", Peak)
        fits = (0.7 * room - 16 * 512 * VOCABULARY) / 50_000
        mine = counts(jobs[0].batch()).unique
        found = cuda_bank._fitting(model, jobs)
        assert not model.bank.gradients.any()
        assert found == (int(fits) if room == 10**9 else int(fits) // mine * mine)
        assert found >= 3 * mine or found in (mine, 2 * mine)


class TestRows:
    def test_adapters_share_the_header_only(self):
        one, two = (rows_of(adapter, 50, FPB, 49152) for adapter in (0, 1))
        assert one == rows_of(0, 50, FPB, 49152)
        assert {row.prompt[:50] for row in (*one, *two)} == {one[0].prompt[:50]}
        assert len({row.prompt for row in (*one, *two)}) == 100
        assert len({len(row.prompt) for row in one}) > 10
        assert 85 < sum(row.length for row in one) / 50 < 105

    def test_equal_rows_are_batched(self, bank):
        model = bank(3)
        found = measure(model, FPB.equal, Steps(warm=0, timed=1, matmul=0.001))
        assert found["batched_products"] == [True]
        assert batched_slots(model.decoder.routing.slices) is not None

    def test_long_rows(self):
        assert {row.length for row in rows_of(0, 3, LONG, 32064)} == {513}

    def test_too_few_ids(self):
        with pytest.raises(ValueError, match="a vocabulary of 20"):
            rows_of(0, 1, FPB, 20)


def test_shape_of_a_network(bank):
    """The tiny Llama: width 64, two key heads of 16, inner 128."""
    shape = shape_of(bank(1))
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    assert (shape.base, shape.layers, shape.vocabulary) == (2 * layer, 2, VOCABULARY)


def test_phi3_mini_has_its_size():
    config = phi3_mini(small=False)
    width, inner = config.hidden_size, config.intermediate_size
    layer = width * 3 * width + width * width + width * 2 * inner + inner * width
    assert config.num_hidden_layers * layer + 2 * width * config.vocab_size == pytest.approx(
        3.82e9, rel=1e-3
    )


@pytest.mark.parametrize("masters", [torch.float32, torch.bfloat16])
def test_solo_with_and_without_peft_learns(tiny, monkeypatch, masters):
    batch = rows_of(0, 4, FPB, VOCABULARY)
    for there in (True, False):
        monkeypatch.setattr(cuda_plain, "has_peft", lambda t=there: t)
        torch.manual_seed(0)
        solo = Solo(tiny, "cpu", masters=masters)
        assert ("peft is not installed" in solo.by) is not there
        assert len(solo._learnt) == 2 * 7 * 2
        assert {p.dtype for p in solo._learnt} == {masters}
        before = [p.detach().clone() for p in solo._learnt]
        assert len(solo.seconds([batch, batch])) == 2
        assert any(not torch.equal(a, b) for a, b in zip(before, solo._learnt, strict=True))


def test_numbers():
    assert cuda._numbers("1,8") == [1, 8]
    with pytest.raises(argparse.ArgumentTypeError):
        cuda._names("")
