"""Runs side by side: grouped, paired, refused where they do not go together; the files hold the same numbers."""

import copy
import csv
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats

from diffusion import provenance, statistics
from diffusion.proportions import Counts
from diffusion.reporting import comparison, latex
from diffusion.reporting.rows import json_lines
from diffusion.reporting.tables import markdown
from diffusion.runs import compare
from diffusion.statistics import Interval

CODE = {'commit': 'abcdef0123456789', 'diff': '', 'repositories': []}
START = {
  'time': '2026-01-01T00:00:00+00:00',
  'code': CODE,
  'versions': {'jax': '0.10.2'},
  'devices': {'devices': 2, 'kind': 'cpu'},
}
RECORD = {
  'format': provenance.RECORD_FORMAT,
  'experiment': 'digits',
  'smoke': False,
  'config': {'seed': 0, 'dropout': 0.0, 'width': 8},
  'data': {
    'name': 'digits',
    'note': '',
    'fingerprint': 'f',
    'split_hashes': {'train': 't', 'validation': 'v', 'test': 'w'},
  },
  'bank': {'log_snr': [4.0, 0.0], 'draws': 2},
  'seed': 0,
  'num_steps': 40,
  'techniques': [
    {
      'name': 'dropout',
      'place': 'network',
      'keys': ['srivastava2014dropout'],
      'qualified_name': 'd',
    }
  ],
  'starts': [START],
  'status': 'finished',
  'reason': 'all 40 steps done',
  'step': 40,
  'wall_seconds': 12.3,
  'results': {},
}


def rows(loss, fraction):
  for step in (10, 20, 30, 40):
    yield {
      'step': step,
      'loss': 1.0,
      'validation/eps': loss + abs(step - 20) / 100,
      'validation/gap_low': (step - 25) / 100,
    } | {f'{split}/level/{i}': loss + i for split in ('train', 'validation') for i in range(2)}
    yield {
      'step': step, 'memorized/fraction': fraction * step / 40, 'memorized/low': fraction * step / 50,
      'memorized/null_high': 0.1,
    }  # fmt: skip


def make(folder, seed, dropout, loss, fraction=0.5, found=None, **changes):
  """A run as a comparison reads it: run.json and metrics.jsonl."""
  record = copy.deepcopy(RECORD) | changes
  record['seed'] = record['config']['seed'] = seed
  record['config']['dropout'] = dropout
  record['results'] = {
    'validation/eps': loss,
    'test/eps': {'estimate': loss + 0.1, 'low': loss, 'high': loss + 0.2},
    'skipped steps': 0,
  } | (found or {})
  folder.mkdir(parents=True)
  provenance.write_record(folder, record)
  sink = json_lines(folder / 'metrics.jsonl')
  for row in rows(loss, fraction):
    sink.write(row, {})
  sink.close()
  return folder


LOSSES = {0.0: [0.50, 0.52, 0.49, 0.55, 0.51, 0.53], 0.3: [0.40, 0.45, 0.41, 0.44, 0.43, 0.42]}


@pytest.fixture
def folders(tmp_path):
  return [
    make(tmp_path / f'd{dropout}_{seed}', seed, dropout, loss)
    for dropout, losses in LOSSES.items()
    for seed, loss in enumerate(losses)
  ]


def test_variants_are_what_configurations_differ_in(folders):
  runs = compare.load(folders[::-1])
  groups = compare.variants(runs)
  assert list(groups) == ['dropout=0.3', 'dropout=0.0']
  assert [run.seed for run in groups['dropout=0.0']] == list(range(6))
  # What is 0 in all runs is left out, unless it is asked for.
  assert compare.quantities(runs, []) == ['validation/eps', 'test/eps']
  assert compare.quantities(runs, ['skipped steps']) == ['skipped steps']
  runs[3].results['skipped steps'] = 2
  assert 'skipped steps' in compare.quantities(runs, [])
  # What one of them lacks is not of all, and it is said which.
  runs[0].results['mine'] = 1.0
  assert 'mine' not in compare.quantities(runs, [])
  with pytest.raises(ValueError, match=f"^{runs[1].folder} has no 'mine'; all"):
    compare.quantities(runs, ['test/eps', 'mine'])


