"""The paired gap: closed forms, equal noise for both splits, and nothing that depends on chunks or devices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion import devices, rng
from diffusion.data import pipeline
from diffusion.evaluation import gap
from diffusion.process import gaussian, marginals, parameterizations, schedules
from diffusion.training.state import Parameters
from diffusion.types import Model

LEVELS = 17
NOISE = gap.evaluation_noise(6.0, -6.0, 5, 3)
SNR = np.exp(NOISE.log_snr)


def images(n, seed=0):
  return np.random.default_rng(seed).integers(0, LEVELS, (n, 3, 2, 1), dtype=np.uint8)


def units(x):
  return 2 * x.astype(np.float64) / (LEVELS - 1) - 1


def network(function):
  """A model without parameters: (z, c_noise, label) -> output. It refuses dropout keys."""

  def apply(variables, z, noise, conditioning, *, keys=None, **unused):
    assert keys is None, 'validation must not draw dropout'
    assert conditioning.augment.shape == (z.shape[0], 0)
    return function(z, noise.reshape(-1, 1, 1, 1), conditioning.condition), {}

  return Model(lambda *unused: {'params': {}}, apply)


ZERO = network(lambda z, noise, label: jnp.zeros_like(z))


@functools.cache
def weights(seed):
  return devices.replicate((Parameters({}, (), {}), {}, jnp.uint32(seed)))


def losses(
  x, model=ZERO, parameterization=parameterizations.eps, schedule=schedules.cosine, *,
  label=None, position=None, seed=0, chunk=256, noise=NOISE,
):  # fmt: skip
  """EvaluationNoise losses [n, L] of a model without parameters."""
  diffusion = gaussian.Diffusion(schedule(), marginals.variance_preserving, parameterization())
  label = np.zeros(len(x), np.int32) if label is None else label
  position = np.arange(len(x)) if position is None else position
  return gap.evaluation_losses(
    diffusion, model, pipeline.NormalizationStatistics(LEVELS), noise, chunk
  )(weights(seed), x, label, position)


def test_zero_x0_is_the_signal():
  """With x0_hat = 0 the eps-loss is SNR x0^2 whatever the noise: at every level, on both sides of SNR 1."""
  x = images(40)
  expected = (units(x) ** 2).mean((1, 2, 3))[:, None] * SNR
  np.testing.assert_allclose(losses(x, parameterization=parameterizations.x0), expected, rtol=1e-3)


def noise_of(position, draw_of_level, seed=0):
  """eps of one example and one draw, straight from the definition of its stream."""
  key = rng.row_keys(rng.stream(seed, 'validation'), jnp.asarray([position]))[0]
  return np.asarray(jax.random.normal(jax.random.fold_in(key, draw_of_level), (3, 2, 1)))


def test_zero_eps_is_the_noise():
  """With eps_hat = 0 the loss is the mean of eps^2 over the level's draws, and has nothing of the data."""
  positions = np.array([4, 0, 77])
  found = losses(images(3), position=positions)
  for row, position in enumerate(positions):
    for level in range(5):
      draws = [noise_of(position, level * 3 + d) for d in range(3)]
      assert found[row, level] == pytest.approx(np.mean(np.square(draws)), rel=1e-3)
  np.testing.assert_allclose(losses(images(3, seed=9), position=positions), found, rtol=1e-3)
  many = losses(images(400))
  assert abs(many.mean() - 1) < 5 * math.sqrt(2 / (400 * 5 * 3 * 6))  # the variance of eps^2 is 2


def test_zero_v_in_closed_form():
  """v_hat = 0: eps_hat = sigma z, so the error is alpha (sigma x0 - alpha eps)."""
  x = images(20, seed=3)
  alpha2 = SNR / (1 + SNR)
  found = losses(x, parameterization=parameterizations.v)
  for row in range(0, 20, 5):
    for level, a2 in enumerate(alpha2):
      eps = np.stack([noise_of(row, level * 3 + d) for d in range(3)])
      error = math.sqrt(a2) * (math.sqrt(1 - a2) * units(x[row]) - math.sqrt(a2) * eps)
      assert found[row, level] == pytest.approx(np.mean(error**2), rel=2e-3)


def test_labels_reach_the_network():
  told = network(lambda z, noise, label: jnp.zeros_like(z) + label.reshape(-1, 1, 1, 1))
  x, label = images(6), np.array([0, 1, 2, 0, 1, 2], np.int32)
  found = losses(x, told, parameterizations.x0, label=label)
  expected = ((units(x) - label.reshape(-1, 1, 1, 1)) ** 2).mean((1, 2, 3))[:, None] * SNR
  np.testing.assert_allclose(found, expected, rtol=1e-3)


SHRINK = network(lambda z, noise, label: jnp.tanh(noise) * z)


def test_equal_data_have_a_gap_of_exactly_zero():
  x = images(70)
  row = gap.summarize(losses(x, SHRINK), losses(x.copy(), SHRINK))
  assert row['validation/gap'] == 0
  assert row['validation/gap_low'] == -row['validation/gap_high'] != 0
  assert all(row[f'validation/level/{i}'] == row[f'train/level/{i}'] for i in range(5))
  # The noise belongs to the position: elsewhere it is other noise.
  assert (losses(x, SHRINK) != losses(x, SHRINK, position=np.arange(70) + 70)).all()
  assert (losses(x, SHRINK) != losses(x, SHRINK, seed=1)).all()


