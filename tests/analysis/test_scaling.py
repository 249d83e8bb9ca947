"""Laws that are known are found again: exactly without noise, within their intervals with noise."""

import numpy as np
import pytest
import xarray as xr

from lab.analysis import scaling

SIZES = np.array([800.0, 3000.0, 12_000.0, 30_000.0, 100_000.0])
AMPLITUDES, EXPONENTS = np.array([4.0, 3.0, 5.0]), np.array([0.22, 0.15, 0.3])
ARMS = ["small", "large", "sigma"]
N_SEEDS = 8
NAN = np.nan


def laws(floors, sizes=SIZES):
    return AMPLITUDES[:, None] * sizes ** -EXPONENTS[:, None] + np.broadcast_to(floors, 3)[:, None]


def noisy(trial, noise=0.004, floor=1.2):
    """Losses of three known laws, each off by a factor of its own."""
    draws = np.random.default_rng(trial).standard_normal((3, N_SEEDS, SIZES.size))
    losses = laws(floor)[:, None] * np.exp(noise * draws)
    return xr.DataArray(losses, {"arm": ARMS, "seed": range(N_SEEDS), "size": SIZES}, ("arm", "seed", "size"))


@pytest.mark.parametrize("floor", [0.0, 0.5, 1.2, 3.0])
def test_laws_without_noise_are_found_again(floor):
    found = scaling.fit(SIZES, laws(floor))
    # a floor of 0 is at the edge of what is searched, where convergence is slow
    tolerance = 1e-3 if floor == 0 else 1e-5
    np.testing.assert_allclose(found.exponent_A, EXPONENTS, rtol=tolerance)
    np.testing.assert_allclose(found.amplitude_A, AMPLITUDES, rtol=10 * tolerance)
    np.testing.assert_allclose(found.floor_A, floor, rtol=tolerance, atol=2 * tolerance)
    np.testing.assert_allclose(found.at(SIZES), laws(floor), rtol=tolerance)


def test_floors_of_their_own_are_found_where_they_are_not_shared():
    floors = np.array([1.0, 2.0, 0.5])
    found = scaling.fit(SIZES, laws(floors), shared_floor=False)
    np.testing.assert_allclose(found.exponent_A, EXPONENTS, rtol=1e-4)
    np.testing.assert_allclose(found.floor_A, floors, rtol=1e-4)
    assert scaling.fit(SIZES, laws(floors)).residual > 100 * found.residual


def test_one_bad_training_moves_a_law_little():
    bad = laws(1.2)
    bad[0, 2] *= 1.5
    by_size = scaling.fit(SIZES, bad).exponent_A - EXPONENTS
    by_square = scaling.fit(SIZES, bad, delta=10).exponent_A - EXPONENTS
    assert abs(by_size[0]) < 0.1 * abs(by_square[0])


def test_intervals_cover_exponents_and_their_differences():
    covered = []
    trials = 10
    for trial in range(trials):
        draws = scaling.resampled(noisy(trial), n_bootstrap=40)["exponent"]
        against = draws.sel(arm=["small", "large"]) - draws.sel(arm="sigma", drop=True)
        for values, truth in ((draws, EXPONENTS), (against, EXPONENTS[:2] - EXPONENTS[2])):
            _, low, high = scaling.interval(values)
            covered += [*(low.values <= truth) & (truth <= high.values)]
    # intervals of 90 % that eight seeds make a little too narrow cover some 84 %; the numbers of one trial move
    # together, so count trials: three standard errors of a share of 10
    assert np.mean(covered) >= 0.84 - 3 * np.sqrt(0.84 * 0.16 / trials) and np.mean(covered) <= 1