def test_a_variant_is_called_by_its_experiment_where_there_are_several_and_by_its_arm_alone(
  tmp_path,
):
  """A number that is None in one run and unknown in another differs; one that a run does not have is left out."""
  configs = {
    'digits, dropout=0.0, limit=None': ('digits', {'limit': None}),
    'digits, dropout=0.3, limit=None': ('digits', {'limit': None, 'dropout': 0.3}),
    'mixture, dropout=0.0, plain': ('mixture', {'arm': 'plain'}),
  }
  made = []
  for name, (experiment, more) in configs.items():
    config = RECORD['config'] | more
    folder = tmp_path / name
    made.append(make(folder, 4, config['dropout'], 0.5, config=config, experiment=experiment))
  assert [run.variant for run in compare.load(made)] == list(configs)
  first = compare.load(made[:2])
  assert [run.variant for run in first] == ['dropout=0.0', 'dropout=0.3']
  assert [run.variant for run in compare.load([made[0], made[2]])] == [
    'digits, limit=None',
    'mixture, plain',
  ]


def test_means_and_effects_are_those_of_the_numbers(folders):
  groups = compare.variants(compare.load(folders))
  found = comparison.summary(groups['dropout=0.3'], 'validation/eps')
  assert found == pytest.approx(statistics.mean_t(LOSSES[0.3]))
  one, zero = (np.array(LOSSES[d]) for d in (0.3, 0.0))
  effect, other = compare.effects(groups, 'dropout=0.0', ['validation/eps', 'test/eps'])
  assert (effect.variant, effect.pairs) == ('dropout=0.3', 6)
  assert effect.difference == pytest.approx(statistics.mean_t(one - zero))
  assert effect.ratio.estimate == pytest.approx(np.exp(np.log(one / zero).mean()))
  assert effect.p == effect.adjusted == effect.least_p == 2 / 64
  assert other.difference == pytest.approx(effect.difference)
  # Of one variant a panel of ratios, without what is the same in both and what has none.
  none = comparison.Effect('dropout=0.3', 'G', 6, effect.difference)
  flat = effect._replace(quantity='calls', ratio=Interval(1.0, 1.0, 1.0))
  few = comparison.Effect('dropout=0.3', 'few', 1)
  (panel,) = comparison.forest_panels([effect, none, flat, few, other], 'dropout=0.0')
  ratios = [('validation/eps', effect.ratio), ('test/eps', other.ratio)]
  assert panel == ('', ratios, 'dropout=0.3 over dropout=0.0', True)
  assert comparison.forest_panels([flat, few], 'dropout=0.0') == []


def share(successes, trials, **more):
  counts = Counts(successes, trials, **more)
  return counts.interval()._asdict() | {'counts': counts._asdict()}


@pytest.fixture
def proportions_of_20(tmp_path):
  """Three seeds of two variants: nothing copied and all recognized, of 20 samples each; the same held-out examples."""
  found = {
    'memorized fraction': share(0, 20),
    'its held-out null': share(1, 100, shared=True),
    'adjusted memorized fraction': share(0, 20, null_successes=1, null_trials=100),
    'recognized as their label': share(20, 20),
    'kernel distance, held-out': {'estimate': 0.1, 'low': 0.05, 'high': 0.15},
    'evaluations a sample': 99,
    'loss spikes': 0,
  }
  readings = {'memorized fraction': ['share', 'lower'], 'evaluations a sample': ['calls', '']}
  return [
    make(tmp_path / f'p{dropout}_{seed}', seed, dropout, 0.5, found=found, readings=readings)
    for dropout in (0.0, 0.3)
    for seed in range(3)
  ]


