"""Adjusted p-values beside statsmodels', and what a missing one does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixtune.analysis.intervals import benjamini_hochberg, holm

VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize(("mine", "theirs"), [(holm, "holm"), (benjamini_hochberg, "fdr_bh")])
def test_same_as_statsmodels(mine, theirs):
    from statsmodels.stats.multitest import multipletests

    @given(VALUES)
    def same(values):
        assert np.allclose(mine(values), multipletests(values, method=theirs)[1])

    same()


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_a_comparison_without_a_p_counts(adjust):
    assert adjust([0.01, None, 0.5]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(min(1, 0.75 if adjust is benjamini_hochberg else 1.0)),
    ]
