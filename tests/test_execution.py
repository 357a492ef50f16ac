"""Running a plan: what is done once, what is done again, what a failure leaves behind."""

import dataclasses

import pytest
from execution_kit import run_here, setting
from study_kit import record, registry, study, write_rows

from mixtune.errors import DataError, RunFailed, StoreError
from mixtune.execution import bank_training as training
from mixtune.execution import worker
from mixtune.execution.assign import alone, assign, started
from mixtune.execution.run_study import default_workers
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Events
from mixtune.results.study_results import measure_split, read_facts, score_study
from mixtune.store.folder import Store
from mixtune.study.reading import dump_study


class Listener(Events):
    def __init__(self):
        self.ran, self.failed, self.notes = [], [], []

    def run_finished(self, run, seconds):
        self.ran.append((run.name, run.seed))

    def run_failed(self, run, error):
        self.failed.append((run.name, error))

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs" / "weather")


def run(data, files, store, **changes):
    """What `mixtune run` does, in this process."""
    planner = Planner(study(**changes), registry(data), files)
    plan, listener = planner.plan(), Listener()
    with store.lock():
        store.save_plan(plan.rows(), dump_study(planner.study), {})
        with started(plan, store, listener):
            assignments = assign(plan, store, setting(planner), 1, listener)
            run_here(assignments, planner, store, listener)
    return listener


def facts(store):
    """Every prediction, without the time it took."""
    found = {}
    for row in store.plan():
        if row.kind == "answer":
            rows = store.read_rows(f"{row.folder}/answers/{row.id}/predictions.parquet")
            found[row.id] = [{k: v for k, v in r.items() if k != "latency"} for r in rows]
    return found


ALL = [("majority", None), ("base", None), ("north", 1), ("south", 1), ("north+south", 1)]


def test_everything_is_done_once_and_only_once(data, files, store):
    assert run(data, files, store).ran == ALL
    assert {u.state for u in store.units().values()} == {"done"}
    before = facts(store)
    again = run(data, files, store)
    assert (again.ran, again.notes) == ([], [])
    assert facts(store) == before
    assert {u.attempts for u in store.units().values()} == {1}


def test_each_set_of_answers_holds_every_item(data, files, store):
    run(data, files, store)
    for row in store.plan():
        if row.kind == "answer":
            assert len(facts(store)[row.id]) == row.items


def test_two_runs_of_the_same_study_give_the_same_bits(data, files, store, tmp_path):
    other = Store(tmp_path / "again" / "weather")
    run(data, files, store)
    run(data, files, other)
    assert facts(store) == facts(other)
    adapters = [s.folder.glob("cells/*/adapter/adapter_model.safetensors") for s in (store, other)]
    first, second = ([p.read_bytes() for p in sorted(found)] for found in adapters)
    assert len(first) == 3
    assert first == second


def test_a_failed_run_keeps_its_error_and_the_others_go_on(data, files, store, monkeypatch):
    real = training.job_of

    def fails_for_south(portion, run):
        if run.cocktail == ("south",):
            raise RunFailed("training diverged at step 1: loss nan")
        return real(portion, run)

    monkeypatch.setattr(training, "job_of", fails_for_south)
    listener = run(data, files, store)
    assert [name for name, _ in listener.failed] == ["south"]
    assert len(listener.ran) == 4
    failed = [u for u in store.units().values() if u.state == "failed"]
    assert [u.error for u in failed] == ["RunFailed: training diverged at step 1: loss nan"]
    # Never averaged in: a failed run has no scores.
    facts = read_facts(store, registry(data))
    score_study(facts)
    assert {row.cocktail for row in measure_split(facts, "test").results} == {
        "majority",
        "base",
        "north",
        "north+south",
    }
    monkeypatch.setattr(training, "job_of", real)
    assert run(data, files, store).ran == [("south", 1)]
    assert {u.state for u in store.units().values()} == {"done"}


def test_a_run_that_fails_while_answering_is_in_no_mean(data, files, store, monkeypatch):
    real = worker.predict_queries

    def fails_on_test(model, questions, *rest):
        seed_2 = {r.system for r in store.plan() if r.seed == 2}
        if questions.split == "test" and model.system in seed_2:
            raise RunFailed("no answer")
        return real(model, questions, *rest)

    monkeypatch.setattr(worker, "predict_queries", fails_on_test)
    assert len(run(data, files, store, seeds=[1, 2]).failed) == 3
    facts = read_facts(store, registry(data))
    score_study(facts)
    measured = measure_split(facts, "validation")
    assert {row.seed for row in measured.results} == {None, 1}
    assert {mean.seeds for mean in measured.means} == {1}