def test_three_runs_of_nothing_in_twenty_are_at_most_nothing_in_sixty(proportions_of_20):
  group = compare.variants(compare.load(proportions_of_20))['dropout=0.0']
  none, every = (
    comparison.summary(group, name) for name in ('memorized fraction', 'recognized as their label')
  )
  assert none == pytest.approx((0, 0, 1 - 0.025 ** (1 / 60)))
  assert every == pytest.approx((1, 0.025 ** (1 / 60), 1))
  # A hundred held-out examples stay a hundred, and what is the data's alone keeps its interval.
  null = comparison.summary(group, 'its held-out null')
  assert null.high == pytest.approx(stats.binomtest(1, 100).proportion_ci(0.95, 'exact').high)
  assert comparison.summary(group, 'kernel distance, held-out') == Interval(0.1, 0.05, 0.15)


def test_seeds_that_know_intervals_of_their_own_have_that_of_their_mean(folders):
  """Unless all know the same one: then it is of the data alone."""
  group = compare.variants(compare.load(folders))['dropout=0.0']
  found = comparison.summary(group, 'test/eps')
  assert found == pytest.approx(statistics.mean_t(np.add(LOSSES[0.0], 0.1)))
  known = [Interval(0.2, low, 0.4) for low in (0.0, 0.1)]
  two = [
    run._replace(own={'x': one}, results={'x': 0.2})
    for run, one in zip(group[:2], known, strict=True)
  ]
  assert comparison.summary(two, 'x') == Interval(0.2, 0.2, 0.2)
  assert comparison.summary([two[0], two[0]], 'x') == Interval(0.2, 0.0, 0.4)


def test_no_table_shows_an_interval_without_width(proportions_of_20, tmp_path):
  tables, _ = compare.write(compare.load(proportions_of_20), tmp_path / 'out', None, [])
  intervals = [c for _, _, table in tables for row in table for c in row if isinstance(c, Interval)]
  assert len(intervals) > 20
  texts = [(tmp_path / 'out' / name).read_text() for name in ('report.md', 'report.tex')]
  for text in (*texts, '\n'.join(markdown(headers, rows) for _, headers, rows in tables)):
    pairs = re.findall(r'\[([-+0-9.e]+), ([-+0-9.e]+)\]', text)
    assert pairs and all(low != high for low, high in pairs)
    assert 'loss spikes' not in text  # 0 everywhere
  effects = {row[0]: row for row in tables[-2][2]}
  difference = effects['adjusted memorized fraction'][4]
  assert difference.low < -0.04 and difference.high > 0.04
  assert effects['memorized fraction'][1:3] == ['lower', 'dropout=0.3']
  assert effects['evaluations a sample'][4] == (0, 0, 0)  # written as `0 (all equal)`
  assert '99 (all equal) | 99 (all equal) | calls |' in texts[0]
  with (tmp_path / 'out' / 'effects.csv').open() as file:
    for row in csv.DictReader(file):
      assert None not in row and None not in row.values()  # as many cells as headers
      assert float(row['p']) == float(row['p, Holm']) == 1  # of what is the same in all pairs
      assert row['difference, low'] == '' or float(row['difference, low']) < float(
        row['difference, high']
      )


def test_a_proportion_that_differs_is_the_variant_s_less_the_baseline_s_and_over_it(tmp_path):
  """Of what has a null the ratio would be that of two excesses, and there is none."""
  null = {'null_successes': 1, 'null_trials': 100}
  counts = {0.0: (2, 3, 4), 0.3: (6, 9, 12)}
  made = [
    make(tmp_path / f'{dropout}_{seed}', seed, dropout, 0.5,
         found={'copies': share(k, 20), 'excess': share(k, 20, **null)})
    for dropout, several in counts.items()
    for seed, k in enumerate(several)
  ]  # fmt: skip
  groups = compare.variants(compare.load(made))
  copies, excess = compare.effects(groups, 'dropout=0.0', ['copies', 'excess'])
  assert copies.difference.estimate == pytest.approx(np.mean([4, 6, 8]) / 20)
  assert copies.ratio.estimate == pytest.approx(3)
  assert copies.p == 2 / 8
  # By the counts of all samples together, which Student's interval of three equal ratios would not know.
  assert copies.ratio.low < 2 and copies.ratio.high > 4
  assert excess.difference.estimate == pytest.approx(0.3 / 0.99)
  assert excess.ratio is None


