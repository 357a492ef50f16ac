"""What the commands of a golden recording are given: files, two base models, a server for an API.

Everything is the same bytes on every machine, so that ids are the same, too.

Knows: golden/world.yaml and golden/bad.yaml. Does not know: mixtune, what is recorded.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from api_server import Reply, Server, fault, say
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

REPOSITORY = Path(__file__).parent.parent
INPUTS = Path(__file__).parent / "golden"
PORT = 48913
"""Of the server in the place of an API; fixed, because its address is part of ids."""


def write_world(work: Path) -> None:
    """The files of world.yaml, generated rows, two base models, the repository's own studies."""
    for name, value in yaml.safe_load((INPUTS / "world.yaml").read_text("utf-8")).items():
        write(work / name, value)
    for name in ("north", "south", "notes"):
        for split, count in (("train", 90), ("test", 40)):
            write_rows(work / "data" / name, split, [report(name, split, i) for i in range(count)])
    for split, count in (("train", 60), ("validation", 30), ("test", 30)):
        write_rows(work / "data/firms", split, [firm(split, i) for i in range(count)])
    write_base(work / "base", 1)
    write_base(work / "base2", 2)
    for name in ("studies", "examples"):
        shutil.copytree(REPOSITORY / name, work / name)
    for path, body in bad_files():
        write(work / "bad" / path, body)


def write(path: Path, value: object) -> None:
    """A text or bytes as they are, anything else as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = value if isinstance(value, (str, bytes)) else yaml.safe_dump(value, sort_keys=False)
    path.write_bytes(body if isinstance(body, bytes) else body.encode())


def bad_files() -> Iterator[tuple[str, object]]:
    """Names and contents of files that are refused: rows with a task for each in one file, tasks
    and studies in files of their own.
    """
    known = yaml.safe_load((INPUTS / "bad.yaml").read_text("utf-8"))
    task = {
        "name": "topic", "labels": ["billing", "returns"],
        "prompt": "billing or returns? {{ text }}",
        "fields": {"label": "topic"}, "source": "few.csv",
    }  # fmt: skip
    yield from known["rows"].items()
    tasks = [task | {"name": name.replace(".", "-"), "source": name} for name in known["rows"]]
    yield "rows.yaml", yaml.safe_dump_all(tasks, sort_keys=False)
    yield from ((f"task-{name}.yaml", task | keys) for name, keys in known["tasks"].items())
    yield from ((f"study-{name}.yaml", text) for name, text in known["studies"].items())


def write_rows(folder: Path, split: str, rows: Iterable[Mapping[str, object]]) -> None:
    """A JSONL file of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def report(name: str, split: str, i: int) -> dict[str, object]:
    """A report of the weather; some are the same in train and test, so that the gate finds them."""
    wet = i % 3 == 0
    sky = "rain and clouds" if wet else "sun and dust"
    where = "everywhere" if i % 20 == 19 else split
    text = f"{name} {where} station {i} reports {sky} over hill {i * 7 % 31}"
    return {"id": f"{name}-{split}-{i}", "text": text, "label": "wet" if wet else "dry"}


def firm(split: str, i: int) -> dict[str, object]:
    """A page with an amount, names and a question."""
    place = ("Firm", "Bank", "Mill")[i % 3]
    page = (
        f"{split} {place} {i} earned {i * 13 % 50}.5 million in {2001 + i % 9}, said P{i % 4} Moss."
    )
    names = [f"PER: P{i % 4} Moss", f"ORG: {place} {i}"][: 1 + i % 2]
    return {
        "id": f"{split}-{i}", "page": page, "amount": f"{i * 13 % 50}.5", "names": "\n".join(names),
        "answer": f"It earned {i * 13 % 50}.5 million.", "grade": i % 3,
    }  # fmt: skip


def write_base(folder: Path, salt: int) -> None:
    """A tiny llama with a byte-level ChatML tokenizer: the same bytes on every machine."""
    folder.mkdir()
    width, inner, half, words = 64, 96, 32, 259
    layer = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (half, width),
        "self_attn.v_proj": (half, width), "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner), "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }  # fmt: skip
    shapes = {
        f"model.layers.{i}.{name}.weight": shape for i in (0, 1) for name, shape in layer.items()
    }
    shapes |= {"model.embed_tokens.weight": (words, width), "model.norm.weight": (width,)}
    weights = {name: _noise(f"{salt} {name}", shape) for name, shape in sorted(shapes.items())}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": words}))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def _noise(name: str, shape: tuple[int, ...]) -> Any:
    """Numbers in [-0.35, 0.35) from SHAKE-256 of a name, exact in float32; ones for norms."""
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    raw = hashlib.shake_256(name.encode()).digest(2 * shape[0] * shape[1])
    steps = np.frombuffer(raw, "<u2").astype(np.float32) - np.float32(32768)
    return (steps * np.float32(0.35 / 32768)).reshape(shape)


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": True, "pad_token_id": 256, "bos_token_id": 257, "eos_token_id": 258,
}  # fmt: skip
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class _AtPort(Server):
    """The tests' server at a fixed address, which is part of ids."""

    def server_bind(self) -> None:
        self.server_address = ("127.0.0.1", PORT)
        super().server_bind()


@contextmanager
def serving() -> Iterator[None]:
    """A server in the place of an API that reads the weather well, mumbles, and fails once each."""
    server = _AtPort(_reply)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _reply(body: dict[str, Any], before: int) -> Reply:
    asked = body["messages"][-1]["content"]
    if body["model"] == "shaky" and not before:
        return fault(500)
    word = "wet" if "rain and clouds" in asked else "dry"
    if body["model"] == "shaky" and len(asked) % 3 == 0:
        word = "perhaps"
    return say(json.dumps({"answer": word}) if "response_format" in body else word)
