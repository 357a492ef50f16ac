"""Cross-entropy at supervised positions, and its backward pass through the network.

Knows: how a row's tokens are weighted, blocks of logits. Does not know: adapters, optimisers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixtune.engine.batching import Pass, answer_indices
from mixtune.engine.decoder import LOGIT_ROWS, Decoder
from mixtune.engine.forest import Forest
from mixtune.study.spec import LossName
from mixtune.tokens import Row


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
    forward: Callable[[Forest], Tensor],
    decoder: Decoder,
    work: Pass,
    rows: Sequence[Row],
    weights: Sequence[float],
) -> list[float]:
    """One pass forward and back; returns the weighted loss of each of its rows.

    Args:
        forward: hidden states [N, width] of a forest.
        decoder: the network.
        work: which rows it packs; their `index` is a place in `rows`.
        rows: training rows.
        weights: weight of each supervised token of each row.
    """
    forest = work.pack(decoder.device)
    indices: list[int] = []
    targets: list[int] = []
    scales: list[float] = []
    row_numbers: list[int] = []
    for number, each in enumerate(work.rows):
        row = rows[each.index]
        indices += answer_indices(forest, each, row)
        targets += row.answer
        scales += [weights[each.index]] * len(row.answer)
        row_numbers += [number] * len(row.answer)
    with torch.enable_grad():
        hidden = forward(forest)[torch.tensor(indices, device=decoder.device)]
        losses = _backward_by_blocks(
            decoder,
            hidden,
            torch.tensor(targets, device=decoder.device),
            torch.tensor(scales, device=decoder.device),
        )
    # Summed on the CPU in float64: on a GPU, index_add_ has no fixed order.
    sums = torch.zeros(len(work.rows), dtype=torch.float64)
    sums.index_add_(0, torch.tensor(row_numbers), losses.double().cpu())
    return [float(loss) for loss in sums.tolist()]


def _backward_by_blocks(
    decoder: Decoder, hidden: Tensor, targets: Tensor, scales: Tensor
) -> Tensor:
    """Backward pass of the weighted cross-entropy of hidden states; returns it by position.

    Args:
        decoder: its head gives the logits.
        hidden: [positions, width].
        targets: [positions], token ids.
        scales: [positions], weights.
    """
    # A graph is cut at the head's input, where all that is needed of the head is its gradient: it
    # is taken block by block, and no more than a block's logits exist at once.
    head_input = hidden.detach().requires_grad_()
    losses = []
    for start in range(0, len(targets), LOGIT_ROWS):
        block = slice(start, start + LOGIT_ROWS)
        logits = decoder.logits(head_input[block])
        loss, grad = _cross_entropy(logits.detach(), targets[block], scales[block])
        torch.autograd.backward(logits, grad)
        losses.append(loss)
    torch.autograd.backward(hidden, head_input.grad)
    return torch.cat(losses)


def _cross_entropy(logits: Tensor, targets: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled cross-entropy by position, and its gradient, which is written over the logits.

    Logits are by far the largest numbers here: each pass over them that writes anew costs more
    than the arithmetic.
    """
    column = targets[:, None]
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    loss = (normaliser - logits.gather(1, column))[:, 0] * scales
    # The gradient of -log softmax at the target: softmax, minus one at the target.
    grad = logits.sub_(normaliser).exp_()
    grad.scatter_add_(1, column, grad.new_full(column.shape, -1.0))
    return loss, grad.mul_(scales[:, None])