def test_an_effect_is_of_two_pairs_or_more_and_its_p_of_twenty_at_most(folders, monkeypatch):
  monkeypatch.setattr(
    statistics, 'sign_flip', lambda differences: 1 / len(differences)
  )  # of signs, a million
  monkeypatch.setattr(statistics, 'least_sign_flip', lambda differences: -len(differences))
  one, other = compare.load([folders[0], folders[6]])
  values = np.random.default_rng(0).uniform(1, 2, (2, 21))

  def effects(count, least=1.0):
    groups = {
      run.variant: [
        run._replace(seed=seed, results={'x': value if seed else least})
        for seed, value in enumerate(of[:count])
      ]
      for run, of in zip((one, other), values, strict=True)
    }
    (found,) = compare.effects(groups, one.variant, ['x'])
    return found

  assert effects(1) == (other.variant, 'x', 1, None, None, None, None, None)
  assert (effects(2).p, effects(20).p, effects(20).least_p) == (1 / 2, 1 / 20, -20)
  many = effects(21)
  assert (many.p, many.least_p, many.adjusted, many.pairs) == (None, None, None, 21)
  wanted = statistics.mean_t(values[1, 1:] - values[0, 1:])
  assert many.difference.estimate == pytest.approx(wanted.estimate * 20 / 21)
  assert many.ratio is not None
  assert effects(3, least=0.0).ratio is None and effects(3, least=0.0).difference is not None
  assert effects(3, least=math.inf).difference is None


def test_the_techniques_of_all_runs_are_told_each_once(folders):
  record = provenance.read_record(folders[3])
  other = RECORD['techniques'][0] | {'name': 'label dropout', 'keys': ['ho2021classifier', 'b']}
  provenance.write_record(folders[3], record | {'techniques': [*record['techniques'], other]})
  found = compare.techniques(compare.load(folders))
  assert [(one.name, one.keys) for one in found] == [
    ('dropout', ('srivastava2014dropout',)),
    ('label dropout', ('ho2021classifier', 'b')),
  ]


def test_the_least_p_stands_beside_p(folders):
  groups = compare.variants(compare.load([*folders[:4], *folders[6:10]]))
  (effect,) = compare.effects(groups, 'dropout=0.0', ['validation/eps'])
  assert (effect.p, effect.least_p) == (2 / 16, 2 / 16)  # of four pairs: never below 0.05


def test_holm_is_over_the_variants(tmp_path):
  folders = [
    make(tmp_path / f'{dropout}_{seed}', seed, dropout, loss)
    for dropout, losses in (LOSSES | {0.5: [0.51, 0.50, 0.50, 0.54, 0.52, 0.54]}).items()
    for seed, loss in enumerate(losses)
  ]
  groups = compare.variants(compare.load(folders))
  found = compare.effects(groups, 'dropout=0.0', ['validation/eps'])
  assert [e.adjusted for e in found] == statistics.holm([e.p for e in found])
  assert found[0].adjusted == 2 * found[0].p


