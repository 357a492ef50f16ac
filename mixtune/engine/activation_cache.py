"""Hidden states below the top layers, kept on disk and used again by every run.

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

from mixtune.engine.batching import InputSequence, Pass
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import ROOT, Branch, Forest, pack_forest
from mixtune.store.files import write_whole


class ActivationCache:
    """States of texts below the top layers of one base, in one folder.

    A file holds [tokens, width] in the base's number format; its name is a hash of all that decides
    its content. Several processes may share the folder: files appear whole or not at all.
    """

    def __init__(self, decoder: Decoder, folder: Path, base: str) -> None:
        """Cache states in a folder.

        Args:
            decoder: with its layers split (see `Decoder.split_layers`).
            folder: created with its first file.
            base: identifies the base model, such as a digest of its weights.
        """
        self.decoder, self.folder = decoder, folder
        self._key_prefix = f"{base} {decoder.dtype} {decoder.num_lower_layers}".encode()
        # numpy has no bfloat16: files hold the same bits as integers.
        self._bits = {2: torch.int16, 4: torch.int32}[decoder.dtype.itemsize]

    def pass_states(self, work: Pass, sequences: Sequence[InputSequence], forest: Forest) -> Tensor:
        """[N, width]: the states that enter the top layers at every packed token of a pass."""
        out: Tensor | None = None
        for row in work.rows:
            sequence = sequences[row.index]
            states = self.sequence_states(sequence)
            if out is None:
                out = states.new_empty(forest.num_tokens, states.shape[1])
            branch, end = row.branch, sequence.length
            while branch != ROOT:  # its own branch, then the headers that it continues
                length = len(work.branches[branch].tokens)
                start = forest.branch_starts[branch]
                out[start : start + length] = states[end - length : end]
                branch, end = work.branches[branch].parent, end - length
        assert out is not None
        return out.to(self.decoder.device)

    def sequence_states(self, sequence: InputSequence) -> Tensor:
        """[tokens, width] of one text; computed and written where there is no file yet."""
        path = self.folder / f"{self._key(sequence)}.npy"
        if not path.is_file():
            states = self._compute(sequence).view(self._bits).cpu().numpy()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, lambda part: _save(part, states))
        # Copied on write: nothing here may change the file.
        bits = np.load(path, mmap_mode="c")
        return torch.from_numpy(bits).view(self.decoder.dtype)

    def _key(self, sequence: InputSequence) -> str:
        key = hashlib.blake2b(self._key_prefix, digest_size=16)
        for part in (sequence.prompt, sequence.continuation, sequence.tree_depths):
            key.update(np.asarray([len(part), *part], dtype=np.int64).tobytes())
        if sequence.tree_mask is not None:
            key.update(np.packbits(sequence.tree_mask.numpy()).tobytes())
        return key.hexdigest()

    @torch.no_grad()
    def _compute(self, sequence: InputSequence) -> Tensor:
        tokens = [*sequence.prompt, *sequence.continuation]
        branch = Branch(tokens, tree_mask=sequence.tree_mask, tree_depths=sequence.tree_depths)
        return self.decoder.forward_lower(pack_forest([branch], self.decoder.device))


def forward_pass(
    decoder: Decoder,
    cache: ActivationCache | None,
    work: Pass,
    sequences: Sequence[InputSequence],
    forest: Forest,
) -> Tensor:
    """Last hidden states [N, width] of a pass; from cached states of the lower layers, if any."""
    if cache is None:
        return decoder.forward(forest)
    return decoder.forward_top(forest, cache.pass_states(work, sequences, forest))


def _save(path: Path, states: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, states)
