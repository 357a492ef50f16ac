"""What each of several processes runs in test_bank: two jobs in one bank, passes shared out."""

import sys
from pathlib import Path

import torch
from test_bank import bank, job

from mixtune.engine.spread import Spread
from mixtune.engine.train import Trainer

if __name__ == "__main__":
    folder, out = map(Path, sys.argv[1:])
    spread = Spread()
    counts = [0, 0]
    dealt = spread.share

    def share(works):
        mine = dealt(works)
        counts[0] += len(mine)
        counts[1] += len(works)
        return mine

    spread.share = share
    model = bank(folder, 2)
    model.pass_tokens = 150  # several passes a step
    trainer = Trainer(model, spread)
    for number in range(2):
        trainer.seat(job(number))
    weights = {}
    while trainer.jobs:
        for slot, done in trainer.step():
            weights[done.name] = model.bank.weights[slot].clone()
    facts = {"passes": counts[0], "all_passes": counts[1], "weights": weights}
    facts["world"] = spread.state.num_processes
    torch.save(facts, out / f"{spread.state.process_index}.pt")
    spread.state.destroy_process_group()
