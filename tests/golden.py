"""Record what the program does, seen from outside, and list what differs between two recordings.

    python tests/golden.py record DIR [--small]   # PYTHONPATH says which mixtune is run
    python tests/golden.py compare OLD NEW        # exit 1 where anything differs

A recording is DIR/record.json, or DIR/small.json for the small form, which holds nothing that
depends on the machine; DIR/work keeps what the commands wrote. golden/world.yaml holds the files
that the commands in golden/commands.txt are given.

Knows: the entry point of the command line, files that it reads and writes. Does not know: any
other module of mixtune.
"""

import argparse
import atexit
import csv
import difflib
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import signal
import sqlite3
import sys
import time
import traceback
import zipfile
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import yaml
from golden_kit import INPUTS, bad_files, serving, write_world

ENVIRONMENT = {
    "MIXTUNE_CACHE": "cache",
    "MIXTUNE_DATA_DIR": "data",
    "WEATHER_KEY": "sk-not-a-real-key-0123456789",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "160",
    "TERMINAL_WIDTH": "120",
    "NO_COLOR": "1",
    "TERM": "dumb",
    "BROWSER": "true",
    "no_proxy": "127.0.0.1",
}
LOADED = ("mixtune.cli", "rich.markdown", "typer.rich_utils")
"""What every fork begins with, to save its time."""
VERBS = """
 merge confirm claims tasks judge models doctor pack probe questions strength plan run status
 results score report analyze eval compare open init schema data-check data-show data-leaks
"""
VARYING = {"seconds", "latency", "at", "heartbeat", "attempts", "progress", "mtime", "paid_at"}
"""Keys, columns and fields of times and of what a kill leaves."""


class Command(NamedTuple):
    """A line of commands.txt."""

    mode: str
    text: str


# ---- running a command ----------------------------------------------------------------------


def call(arguments: list[str], work: Path) -> dict[str, Any]:
    """Run a verb to its end: exit code and output."""
    return _end(_begin(arguments, work), work)


