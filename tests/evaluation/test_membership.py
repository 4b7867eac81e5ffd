"""What the network says of its training set: known for the copyist and for the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import devices
from diffusion.data import pipeline
from diffusion.evaluation import gap, membership
from diffusion.evaluation.metric import Network, Plan, Query, make_network
from diffusion.process import analytic, gaussian, marginals, parameterizations, schedules
from diffusion.training import state as states
from diffusion.types import NULL
from tests.evaluation.given import inputs_of
from tests.training import tiny

PATH = gaussian.bind(
  gaussian.Diffusion(schedules.cosine(), marginals.variance_preserving, parameterizations.v()), ()
)
MEANS = jnp.stack([jnp.ones(8), -jnp.ones(8)])


def draw(seed, n):
  random = np.random.default_rng(seed)
  return (random.normal(size=(n, 8)) * 0.5 + random.choice([-1, 1], n)[:, None]).astype(np.float32)


def truth():
  return analytic.gaussian_mixture(PATH, jnp.ones(2) / 2, MEANS, jnp.stack([0.25 * jnp.eye(8)] * 2))


def network(denoise):
  """A network that is this denoiser, one row a device at a time as the real one."""

  def apply(function, x, label, shared=()):
    keys = jax.vmap(jax.random.key)(jnp.arange(len(x)))
    told = jnp.full(len(x), NULL)
    return jax.device_get(function(Query(denoise, PATH, keys, jnp.asarray(x), told), shared))

  return Network(apply, jnp.asarray, (-15.0, 15.0))


def given(denoise, train):
  return inputs_of(train[:5], train, draw(1, 200), network=network(denoise))


def test_the_copyist_knows_its_training_set_and_the_truth_does_not():
  train = draw(0, 200)
  copyist, fair = analytic.empirical(PATH, jnp.asarray(train)), truth()
  metric = membership.membership(log_snr=(5.0, 3.0), draws=20)
  for finding in metric.measure(given(copyist, train)):
    assert finding.value.low > 0.9
  found = metric.measure(given(fair, train))
  for finding in found:
    assert finding.value.low < 0.5 < finding.value.high
  both, keys = (
    np.concatenate([train, draw(1, 200)]),
    jax.vmap(jax.random.key)(jnp.arange(400) % 200),
  )
  noise = gap.EvaluationNoise((5.0, 3.0), 20)
  own, others = np.split(
    np.asarray(gap.denoiser_losses(fair, PATH, jnp.asarray(both), keys, noise)), 2
  )
  pairs = (own[:, None] < others).mean((0, 1))
  np.testing.assert_allclose([finding.value.estimate for finding in found], pairs, atol=1e-3)


def test_distance_to_the_copyist_is_zero_for_it_alone():
  train = draw(0, 200)
  metric = membership.copying_distance(log_snr=(4.0, 0.0))
  for finding in metric.measure(given(analytic.empirical(PATH, jnp.asarray(train)), train)):
    assert finding.value.estimate < 1e-5
  for finding in metric.measure(given(truth(), train)):
    assert finding.value.low > 0.05


def test_a_denoiser_that_knows_the_mean_alone_is_at_distance_one():
  train = draw(0, 200)

  def mean(z, t, key=None):
    x0 = jnp.broadcast_to(train.mean(0), z.shape)
    return analytic.empirical(PATH, jnp.asarray(train))(z, t)._replace(x0=x0)

  for finding in membership.copying_distance(log_snr=(4.0, 0.0)).measure(given(mean, train)):
    assert finding.value.estimate == pytest.approx(1, rel=1e-6)


def test_findings_are_made_of_what_the_network_answers_about_as_many_rows_as_are_asked_about():
  """A network whose answers are told beforehand: what it is asked, and what comes of the numbers of each level."""
  random = np.random.default_rng(3)
  train, held_out = draw(0, 90), draw(1, 70)
  asked, answers = [], []

  def apply(function, x, told, shared=()):
    asked.append((x, told, shared))
    return answers.pop(0)

  told = Network(apply, lambda x: 2 * x, (-3.0, 5.0))
  inputs = inputs_of(train[:5], train, held_out, network=told)
  labels = random.integers(0, 5, 90), random.integers(0, 5, 70)
  inputs = inputs._replace(train=(train, labels[0]), held_out=(held_out, labels[1]))
  rows_of = dict(
    zip(('train', 'held_out'), ((train, labels[0]), (held_out, labels[1])), strict=True)
  )

  def assert_asked(which, limit):
    x, label, shared = asked.pop(0)
    known = {tuple(row): k for row, k in zip(*rows_of[which], strict=True)}
    assert [known[tuple(row)] for row in x] == list(label)
    assert len({tuple(row) for row in x}) == len(x) == min(limit, len(known))
    return shared

  levels = (5.0, 1.0, -3.0)  # the ends of what the schedule spans are in it
  for limit in (50, 80):
    losses = random.normal(size=(min(limit, 90), 3)), random.normal(size=(min(limit, 70), 3))
    answers[:] = losses
    found = membership.membership(levels, 6, limit).measure(inputs)
    assert_asked('train', limit)
    assert_asked('held_out', limit)
    for i, (level, one) in enumerate(zip(levels, found, strict=True)):
      pairs = losses[0][:, None, i] < losses[1][:, i]
      assert one.name == f'membership AUC, log-SNR {level:g}'
      assert one.value.estimate == pytest.approx(pairs.mean())
      assert one.meaning.startswith(
        f'{len(losses[0])} training against {len(losses[1])} held-out examples, 6 draws'
      )
      assert one.better == 'nearer 0.5'
    near, far, scale = random.gamma(2, size=(3, min(limit, 70), 3))
    for make, name, top, better in (
      (membership.copying_distance, 'M', near, ''),
      (lambda *given: membership.score_position(truth, *given), 'G', near - far, 'nearer 1'),
    ):
      answers[:] = [(near, far, scale)]
      found = make(levels, 2, limit).measure(inputs)
      copied, label = assert_asked('held_out', limit)
      np.testing.assert_array_equal(copied, 2 * train)  # all of it, in the network's units
      np.testing.assert_array_equal(label, labels[0])
      for i, (level, one) in enumerate(zip(levels, found, strict=True)):
        assert (one.name, one.better) == (f'{name}, log-SNR {level:g}', better)
        assert one.value.estimate == pytest.approx(top[:, i].mean() / scale[:, i].mean())
  for level in (-3.1, 5.1):
    with pytest.raises(ValueError, match=rf'log_snr has {level}, the schedule spans \[-3, 5\]'):
      membership.membership((0.0, level)).measure(inputs)
    with pytest.raises(ValueError, match=rf'log_snr has {level}, the schedule spans \[-3, 5\]'):
      membership.copying_distance((0.0, level)).measure(inputs)


def test_the_copyist_of_mirror_images_is_known_for_it():
  random = np.random.default_rng(0)
  train = random.normal(size=(60, 4, 3, 1)).astype(np.float32)
  copyist = analytic.empirical(PATH, jnp.asarray(train), flip=True)
  inputs = inputs_of(
    train[:5], train, random.normal(size=(50, 4, 3, 1)).astype(np.float32), network=network(copyist)
  )
  plain, both = (
    [one.value.estimate for one in membership.copying_distance((2.0, 0.0), mirrored=m).measure(inputs)]
    for m in (False, True)
  )  # fmt: skip
  assert max(both) < 1e-5
  assert min(plain) > 0.1

  def mean(z, t, key=None):  # of the training set and its mirror images
    x0 = jnp.broadcast_to((train + train[:, :, ::-1]).mean(0) / 2, z.shape)
    return copyist(z, t)._replace(x0=x0)

  given = inputs._replace(network=network(mean))
  for finding in membership.copying_distance((2.0, 0.0), mirrored=True).measure(given):
    assert finding.value.estimate == pytest.approx(1, rel=1e-5)
  with pytest.raises(ValueError, match='mirrored=True is for images'):
    membership.copying_distance(mirrored=True).check(Plan(10, 0, (8,), 50, 50, network=True))


def test_the_copyist_beside_a_network_that_is_told_classes_knows_them():
  """Examples whose class says nothing of them: a network that copies its class alone is no copyist of all."""
  train, held_out = draw(0, 60), draw(1, 50)
  labels = {'train': np.arange(60) % 3, 'held_out': np.arange(50) % 3}

  def apply(function, x, label, shared=()):
    keys, told = jax.vmap(jax.random.key)(jnp.arange(len(x))), jnp.asarray(label)
    copyist = analytic.empirical(PATH, jnp.asarray(train), jnp.asarray(labels['train']), told)
    return jax.device_get(function(Query(copyist, PATH, keys, jnp.asarray(x), told), shared))

  told = Network(apply, jnp.asarray, (-15.0, 15.0))
  plain = inputs_of(train[:5], train, held_out, network=told)
  known = plain._replace(train=(train, labels['train']), held_out=(held_out, labels['held_out']))
  others = known._replace(held_out=(held_out, (labels['held_out'] + 1) % 3))
  metric = membership.copying_distance(log_snr=(2.0, 0.0))
  for given in (known, others):  # whatever the network is told, the copyist is told it too
    assert max(one.value.estimate for one in metric.measure(given)) < 1e-5
  everything = given._replace(
    train=(train, np.zeros(60, int)), held_out=(held_out, np.zeros(50, int))
  )
  assert min(one.value.estimate for one in metric.measure(everything)) > 0.05


def test_score_position_is_one_for_the_truth_and_minus_one_for_the_copyist():
  train = draw(0, 100)
  copyist, fair = analytic.empirical(PATH, jnp.asarray(train)), truth()

  def between(z, t, key=None):
    return jax.tree.map(lambda a, b: (a + b) / 2, copyist(z, t), fair(z, t))

  for denoise, expected in ((fair, 1), (copyist, -1), (between, 0)):
    metric = membership.score_position(lambda path: truth(), (4.0, 0.0, -2.0))
    for finding in metric.measure(given(denoise, train)):
      assert finding.value.estimate == pytest.approx(expected, abs=1e-4)


def test_score_position_is_one_for_the_truth_in_the_units_of_standardized_data():
  """The truth is told in the data's units; the network's is the mixture of (x - mean) / deviation, written out."""
  units = pipeline.NormalizationStatistics(None, 7.0, 3.0)
  truth_of_x = lambda path: analytic.gaussian_mixture(  # noqa: E731
    path, jnp.ones(2) / 2, 7 + 3 * MEANS, jnp.full(2, 1.5)
  )
  fair = analytic.gaussian_mixture(PATH, jnp.ones(2) / 2, MEANS, jnp.full(2, 0.5))
  train, held_out = 7 + 3 * draw(0, 100), 7 + 3 * draw(1, 200)
  asked = network(fair)._replace(normalize=lambda x: pipeline.normalize(jnp.asarray(x), units))
  apply = asked.apply
  asked = asked._replace(apply=lambda f, x, *more: apply(f, pipeline.normalize(x, units), *more))
  inputs = inputs_of(train[:5], train, held_out, network=asked)._replace(units=units)
  for finding in membership.score_position(truth_of_x, (4.0, 0.0, -2.0)).measure(inputs):
    assert finding.value.estimate == pytest.approx(1, abs=1e-3)


def test_a_conditional_copyist_is_of_the_class(monkeypatch):
  """The real network of an experiment is asked with its labels, and an unconditional one without."""
  made = tiny.experiment()
  data, state, _ = tiny.start(made)
  weights = states.weights(made, devices.replicate(state))
  real = make_network(made.model, made.diffusion, data.units, weights)
  got = real.apply(
    lambda query, shared: (query.condition, query.x + shared),
    *(part[:3] for part in data.test),
    2.0,
  )
  np.testing.assert_array_equal(got[0], data.test[1][:3])
  np.testing.assert_allclose(
    got[1], pipeline.normalize(data.test[0][:3], data.units) + 2, rtol=1e-6
  )
  assert real.log_snr == pytest.approx((-15, 15))
  free = make_network(made.model._replace(null=None), made.diffusion, data.units, weights)
  told = free.apply(lambda query, shared: query.condition, *(part[:3] for part in data.test))
  np.testing.assert_array_equal(told, [NULL] * 3)
  with pytest.raises(ValueError, match=r'log_snr has 20, the schedule spans \[-15, 15\]'):
    membership.membership(log_snr=(20.0,)).measure(given(truth(), draw(0, 10)))


@pytest.mark.parametrize(
  'make, says',
  [
    (lambda: membership.membership(draws=0), 'draws .* got 0'),
    (lambda: membership.membership(log_snr=()), 'log_snr must hold at least one finite level'),
    (lambda: membership.copying_distance(log_snr=(np.nan,)), 'log_snr must hold'),
    (lambda: membership.copying_distance(limit=1), 'limit .* got 1'),
    (
      lambda: membership.membership().check(Plan(5, 0, (2,), 1, 9)),
      'at least 2 training and held-out examples, got 1 and 9',
    ),
    (
      lambda: membership.copying_distance().check(Plan(5, 0, (2,), 9, 1)),
      'at least 2 training and held-out examples, got 9 and 1',
    ),
    (
      lambda: membership.copying_distance().check(Plan(5, 0, (2,), 9, 9, network=False)),
      'asks the',
    ),
  ],
)
def test_bad_arguments_are_named(make, says):
  with pytest.raises(ValueError, match=says):
    make()


def test_the_examples_that_are_asked_about_are_any_of_their_split_each_with_what_is_told_of_it():
  number = np.arange(1000)
  given = inputs_of(draw(0, 5), number[:, None] * np.ones((1, 8)), draw(1, 50))
  given = given._replace(train=(given.train[0], number.astype(np.int32)))
  x, told = membership._some(given, 'train', 200)
  np.testing.assert_array_equal(x[:, 0], told)
  assert len(set(told.tolist())) == 200
  counts = np.bincount(told // 100, minlength=10)
  assert counts.min() > 5 and counts.max() < 40  # of 20 expected in each tenth
  by_name = given._replace(conditions={'train': {'name': number}, 'held_out': {}})
  np.testing.assert_array_equal(membership._some(by_name, 'train', 200)[1]['name'], told)
  assert len(membership._some(given, 'held_out', 200)[0]) == 50
