"""From a network's weights to samples: which network gets which condition, schedule, seed and key."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import rng
from diffusion.process import gaussian, marginals, parameterizations, schedules
from diffusion.sampling import draw, samplers
from diffusion.sampling.plan import Sampling
from diffusion.training.state import Parameters
from diffusion.types import NULL, Model

LEARNED = schedules.learned(-8.0, 8.0, 4)
CLASSES = 3
SHAPE = (4,)


def apply(variables, z, noise, conditioning, *, keys=None, batch_key=None, **mode):
  """An output of the weights, the condition, the noise level and (with keys) of what should not be there."""
  told = variables['params'][conditioning.condition]  # NULL = -1 is the last
  output = told[:, None] * jnp.cos(noise)[:, None] + 0.1 * z + variables['shift']
  return output + (0.0 if keys is None else 100.0), {}


NETWORK = Model(None, apply, lambda condition: jnp.full_like(condition, NULL), CLASSES)
OUTPUTS = jnp.array([0.3, -0.5, 0.8, 0.1])  # of the labels, and of the null one


def drawn(
  outputs=OUTPUTS, labels=(0, 1, 2), numbers=(0, 1, 2), seed=0, schedule=None, shift=0.0, diffusion=LEARNED,
  network=NETWORK, **plan
):  # fmt: skip
  """Samples; several networks come as tuples."""
  members = len(outputs) if isinstance(outputs, tuple) else 0
  made = gaussian.Diffusion(diffusion, marginals.variance_preserving, parameterizations.v())
  begin = LEARNED.init(jax.random.key(0)) if schedule is None else schedule
  each = lambda make, given: tuple(map(make, given)) if members else make(given)  # noqa: E731
  weights = (
    each(lambda one: Parameters(one, begin, ()), outputs), each(lambda one: {'shift': one}, shift), jnp.uint32(seed),
  )  # fmt: skip
  sampling = Sampling(**{'steps': 6, 'wrappers': ()} | plan)
  run = draw.on_a_device(network, made, sampling, SHAPE, members)
  return np.asarray(jax.jit(run)(weights, jnp.array(labels), jnp.array(numbers)))


def test_guidance_leads_from_the_null_label_to_the_label_through_the_outputs():
  """Under v outputs mix as predictions do, so a guided network is one network of mixed outputs."""
  mixed = OUTPUTS[-1] + 2.5 * (OUTPUTS - OUTPUTS[-1])
  np.testing.assert_allclose(drawn(guidance=2.5), drawn(mixed), atol=1e-5)
  assert np.abs(drawn(guidance=2.5) - drawn()).max(1).min() > 0.05
  np.testing.assert_allclose(drawn(guidance=0.0), drawn(labels=(NULL,) * 3), atol=1e-5)


def test_outside_the_interval_of_guidance_the_label_is_told_alone():
  np.testing.assert_allclose(drawn(guidance=2.5, interval=(20.0, 30.0)), drawn(), atol=1e-6)
  np.testing.assert_allclose(
    drawn(guidance=2.5, interval=(-30.0, 30.0)), drawn(guidance=2.5), atol=1e-6
  )


def test_monte_carlo_dropout_has_keys_of_its_own_beside_those_of_the_noise():
  seen = []

  def watched(*arguments, keys=None, **options):
    jax.debug.callback(
      lambda keys: seen.extend(map(tuple, keys.tolist())), jax.random.key_data(keys)
    )
    return apply(*arguments, **options)

  drawn(network=NETWORK._replace(apply=watched), monte_carlo=2, sampler=samplers.ancestral)
  jax.effects_barrier()
  assert len(set(seen)) == 2 * 3  # draws, samples
  own = rng.row_keys(rng.stream(0, 'sampler'), jnp.arange(3))
  steps = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(9)))(own)
  noise = np.concatenate([jax.random.key_data(one).reshape(-1, 2) for one in (own, steps)])
  assert not set(seen) & set(map(tuple, noise.tolist()))


def test_an_ensemble_draws_from_the_mean_of_all_its_members_with_their_own_statistics():
  others, shifts = (OUTPUTS, -3 * OUTPUTS, OUTPUTS + 1), (0.0, 0.6, -0.3)
  guided = {'guidance': 2.5}  # which asks both of the label and of the null one
  expected = drawn(sum(others) / 3, shift=sum(shifts) / 3, **guided)
  np.testing.assert_allclose(drawn(others, shift=shifts, **guided), expected, atol=1e-5)
  assert np.abs(expected - drawn(**guided)).max() > 0.05


def test_samples_come_down_the_schedule_as_it_was_learned():
  other = jax.tree.map(
    lambda p: p + 1.5 * jnp.cos(jnp.arange(p.size)).reshape(p.shape),
    LEARNED.init(jax.random.key(0)),
  )
  fixed = LEARNED._replace(log_snr=lambda params, t: LEARNED.log_snr(other, t))
  np.testing.assert_allclose(drawn(schedule=other), drawn(diffusion=fixed), atol=1e-6)
  assert np.abs(drawn(schedule=other) - drawn()).max() > 1e-3


def test_a_sample_is_of_its_number_and_the_seed_alone_and_without_dropout():
  for sampler in (samplers.ddim, samplers.ancestral):
    whole = drawn(labels=(1,) * 5, numbers=range(5), sampler=sampler)
    np.testing.assert_allclose(
      drawn(labels=(1, 1), numbers=(4, 2), sampler=sampler), whole[[4, 2]], atol=1e-6
    )
    assert np.abs(whole[:, None] - whole + 9 * np.eye(5)[..., None]).max(2).min() > 0.1
    assert (
      np.abs(drawn(labels=(1,) * 5, numbers=range(5), seed=7, sampler=sampler) - whole).max(1).min()
      > 0.1
    )
    assert np.abs(whole).max() < 20


def test_a_sampler_that_differs_by_sample_is_told_their_numbers():
  def sampler(path):
    plain = samplers.ddim(path)
    of_rows = lambda number: plain._replace(finish=lambda z: 0 * z + number[:, None])  # noqa: E731
    return plain._replace(of_rows=of_rows)

  found = drawn(labels=(1, 1), numbers=(4, 2), steps=1, sampler=sampler)
  np.testing.assert_array_equal(found, np.array([[4.0], [2.0]]) + np.zeros(SHAPE))


def test_labels_come_in_turn_row_by_row():
  assert draw.class_labels(3, 2).tolist() == [0, 1, 2, 0, 1, 2]
  assert draw.class_labels(0, 3).tolist() == [0, 0, 0]
  plan = Sampling(grid_rows=2, per_class=5)
  assert draw.picture_labels(plan, 17, 3).tolist() == [0, 1, 2, 0, 1, 2]
  assert draw.picture_labels(plan, None, 2).tolist() == [0, 1] * 5
  assert draw.picture_labels(plan._replace(per_class=1), 17, 3).tolist() == [0, 1, 2]