def test_chunks_and_order_do_not_matter():
  x = images(133)
  whole = losses(x, SHRINK)
  for chunk in (32, 64):  # several calls, the last one filled up
    np.testing.assert_allclose(losses(x, SHRINK, chunk=chunk), whole, rtol=1e-5)
  order = np.random.default_rng(4).permutation(133)
  np.testing.assert_allclose(losses(x[order], SHRINK, position=order), whole[order], rtol=1e-5)


def test_the_number_of_devices_does_not_matter(monkeypatch):
  assert jax.local_device_count() == 4  # or this would test nothing
  x = images(50)
  expected = losses(x, SHRINK)

  def on_one_device(function, chunk):
    return lambda shared, *arrays: jax.jit(function)(devices.to_host(shared), *arrays)

  monkeypatch.setattr(gap.devices, 'over_rows', on_one_device)
  alone = losses(x, SHRINK)
  assert isinstance(alone, jax.Array)
  assert len(alone.devices()) == 1
  np.testing.assert_allclose(alone, expected, rtol=1e-5)


def test_a_number_means_the_same_under_every_schedule():
  """The evaluation noise fixes log-SNR: a denoiser of (z, log-SNR) has one loss, whatever t its schedule calls it."""
  x = images(30)
  cosine = losses(x, SHRINK)
  for schedule in (schedules.linear_beta, lambda: schedules.cosine(-9.0, 7.0)):
    np.testing.assert_allclose(losses(x, SHRINK, schedule=schedule), cosine, rtol=2e-3)
  assert abs(losses(x, SHRINK, noise=gap.evaluation_noise(5.0, -5.0, 5, 3)) - cosine).max() > 0.1


def test_summary_is_welchs_interval():
  random = np.random.default_rng(5)
  train, held_out = random.gamma(2, 1, (40, 3)), random.gamma(3, 1, (13, 3))
  row = gap.summarize(train, held_out, 0.9)
  a, b = train.mean(1), held_out.mean(1)
  va, vb = a.var(ddof=1) / 40, b.var(ddof=1) / 13
  freedom = (va + vb) ** 2 / (va**2 / 39 + vb**2 / 12)
  half = stats.t.ppf(0.95, freedom) * math.sqrt(va + vb)
  difference = b.mean() - a.mean()
  assert row['validation/eps'] == pytest.approx(held_out.mean())
  assert row['train/eps'] == pytest.approx(train.mean())
  assert row['validation/gap'] == pytest.approx(difference)
  assert row['validation/gap_low'] == pytest.approx(difference - half)
  assert row['validation/gap_high'] == pytest.approx(difference + half)
  table = np.array(gap.per_level(row, gap.evaluation_noise(1.0, -1.0, 3)))
  expected = np.stack(
    [[1, 0, -1], train.mean(0), held_out.mean(0), held_out.mean(0) - train.mean(0)], 1
  )
  np.testing.assert_allclose(table, expected)


def test_welchs_interval_covers():
  """Of 300 draws from one distribution about 5 % have intervals without zero."""
  random = np.random.default_rng(6)
  rows = [
    gap.summarize(random.normal(size=(25, 2)), 3 * random.normal(size=(9, 2))) for _ in range(300)
  ]
  outside = sum(row['validation/gap_low'] > 0 or row['validation/gap_high'] < 0 for row in rows)
  assert 3 <= outside <= 29


def test_evaluation_noise():
  noise = gap.evaluation_noise(4.0, -2.0, 4, 2)
  assert noise.log_snr == (4, 2, 0, -2)
  assert noise.draws == 2
  for arguments, message in (
    ((-1.0, 1.0), 'low=1.0, high=-1.0'),
    ((1.0, 1.0), 'low=1.0, high=1.0'),
    ((8.0, -8.0, 1), 'levels .*1'),
    ((8.0, -8.0, 4, 0), 'draws .*0'),
  ):
    with pytest.raises(ValueError, match=message):
      gap.evaluation_noise(*arguments)


def test_evaluation_noise_outside_the_schedule_is_refused():
  def diffusion(schedule):
    return gaussian.Diffusion(schedule, marginals.variance_preserving, parameterizations.v())

  gap.check_evaluation_noise(gap.evaluation_noise(8.0, -8.0), diffusion(schedules.cosine()), ())
  gap.check_evaluation_noise(
    gap.evaluation_noise(8.0, -8.0), diffusion(schedules.linear_beta()), ()
  )
  for narrow, level in ((schedules.cosine(-15.0, 7.0), '8'), (schedules.cosine(-7.0, 15.0), '-8')):
    with pytest.raises(ValueError, match=rf'log-SNR {level}, the schedule spans .* narrower range'):
      gap.check_evaluation_noise(gap.evaluation_noise(8.0, -8.0), diffusion(narrow), ())