def test_an_infrastructure_error_leaves_no_row_and_the_run_is_not_done(
    data, files, store, monkeypatch
):
    def breaks(self, queries, max_new_tokens):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("mixtune.engine.model.LocalModel.generate", breaks)
    listener = run(data, files, store)
    assert {name for name, _ in listener.failed} == {"base", "north", "south", "north+south"}
    for row in store.plan():
        if row.form == "strict" and row.cocktail != "majority":
            assert store.units()[row.id].state != "done"
            assert not (store.folder / row.folder / "answers" / row.id).exists()


def test_ctrl_c_gives_the_unit_back_and_finished_work_stays(data, files, store, monkeypatch):
    real, calls = training.job_of, []

    def stops_at_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "job_of", stops_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(data, files, store)
    states = {u.label: u.state for u in store.units().values()}
    assert states["north seed 1"] == "done"
    assert states["south seed 1"] == "planned"
    assert run(data, files, store).ran == ALL[3:]


def test_added_seeds_extend_the_study(data, files, store):
    run(data, files, store)
    before = facts(store)
    assert run(data, files, store, seeds=[1, 2]).ran == [
        ("north", 2),
        ("south", 2),
        ("north+south", 2),
    ]
    after = facts(store)
    assert {key: after[key] for key in before} == before
    assert store.changes()[-1]["added"] == ["north seed 2", "north+south seed 2", "south seed 2"]


def test_an_added_task_is_answered_by_every_system_and_trains_nothing(data, files, store):
    run(data, files, store, tasks=["north"])
    trained = {u.id for u in store.units().values() if u.kind == "train"}
    run(data, files, store)
    units = store.units()
    assert {u.id for u in units.values() if u.kind == "train"} == trained
    assert all(units[i].attempts == 1 for i in trained)
    assert {u.state for u in units.values()} == {"done"}


def test_a_changed_setting_is_refused_and_nothing_is_lost(data, files, store):
    run(data, files, store)
    before = facts(store)
    with pytest.raises(StoreError, match=r"(?s)-  lr: 0\.001.*\+  lr: 0\.01"):
        run(data, files, store, train={"rank": 2, "alpha": 4, "lr": 0.01})
    assert facts(store) == before


def test_a_damaged_file_is_made_again(data, files, store):
    run(data, files, store)
    before = facts(store)
    victim = next(store.folder.glob("cells/*north-s1/adapter/adapter_model.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-8])
    again = run(data, files, store)
    assert again.notes[0] == "north seed 1: its files are missing or changed, done again"
    assert len(again.notes) == 1 + 8, "answers of the adapter that is gone are done again too"
    assert again.ran == [("north", 1)]
    assert facts(store) == before


def test_the_majority_answers_every_item_without_a_model(data, files, store):
    planner = Planner(study(), registry(data), files)
    plan, listener = planner.plan(), Listener()
    only = dataclasses.replace(plan, runs=plan.runs[:1])
    with store.lock():
        store.save_plan(only.rows(), dump_study(planner.study), {})
        with started(only, store, listener):
            assignments = [alone(run) for run in only.runs]
            run_here(assignments, planner, store, listener, lambda *_: pytest.fail("loaded"))
    assert listener.ran == [("majority", None)]


def test_workers_fit_the_memory_and_the_work():
    assert default_workers(1, 1) == 1
    assert default_workers(10**13, 50) == 1


def test_scores_are_never_joined_to_other_data(data, files, store):
    run(data, files, store)
    score_study(read_facts(store, registry(data)))
    rows = [record("north", "test", i) for i in range(20)]
    for row in rows:
        row["label"] = "wet" if row["label"] == "dry" else "dry"
    write_rows(data, "north", "test", rows)
    for path in store.folder.rglob("scores/*.parquet"):
        path.unlink()
    with pytest.raises(DataError, match="does not hold the items that were answered"):
        score_study(read_facts(store, registry(data)))


def test_what_was_read_and_dropped_is_kept(data, files):
    planner = Planner(study(), registry(data), files)
    rows = {(r["dataset"], r["split"]): r for r in planner.leaks.data_rows()}
    assert rows["north", "test"]["records"] == 20
    train, held = rows["north", "train"]["examples"], rows["north", "validation"]["examples"]
    assert train + held == 60