def test_every_effect_in_the_file_stands_under_its_name(tmp_path):
  noisy = {0.0: LOSSES[0.0], 0.3: LOSSES[0.3], 0.5: [0.51, 0.50, 0.50, 0.54, 0.52, 0.54]}
  made = [
    make(tmp_path / f'{dropout}_{seed}', seed, dropout, loss)
    for dropout, losses in noisy.items()
    for seed, loss in enumerate(losses)
  ]
  runs = compare.load([*made[6:], *made[:6]])  # the baseline is not the first of them
  paired = compare.effects(compare.variants(runs), 'dropout=0.0', ['validation/eps'])
  tables, _ = compare.write(runs, tmp_path / 'out', 'dropout=0.0', ['validation/eps'])
  with (tmp_path / 'out' / 'effects.csv').open() as file:
    table = {row['variant']: row for row in csv.DictReader(file)}
  assert (
    len({tuple(getattr(e, name) for e in paired) for name in ('p', 'least_p', 'adjusted')}) == 3
  )
  for effect in paired:
    row = table[effect.variant]
    found = [float(row[name]) for name in ('p', 'least p', 'p, Holm', 'pairs')]
    assert found == [effect.p, effect.least_p, effect.adjusted, effect.pairs]
    assert (row['baseline'], row['quantity']) == ('dropout=0.0', 'validation/eps')
    for name, wanted in (('difference', effect.difference), ('ratio', effect.ratio)):
      found = [float(row[name + end]) for end in ('', ', low', ', high')]
      np.testing.assert_allclose(found, wanted, rtol=1e-6)
  (caption, headers, cells) = tables[-2]
  assert caption.startswith('Effects against dropout=0.0, ')
  columns = dict(zip(headers, zip(*cells, strict=True), strict=True))
  names = {'least p': 'least_p', 'p (Holm)': 'adjusted', 'better': None}
  for header, column in columns.items():
    field = names.get(header, header)
    assert column == tuple(getattr(e, field) if field else None for e in paired), header


def test_a_forest_leaves_out_no_variant_whose_ratio_says_nothing(tmp_path):
  signed = {0.0: [0.5, 0.6, 0.4], 0.1: [0.4, 0.3, 0.5], 0.3: [-0.1, 0.2, -0.3]}
  made = [
    make(tmp_path / f'{dropout}_{seed}', seed, dropout, 0.5 + dropout + seed**2 / 10, found={'G': value})
    for dropout, values in signed.items()
    for seed, value in enumerate(values)
  ]  # fmt: skip
  groups = compare.variants(compare.load(made))
  effects = compare.effects(groups, 'dropout=0.0', ['validation/eps', 'G'])
  loss, g = comparison.forest_panels(effects, 'plain')
  names = ['dropout=0.1', 'dropout=0.3']
  assert [name for name, _ in loss.effects] == [name for name, _ in g.effects] == names
  assert (loss.is_ratio, g.is_ratio) == (True, False)
  assert (loss.title, g.title) == ('validation/eps', 'G')
  assert (loss.label, g.label) == ('ratio to plain', 'difference from plain')
  assert [one for _, one in loss.effects] == [e.ratio for e in effects if e.quantity == loss.title]
  wanted = statistics.mean_t(np.subtract(signed[0.3], signed[0.0]))
  assert g.effects[1][1] == pytest.approx(wanted)


def test_seeds_without_a_partner_are_left_out_of_pairs_only(folders):
  groups = compare.variants(compare.load([*folders[:4], *folders[6:]]))
  (effect,) = compare.effects(groups, 'dropout=0.0', ['validation/eps'])
  assert effect.pairs == 4
  assert comparison.summary(groups['dropout=0.3'], 'validation/eps').estimate == pytest.approx(
    np.mean(LOSSES[0.3])
  )


def test_runs_are_paired_by_their_seeds(folders):
  """The variant lacks the first two seeds of the baseline, whatever the order in which the folders are named."""
  for order in (1, -1):
    groups = compare.variants(compare.load([*folders[:6], *folders[8:]][::order]))
    (effect,) = compare.effects(groups, 'dropout=0.0', ['validation/eps'])
    wanted = np.subtract(LOSSES[0.3][2:], LOSSES[0.0][2:])
    assert effect.pairs == 4
    assert effect.difference == pytest.approx(statistics.mean_t(wanted))


