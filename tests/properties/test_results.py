"""What holds of every split, metric, interval and record, whatever the data."""

import hashlib
import json
import math
import pathlib
import tempfile

import numpy as np
import pytest
import scipy.spatial
from hypothesis import assume, given
from hypothesis import strategies as st

from diffusion import fingerprint, proportions, statistics
from diffusion.data import pipeline, splits
from diffusion.evaluation import (
  frechet,
  manifold,
  memorization,
  novelty,
  recognition,
  same_noise,
)
from diffusion.evaluation.metric import MetricInputs
from diffusion.proportions import Counts
from diffusion.reporting import encoding, rows, sealed
from diffusion.statistics import Interval
from tests.evaluation.given import inputs_of, values
from tests.properties import examples, number, randoms

PARTS = ('train', 'validation', 'test')
CUTS = st.builds(
  lambda validation, test, salt: splits.Fractions(validation, test, salt=salt),
  number(0.1, 0.45), number(0.1, 0.45), st.text(max_size=5),
)  # fmt: skip


@st.composite
def labelled(draw, least=30):
  """Distinct examples of one to four classes, each of at least so many, in any order."""
  sizes = draw(st.lists(st.integers(least, 2 * least), min_size=1, max_size=4))
  random = draw(randoms)
  label = random.permutation(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes))
  return random.permutation(2**16)[: len(label), None].astype(np.uint16), label, random


def parts_of(x, split):
  """Content -> the names of the parts that have it."""
  found = {}
  for name in PARTS:
    for one in x[getattr(split, name), 0].tolist():
      found.setdefault(one, set()).add(name)
  return found


@examples(25)
@given(data=labelled(), fractions=CUTS)
def test_a_split_is_disjoint_and_complete_and_keeps_copies_together_in_any_order(data, fractions):
  """Also where copies carry other labels; and of each class, counted by content, it is the share asked for."""
  x, label, random = data
  pure = splits.make(x, label, fractions, official_test=False)
  for k in np.unique(label):
    for name in ('validation', 'test'):
      size = (label[getattr(pure, name)] == k).sum()
      assert abs(size - getattr(fractions, name) * (label == k).sum()) <= 1
  copied = random.integers(len(x), size=20)
  x = np.concatenate([x, x[copied]])
  label = np.concatenate([label, random.permutation(label)[:20]])
  split = splits.make(x, label, fractions, official_test=False)
  assert sorted(np.concatenate(split[:3])) == list(range(len(x)))
  assert all((np.diff(part) > 0).all() for part in split[:3])
  where = parts_of(x, split)
  assert {len(names) for names in where.values()} == {1}
  order = random.permutation(len(x))
  again = splits.make(x[order], label[order], fractions, official_test=False)
  assert parts_of(x[order], again) == where
  assert again.hashes == split.hashes
  assert again.fingerprint != split.fingerprint  # which is of the data as it stands


@examples(25)
@given(data=labelled(), fractions=CUTS, more=st.integers(1, 40))
def test_each_added_example_moves_at_most_one_across_each_of_the_two_cuts(data, fractions, more):
  """And copies of what is there move nothing."""
  x, label, random = data
  kept = len(x) - more
  assume(np.bincount(label[:kept], minlength=label.max() + 1).min() >= 25)
  before = parts_of(x, splits.make(x[:kept], label[:kept], fractions, official_test=False))
  after = parts_of(x, splits.make(x, label, fractions, official_test=False))
  order = {name: i for i, name in enumerate(('test', 'validation', 'train'))}  # as hashes are cut
  crossed = [abs(order[min(after[one])] - order[min(names)]) for one, names in before.items()]
  assert sum(crossed) <= 2 * more
  copies = np.concatenate([np.arange(len(x)), random.integers(len(x), size=more)])
  twice = splits.make(x[copies], label[copies], fractions, official_test=False)
  assert parts_of(x[copies], twice) == after


@examples(25)
@given(data=labelled(), fractions=CUTS, limits=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_a_limit_takes_a_window_of_one_order_and_balances_the_classes(data, fractions, limits):
  x, label, _ = data
  assume(sum(limits) <= 10 * len(np.unique(label)))  # no class is used up

  def taken(limit, offset):
    wanted = fractions._replace(limit=limit, offset=offset, subset='another')
    return splits.make(x, label, wanted, official_test=False).train.tolist()

  first, second, both = taken(limits[0], 0), taken(limits[1], limits[0]), taken(sum(limits), 0)
  assert sorted(first + second) == both
  counts = np.bincount(label[both], minlength=label.max() + 1)
  assert counts.max() - counts.min() <= 1


# Sets of features, all of one shape, so that what is compiled is compiled once.
COUNT, WIDTH = 24, 3


def features(random, spread=1.0):
  return (spread * random.normal(size=(COUNT, WIDTH))).astype(np.float32)


def rotation(random):
  return np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0]