def test_exponents_at_the_true_floor_are_the_laws_and_at_a_lower_one_smaller():
    sizes = np.array([1e3, 4e3, 2e4, 1e5])
    exact = np.array([2 * sizes**-0.3 + 1.2, 3 * sizes**-0.2 + 1.2])[:, None]
    losses = xr.DataArray(exact, {"arm": ["a", "b"], "seed": [0], "size": sizes}, ("arm", "seed", "size"))
    # a subtraction of 1.2 from about 1.3 loses four bits, the slope over five e-foldings few more
    np.testing.assert_allclose(scaling.exponents_at(losses, 1.2)[:, 0], [0.3, 0.2], rtol=1e-12)
    assert (scaling.exponents_at(losses, 1.0) < scaling.exponents_at(losses, 1.2)).all()


def test_resamples_are_of_whole_seeds():
    """A shift of a seed that all arms and sizes share moves every exponent, and the differences hardly."""
    losses = noisy(0, noise=0.0) * xr.DataArray(np.exp(0.05 * np.linspace(-1, 1, N_SEEDS)), dims="seed")
    draws = scaling.resampled(losses, n_bootstrap=40)["exponent"]
    np.testing.assert_allclose(draws.std("draw"), 0, atol=1e-4)  # a factor leaves exponents as they are
    floors = scaling.resampled(losses, n_bootstrap=40)["floor"]
    assert float(floors.std("draw").min()) > 0.005
    np.testing.assert_allclose(floors.isel(arm=0), floors.isel(arm=2))


def test_every_seed_has_a_law_and_one_that_lacks_a_loss_has_none():
    losses = noisy(1, noise=0.0)
    losses[1, 3, 2] = NAN
    found = scaling.by_seed(losses.transpose("size", "arm", "seed"))
    assert found["exponent"].isnull().sel(seed=3).all() and int(found["exponent"].isnull().sum()) == 3
    np.testing.assert_allclose(found["exponent"].sel(seed=0), EXPONENTS, rtol=1e-4)
    assert scaling.resampled(losses, n_bootstrap=3).sizes == {"draw": 4, "arm": 3}
    alone = scaling.resampled(losses.isel(seed=[0]))["exponent"]
    assert alone.sizes["draw"] == 1 and scaling.interval(alone)[1].isnull().all()


@pytest.mark.parametrize(
    ("sizes", "losses", "said"),
    [
        ([1.0, 2.0], [[3.0, 2.0]], "at least 3 sizes"),
        ([1.0, 2.0, 3.0], [[3.0, 2.0, NAN]], "must be positive and finite"),
        ([0.0, 2.0, 3.0], [[3.0, 2.0, 1.0]], "must be positive and finite"),
    ],
)
def test_impossible_laws_are_refused(sizes, losses, said):
    with pytest.raises(ValueError, match=said):
        scaling.fit(np.array(sizes), np.array(losses))


def test_other_dims_and_missing_seeds_are_refused():
    with pytest.raises(ValueError, match="accepted: arm, seed and size"):
        scaling.by_seed(noisy(0).rename(size="width"))
    with pytest.raises(ValueError, match="no seed has a loss"):
        scaling.resampled(noisy(0) * NAN)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1.0])
def test_a_curve_shifted_by_a_factor_saves_that_share_of_tokens(share):
    tokens = np.geomspace(1e3, 1e6, 200)

    def curve(seen):
        return 5 - 0.2 * np.log(seen)  # linear in log tokens, so interpolation is exact

    ahead, behind = curve(tokens / share), curve(tokens)
    assert scaling.tokens_saved(tokens, ahead, behind) == pytest.approx(1 - share, abs=1e-9)
    # the other way round it needs more
    assert scaling.tokens_saved(tokens, behind, ahead) == pytest.approx(1 - 1 / share, abs=1e-9)


def test_tokens_saved_of_what_ends_early_or_not_at_all():
    tokens = np.array([1.0, 2.0, 4.0])
    assert np.isnan(scaling.tokens_saved(tokens, np.array([3, 2, NAN]), np.array([3, 2, 1])))
    # there at its first evaluation
    assert scaling.tokens_saved(tokens, np.array([1, 1, 1]), np.array([3, 2.5, 2])) == 0.75
    with pytest.raises(ValueError, match="positive and ascending"):
        scaling.tokens_saved(np.array([0.0, 1.0]), np.ones(2), np.ones(2))