def test_a_single_run_keeps_its_own_interval(folders):
  groups = compare.variants(compare.load(folders[:1]))
  assert comparison.summary(groups['digits'], 'test/eps') == Interval(0.6, 0.5, 0.7)
  assert comparison.summary(groups['digits'], 'validation/eps') == 0.5


@pytest.mark.parametrize(
  'changes, mark',
  [
    ({'status': 'interrupted', 'step': 20}, 'UNFINISHED at step 20'),
    ({'step': 30, 'reason': 'early stopping: ...'}, 'stopped early at step 30 of 40'),
    ({'step': 30, 'reason': 'diverged: ...'}, 'DIVERGED at step 30'),
    ({'smoke': True}, 'SMOKE'),
    ({'data': RECORD['data'] | {'note': 'SYNTHETIC'}}, 'SYNTHETIC'),
    ({'starts': [START | {'changes': ['seed: 0 -> 1']}, START]}, 'CHANGED while it trained'),
    ({'starts': [START | {'code': CODE | {'diff': '+'}}]}, 'uncommitted changes'),
    (
      {'starts': [START | {'code': CODE | {'repositories': [{'diff': '+'}]}}]},
      'uncommitted changes',
    ),
  ],
)
def test_what_is_odd_about_a_run_stands_in_its_row(tmp_path, changes, mark):
  (run,) = compare.load([make(tmp_path / 'r', 0, 0.0, 0.5, **changes)])
  assert run.marks == (mark,)
  tables, _ = compare.write([run], tmp_path / 'out', None, [])
  assert mark in tables[-1][2][0][-1]


@pytest.mark.parametrize(
  ('changes', 'marks'),
  [
    ({'step': 30, 'status': 'diverged', 'reason': 'diverged: ...'}, ('DIVERGED at step 30',)),
    ({'found': {'lost best step': 20}}, ('the best checkpoint, of step 20, is lost',)),
    # Of several starts the last one's code is that of the results; and past the planned end nothing is early.
    ({'starts': [START | {'code': CODE | {'diff': '+'}}, START], 'step': 50}, ()),
  ],
)
def test_a_run_is_marked_by_how_it_ended_and_by_its_last_start(tmp_path, changes, marks):
  (run,) = compare.load([make(tmp_path / 'r', 0, 0.0, 0.5, **changes)])
  assert run.marks == marks


def test_skipped_steps_and_rollbacks_stand_in_the_row(folders):
  record = provenance.read_record(folders[0])
  record['results'] |= {'skipped steps': 3, 'rollbacks': 2}
  provenance.write_record(folders[0], record)
  run, *_ = compare.load(folders)
  assert run.marks == ('3 steps skipped', '2 rollbacks')


@pytest.mark.parametrize(
  'changes, says',
  [
    ({'data': RECORD['data'] | {'fingerprint': 'g'}}, r'has other data than .* \(g and f\)'),
    (
      {
        'data': RECORD['data']
        | {'split_hashes': RECORD['data']['split_hashes'] | {'validation': 'x'}}
      },
      'has other validation examples than',
    ),
    (
      {'data': RECORD['data'] | {'split_hashes': RECORD['data']['split_hashes'] | {'test': 'x'}}},
      r'has other test examples than .* \(x and w\)',
    ),
    ({'bank': {'log_snr': [1.0, 0.0], 'draws': 2}}, 'has another evaluation noise than'),
    ({'bank': {'log_snr': [4.0, 0.0], 'draws': 3}}, 'has another evaluation noise than'),
  ],
)
def test_runs_on_other_data_or_splits_are_refused(folders, tmp_path, changes, says):
  other = make(tmp_path / 'other', 7, 0.0, 0.5, **changes)
  with pytest.raises(ValueError, match=says):
    compare.load([*folders, other])