@examples(25)
@given(random=randoms, scale=number(1e-3, 1e3), shift=number(-10, 10))
def test_frechet_distances_are_distances_of_what_sets_are_not_of_how_they_lie(random, scale, shift):
  a, b = features(random).astype(np.float64), features(random, 2.0) @ rotation(random)
  of = lambda x, y: frechet.distance(frechet.moments(x), frechet.moments(y))  # noqa: E731
  whole = of(a, b)
  assert whole > 0
  assert of(a, random.permutation(a)) == pytest.approx(0, abs=1e-6)
  assert of(b, a) == pytest.approx(whole, rel=1e-6)
  assert of(random.permutation(a), b) == pytest.approx(whole, rel=1e-6)
  turn = scale * rotation(random)
  assert of(a @ turn + shift, b @ turn + shift) == pytest.approx(scale**2 * whole, rel=1e-4)
  step = shift * np.ones(WIDTH)
  assert of(a, a + step) == pytest.approx(WIDTH * shift**2, rel=1e-6, abs=1e-6)
  # Of one distribution that is wider by a factor: the deviations differ by that factor.
  trace = np.trace(frechet.moments(a).covariance)
  grown = of(a - a.mean(0), scale * (a - a.mean(0)))
  assert grown == pytest.approx((scale - 1) ** 2 * trace, rel=1e-4, abs=1e-6 * trace)


@examples(15)
@given(random=randoms, shift=number(-10, 10))
def test_sliced_distances_are_symmetric_and_blind_to_order_and_place(random, shift):
  a, b = features(random), features(random, 2.0)
  whole = manifold.sliced_distance(a, b)
  assert whole > 0
  assert manifold.sliced_distance(a, random.permutation(a)) == pytest.approx(0, abs=1e-9)
  assert manifold.sliced_distance(b, a) == pytest.approx(whole)
  assert manifold.sliced_distance(a + shift, b + shift) == pytest.approx(whole, rel=1e-4)
  assert manifold.sliced_distance(a, a + np.float32(shift)) <= abs(shift) * 3**0.5 + 1e-5


@examples(8)
@given(random=randoms, k=st.integers(1, 4), far=number(100, 1000))
def test_precision_recall_and_coverage_at_their_ends(random, k, far):
  """The training set itself in another order, and rows far away from it."""
  train = features(random)
  same, away = random.permutation(train), features(random) + np.float32(far)
  for samples, share in ((same, 1), (away, 0)):
    given_ = inputs_of(samples, train, train)
    found = values(manifold.precision_recall(k=k), given_)
    assert found['precision'].estimate == found['recall'].estimate == share
    found = values(manifold.density_coverage(k=k), given_)
    assert found['coverage'].estimate == share
    assert found['density'].estimate >= 1 if share else found['density'].estimate == 0
  # Each set's part is the other's where the two change places.
  one, other = (
    values(manifold.precision_recall(k=k), inputs_of(*pair, train))
    for pair in ((train, 0.5 * same + 1), (0.5 * same + 1, train))
  )
  assert one['precision'].estimate == other['recall'].estimate
  assert one['recall'].estimate == other['precision'].estimate


@examples(25)
@given(random=randoms, scale=number(1e-2, 1e2))
def test_the_vendi_score_is_between_one_and_the_number_of_rows(random, scale):
  x = features(random)
  score = manifold.vendi_score(x)
  assert 1 <= score <= WIDTH * (1 + 1e-9)  # no more than there are directions
  assert manifold.vendi_score(scale * random.permutation(x) @ rotation(random)) == pytest.approx(
    score, rel=1e-4
  )
  own = random.uniform(0.1, 10, (COUNT, 1))  # directions are all that counts
  assert manifold.vendi_score(own * x) == pytest.approx(score, rel=1e-4)
  assert manifold.vendi_score(np.repeat(x[:1], 9, axis=0)) == pytest.approx(1)
  assert manifold.vendi_score(np.eye(5)[random.permutation(5)]) == pytest.approx(5)
  calls = np.eye(7)[random.permutation(np.repeat(np.arange(4), 6))]
  assert manifold.class_entropy(calls) == pytest.approx(4)


