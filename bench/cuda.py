"""`python -m bench --cuda`: the engine on a GPU, exact and fast; one JSON file per kind of GPU.

    exact     loss, gradients, log-probabilities and greedy text against the plain path, in float32
    bank      SmolLM2-135M in bf16 with K adapters trained together, beside solo runs with PEFT
    large     random weights in Phi-3-mini's shape, in bf16: tokens/s, share of the matmul rate

With --small everything is tiny and also runs on a CPU: it shows that the script works, and its
times mean nothing. Rows are random tokens, of the lengths of Financial PhraseBank's prompts.

Knows: the cases, sizes, the file. Does not know: how anything is measured.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedConfig

from bench.cuda_bank import STEP, Steps, measure, profile
from bench.cuda_device import allocated, hardware, release
from bench.cuda_exact import exact
from bench.cuda_made import FPB, LONG, Lengths, phi3_mini, random_network, rows_of, write_tiny
from bench.cuda_plain import ALPHA, RANK, Solo
from bench.machine import commit, machine
from mixtune.engine.adapter_format import AdapterConfig
from mixtune.engine.decoder import Decoder
from mixtune.engine.model import LocalModel
from mixtune.errors import ModelError
from mixtune.study.spec import EvalSpec, TrainSpec
from mixtune.tokens import Tokens

RESULTS = Path(__file__).parent / "results"
BASE = "smollm2-135m"
AIM_SOLO = {"adapters": 64, "ratio": 20}
AIM_SHARE = 0.5
_TRIES = 3
_PROFILED = 64
"""The largest bank that is also run under the profiler."""

_Found = list[dict[str, Any]]


@dataclass(slots=True)
class Bench:
    """What every case needs: where, how large, and a folder for what is made."""

    device: str
    small: bool
    options: argparse.Namespace
    scratch: Path

    @property
    def steps(self) -> Steps:
        """How much each bank is measured."""
        tokens = self.options.pass_tokens
        if self.small:
            return Steps(warm=1, timed=2, pass_tokens=tokens, matmul=0.01)
        return Steps(timed=self.options.steps, pass_tokens=tokens)

    def tiny(self) -> Path:
        """A folder with a tiny base, made once."""
        folder = self.scratch / "tiny"
        return folder if folder.exists() else write_tiny(_made(folder))

    def say(self, text: str) -> None:
        """Tell what was found, on standard error."""
        print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 where the engine is not exact on this device."""
    options = _options(arguments)
    device = options.device
    if device == "cpu":
        torch.set_num_threads(1)  # products this small gain nothing from threads
    out = options.out
    if out is None and not options.small:
        out = RESULTS
    held: dict[str, Any] = {
        "device": device,
        "small": options.small,
        "hardware": hardware(device),
        "machine": machine(),
        "cases": {},
    }
    path = None if out is None else out / f"cuda-{_slug(held['hardware']['name'])}.json"
    if path is not None:
        held["cases"] = _kept(path, held)
    with tempfile.TemporaryDirectory(prefix="mixtune-cuda-") as scratch:
        bench = Bench(device, options.small, options, Path(scratch))
        for name in options.cases:
            held["cases"][name] = _one(bench, name)
            if path is not None:
                _write(path, held)
    if options.json:
        print(json.dumps(held, indent=1, ensure_ascii=False))
    return 0 if held["cases"].get("exact", {}).get("passed", True) else 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench --cuda", description=_ABOUT)
    parser.add_argument("--cuda", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=f"folder of a base model; default: {BASE}")
    parser.add_argument("--out", type=Path, help="folder of results; default: bench/results")
    parser.add_argument("--small", action="store_true", help="tiny, also on a CPU; writes nothing")
    parser.add_argument("--json", action="store_true", help="print what is written")
    parser.add_argument("--cases", type=_names, default=list(CASES), help="default: all")
    parser.add_argument("--banks", type=_numbers, help="K of the case bank")
    parser.add_argument("--large-banks", type=_numbers, help="K of the case large")
    parser.add_argument("--steps", type=int, default=5, help="timed steps; default: %(default)s")
    parser.add_argument("--pass-tokens", type=int, help="tokens of a pass; default: what fits")
    parser.add_argument("--checkpointing", action="store_true", help="in the case large")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=there, choices=["cuda", "cpu"])
    options = parser.parse_args(arguments)
    if options.device == "cpu" and not options.small:
        parser.error("there is no CUDA device here; --small runs tiny sizes on a CPU")
    options.banks = options.banks or ([1, 2] if options.small else [1, 8, 32, 64, 128])
    options.large_banks = options.large_banks or ([1, 2] if options.small else [1, 4, 8])
    return options


