"""Model folders, a stand-in for the hub, and hub errors, for tests of models and of the doctor.

Knows: files and the hub library's interface. Does not know: mixtune.
"""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.errors as hub_errors
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

SHA = "a" * 40
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def write_model(folder: Path, value: float = 1.0, **config: object) -> Path:
    """A folder that can be located, with one tensor; `value` is what the tensor holds."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = {"model_type": "llama", "eos_token_id": 0, **config}
    (folder / "config.json").write_text(json.dumps(settings))
    save_file({"w": np.full(3, value, dtype=np.float32)}, folder / "model.safetensors")
    return folder


class FakeHub:
    """Stands in for `huggingface_hub`: one repository, its head, a local cache of snapshots."""

    def __init__(self, root: Path, head: str = SHA) -> None:
        self.root, self.head, self.log = root, head, []
        self.config: dict[str, object] = {}
        self.names = ["model.safetensors", "config.json", "tokenizer.json"]
        self.error: Exception | None = None

    def model_info(self, repository, revision=None):
        self.log.append("info")
        if self.error:
            raise self.error
        siblings = [SimpleNamespace(rfilename=name) for name in self.names]
        return SimpleNamespace(sha=revision or self.head, siblings=siblings)

    def snapshot_download(self, repository, revision=None, local_files_only=False, **patterns):
        folder = self.root / (revision or self.head)
        if local_files_only:
            if not folder.is_dir():
                raise hub_errors.LocalEntryNotFoundError("not cached")
            return str(folder)
        self.log.append(("download", revision, tuple(patterns["allow_patterns"])))
        if "model.safetensors" in self.names:
            write_model(folder, **self.config)
        else:
            folder.mkdir(parents=True)
            (folder / patterns["allow_patterns"][0]).write_bytes(b"GGUF")
        return str(folder)

    @property
    def downloads(self) -> int:
        return sum(entry != "info" for entry in self.log)


def response(status: int):
    """An answer of the hub, for its errors."""
    # The hub's HTTP library is httpx in some versions and a successor of it in others.
    library = importlib.import_module(hub_errors.HTTPError.__module__.partition(".")[0])
    return library.Response(status, request=library.Request("GET", "https://hub.invalid"))