def test_a_run_that_diverged_is_reported_and_not_averaged(folders, tmp_path):
  record = provenance.read_record(folders[0])
  record['results'] |= {'validation/eps': np.nan}
  provenance.write_record(folders[0], record | {'reason': 'diverged: loss', 'step': 30})
  rows_path = folders[0] / 'metrics.jsonl'
  rows_path.write_text(
    rows_path.read_text().replace('"validation/eps": 0.7', '"validation/eps": "nan"')
  )
  tables, _ = compare.write(compare.load(folders), tmp_path / 'out', None, [])
  results = {row[0]: row[1:] for row in tables[0][2]}
  assert results['validation/eps'][0] == '5 of 6 finite'
  assert isinstance(results['validation/eps'][1], Interval)
  assert 'DIVERGED' in tables[-1][2][0][-1]


def test_bad_requests_are_refused(folders, tmp_path):
  with pytest.raises(ValueError, match='there is no run to report'):
    compare.load([])
  with pytest.raises(ValueError, match='is named twice'):
    compare.load([folders[0], folders[0]])
  with pytest.raises(ValueError, match='no run in'):
    compare.load([tmp_path])
  twin = shutil.copytree(folders[0], tmp_path / 'twin')
  with pytest.raises(
    ValueError, match=r'are the same variant \(dropout=0.0\) with the same seed 0'
  ):
    compare.load([*folders, twin])
  groups = compare.variants(compare.load(folders))
  with pytest.raises(ValueError, match="must be one of dropout=0.0; dropout=0.3, .* got 'nothing'"):
    compare.choose_baseline(groups, 'nothing')
  assert compare.choose_baseline(groups, str(folders[-1])) == 'dropout=0.3'
  assert compare.choose_baseline(groups, 'dropout=0.3') == 'dropout=0.3'
  with pytest.raises(ValueError, match="has no 'speed'; all runs have"):
    compare.quantities(compare.load(folders), ['speed'])
  record = provenance.read_record(folders[3])
  provenance.write_record(folders[3], record | {'results': None})
  with pytest.raises(ValueError, match='has no results yet'):
    compare.load(folders)


def test_the_files_of_a_report(folders, tmp_path):
  record = provenance.read_record(folders[7])
  later = START | {
    'time': '2026-02-02T00:00:00+00:00',
    'code': CODE | {'commit': None},
    'versions': {'jax': '0.11.0'},
    'devices': {'devices': 1, 'kind': 'H100'},
  }
  record |= {'starts': [START, later], 'status': 'running', 'step': 20, 'wall_seconds': 98.7}
  provenance.write_record(folders[7], record)
  runs = compare.load(folders)
  found, files = compare.write(runs, tmp_path / 'out', None, [])
  headers, rows = found[-1][1:]
  assert headers == [
    'run', 'variant', 'seed', 'commit', 'device', 'jax', 'started', 'seconds', 'note',
  ]  # fmt: skip
  assert rows[0] == [
    'd0.0_0', 'dropout=0.0', 0, 'abcdef0123', '2 x cpu', '0.10.2', START['time'], 12, None,
  ]  # fmt: skip
  # One that was started again, of another commit on another machine.
  assert rows[7] == [
    'd0.3_1', 'dropout=0.3', 1, None, '1 x H100', '0.11.0', START['time'], 99, 'UNFINISHED at step 20',
  ]  # fmt: skip
  assert {path.name for path in files} == {
    'report.md', 'report.tex', 'runs.csv', 'effects.csv', 'references.bib', 'curves.png', 'levels.png',
    'memorization.png', 'forest.png',
  }  # fmt: skip
  assert all(path.stat().st_size > 0 for path in files)
  with (tmp_path / 'out' / 'runs.csv').open() as file:
    table = list(csv.DictReader(file))
  assert [float(row['validation/eps']) for row in table] == [*LOSSES[0.0], *LOSSES[0.3]]
  ends = [float(table[0]['test/eps' + end]) for end in ('', ', low', ', high')]
  assert ends == pytest.approx([0.6, 0.5, 0.7])
  assert table[0]['validation/eps, low'] == table[0]['validation/eps, high'] == ''
  named = [table[7][name] for name in ('folder', 'variant', 'seed', 'note')]
  assert named == [str(folders[7]), 'dropout=0.3', '1', 'UNFINISHED at step 20']
  with (tmp_path / 'out' / 'effects.csv').open() as file:
    effect = next(csv.DictReader(file))
  assert float(effect['p']) == float(effect['least p']) == 2 / 64
  text = (tmp_path / 'out' / 'report.md').read_text()
  for word in ('dropout=0.3 (n = 6)', 'abcdef0123', 'srivastava2014dropout', 'Onsets'):
    assert word in text
  assert text.startswith('# digits: 12 runs\n')
  pictures = {
    'curves': 'Held-out loss', 'levels': 'Generalization gap', 'memorization': 'Memorized fraction', 'forest': 'Paired',
  }  # fmt: skip
  document = (tmp_path / 'out' / 'report.tex').read_text()
  for name, caption in pictures.items():
    assert f'![{caption}' in text[: text.index(f']({name}.png)')].splitlines()[-1]
    assert re.search(
      rf'{{{name}.png}}\s*\\caption{{{caption}.*}}\s*\\label{{fig:{name}}}', document
    )
  assert '@' in (tmp_path / 'out' / 'references.bib').read_text()


