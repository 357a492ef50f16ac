"""Metrics as scikit-learn has them: from codes, of which n_labels is that of unread answers."""

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef


def _f1(average):
    def compute(gold, parsed, n_labels):
        used = np.union1d(gold, parsed)
        labels = used[used < n_labels]
        return f1_score(gold, parsed, labels=labels, average=average, zero_division=0)

    return compute


def _mcc(gold, parsed, n_labels):
    if len(np.union1d(gold, parsed)) < 2:
        return 0.0  # what scikit-learn says too, with a warning
    return matthews_corrcoef(gold, parsed)


ORACLE = {
    "accuracy": lambda gold, parsed, n_labels: accuracy_score(gold, parsed),
    "macro-f1": _f1("macro"),
    "weighted-f1": _f1("weighted"),
    "mcc": _mcc,
}
