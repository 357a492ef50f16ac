"""A base model on this machine as a judge.

Knows: how a model becomes something that answers. Does not know: what it is asked.
"""

import torch

from mixtune.engine.convert import prepare
from mixtune.engine.model import LocalModel
from mixtune.identity import make_id
from mixtune.spec import EvalSpec, TrainSpec
from mixtune.tokens import Tokens

LONGEST_PROMPT = 16_384
"""Tokens of a question with both answers; the model's own context may be shorter."""


def local_judge(name: str) -> LocalModel:
    """A model of the catalogue, a hub id or a folder, without adapters; greedy.

    Raises:
        ModelError: it cannot be found or run.
    """
    files = prepare(name)
    evaluate = EvalSpec(max_prompt_length=LONGEST_PROMPT, batch_size=8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LocalModel.load(
        files.folder, Tokens.load(files.folder), TrainSpec(rank=1), evaluate, device=device
    )
    model.use_base()
    model.system = make_id("judge", {"model": files.digest})
    return model
