"""Adapters trained side by side: as alone, to the bit after a kill, and who fails fails alone."""

import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
import yaml
from engine_oracle import write_base
from execution_kit import pool_here
from safetensors.torch import load_file
from study_kit import STUDY, TASK, write_data

from mixtune.engine.bank import Bank
from mixtune.errors import ModelError, SpecError
from mixtune.execution import bank_training as training
from mixtune.execution import pool
from mixtune.execution import run_study as start
from mixtune.execution.portion import Options
from mixtune.planning.runs import Events
from mixtune.store.folder import Store
from mixtune.study.reading import load_study

STEPS = 4
LONG = {
    **STUDY,
    "model": "base",
    "tasks": ["north"],
    "task_files": ["north.yaml", "south.yaml"],
    "budget": {"steps": STEPS, "examples_per_step": 4},
    "seeds": [1, 2, 3],
    "baselines": [],
    "evaluate": {"validation_items": 4, "test_items": 4, "max_new_tokens": 2},
}


class Killed(BaseException):
    """As SIGKILL: nothing is done on the way out (see `killing`)."""


class Listener(Events):
    """Counts steps, keeps notes and failures; raises at a step if told to."""

    def __init__(self, kill_at=None):
        self.notes, self.failed, self.trained_steps, self.ran = [], {}, [], []
        self.kill_at = kill_at

    def note(self, text):
        self.notes.append(text)

    def run_failed(self, run, error):
        self.failed[run.name, run.seed] = error

    def run_finished(self, run, seconds):
        self.ran.append((run.name, run.seed))

    def trained(self, run, step, steps, cost):
        self.trained_steps.append((run.name, run.seed, step.step))
        if len(self.trained_steps) == self.kill_at:
            raise Killed


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A study of nine runs, two tasks, a tiny base model."""
    folder = tmp_path_factory.mktemp("bank")
    write_base(folder / "base", "llama")
    write_data(folder / "data")
    for name in ("north", "south"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name), encoding="utf-8")
    (folder / "study.yaml").write_text(yaml.safe_dump(LONG), encoding="utf-8")
    return folder


@pytest.fixture
def go(place, tmp_path, monkeypatch):
    """`mixtune run` with its workers in this process, one after another."""
    monkeypatch.setattr(start, "available_cores", lambda: 1)
    monkeypatch.setattr(start, "run_pool", pool_here)
    monkeypatch.setattr(start, "start_fork_server", lambda: None)

    def call(runs="runs", kill_at=None, changes=(), **options):
        options = {"workers": 1, "checkpoint_every": 0.0} | options
        listener = Listener(kill_at)
        study = load_study(place / "study.yaml", changes)
        start.run_study(study, place / "data", tmp_path / runs, Options(**options), listener)
        return listener, Store(tmp_path / runs / "weather")

    return call


def weights(store):
    """Adapters by system, each as one vector."""
    found = {}
    for path in sorted(store.folder.glob("cells/*/adapter/adapter_model.safetensors")):
        tensors = sorted(load_file(path).items())
        found[path.parent.parent.name] = torch.cat([tensor.flatten() for _, tensor in tensors])
    return found


def outcome(store):
    """Adapters and answers to the last bit, states of units; nothing that tells the time."""
    answers = {}
    for row in store.plan():
        if row.kind == "answer":
            table = store.read_table(f"{row.folder}/answers/{row.id}/predictions.parquet")
            answers[row.id] = table.drop_columns(["latency"]).to_pylist()
    vectors = {name: vector.numpy().tobytes() for name, vector in weights(store).items()}
    return answers, vectors, {unit.id: unit.state for unit in store.units().values()}


def run_facts(store):
    """run.json of every adapter by id."""
    found = [json.loads(path.read_text()) for path in store.folder.glob("cells/*/run.json")]
    return {facts["train_id"]: facts for facts in found}


def interrupted(go, monkeypatch, kills, **options):
    """A study that is killed after so many steps, again and again, and then left to end."""
    with monkeypatch.context() as patch:
        patch.setattr(training.BankTraining, "_leave", lambda self, error: None)
        for kill_at in kills:
            with pytest.raises(Killed):
                go("killed", kill_at=kill_at, **options)
    return go("killed", **options)


# ---- a base model that is replaced while the study runs ---------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("when", ["before the plan", "after it"])
def test_a_file_replaced_before_it_is_loaded_stops_the_run(
    go, place, tmp_path, monkeypatch, name, when
):
    path, prepare, note = place / "base" / name, start.prepare, Listener.note
    before = path.read_bytes()
    flipped = before[:-1] + bytes([before[-1] ^ 1])
    after = (
        flipped if name.endswith(".safetensors") else before.replace(b"assistant", b"helper") + b" "
    )

    def replaced():
        path.write_bytes(after)

    def prepare_and_replace(model):
        files = prepare(model)
        replaced()
        return files

    def note_and_replace(self, text):
        note(self, text)
        if text.startswith("worker processes"):
            replaced()

    try:
        with monkeypatch.context() as patch, pytest.raises(ModelError, match=f"{name}: .*changed"):
            if when == "after it":
                patch.setattr(Listener, "note", note_and_replace)
            else:
                patch.setattr(start, "prepare", prepare_and_replace)
            go()
    finally:
        path.write_bytes(before)
    units = Store(tmp_path / "runs" / "weather").units().values()
    assert {(unit.state, unit.attempts) for unit in units} <= {("planned", 0)}


def test_the_same_command_goes_on_once_the_file_is_back(go, place, monkeypatch):
    path = place / "base" / "config.json"
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Listener, "run_started", lambda *_: path.write_bytes(before + b" "))
        with pytest.raises(ModelError, match=r"config\.json: "):
            go(changes=["seeds=[1]"])
    path.write_bytes(before)
    _, store = go(changes=["seeds=[1]"])
    assert {unit.state for unit in store.units().values()} == {"done"}


# ---- side by side as alone ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    """Filled by the first test that needs it: each adapter trained by itself."""
    return {}


@pytest.mark.parametrize("slots", [3, 8])
def test_a_banked_run_has_the_weights_of_its_solo_run(go, alone, slots):
    if not alone:
        alone.update(weights(go("alone", bank=1)[1]))
    _, store = go("banked", bank=slots)
    banked = weights(store)
    assert banked.keys() == alone.keys()
    assert len(banked) == 9
    for name, vector in banked.items():
        assert torch.linalg.vector_norm(vector - alone[name]) <= 1e-5 * torch.linalg.vector_norm(
            alone[name]
        )
    assert {unit.state for unit in store.units().values()} == {"done"}
    assert store.banks() == []


def test_run_json_says_who_shared_the_bank(go):
    _, store = go(bank=3)
    facts = run_facts(store)
    trained = [row.id for row in store.plan() if row.kind == "train"]
    groups = [trained[first : first + 3] for first in (0, 3, 6)]
    for group in groups:
        for system in group:
            assert facts[system]["bank"] == {"slots": 3, "with": sorted({*group} - {system})}
            assert facts[system]["threads"] == 1
            assert facts[system]["pass_tokens"] > 0


def test_a_free_slot_is_taken_at_once(go, short):
    _, store = go(bank=3)
    mates = {system: facts["bank"]["with"] for system, facts in run_facts(store).items()}
    assert max(map(len, mates.values())) > 2, "nobody was seated in the middle of others' training"
    assert all(system in mates[mate] for system, found in mates.items() for mate in found)


@pytest.fixture
def short(monkeypatch):
    """Runs of unequal length: some end, and others go on."""
    real = training.job_of

    def cut(portion, run):
        job = real(portion, run)
        steps = 1 + (run.seed + len(run.cocktail)) % STEPS
        examples = steps * job.budget.examples_per_step
        job.budget = replace(job.budget, examples=examples)
        job.rows = job.rows[:examples]
        return job

    monkeypatch.setattr(training, "job_of", cut)


def test_two_workers_are_dealt_the_runs_in_turn(go):
    _, store = go(bank=8, workers=2)
    trained = [row.id for row in store.plan() if row.kind == "train"]
    for system, facts in run_facts(store).items():
        hand = trained[trained.index(system) % 2 :: 2]
        assert facts["bank"]["with"] == sorted({*hand} - {system})


# ---- interrupted = uninterrupted ----------------------------------------------------------------


@pytest.mark.parametrize("every", [0.0, 3600.0], ids=["every step", "never"])
@pytest.mark.parametrize("slots", [1, 3])
def test_killed_ten_times_ends_to_the_bit_as_undisturbed(go, monkeypatch, short, slots, every):
    options = {"bank": slots, "checkpoint_every": every}
    _, calm = go("calm", **options)
    kills = [1, 2, 3, 2, 1, 3, 2, 2, 1, 1] if every == 0 else [3, 7, 5, 8, 4]
    _, killed = interrupted(go, monkeypatch, kills, **options)
    assert outcome(killed) == outcome(calm)
    bank = {system: facts["bank"] for system, facts in run_facts(calm).items()}
    assert {system: facts["bank"] for system, facts in run_facts(killed).items()} == bank
    assert killed.banks() == []


def test_killed_while_answering_nothing_is_trained_again(go, monkeypatch):
    real = Events.answered
    with monkeypatch.context() as patch:
        patch.setattr(Listener, "answered", raising(Killed), raising=False)
        patch.setattr(training.BankTraining, "_leave", lambda self, error: None)
        with pytest.raises(Killed):
            go("killed", bank=3)
    assert Listener.answered is real
    listener, store = go("killed", bank=3)
    assert len(listener.trained_steps) == 6 * STEPS
    assert outcome(store) == outcome(go("calm", bank=3)[1])


def raising(error):
    def raises(*arguments):
        raise error

    return raises


def test_what_breaks_off_inside_a_step_is_no_place_to_go_on_from(go):
    options = {"bank": 3, "checkpoint_every": 3600.0}
    with pytest.raises(Killed):
        go("stopped", kill_at=2 * 3 + 2, **options)
    listener, store = go("stopped", **options)
    assert listener.trained_steps[0][2] == 0
    assert outcome(store) == outcome(go("calm", **options)[1])


@pytest.fixture
def ctrl_c(monkeypatch):
    """Sends Ctrl-C in the middle of a step, whole while it lasts; `at` counts steps from 1."""
    real, steps = training.BankTraining._report, []

    def arm(at):
        def interrupts(self, jobs):
            steps.append(1)
            if len(steps) == at:
                signal.raise_signal(signal.SIGINT)
            real(self, jobs)

        monkeypatch.setattr(training.BankTraining, "_report", interrupts)

    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield arm
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_signal_waits_for_the_step_and_then_a_checkpoint_is_written(go, ctrl_c, slots):
    options = {"bank": slots, "checkpoint_every": 3600.0}
    ctrl_c(at=2)
    with pytest.raises(KeyboardInterrupt):
        go("stopped", **options)
    listener, store = go("stopped", **options)
    assert {step for _, _, step in listener.trained_steps[:slots]} == {2}
    assert any(
        "goes on from its checkpoint: north seed 1 at step 2 of 4" in note
        for note in listener.notes
    )
    assert not any("was cut off" in note for note in listener.notes)
    assert outcome(store) == outcome(go("calm", **options)[1])


def test_what_was_not_asked_for_again_is_as_it_was(go, ctrl_c):
    ctrl_c(at=2)
    with pytest.raises(KeyboardInterrupt):
        go("stopped", bank=3)
    _, store = go("stopped")
    assert outcome(store) == outcome(go("calm", bank=3)[1])


def test_progress_is_kept_for_status_and_only_what_is_left_is_counted(go, ctrl_c, monkeypatch):
    costs, shown = [], []
    monkeypatch.setattr(
        Listener, "started", lambda self, plan, todo, cost: costs.append(cost), raising=False
    )
    monkeypatch.setattr(training, "HEARTBEAT_EVERY", 0.0)
    ctrl_c(at=2)
    with pytest.raises(KeyboardInterrupt):
        go("stopped", bank=3)
    real = training.BankTraining._step

    def looks(self):
        shown.append(
            {unit.progress for unit in self.store.units().values() if unit.state == "running"}
        )
        real(self)

    monkeypatch.setattr(training.BankTraining, "_step", looks)
    go("stopped", bank=3)
    assert costs[1] < costs[0]
    assert shown[1] == {3 / STEPS}


# ---- a checkpoint that does not fit -------------------------------------------------------------


@pytest.fixture
def stopped(go, ctrl_c):
    """A study that was stopped in the middle of its first bank of three."""
    ctrl_c(at=2)
    with pytest.raises(KeyboardInterrupt):
        go(bank=3)
    return go


def damage(path):
    body = bytearray(path.read_bytes())
    body[-100] ^= 1
    path.write_bytes(body)


UNFIT = [
    (lambda path: None, {"bank": 2}, "slots 3, now 2"),
    (lambda path: damage(path), {}, "it is damaged"),
    (lambda path: path.write_bytes(path.read_bytes()[:-50]), {}, "it cannot be read"),
    (lambda path: path.write_bytes(b"{}"), {}, "it cannot be read"),
]


@pytest.mark.parametrize(("harm", "options", "why"), UNFIT)
def test_a_checkpoint_that_does_not_fit_is_dropped_and_it_is_said_why(
    stopped, tmp_path, harm, options, why
):
    (path,) = (tmp_path / "runs/weather/banks").iterdir()
    harm(path)
    listener, store = stopped(**{"bank": 3} | options)
    (note,) = [note for note in listener.notes if "a checkpoint is not used" in note]
    assert why in note
    assert "from its start" in note or "from their start: north seed 1, " in note
    assert listener.trained_steps[0][2] == 0
    assert {unit.state for unit in store.units().values()} == {"done"}
    assert store.banks() == []
    assert outcome(store)[1] == outcome(stopped("calm", **{"bank": 3} | options)[1])[1]


def test_threads_and_versions_are_part_of_what_has_to_fit(stopped, monkeypatch):
    monkeypatch.setattr(start, "available_cores", lambda: 2)
    listener, _ = stopped(bank=3)
    assert any("threads 1, now 2" in note for note in listener.notes)


def test_a_bank_with_a_run_that_is_no_longer_planned_is_dropped(stopped):
    listener, store = stopped(bank=3, changes=["design=[all]"])
    assert any("no longer in the plan" in note for note in listener.notes)
    done = [
        unit.label
        for unit in store.units().values()
        if unit.kind == "train" and unit.state == "done"
    ]
    assert done == [f"north+south seed {seed}" for seed in (1, 2, 3)]


def test_added_seeds_wait_until_the_bank_that_was_begun_is_done(stopped):
    _, store = stopped(bank=3, changes=["seeds=[1,2,3,4]"])
    _, calm = stopped("calm", bank=3)
    assert outcome(calm)[1].items() <= outcome(store)[1].items()
    assert len(outcome(store)[1]) == 12


def test_a_checkpoint_of_another_scheme_is_not_read(stopped, tmp_path, monkeypatch):
    (path,) = (tmp_path / "runs/weather/banks").iterdir()
    assert training.read_head(path).members
    monkeypatch.setattr(training, "SCHEME", 2)
    with pytest.raises(training.Unusable, match="another version"):
        training.read_checkpoint(path)


# ---- who fails fails alone ----------------------------------------------------------------------


def test_one_that_diverges_fails_and_the_others_go_on(go, monkeypatch):
    real, drawn = Bank.reset, []

    def poisoned(self, slot, seed):
        real(self, slot, seed)
        drawn.append(seed)
        if len(drawn) == 1:  # the first adapter, in the first slot
            with torch.no_grad():
                self.weights[slot].fill_(float("nan"))

    with monkeypatch.context() as patch:
        patch.setattr(Bank, "reset", poisoned)
        listener, store = go(bank=3)
    assert set(listener.failed) == {("north", 1)}
    assert "training diverged at step 0" in listener.failed["north", 1]
    assert len(listener.ran) == 8
    assert all(vector.isfinite().all() for vector in weights(store).values())
    listener, store = go(bank=3)
    assert listener.ran == [("north", 1)]
    assert {unit.state for unit in store.units().values()} == {"done"}


def test_want_of_memory_fails_those_in_the_bank_and_the_next_are_tried(go, monkeypatch):
    real, calls = training.Trainer.step, []

    def full(self):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError("no room")
        return real(self)

    monkeypatch.setattr(training.Trainer, "step", full)
    listener, store = go(bank=3)
    assert set(listener.failed) == {("north", 1), ("south", 1), ("north+south", 1)}
    assert len(listener.ran) == 6
    assert store.banks() == []


def test_an_adapter_for_another_base_is_an_error_that_names_both(go):
    _, store = go(bank=3)
    row = next(row for row in store.plan() if row.kind == "train")
    path = store.folder / row.folder / "run.json"
    facts = json.loads(path.read_text())
    real = facts["model"]["digest"]
    facts["model"]["digest"] = "feedfacefeedface"
    path.write_text(json.dumps(facts))
    store.finish(row.id, [path, *(path.parent / "adapter").iterdir()], 1.0)
    shutil.rmtree(path.parent / "answers")
    listener, _ = go(bank=3)
    (error,) = listener.failed.values()
    assert "the adapter is for another base model" in error
    assert "feedfacefeedface" in error
    assert real in error


# ---- memory -------------------------------------------------------------------------------------


def test_a_bank_that_does_not_fit_is_refused_before_anything_is_trained(go, monkeypatch, tmp_path):
    monkeypatch.setattr(start, "free_memory", lambda: 2_000_000)
    with pytest.raises(SpecError, match=r"bank of 8 adapters does not fit"):
        go(bank=8)
    assert not list((tmp_path / "runs/weather").glob("cells/*"))


def test_on_a_cpu_adapters_are_trained_one_at_a_time(go):
    listener, store = go()
    assert any(note.startswith("bank of 1 adapter: about ") for note in listener.notes)
    assert {facts["bank"]["slots"] for facts in run_facts(store).values()} == {1}


def test_full_fine_tuning_is_refused_a_bank(go):
    with pytest.raises(SpecError, match="full fine-tuning trains one run at a time"):
        go(bank=2, changes=["train.method=full"])


def test_what_a_worker_says_of_its_engine_is_heard():
    said = []
    pipe = type("Pipe", (), {"send": lambda self, message: said.append(message)})()
    pool._EventRelay(pipe).note("a pass does not fit")
    assert said == [("note", ("a pass does not fit",))]


def test_a_base_that_cannot_be_loaded_fails_every_run_with_the_reason(go, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("mixtune.execution.worker.load_model", raising(MemoryError("too large")))
        listener, store = go(bank=3)
    assert set(listener.failed.values()) == {"MemoryError: too large"}
    assert len(listener.failed) == 9
    listener, store = go(bank=3)
    assert len(listener.ran) == 9
    assert outcome(store) == outcome(go("calm", bank=3)[1])


def test_merged_systems_are_asked_after_their_parts(go):
    changes = ("budget.merged=true",)
    listener, store = go(changes=changes)
    assert ("north+south (merged)", 3) in listener.ran
    assert {unit.state for unit in store.units().values()} == {"done"}
    again, _ = go(changes=changes)
    assert again.ran == []


@pytest.mark.usefixtures("stopped_at_a_claim")
def test_stopped_it_leaves_nothing_running(go, tmp_path):
    with pytest.raises(SystemExit):
        go()
    units = Store(tmp_path / "runs/weather").units().values()
    assert [unit.state for unit in units if unit.attempts] == ["planned"]