@examples(8)
@given(random=randoms, far=number(1e3, 1e4), copied=st.integers(0, COUNT))
def test_copies_are_memorized_and_far_rows_are_not(random, far, copied):
  """However many of the samples they are, wherever they lie, and though the training set has some of them twice."""
  train = features(random)
  samples = features(random) + np.float32(far)
  samples[:copied] = train[random.integers(COUNT, size=copied)]
  twice = np.concatenate([train[:4], train])
  shuffled = random.permutation(COUNT)
  given_ = inputs_of(samples[shuffled], random.permutation(twice), features(random))
  found = values(memorization.nearest_neighbor_ratio(), given_)
  assert found['memorized fraction'].estimate == copied / COUNT
  assert values(memorization.authenticity(), given_)['authenticity'].estimate == pytest.approx(
    1 - copied / COUNT
  )
  queries = features(random)
  between = scipy.spatial.distance.cdist(np.concatenate([queries, train]), train)
  first = between[:COUNT].argmin(1)
  own = np.sort(between[COUNT:], axis=1)[first, 1]
  expected = between[:COUNT].min(1) > own
  np.testing.assert_array_equal(memorization.is_authentic(queries, twice), expected)
  near, ratio = memorization.ratios(samples, twice)
  assert ((ratio >= 0) & (ratio <= 1)).all()
  assert (ratio[:copied] == 0).all()
  np.testing.assert_array_equal(twice[near[:copied]], samples[:copied])
  watched = memorization.watch(train, train)(samples)
  assert watched['memorized/fraction'] == copied / COUNT
  assert watched['memorized/null'] == 1


@examples(25)
@given(
  positive=st.lists(st.integers(-9, 9), min_size=2, max_size=15),
  negative=st.lists(st.integers(-9, 9), min_size=2, max_size=15),
)
def test_the_area_under_the_curve_of_membership_is_a_share_of_pairs(positive, negative):
  found = statistics.auc(positive, negative)
  pairs = np.subtract.outer(positive, negative)
  assert found.estimate == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
  assert 0 <= found.low <= found.estimate <= found.high <= 1
  assert found.high > found.low
  swapped = statistics.complement(statistics.auc(negative, positive))
  np.testing.assert_allclose(swapped, found, atol=1e-6)
  apart = statistics.auc(np.add(positive, 100), negative)
  assert apart.estimate == apart.high == 1
  assert apart.low < 1
  grown = statistics.auc(np.exp(positive), np.exp(negative))  # the order is all that counts
  np.testing.assert_allclose(grown, found, atol=1e-9)


@examples(6)
@given(random=randoms, wrong=st.integers(0, 24))
def test_samples_are_recognized_by_the_right_names_alone(random, wrong):
  """Copies of well separated classes, some of them asked for by the name of the next class."""
  label = np.repeat(np.arange(3, dtype=np.int32), 8)
  x = (8 * np.eye(3)[label] + 0.1 * random.normal(size=(24, 3))).astype(np.float32)
  order, renamed = random.permutation(24), np.arange(24) < wrong
  asked = (label[order] + renamed) % 3
  units = pipeline.NormalizationStatistics(None)
  splits_ = (x, label), (x, label), 0, ('a', 'b', 'c'), units
  found = values(recognition.recognition(), MetricInputs(x[order], asked, *splits_, None, {}))
  assert found['recognized as their label'].estimate == pytest.approx(1 - wrong / 24)
  lowest = min(1 - renamed[asked == k].mean() for k in np.unique(asked))
  assert found['worst class'].estimate == pytest.approx(lowest)
  assert found['held-out accuracy'].estimate == 1


@examples(6)
@given(random=randoms, near=number(0, 0.05))
def test_a_copying_test_is_below_zero_for_copies_and_changes_its_sign_with_the_places(random, near):
  train, held_out = features(random), features(random)
  copies = train + np.float32(near) * features(random)
  found = novelty.copying_test(copies, held_out, train, cells=1)
  assert found.statistic.high < 0
  other = novelty.copying_test(held_out, copies, train, cells=1)
  assert other.statistic.estimate == pytest.approx(-found.statistic.estimate, abs=1e-6)
  equal = novelty.copying_test(random.permutation(held_out), held_out, train, cells=1)
  assert equal.statistic.estimate == pytest.approx(0, abs=1e-6)