def _begin(arguments: list[str], work: Path) -> int:
    """Run a verb in a fork of this process, which has loaded mixtune once for all of them."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(work)
        for number, path in enumerate((os.devnull, "../out", "../err")):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = ["mixtune", *arguments]
        from mixtune.cli import main as mixtune

        mixtune()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        os._exit(code)


def _end(child: int, work: Path) -> dict[str, Any]:
    _, status, used = os.wait4(child, 0)
    out, err = (
        (work.parent / name).read_text("utf-8", "backslashreplace") for name in ("out", "err")
    )
    return {
        "exit": os.waitstatus_to_exitcode(status),
        "out": out,
        "err": err,
        "cpu": used.ru_utime + used.ru_stime,
    }


def killed(arguments: list[str], work: Path) -> dict[str, Any]:
    """Kill a run in the middle of its training, then run it to its end; its output is left out."""
    child = _begin(arguments[1:], work)
    name = yaml.safe_load((work / arguments[2]).read_text("utf-8"))["name"]
    states = work / "runs" / name / "state.sqlite"
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if _is_training(states):
            os.kill(child, signal.SIGKILL)
            assert _end(child, work)["exit"] == -signal.SIGKILL
            return call(arguments[1:], work) | {"out": "killed and ended", "err": ""}
        time.sleep(0.01)
    raise RuntimeError(f"{name} ended before it could be killed: give it more steps")


def _is_training(states: Path) -> bool:
    with (
        suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(f"file:{states}?mode=ro", uri=True)) as db,
    ):
        query = "SELECT count(*) FROM unit WHERE kind='train' AND progress > 0 AND progress < 1"
        return bool(db.execute(query).fetchone()[0])
    return False


# ---- what is kept of it ---------------------------------------------------------------------


class Masks:
    """Takes out of texts what no two runs or folders have in common."""

    def __init__(self, work: Path) -> None:
        self.rules = [
            (re.compile(re.escape(str(work.resolve())) + r"/?"), "WORK/"),
            (
                re.compile(r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]00:?00| UTC)?"),
                "TIME",
            ),
            (re.compile(r" \([^()]* left\)"), ""),
            (re.compile(r"\b(\d[\d,.]* (s|min|h|ms) ?)+\b"), "SOME TIME"),
            (re.compile(r"\b\d[\d,.]*(?= [GM]B\b)"), "N"),
        ]
        self.dropped = re.compile(r"FLOP/s|: step \d+/\d+ ")

    def text(self, text: str) -> str:
        """A text without paths of this machine, times and sizes of memory."""
        for rule, mark in self.rules:
            text = rule.sub(mark, text)
        return text

    def lines(self, text: str) -> list[str]:
        """Its lines, without those that say how fast or how far something is."""
        kept = (line.rstrip() for line in text.splitlines() if not self.dropped.search(line))
        return [self.text(line) for line in kept]

    def value(self, value: Any) -> Any:
        """A JSON value, without what varies."""
        if isinstance(value, dict):
            return {k: "VARIES" if k in VARYING else self.value(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value


def shape(value: Any) -> Any:
    """The structure of a JSON value: keys, and types in place of values."""
    if isinstance(value, dict):
        inner = {key: shape(item) for key, item in value.items()}
        return {"EACH PATH": inner.popitem()[1]} if any("/" in key for key in inner) else inner
    if isinstance(value, list):
        seen = {json.dumps(shape(item)): shape(item) for item in value}
        return [seen[key] for key in sorted(seen)]
    return type(value).__name__


def outcome(result: Mapping[str, Any], masks: Masks) -> dict[str, Any]:
    """An outcome as it is recorded: output as JSON where it is that, else as lines."""
    try:
        out = masks.value(json.loads(result["out"]))
    except ValueError:
        out = masks.lines(result["out"])
    return {"exit": result["exit"], "out": out, "err": masks.lines(result["err"])}


def portable(mode: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What of an outcome is the same on every machine, by the mode of its command."""
    code, out = recorded["exit"], recorded["out"]
    is_text = isinstance(out, list) and all(isinstance(line, str) for line in out)
    if mode == "exact":
        return {
            "exit": code,
            "out": _words(out) if is_text else out,
            "err": _words(recorded["err"]),
        }
    if mode == "keys":
        return {"exit": code, "schema": without(out, {"description", "title"})}
    if mode == "ids":
        return {"exit": code, "ids": plan_ids(out)}
    rows = out if isinstance(out, list) else []
    floors = [_rounded(r) for r in rows if isinstance(r, dict) and r.get("cocktail") == "majority"]
    return {"exit": code, "shape": "text" if is_text else shape(out), "floors": floors}


