"""Runs side by side: grouped, paired, refused where they do not go together; the files hold the same numbers."""

import copy
import csv
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from diffusion import provenance, statistics
from diffusion.reporting import comparison, latex
from diffusion.reporting.rows import json_lines, read_json, write_json
from diffusion.runs import compare
from diffusion.statistics import Interval

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
  'versions': {'jax': '0.10.2'},
  'starts': [
    {
      'time': '2026-01-01T00:00:00+00:00',
      'code': {'commit': 'abcdef0123456789', 'diff': ''},
      'devices': {'devices': 2, 'kind': 'cpu'},
    }
  ],
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


def make(folder, seed, dropout, loss, fraction=0.5, **changes):
  """A run as a comparison reads it: run.json and metrics.jsonl."""
  record = copy.deepcopy(RECORD) | changes
  record['seed'] = record['config']['seed'] = seed
  record['config']['dropout'] = dropout
  record['results'] = {
    'validation/eps': loss,
    'test/eps': {'estimate': loss + 0.1, 'low': loss, 'high': loss + 0.2},
    'skipped steps': 0,
  }
  folder.mkdir(parents=True)
  write_json(folder / 'run.json', record)
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
  assert compare.quantities(runs, []) == ['validation/eps', 'test/eps', 'skipped steps']


def test_means_and_effects_are_those_of_the_numbers(folders):
  groups = compare.variants(compare.load(folders))
  found = comparison.summary(groups['dropout=0.3'], 'validation/eps')
  assert found == pytest.approx(statistics.mean_t(LOSSES[0.3]))
  one, zero = (np.array(LOSSES[d]) for d in (0.3, 0.0))
  effect, other, _ = compare.effects(
    groups, 'dropout=0.0', ['validation/eps', 'test/eps', 'skipped steps']
  )
  assert (effect.variant, effect.pairs) == ('dropout=0.3', 6)
  assert effect.difference == pytest.approx(statistics.mean_t(one - zero))
  assert effect.ratio.estimate == pytest.approx(np.exp(np.log(one / zero).mean()))
  assert effect.p == effect.adjusted == 2 / 64
  assert other.difference == pytest.approx(effect.difference)


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


def test_seeds_without_a_partner_are_left_out_of_pairs_only(folders):
  groups = compare.variants(compare.load([*folders[:4], *folders[6:]]))
  (effect,) = compare.effects(groups, 'dropout=0.0', ['validation/eps'])
  assert effect.pairs == 4
  assert comparison.summary(groups['dropout=0.3'], 'validation/eps').estimate == pytest.approx(
    np.mean(LOSSES[0.3])
  )


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
  ],
)
def test_what_is_odd_about_a_run_stands_in_its_row(tmp_path, changes, mark):
  (run,) = compare.load([make(tmp_path / 'r', 0, 0.0, 0.5, **changes)])
  assert run.marks == (mark,)
  tables, _ = compare.write([run], tmp_path / 'out', None, [])
  assert mark in tables[-1][2][0][-1]


def test_skipped_steps_and_rollbacks_stand_in_the_row(folders):
  path = folders[0] / 'run.json'
  record = json.loads(path.read_text())
  record['results'] |= {'skipped steps': 3, 'rollbacks': 2}
  path.write_text(json.dumps(record))
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
    ({'bank': {'log_snr': [1.0, 0.0], 'draws': 2}}, 'has another evaluation noise than'),
  ],
)
def test_runs_on_other_data_or_splits_are_refused(folders, tmp_path, changes, says):
  other = make(tmp_path / 'other', 7, 0.0, 0.5, **changes)
  with pytest.raises(ValueError, match=says):
    compare.load([*folders, other])


def test_a_run_that_diverged_is_reported_and_not_averaged(folders, tmp_path):
  path = folders[0] / 'run.json'
  record = read_json(path)
  record['results'] |= {'validation/eps': np.nan}
  write_json(path, record | {'reason': 'diverged: loss', 'step': 30})
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
  path = folders[3] / 'run.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {'results': None}))
  with pytest.raises(ValueError, match='has no results yet'):
    compare.load(folders)


def test_the_files_of_a_report(folders, tmp_path):
  runs = compare.load(folders)
  _, files = compare.write(runs, tmp_path / 'out', None, [])
  assert {path.name for path in files} == {
    'report.md', 'report.tex', 'runs.csv', 'effects.csv', 'references.bib', 'curves.png', 'levels.png',
    'memorization.png', 'forest.png',
  }  # fmt: skip
  assert all(path.stat().st_size > 0 for path in files)
  with (tmp_path / 'out' / 'runs.csv').open() as file:
    table = list(csv.DictReader(file))
  assert [float(row['validation/eps']) for row in table] == [*LOSSES[0.0], *LOSSES[0.3]]
  assert float(table[0]['test/eps, high']) == pytest.approx(0.7)
  with (tmp_path / 'out' / 'effects.csv').open() as file:
    effect = next(csv.DictReader(file))
  assert float(effect['p']) == 2 / 64
  text = (tmp_path / 'out' / 'report.md').read_text()
  for word in ('dropout=0.3 (n = 6)', 'abcdef0123', 'srivastava2014dropout', 'Onsets'):
    assert word in text
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
  with pytest.raises(ValueError, match='every row must have 2 cells'):
    latex.tabular(['a', 'b'], [['x']])
