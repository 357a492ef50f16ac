"""Cross-entropy at supervised positions, sent back through the network.

Knows: how a row's tokens are weighted, blocks of logits. Does not know: adapters, optimisers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixtune.engine.batching import Pass
from mixtune.engine.decoder import Decoder
from mixtune.engine.forest import Forest, plant
from mixtune.study.spec import LossName
from mixtune.tokens import Row

LOGIT_ROWS = 512
"""Positions whose logits exist at once: bounds memory at 512 x vocabulary x 4 bytes."""


def token_weights(rows: Sequence[Row], loss: LossName) -> list[float]:
    """Weight of each supervised token of each row, so that a step's weights add up to one.

    `example-mean`: a mean over a row's tokens, then over rows: a one-word label is worth as much as
    a paragraph. `batch-token-mean`: a mean over all tokens of the step.
    """
    if loss == "batch-token-mean":
        total = sum(len(row.answer) for row in rows)
        return [1 / total] * len(rows)
    return [1 / (len(row.answer) * len(rows)) for row in rows]


def backward(
    run: Callable[[Forest, Pass], Tensor],
    decoder: Decoder,
    work: Pass,
    rows: Sequence[Row],
    weights: Sequence[float],
) -> list[float]:
    """One pass forward and back; returns each seat's part of its adapter's loss.

    Args:
        run: hidden states of a pass, whole or from what was kept of it.
        decoder: the network.
        work: which rows it seats; its rows' numbers are places in `rows`.
        rows: what is learnt.
        weights: weight of each supervised token of each row.
    """
    forest = plant(work.branches, decoder.device, stacked=decoder.device.type != "cpu")
    spots: list[int] = []
    targets: list[int] = []
    scales: list[float] = []
    owners: list[int] = []
    for number, seat in enumerate(work.seats):
        row = rows[seat.row]
        first = len(row.prompt) - 1 - seat.skip
        spots += forest.spots(seat.branch, range(first, first + len(row.answer)))
        targets += row.answer
        scales += [weights[seat.row]] * len(row.answer)
        owners += [number] * len(row.answer)
    with torch.enable_grad():
        hidden = run(forest, work)[torch.tensor(spots, device=decoder.device)]
        each = _send_back(
            decoder,
            hidden,
            torch.tensor(targets, device=decoder.device),
            torch.tensor(scales, device=decoder.device),
        )
    sums = torch.zeros(len(work.seats), dtype=torch.float64)
    sums.index_add_(0, torch.tensor(owners), each.double().cpu())
    return [float(part) for part in sums.tolist()]


def _send_back(decoder: Decoder, hidden: Tensor, targets: Tensor, scales: Tensor) -> Tensor:
    """Weighted cross-entropy of [positions, width] states, sent back; returns it by position.

    Where the head is frozen, the gradient at its input is all that is needed from it: it is taken
    block by block, and no more than a block's logits exist at once.
    """
    top = hidden.detach().requires_grad_()
    losses = []
    for start in range(0, len(targets), LOGIT_ROWS):
        block = slice(start, start + LOGIT_ROWS)
        logits = decoder.logits(top[block])
        each, grad = _cross_entropy(logits.detach(), targets[block], scales[block])
        torch.autograd.backward(logits, grad)
        losses.append(each)
    torch.autograd.backward(hidden, top.grad)
    return torch.cat(losses)


def _cross_entropy(logits: Tensor, targets: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled cross-entropy by position, and its gradient, which is written over the logits.

    Logits are by far the largest numbers here: each pass over them that writes anew costs more
    than the arithmetic.
    """
    wanted = targets[:, None]
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    each = (normaliser - logits.gather(1, wanted))[:, 0] * scales
    grad = logits.sub_(normaliser).exp_()
    grad.scatter_add_(1, wanted, grad.new_full(wanted.shape, -1.0))
    return each, grad.mul_(scales[:, None])