def without(value: Any, names: Container[str]) -> Any:
    """A JSON value without keys whose value is a text and whose name is one of these."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in names or not isinstance(v, str)}
        return {k: without(v, names) for k, v in kept.items()}
    return [without(item, names) for item in value] if isinstance(value, list) else value


def plan_ids(plan: Mapping[str, Any]) -> dict[str, str]:
    """Every unit of `plan --json` by its name → its id, and the digest of its items or rows."""
    found = {"model": plan["model"]["digest"]}
    for run in plan["runs"]:
        name = f"{run['name']}, seed {run['seed']}"
        mix = " ".join(f"{row['ingredient']}:{row['rows_got']}" for row in run["mix"])
        found[name] = f"{run['system']} {mix}".strip()
        for unit in run["answers"]:
            key = f"{name}: {unit['task']}/{unit['split']}/{unit['form']}"
            found[key] = (
                f"{unit['id']} {unit['items']} {unit['items_digest']} {unit['max_new_tokens']}"
            )
    return found


def _words(lines: Iterable[str]) -> list[str]:
    """Lines without frames and columns, which depend on the version of what draws them."""
    bare = (" ".join(re.sub(r"[\u2500-\u257f]", " ", line).split()) for line in lines)
    return [line for line in bare if line]


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}


# ---- what is kept of a study's folder -------------------------------------------------------


def folder_of(folder: Path, masks: Masks, given: Iterable[Path] = ()) -> dict[str, Any]:
    """Every file of a folder by its path: plan and states in full, large ones as digests.

    `given`: files and folders that are left out.
    """
    out = set(given)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and out.isdisjoint((p, *p.parents)))
    known = {path.relative_to(folder).as_posix(): path for path in files}
    found = {name: _kept(path, masks) for name, path in known.items() if not _fleeting(name)}
    return {masks.text(name): value for name, value in found.items()}


def _fleeting(name: str) -> bool:
    return name.endswith(("-journal", "lock", "workers")) or name == "env.json"


def _kept(path: Path, masks: Masks) -> Any:
    if path.suffix == ".parquet":
        return _table(path)
    if path.suffix == ".sqlite":
        return list(_database(path, masks))
    if path.suffix == ".zip":
        return sorted(zipfile.ZipFile(path).namelist())
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return _digest(path.read_bytes())
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(text))
        return _digest([{k: v for k, v in row.items() if k not in VARYING} for row in rows])
    if path.suffix == ".json":
        value = masks.value(json.loads(text))
        return value if len(text) < 4000 else _digest(value)
    if path.name == "journal.jsonl":  # what the states have as well, with checksums and times
        lines = map(json.loads, text.splitlines())
        return [[line.get(key) for key in ("what", "name", "unit")] for line in lines]
    if path.suffix == ".jsonl":
        return [masks.value(json.loads(line)) for line in text.splitlines()]
    if path.suffix == ".html":
        return {"text": _visible(text, masks), "tags": _digest(re.findall(r"</?[a-z][\w-]*", text))}
    return _digest(masks.text(text)) if path.suffix == ".svg" else masks.lines(text)


def _table(path: Path) -> Any:
    """Rows of a plan; of other tables columns, number of rows and a digest of what is no time."""
    table = pq.read_table(path, use_threads=False)
    rows = [{k: v for k, v in row.items() if k not in VARYING} for row in table.to_pylist()]
    if path.name == "plan.parquet":
        return [json.dumps(row) for row in rows]
    return {"columns": table.column_names, "rows": len(rows), "digest": _digest(rows)}


def _database(path: Path, masks: Masks) -> Iterator[str]:
    """Rows of every table, without times; files of a unit and of the plan by their names."""
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        names = "SELECT name FROM sqlite_master WHERE type='table' ORDER BY name"
        for (table,) in db.execute(names).fetchall():
            for row in sorted(map(dict, db.execute(f"SELECT * FROM {table}")), key=_row_key):
                if table == "file":  # checksums of files that are recorded themselves
                    row = {"name": row["name"]}
                files = {"files": sorted(json.loads(row["files"]))} if "files" in row else {}
                yield f"{table} {json.dumps(masks.value(row | files))}"


def _row_key(row: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in row.items() if k not in (*VARYING, "files")}, default=repr)


def _visible(html: str, masks: Masks) -> list[str]:
    """The words of a page, one element a line; those of figures are in their SVG files."""
    bare = re.sub(r"(?s)<(svg|style|script)\b.*?</\1>", " ", html)
    lines = (" ".join(line.split()) for line in re.sub(r"<[^>]*>", "\n", bare).splitlines())
    return [line for line in masks.lines("\n".join(lines)) if line]


def _digest(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value, default=repr).encode()
    return hashlib.sha256(raw).hexdigest()[:16]


# ---- recording and comparing ----------------------------------------------------------------


def record(folder: Path, small: bool) -> Path:
    """Run the commands in a new folder; returns the file with what they did."""
    work = folder / "work"
    work.mkdir(parents=True)
    for name, value in ENVIRONMENT.items():
        os.environ[name] = str(work.resolve() / value) if name == "MIXTUNE_CACHE" else value
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})  # one thread in each worker
    for name in LOADED if small else (*LOADED, "torch", "transformers"):
        importlib.import_module(name)
    print("recording", Path(sys.modules["mixtune"].__file__ or "").parent.parent)
    masks, done = Masks(work), {}
    write_world(work)
    given = set(work.rglob("*"))
    with nullcontext() if small else serving():
        for command in commands(small):
            recorded = _do(command, work, masks)
            if small or command.mode == "loose":
                recorded = portable(command.mode, recorded)
            done[command.text + " again" * (command.text in done)] = recorded
    for path in sorted((work / "runs").iterdir()):
        kept = folder_of(path, masks)
        done[f"runs/{path.name}"] = _portable_folder(kept) if small else kept
    if not small:
        done["files"] = folder_of(work, masks, [*given, work / "runs", work / "cache"])
    for name in ("out", "err"):
        (folder / name).unlink()
    target = folder / ("small.json" if small else "record.json")
    target.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return target


def _portable_folder(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Ids, states and names of files; no digest that hangs on how a machine rounds."""
    rows = [" ".join(map(str, json.loads(row).values())) for row in kept["plan.parquet"]]
    return {"plan": rows, "states": kept["state.sqlite"], "files": list(kept)}


