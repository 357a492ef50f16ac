"""What the layers below the adapters compute, kept on disk and used again by every run.

With adapters in the top layers only, the states that enter the lowest of them depend on the text
and the base alone: not on the run, the epoch or the seed. Each text's states are computed once, by
itself (so that they are the same bits whatever shares a pass with it), and memory-mapped.

Knows: files of states, keys of texts. Does not know: adapters, losses, tasks.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixtune.engine.batching import Pass, Text
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import Branch, Forest, plant
from mixtune.store.files import write_whole


class Trunk:
    """States of texts below the top layers of one base, in one folder.

    A file holds [tokens, width] in the base's number format; its name is a hash of what decides
    what is in it. Several processes may share the folder: files appear whole or not at all.
    """

    def __init__(self, decoder: Decoder, folder: Path, base: str) -> None:
        """Keep states in a folder.

        Args:
            decoder: cut below its top layers (see `Decoder.cut_below`).
            folder: made when the first states are kept.
            base: what tells this base from others, such as a digest of its weights.
        """
        self.decoder, self.folder = decoder, folder
        self._start = f"{base} {decoder.dtype} {decoder.cut}".encode()
        self._raw = {2: np.int16, 4: np.int32}[decoder.dtype.itemsize]

    def states(self, work: Pass, texts: Sequence[Text], forest: Forest) -> Tensor:
        """[N, width]: what enters the top layers at every packed token of a pass."""
        out: Tensor | None = None
        for seat in work.seats:
            text = texts[seat.row]
            known = self.of_text(text)
            if out is None:
                out = known.new_empty(forest.size, known.shape[1])
            branch, end = seat.branch, text.size
            while branch >= 0:  # its own branch, then the headers that it continues
                length = len(work.branches[branch].tokens)
                start = forest.starts[branch]
                out[start : start + length] = known[end - length : end]
                branch, end = work.branches[branch].parent, end - length
        assert out is not None
        return out.to(self.decoder.device)

    def of_text(self, text: Text) -> Tensor:
        """[tokens, width] of one text, computed if it is not kept yet."""
        path = self.folder / f"{self._key(text)}.npy"
        if not path.is_file():
            states = self._compute(text).view(torch.int16 if self._raw is np.int16 else torch.int32)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part: _save(part, states.cpu().numpy()))
        # Copied on write: nothing here may change what is kept.
        raw = np.load(path, mmap_mode="c")
        return torch.from_numpy(raw).view(self.decoder.dtype)

    def _key(self, text: Text) -> str:
        found = hashlib.blake2b(self._start, digest_size=16)
        for part in (text.prompt, text.rest, text.depths):
            found.update(np.asarray([len(part), *part], dtype=np.int64).tobytes())
        if text.lineage is not None:
            found.update(np.packbits(text.lineage.numpy()).tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def _compute(self, text: Text) -> Tensor:
        row = Branch([*text.prompt, *text.rest], lineage=text.lineage, depths=text.depths)
        return self.decoder.below(plant([row], self.decoder.device))


def _save(path: Path, states: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, states)
