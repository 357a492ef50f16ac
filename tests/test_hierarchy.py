"""The model of all gains: beside the same model written out, and on simulated studies."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from bench.gains import TRUTHS, study
from mixtune.analysis.hierarchy import (
    CELL,
    INTERCEPT,
    RESIDUAL,
    RUN_SD,
    SLOPE,
    CellGain,
    Reference,
    _Model,
    posterior,
)

POINTS = pytest.approx


@pytest.fixture(scope="module")
def one():
    """A simulated study of three targets and two seeds."""
    return study(np.random.default_rng(1), TRUTHS["both"], 3, 2)


def written_out(model, logs):
    """Covariance of the measured gains without the fixed terms, and of the true ones with them."""
    variances = dict(zip([kind.name for kind in model.kinds], np.exp(2 * logs[:-1]), strict=True))
    run = np.exp(2 * logs[-1])
    true = np.diag(np.full(len(model.y), variances[RESIDUAL.name]))
    for effects in model.effects:
        true += variances[effects.kind.name] * effects.columns @ effects.columns.T
    true += variances[CELL.name] * np.equal.outer(model.cell, model.cell)
    noise = np.diag(model.item_variance + run / model.seeds)
    shared = model.shared_variance + run / model.shared_seeds
    noise += model.at_target * shared @ model.at_target.T
    return true, noise


def test_it_is_the_model_that_it_says(one):
    model = _Model(tuple(one.gains), one.references, one.scatter)
    rng = np.random.default_rng(2)
    fixed = np.stack(list(model.fixed.values()), 1)
    found, expected = [], []
    for _ in range(4):
        logs = rng.normal(-0.5, 0.5, len(model.kinds) + 1)
        conditional = model.conditional(logs)
        true, noise = written_out(model, logs)
        precision = np.linalg.inv(true + noise)
        information = fixed.T @ precision @ fixed
        terms = np.linalg.solve(information, fixed.T @ precision @ model.y)
        assert conditional.mean[: len(terms)] == POINTS(terms, abs=1e-8)
        rest = model.y - fixed @ terms
        likelihood = multivariate_normal(np.zeros(len(rest)), true + noise).logpdf(rest)
        expected.append(likelihood - 0.5 * np.linalg.slogdet(information)[1])
        found.append(conditional.log_likelihood)
        # True gains: fixed terms, and the part of the rest that is no noise.
        draws = conditional.draws(4000, rng).gains
        gains = fixed @ terms + true @ precision @ rest
        assert draws.mean(0) == POINTS(gains, abs=5 * draws.std(0).max() / 4000**0.5)
    # Up to a constant: that of the normal density and of the flat priors.
    assert np.diff(found) == POINTS(np.diff(expected), abs=1e-6)


def test_the_same_seed_gives_the_same_draws(one):
    first, second = (posterior(one.gains, one.references, one.scatter, 3) for _ in range(2))
    assert np.array_equal(first.gain_draws, second.gain_draws)
    assert first.terms == (INTERCEPT, SLOPE, "has general")
    assert first.gain_draws.shape == (len(first.term_draws), len(one.gains))


def gains(values, noise, seeds=3):
    """Gains of cells on one target."""
    return [
        CellGain("a", f"a+{i}", (f"{i}",), (), float(value), noise, seeds)
        for i, value in enumerate(values)
    ]


def test_a_lead_that_is_noise_shrinks_away_and_one_that_is_not_stays():
    rng = np.random.default_rng(4)
    reference = {"a": Reference(0.01, 3)}
    noise = gains(rng.normal(0, 1.0, 12), 1.0)
    equal = posterior(noise, reference, None, 1)
    lead = max(gain.value for gain in noise) - np.mean([gain.value for gain in noise])
    means = equal.gain_draws.mean(0)
    assert means.max() - means.mean() < 0.4 * lead
    apart = gains(np.arange(12.0), 0.01)
    kept = posterior(apart, reference, None, 1).gain_draws
    assert kept.mean(0)[-1] == POINTS(11, abs=0.5)
    assert (kept.argmax(1) == 11).mean() > 0.8


def test_what_is_not_repeated_is_assumed_to_scatter():
    values = np.random.default_rng(5).normal(0, RUN_SD, 12)
    alone = posterior(gains(values, 0.001, 1), {"a": Reference(0.001, 1)}, None, 1)
    assert not alone.repeated
    assert np.abs(alone.gain_draws.mean(0) - alone.gain_draws.mean()).max() < 0.5 * np.ptp(values)


@pytest.mark.parametrize("truth", ["no effect", "the group's effect differs by target", "both"])
def test_intervals_cover(truth):
    """Ten studies each; bench/statistics.py has two hundred."""
    rng, covered, terms = np.random.default_rng(6), [], []
    for _ in range(10):
        made = study(rng, TRUTHS[truth], 5, 2)
        fitted = posterior(made.gains, made.references, made.scatter, 1)
        low, high = np.quantile(fitted.gain_draws, [0.025, 0.975], axis=0)
        covered.append(((low <= made.true) & (made.true <= high)).mean())
        low, high = np.quantile(fitted.term_draws, [0.025, 0.975], axis=0)
        terms.append((low <= 0) & (high >= 0))
    assert np.mean(covered) > 0.88
    assert np.mean(terms) > 0.85