@examples(6)
@given(random=randoms, scale=number(0.1, 10))
def test_two_models_agree_with_themselves_and_whoever_is_first(random, scale):
  a, b = features(random), features(random)
  label = random.permutation(np.repeat(np.arange(3), 8))
  own, other = features(random), features(random) + 1
  told = lambda *given: {one.name: one.value for one in same_noise.agreement(*given)}  # noqa: E731
  same = told(a, a, label, a, other)
  assert same['distance ratio'].estimate == 0
  assert same['cosine of pairs'].estimate == pytest.approx(1, abs=1e-6)
  assert same['memorized fraction, first model'].estimate == 1
  found, swapped = told(a, b, label, own, other), told(b, a, label, other, own)
  for name in ('distance of pairs', 'cosine of pairs'):
    np.testing.assert_allclose(found[name], swapped[name], rtol=1e-6, atol=1e-7)
  first, second = (f'memorized fraction, {one} model' for one in ('first', 'second'))
  assert found[first] == swapped[second]
  scaled = told(
    *(np.float32(scale) * x if x is not label else x for x in (a, b, label, own, other))
  )
  np.testing.assert_allclose(scaled['distance ratio'], found['distance ratio'], rtol=1e-4)


@st.composite
def counts(draw, least=1):
  """The counts of one to five runs."""
  trials = draw(st.lists(st.integers(1, 500), min_size=least, max_size=5))
  return [Counts(draw(st.integers(0, n)), n) for n in trials]


def assert_near(found, expected):
  np.testing.assert_allclose(found, expected, atol=1e-9)


@examples(40)
@given(runs=counts(), confidence=number(0.5, 0.999), order=st.randoms(use_true_random=False))
def test_an_interval_of_runs_holds_its_share_is_mirrored_and_does_not_know_their_order(
  runs, confidence, order
):
  found = proportions.pooled(runs, confidence)
  assert found.estimate == pytest.approx(sum(k for k, *_ in runs) / sum(n for _, n, *_ in runs))
  assert 0 <= found.low <= found.estimate + 1e-12
  assert found.estimate - 1e-12 <= found.high <= 1
  assert found.low < found.high
  failures = [Counts(n - k, n) for k, n, *_ in runs]
  assert_near(proportions.pooled(failures, confidence), statistics.complement(found))
  assert_near(proportions.pooled(order.sample(runs, len(runs)), confidence), found)
  surer = proportions.pooled(runs, (1 + confidence) / 2)
  assert surer.low <= found.low + 1e-12
  assert surer.high >= found.high - 1e-12


@examples(25)
@given(k=st.integers(0, 60), rest=st.integers(0, 60), times=st.integers(2, 30), m=st.integers(1, 4))
def test_an_interval_of_equal_shares_shrinks_with_their_number(k, rest, times, m):
  assume(k + rest)
  n = k + rest
  widths = [np.diff(proportions.pooled([Counts(c * k, c * n)] * m)[1:]).item() for c in (1, times)]
  assert widths[1] < widths[0]
  double = [Counts(2 * k, 2 * n)] * 2  # as many in fewer runs
  assert_near(proportions.pooled([Counts(k, n)] * 4), proportions.pooled(double))
  if m > 1:  # real examples are no more for being shown to more models
    shared = [Counts(k, n, shared=True)] * m
    assert_near(proportions.pooled(shared), proportions.pooled(shared * 2))


@examples(25)
@given(pairs=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=5))
def test_differences_and_ratios_turn_around_with_their_sides(pairs):
  a, b = ([Counts(pair[side], 40) for pair in pairs] for side in (0, 1))
  found, back = proportions.difference(a, b), proportions.difference(b, a)
  assert found.low <= found.estimate <= found.high
  assert found.low < found.high
  assert_near(back, (-found.estimate, -found.high, -found.low))
  p = statistics.sign_flip([one / 40 - other / 40 for one, other in pairs])
  assert p == statistics.sign_flip([other / 40 - one / 40 for one, other in pairs])
  assert statistics.least_sign_flip([one - other for one, other in pairs]) <= p <= 1
  if all(one and other for one, other in pairs):
    quotient, inverse = proportions.ratio(a, b), proportions.ratio(b, a)
    assume(quotient is not None)
    assert quotient.low <= quotient.estimate <= quotient.high
    np.testing.assert_allclose(
      inverse, (1 / quotient.estimate, 1 / quotient.high, 1 / quotient.low), rtol=1e-9
    )


