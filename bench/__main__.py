"""`python -m bench [CASE ...]`: measure what is not measured yet, then say what was found.

Knows: the command line, which cases are finished. Does not know: how anything is measured.
"""

import argparse
import json
import shlex
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.cases import CASES, in_order
from bench.data import Source
from bench.errors import BenchError, NotThere
from bench.machine import commit, machine
from bench.results import TARGETS, Results
from bench.run import QUICK, Run, Sizes
from bench.table import write_table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when every case asked for is measured, 1 otherwise."""
    words = sys.argv[1:] if arguments is None else arguments
    if "--cuda" in words:
        from bench.cuda import main as on_a_gpu

        return on_a_gpu(words)
    options = _options(words)
    out = options.out or (HERE / "results" / "quick" if options.quick else HERE / "results")
    source = Source(options.data_dir)
    about = {
        "model": options.model,
        "data": source.kind,
        "device": options.device,
        "quick": options.quick,
    }
    results = Results(out, about)
    if options.list:
        _list(results)
        return 0
    try:
        failed = [] if options.table and not options.cases else _measure(options, source, results)
        if options.table:
            write_table(results.latest(), PAGE, results.others())
    except BenchError as error:
        _say(f"error: {error}")
        return 1
    if options.json:
        print(json.dumps(results.latest(), indent=1, ensure_ascii=False))
    elif not options.table:
        _summary(results)
    return 1 if failed else 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=_ABOUT)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all; see --list")
    parser.add_argument("--data-dir", type=Path, help="real datasets; default: the embedded suite")
    parser.add_argument("--repeats", type=int, help="default: 3, with --quick 1")
    parser.add_argument("--out", type=Path, help="folder of results; default: bench/results")
    parser.add_argument("--quick", action="store_true", help="tiny: shows that everything runs")
    parser.add_argument("--again", action="store_true", help="also cases that are finished")
    parser.add_argument("--json", action="store_true", help="print latest.json")
    parser.add_argument("--table", action="store_true", help=f"write docs/{PAGE.name}")
    parser.add_argument("--list", action="store_true", help="which cases there are")
    parser.add_argument("--model", default="smollm2-135m", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; default: %(default)s")
    parser.add_argument(
        "--compute",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="our number format; auto, the default: the one whose products are faster here",
    )
    options = parser.parse_args(arguments)
    options.repeats = options.repeats or (1 if options.quick else 3)
    return options


_ABOUT = "mixtune's engine beside what people use otherwise; bench/METHOD.md says how."


def _measure(options: argparse.Namespace, source: Source, results: Results) -> list[str]:
    """Run what is not finished; names of the cases that could not be measured."""
    sizes = QUICK if options.quick else Sizes()
    failed: list[str] = []
    asked = set(options.cases or CASES)
    with tempfile.TemporaryDirectory(prefix="mixtune-bench-") as scratch:
        run = Run(
            source=source,
            model=options.model,
            device=options.device,
            compute=options.compute,
            repeats=options.repeats,
            sizes=sizes,
            results=results,
            scratch=Path(scratch),
            say=_say,
        )
        for name in in_order(options.cases):
            # What another case needs is measured again only when it is asked for itself.
            if results.finished(name) and not (options.again and name in asked):
                _say(f"{name}: finished")
                continue
            if not _one(name, run, _command(options)):
                failed.append(name)
    return failed


def _one(name: str, run: Run, command: str) -> bool:
    """Measure and save one case; whether that worked."""
    _say(f"{name}: {CASES[name].about}")
    began = time.monotonic()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with run:
            outcome = CASES[name].measure(run)
            base = run.base
    except NotThere as error:
        _say(f"{name}: not there yet: {error}")
        return False
    except BenchError as error:
        _say(f"{name}: failed: {error}")
        return False
    run.results.save(
        name,
        outcome,
        {
            "command": command,
            "date": date,
            "minutes": round((time.monotonic() - began) / 60, 2),
            "commit": commit(),
            "machine": {**machine(), "device": base["device"]},
            "weights_digest": base["digest"],
            "compute": base["compute"],
            "gflops": base["gflops"],
        },
    )
    return True


def _command(options: argparse.Namespace) -> str:
    """What to type to get this again; folders by what they are, not by where."""
    words = ["python", "-m", "bench", *options.cases]
    words += ["--data-dir", "DATA"] if options.data_dir else []
    words += ["--repeats", str(options.repeats)]
    words += ["--quick"] if options.quick else []
    words += ["--model", options.model] if options.model != "smollm2-135m" else []
    words += ["--device", options.device] if options.device != "cpu" else []
    words += ["--compute", options.compute] if options.compute != "auto" else []
    return shlex.join(words)


def _list(results: Results) -> None:
    for name, case in CASES.items():
        state = "finished" if results.finished(name) else "-"
        print(f"{name:14} {state:10} {case.about}")


def _summary(results: Results) -> None:
    latest = results.latest()
    for key, target in TARGETS.items():
        value = latest["ratios"].get(key)
        shown = "not measured" if value is None else f"{value:.3g} ({target.reached(value)})"
        print(f"{key:26} {shown:24} at least {target.least:g}, aim {target.aim:g}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Ended from outside, the temporary folder (which holds rows) and the workers go all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