_ABOUT = "mixtune's engine on a GPU: exactness, banks of adapters beside solo runs, a large model."


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - CASES.keys())
    if unknown:
        raise argparse.ArgumentTypeError(f"no case {unknown[0]}; there are {', '.join(CASES)}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _one(bench: Bench, name: str) -> dict[str, Any]:
    """Measure one case, with what makes it repeatable."""
    began = time.perf_counter()
    date = datetime.now(UTC).isoformat(timespec="seconds")
    found = CASES[name](bench)
    release(bench.device)
    made = {
        "date": date,
        "commit": commit(),
        "command": _command(bench.options, name),
        "seconds": round(time.perf_counter() - began, 1),
    }
    bench.say(f"{name}: {made['seconds']} s")
    return {"made": made, **found}


def _command(options: argparse.Namespace, case: str) -> str:
    """What to type to get a case again; folders by what they are, not by where."""
    words = ["python -m bench --cuda --cases", case]
    words += ["--base BASE"] if options.base else []
    words += ["--small"] if options.small else []
    words += [f"--steps {options.steps}"]
    words += [f"--pass-tokens {options.pass_tokens}"] if options.pass_tokens else []
    words += [f"--banks {','.join(map(str, options.banks))}"] if case == "bank" else []
    if case == "large":
        words += [f"--large-banks {','.join(map(str, options.large_banks))}"]
        words += ["--checkpointing"] if options.checkpointing else []
    return " ".join(words)


# ---- cases --------------------------------------------------------------------------------------


def _exact(bench: Bench) -> dict[str, Any]:
    found = exact(bench.device, _made(bench.scratch / "exact"))
    for check in found["checks"]:
        bench.say(f"  {check}")
    return found


def _bank(bench: Bench) -> dict[str, Any]:
    """K adapters together beside solo runs in sequence, before and after each."""
    folder = _base(bench)
    solo, settings = _best_solo(bench, folder)
    entries = []
    for bank in bench.options.banks:
        before = _solo_rate(bench, solo)
        sizes = {"ragged": FPB, **({"equal": FPB.equal} if bank > 1 else {})}
        found = _guarded(bench, lambda k=bank, s=sizes: _banked(bench, folder, k, s))
        rate = (before + _solo_rate(bench, solo)) / 2
        for one in found:
            one["solo_examples_per_second"] = rate
            if not one["out_of_memory"]:
                one["examples_per_second"] = bank * STEP * one["steps_per_second"]
                one["ratio"] = one["examples_per_second"] / rate
            entries.append({"adapters": bank, **one})
            bench.say(f"  {_short(entries[-1])}")
    return {
        "base": "random, tiny" if bench.small and not bench.options.base else folder.name,
        "rows": f"random tokens, about {FPB.header} + {FPB.text}, {STEP} an adapter and step",
        "solo": settings,
        "aim": AIM_SOLO,
        "banks": entries,
    }


def _banked(bench: Bench, folder: Path, bank: int, sizes: dict[str, Lengths]) -> _Found:
    """One bank with rows of different lengths, and with equally long ones."""
    held = allocated(bench.device)
    spec = TrainSpec(rank=RANK, alpha=ALPHA, compute="bfloat16")
    tokens = Tokens.load(folder)
    model = LocalModel.load(folder, tokens, spec, EvalSpec(), slots=bank, device=bench.device)
    profiled = bank == max((k for k in bench.options.banks if k <= _PROFILED), default=None)
    return _measured(bench, (model, held), sizes, profiled=profiled)


def _measured(
    bench: Bench, loaded: tuple[LocalModel, int], sizes: dict[str, Lengths], *, profiled: bool
) -> _Found:
    """A model's bank with each kind of rows; one that does not fit is recorded as such."""
    model, held = loaded
    found = []
    for kind, lengths in sizes.items():
        (one,) = _fitted(bench, model, lengths, replace(bench.steps, held=held))
        if profiled and not one["out_of_memory"]:
            tokens = one["pass_tokens"]
            run = partial(profile, model, lengths, tokens)
            (one["profile"],) = _guarded(bench, lambda r=run: [r()])
        found.append({"rows": kind, **one})
    return found


def _fitted(bench: Bench, model: LocalModel, lengths: Lengths, steps: Steps) -> _Found:
    """Measure a bank; where memory runs out, with passes half and a quarter as large."""
    tries = 1 if steps.pass_tokens else _TRIES
    for number in range(tries):
        found = _guarded(bench, lambda s=steps: [measure(model, lengths, s)])
        found[0]["halved"] = number
        if not found[0]["out_of_memory"]:
            break
        steps = replace(steps, pass_tokens=max(1, model.pass_tokens // 2))
    return found


def _guarded(bench: Bench, run: Callable[[], _Found]) -> _Found:
    """What a call finds; where memory runs out, that."""
    try:
        return [{"out_of_memory": False, **one} for one in run()]
    except torch.OutOfMemoryError as error:
        said = str(error).split(". ")[0]
    finally:
        release(bench.device)
    bench.say(f"  out of memory: {said}")
    return [{"out_of_memory": True, "said": said}]


def _best_solo(bench: Bench, folder: Path) -> tuple[Solo, dict[str, Any]]:
    """The faster of the adapter's two number formats, and what was tried."""
    tried, runs = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        runs[name] = Solo(folder, bench.device, masters=dtype)
        tried[name] = {
            "examples_per_second": _solo_rate(bench, runs[name]),
            "peak_bytes": runs[name].peak_bytes(),
        }
    best = max(tried, key=lambda name: tried[name]["examples_per_second"])
    solo = runs.pop(best)
    runs.clear()
    release(bench.device)
    return solo, {
        "by": solo.by,
        "setting": "bf16 base, sdpa, no checkpointing, padded batches of 16, AdamW (fused)",
        "not_tried": "torch.compile, CUDA graphs, several processes on one GPU",
        "adapter": best,
        "tried": tried,
    }


def _solo_rate(bench: Bench, solo: Solo) -> float:
    """Examples per second of a solo run, by its median step."""
    steps = bench.steps
    count = (steps.warm + steps.timed) * STEP
    rows = rows_of(0, count, FPB, solo.vocabulary)
    batches = [rows[start : start + STEP] for start in range(0, count, STEP)]
    return STEP / median(solo.seconds(batches)[steps.warm :])


def _large(bench: Bench) -> dict[str, Any]:
    """Random weights in Phi-3-mini's shape: label rows, and rows of 512 tokens."""
    config = phi3_mini(small=bench.small)
    long = Lengths(0, 24, 0.0, 24, 8) if bench.small else LONG
    entries = []
    for bank in bench.options.large_banks:
        sizes = {"ragged": FPB, **({"equal": FPB.equal} if bank > 1 else {}), "long": long}
        for one in _guarded(bench, lambda k=bank, s=sizes: _grown(bench, config, k, s)):
            entries.append({"adapters": bank, **one})
            bench.say(f"  {_short(entries[-1])}")
    return {
        "shape": {key: getattr(config, key) for key in _SHAPE},
        "weights": "random, bf16",
        "checkpointing": bench.options.checkpointing,
        "aim": {"useful_share": AIM_SHARE},
        "banks": entries,
    }


_SHAPE = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "vocab_size"),
)


def _grown(bench: Bench, config: PreTrainedConfig, bank: int, sizes: dict[str, Lengths]) -> _Found:
    """A random network with a bank, measured with each kind of rows."""
    held = allocated(bench.device)
    decoder = Decoder(random_network(config, bench.device, torch.bfloat16))
    if bench.options.checkpointing:
        decoder.checkpoint_layers()
        decoder.checkpointing = True
    tokens = Tokens.load(bench.tiny())  # of another model: nothing is spelled out here
    model = LocalModel.with_adapters(decoder, AdapterConfig(RANK, ALPHA), tokens, EvalSpec(), bank)
    profiled = bank == max(bench.options.large_banks)
    return _measured(bench, (model, held), sizes, profiled=profiled)


CASES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "exact": _exact,
    "bank": _bank,
    "large": _large,
}