@pytest.mark.skipif(shutil.which('pdflatex') is None, reason='pdflatex is not installed')
def test_the_latex_compiles(folders, tmp_path):
  compare.write(compare.load(folders), tmp_path / 'out', None, [])
  done = subprocess.run(
    ['pdflatex', '-interaction=nonstopmode', '-halt-on-error', 'report.tex'],
    cwd=tmp_path / 'out', capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout[-2000:]
  assert (tmp_path / 'out' / 'report.pdf').stat().st_size > 10_000


def test_latex_says_what_it_is_given():
  found = latex.tabular(['a_b', 'x'], [['50 % & more', Interval(0.5, 0.4, 0.6)], ['n', 1.5e-7]])
  assert r'a\_b & x \\' in found
  assert r'50 \% \& more & 0.50 [0.40, 0.60] \\' in found
  assert r'$1.50 \cdot 10^{-7}$' in found
  assert re.search(r'begin{tabular}{@{}lr@{}}', found)
  assert latex.escape('a\\b ± {x}') == r'a\textbackslash{}b $\pm$ \{x\}'
  assert latex.escape('a 漢 ~b') == r'a ? \textasciitilde{}b'
  with pytest.raises(ValueError, match='every row must have 2 cells'):
    latex.tabular(['a', 'b'], [['x']])
  numbers = [-2.5e9, np.inf, True, 7], [None, -1.5, 'x', Interval(-0.5, -0.6, -0.4)]
  found = latex.tabular(list('abcd'), numbers).splitlines()
  assert found[0].startswith(r'\begin{tabular}{@{}rr')
  assert found[4] == r'$-2.50 \cdot 10^{9}$ & inf & True & 7 \\'
  assert found[5].endswith(r' & -1.50 & x & -0.50 [-0.60, -0.40] \\')


def test_each_part_of_a_document_stands_under_its_caption_and_its_label():
  table, picture = latex.table('50 %', 'CELLS', 'tab:0'), latex.figure('a_b', 'c.png', 'fig:c')
  assert re.search(r'caption{50 \\%}\s*\\label{tab:0}(.|\n)*CELLS}\s*\\end{table}', table)
  assert re.search(r'{c.png}\s*\\caption{a\\_b}\s*\\label{fig:c}\s*\\end{figure}', picture)
  cited, plain = (latex.document('5 & 6', [table, picture], name) for name in ('works', ''))
  parts = [r'\title{5 \& 6}', r'\begin{document}', r'\maketitle', table, picture, r'\end{document}']
  for text in (cited, plain):
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
  assert cited.index(picture) < cited.index(r'\nocite{*}') < cited.index(r'\bibliography{works}')
  assert 'bibliography' not in plain and 'cite' not in plain