def commands(small: bool) -> list[Command]:
    """Every verb's help, and the lines of commands.txt."""
    helps = [f"{verb.replace('-', ' ')} --help" for verb in VERBS.split()]
    found = [Command("exact", text) for text in ("--help", *helps)]
    for line in (INPUTS / "commands.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            found.append(Command(*line.split(maxsplit=1)))
    names = [name for name, _ in bad_files()]
    found += [Command("exact", f"plan bad/{name}") for name in names if name.startswith("study-")]
    found += [Command("full", f"data check bad/{n}") for n in names if n.startswith("task-")]
    return [command for command in found if not small or command.mode not in ("full", "loose")]


def _do(command: Command, work: Path, masks: Masks) -> dict[str, Any]:
    began, arguments = time.monotonic(), _spelled(command.text, work)
    do = killed if arguments[0] == "kill" else call
    result = do(arguments, work)
    seconds = time.monotonic() - began
    print(
        f"{seconds:6.1f} s  {result['cpu']:5.1f} s CPU  exit {result['exit']}  {command.text}",
        flush=True,
    )
    return outcome(result, masks)


def _spelled(text: str, work: Path) -> list[str]:
    """The words of a command; CELL is the id of a run, which is in its folder's name."""
    words = shlex.split(text)
    return [
        str(next(work.glob(w.replace("CELL", "*"))).relative_to(work)) if "CELL" in w else w
        for w in words
    ]


def compare(old: Path, new: Path) -> list[str]:
    """Every difference of two recordings, as lines for people."""
    one, two = (json.loads(path.read_text("utf-8")) for path in (old, new))
    lines = []
    for name in [*one, *(name for name in two if name not in one)]:
        if name not in one or name not in two:
            lines.append(f"== {name}\n   only in {old if name in one else new}")
        elif one[name] != two[name]:
            texts = (
                json.dumps(side[name], indent=1, ensure_ascii=False).splitlines()
                for side in (one, two)
            )
            changes = list(difflib.unified_diff(*texts, n=1, lineterm=""))[2:]
            lines += [f"== {name}", *(f"   {line}" for line in changes)]
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    actions = parser.add_subparsers(dest="action", required=True)
    recording = actions.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--small", action="store_true")
    comparing = actions.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    asked = _arguments()
    if asked.action == "record":
        print(record(asked.folder, asked.small))
    else:
        differences = compare(asked.old, asked.new)
        print("\n".join(differences) or "no differences")
        sys.exit(bool(differences))