@examples(25)
@given(k=st.integers(0, 50), null=st.integers(0, 24))
def test_an_excess_over_a_null_is_at_most_one_and_falls_with_the_null(k, null):
  found = statistics.excess_fraction(k, 50, null, 50)
  assert found.low <= found.estimate <= found.high <= 1 + 1e-12
  assert found.estimate == pytest.approx((k - null) / (50 - null))
  if null:
    less = statistics.excess_fraction(k, 50, null - 1, 50)
    assert found.estimate <= less.estimate
    assert found.low <= less.low + 1e-9
    assert found.high <= less.high + 1e-9


@examples(25)
@given(
  top=st.tuples(number(-1, 1), number(0.01, 1), number(0.01, 1)),
  bottom=st.tuples(number(0.5, 2), number(0.01, 0.45), number(0.01, 0.45)),
)
def test_a_quotient_ends_where_the_difference_of_its_parts_does(top, bottom):
  """At R the interval of top - R bottom, recovered from the two (whose ends change places below 0), ends at 0."""
  a, b = (Interval(mid, mid - below, mid + above) for mid, below, above in (top, bottom))
  found = statistics.quotient(a, b)
  assert found.low < found.estimate < found.high
  for ratio, sign in ((found.low, 1), (found.high, -1)):
    of_top = a.estimate - a.low if sign > 0 else a.high - a.estimate
    upward = (ratio > 0) is (sign > 0)
    of_bottom = ratio * (b.high - b.estimate if upward else b.estimate - b.low)
    end = a.estimate - ratio * b.estimate - sign * math.hypot(of_top, of_bottom)
    assert end == pytest.approx(0, abs=1e-9)


@examples(25)
@given(p=st.lists(number(0, 1), min_size=1, max_size=8), order=st.randoms(use_true_random=False))
def test_p_values_adjusted_for_their_number_are_no_smaller_and_keep_their_order(p, order):
  found = statistics.holm(p)
  assert all(one <= other <= 1 for one, other in zip(p, found, strict=True))
  assert min(found) == pytest.approx(min(1, len(p) * min(p)))
  assert [found[i] for i in np.argsort(p, kind='stable')] == sorted(found)
  places = order.sample(range(len(p)), len(p))
  assert statistics.holm([p[i] for i in places]) == [found[i] for i in places]


RESERVED = ('nan', 'inf', '-inf')
TEXTS = st.text(max_size=8).filter(lambda text: text not in RESERVED)
SCALARS = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(),
  TEXTS,
  st.sampled_from([-0.0, 5e-324, math.nan, math.inf, -math.inf]),
)


def grown(leaves):
  return st.recursive(
    leaves, lambda one: st.lists(one, max_size=3) | st.dictionaries(TEXTS, one, max_size=3)
  )


DOCUMENTS = grown(SCALARS)


def same(one, other):
  """Equal with types, signs of zeros and order, NaN too."""
  return repr(one) == repr(other)


@examples(40)
@given(document=DOCUMENTS, text=st.sampled_from(RESERVED))
def test_a_document_comes_back_as_it_was(document, text):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'run.json')
    rows.write_json(path, document)
    assert same(rows.read_json(path), document)
    before = path.read_bytes()
    json.loads(before, parse_constant=lambda name: pytest.fail(f'{name} is no JSON'))
    with pytest.raises(ValueError, match='kept for a number'):
      rows.write_json(path, {'': [document, text]})
    assert path.read_bytes() == before


@examples(30)
@given(document=st.dictionaries(TEXTS.filter('seal'.__ne__), DOCUMENTS, max_size=3), other=SCALARS)
def test_a_sealed_record_is_intact_until_something_in_it_is_changed(document, other):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'run.json')
    sealed.write(path, document)
    content, intact = sealed.read(path)
    assert same(content, document)
    assert intact is True
    raw = json.loads(path.read_bytes())
    for name in document:
      changed = raw | {name: encoding.encode(other)}
      path.write_text(json.dumps(changed))
      assert sealed.read(path).intact is same(other, document[name])
    path.write_text(json.dumps({name: one for name, one in raw.items() if name != 'seal'}))
    assert sealed.read(path).intact is None


NAMES = TEXTS.filter(lambda name: name not in ('step', 'timing'))
ROWS = st.lists(
  st.tuples(
    st.dictionaries(NAMES, SCALARS, max_size=3), st.dictionaries(NAMES, SCALARS, max_size=2)
  ),
  min_size=1,
  max_size=5,
)