def _base(bench: Bench) -> Path:
    """The folder of the base model: given, tiny, or the catalogue's.

    Raises:
        SystemExit: there is no folder and none can be made.
    """
    if bench.options.base is not None:
        return Path(bench.options.base)
    if bench.small:
        return bench.tiny()
    from mixtune.engine.convert import prepare

    try:
        return prepare(BASE).folder
    except ModelError as error:
        raise SystemExit(f"error: {error}\nname a folder with --base") from error


# ---- the file -----------------------------------------------------------------------------------


def _kept(path: Path, held: dict[str, Any]) -> dict[str, Any]:
    """Cases that the file has already, where it is of the same hardware and size."""
    if not path.is_file():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    same = all(before.get(key) == held[key] for key in ("device", "small", "hardware", "machine"))
    return dict(before["cases"]) if same else {}


def _write(path: Path, held: dict[str, Any]) -> None:
    """The whole file or the one that was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _short(entry: dict[str, Any]) -> str:
    """An entry in one line."""
    keys = ("adapters", "rows", "out_of_memory", "examples_per_second", "ratio")
    more = ("tokens_per_second", "useful_share", "pass_tokens", "peak_bytes")
    shown = {key: entry[key] for key in (*keys, *more) if key in entry}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
    )


if __name__ == "__main__":
    sys.exit(main())