@examples(25)
@given(written=ROWS, data=st.data())
def test_rows_come_back_as_they_were_wherever_the_file_is_torn_or_resumed(written, data):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'metrics.jsonl')
    sink = rows.json_lines(path)
    lengths = [0]
    for step, (row, timing) in enumerate(written):
      sink.write({'step': step, **row}, timing)
      lengths.append(path.stat().st_size)
    sink.close()
    found, content = rows.read_json_lines(path), path.read_bytes()
    assert len(found) == len(written)
    for step, (one, (row, timing)) in enumerate(zip(found, written, strict=True)):
      assert one['step'] == step
      assert next(iter(one)) == 'step'
      ordered = {name: one[name] for name in row}
      assert same(ordered, row)
      assert one.keys() == {'step', 'timing', *row}
      assert same({name: one['timing'][name] for name in timing}, timing)
    assert sink.written() == {
      'rows': len(written),
      'sha256': hashlib.sha256(content).hexdigest(),
    }
    assert rows.differing(path, [sink.written()], len(written)) == ''
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = sum(length - 1 <= cut for length in lengths[1:])  # a last line's end may be missing
    assert same(rows.read_json_lines(path), found[:whole])
    assert bool(rows.differing(path, [sink.written()], len(written))) is (cut < len(content))
    path.write_bytes(content[:cut])
    start = data.draw(st.integers(0, len(written)))
    rows.json_lines(path, start).close()
    assert path.read_bytes() == content[: lengths[min(start + 1, whole)]]


LEAVES = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(-9, 9),
  st.floats(-9, 9),
  st.sampled_from([math.nan, math.inf, *RESERVED]),
  st.text('abc', max_size=4),
)
PLACES = st.text('abcdef', min_size=1, max_size=3)
DESCRIBED = st.recursive(
  LEAVES,
  lambda one: st.lists(one, min_size=1, max_size=3) | st.dictionaries(PLACES, one, min_size=1, max_size=3),
)  # fmt: skip


def leaves(value, at=()):
  """The places of all that is neither a list nor a dict."""
  if not isinstance(value, dict | list):
    return [at]
  pairs = value.items() if isinstance(value, dict) else enumerate(value)
  return [place for key, one in pairs for place in leaves(one, (*at, key))]


def replaced(value, place, new):
  if not place:
    return new
  copy = value.copy()
  copy[place[0]] = replaced(value[place[0]], place[1:], new)
  return copy


@examples(40)
@given(value=DESCRIBED, new=LEAVES, data=st.data())
def test_changes_of_a_description_name_the_leaf_that_changed_and_nothing_else(value, new, data):
  told = fingerprint.describe(value)
  assert fingerprint.changes(told, told) == []
  with tempfile.TemporaryDirectory() as folder:  # as run.json keeps it
    path = pathlib.Path(folder, 'run.json')
    rows.write_json(path, told)
    assert rows.read_json(path) == told
  place = data.draw(st.sampled_from(leaves(value)))
  other = replaced(value, place, new)
  again = fingerprint.describe(other)
  found, back = fingerprint.changes(told, again), fingerprint.changes(again, told)
  if same(value, other):
    assert fingerprint.digest(told) == fingerprint.digest(again)
    assert found == back == []
    return
  assert fingerprint.digest(told) != fingerprint.digest(again)
  name = '.'.join(map(str, place))
  assert len(found) == len(back) == 1
  for one in (found[0], back[0]):
    assert one.startswith(f'{name}: ')
  old, now = found[0].removeprefix(f'{name}: ').split(' -> ')
  assert back == [f'{name}: {now} -> {old}']
  assert old != now


@examples(25)
@given(value=st.dictionaries(PLACES, DESCRIBED, min_size=2, max_size=4), array=randoms)
def test_a_description_is_the_same_in_any_order_and_another_for_another_number(value, array):
  turned = dict(reversed(value.items()))
  told = fingerprint.describe(value)
  assert fingerprint.changes(told, fingerprint.describe(turned)) == []
  assert fingerprint.digest(told) == fingerprint.digest(fingerprint.describe(turned))
  x = array.normal(size=4).astype(np.float32)
  y = x.copy()
  y[array.integers(4)] += 1
  one, other = ({'x': fingerprint.describe(each), **told} for each in (x, y))
  (change,) = fingerprint.changes(one, other)
  assert change.startswith('x.sha256: ')
