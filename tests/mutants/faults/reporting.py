"""Faults of `diffusion/reporting/`."""

from tests.mutants.fault import Fault

_ROWS = 'diffusion/reporting/rows.py'
_HISTORY = 'diffusion/reporting/history.py'
_PLOTS = 'diffusion/reporting/plots.py'
_VARIANTS = 'diffusion/reporting/variants.py'
_COMPARISON = 'diffusion/reporting/comparison.py'
_REPORT = 'diffusion/reporting/run_report.py'
_TEST_ROWS = ('tests/reporting/test_rows.py',)
_TEST_PLOTS = ('tests/reporting/test_plots.py',)
_TEST_VARIANTS = ('tests/reporting/test_variants.py',)
_TEST_COMPARE = ('tests/runs/test_compare.py',)
_TEST_REPORT = ('tests/reporting/test_run_report.py',)

FAULTS = [
  Fault(
    'a resumed run loses the row of the step that it goes on from', 'record', _ROWS, '_keep_until',
    'row[key] <= start', 'row[key] < start', _TEST_ROWS,
  ),
  Fault(
    'a file of rows is compared with what was written by their number alone', 'record', _ROWS, 'differing',
    'wanted in same and len(prefixes) == 1 + wanted["rows"]', "len(prefixes) == 1 + wanted['rows']", _TEST_ROWS,
  ),
  Fault(
    'the time left counts what was done while compiling', 'record', 'diffusion/reporting/pace.py', 'Pace.advance',
    'count > 0 and not first_time', 'count > 0', ('tests/reporting/test_pace.py',),
  ),
  Fault(
    'a document that was changed by hand passes for what was written', 'record', 'diffusion/reporting/sealed.py',
    'read', 'None if seal is None else seal == _seal(found)', 'None if seal is None else len(seal) == 16',
    ('tests/test_provenance.py',),
  ),
  Fault(
    'the losses by noise level are drawn of the last row and not of the best step', 'record', _HISTORY, '_levels',
    "row['step'] == best_step and 'validation/level/0' in row", "'validation/level/0' in row", _TEST_PLOTS,
  ),
  Fault(
    'the running mean counts values that are not finite as 0', 'formula', _HISTORY, '_running_mean',
    'np.cumsum(finite)', 'np.cumsum(np.ones(len(values)))', _TEST_PLOTS,
  ),
  Fault(
    'a training image is shown below another sample than the one it is nearest to', 'data', _PLOTS,
    'memorization_strip', 'neighbors[order]', 'neighbors', _TEST_PLOTS,
  ),
  Fault(
    'the color of a copy is on the samples that are none', 'record', _PLOTS, 'memorization_strip',
    'ratios[index] < threshold', 'ratios[index] > threshold', _TEST_PLOTS,
  ),
  Fault(
    'samples are drawn along the principal components about their own center', 'data', _PLOTS, 'vectors',
    '(x - center) @ main', '(x - x.mean(0)) @ main', _TEST_PLOTS,
  ),
  Fault(
    'the gap by noise level is training minus held-out loss', 'record', _VARIANTS, '_gaps',
    "best[f'validation/level/{i}'] - best[f'train/level/{i}']",
    "best[f'train/level/{i}'] - best[f'validation/level/{i}']", _TEST_VARIANTS,
  ),
  Fault(
    'the gap by noise level is that of the last validation', 'record', _VARIANTS, '_gaps',
    "min(finite, key=lambda row: row['validation/eps'])", 'finite[-1]', _TEST_VARIANTS,
  ),
  Fault(
    'a quantity whose seeds have different intervals keeps that of one of them', 'record', _COMPARISON,
    'summary', 'len(own) == 1 and None not in own', 'None not in own', _TEST_COMPARE,
  ),
  Fault(
    'a proportion over seeds has the interval of its mean and not of its counts', 'formula', _COMPARISON, 'summary',
    'proportions.pooled([run.counts[quantity] for run in group])', 'statistics.mean_t(values)', _TEST_COMPARE,
  ),
  Fault(
    'the least p and the adjusted p are swapped in effects.csv', 'record', _COMPARISON, '_effects_csv',
    '[*_cells(e.difference), *_cells(e.ratio), e.p, e.least_p, e.adjusted]',
    '[*_cells(e.difference), *_cells(e.ratio), e.p, e.adjusted, e.least_p]', _TEST_COMPARE,
  ),
  Fault(
    'the report names the code of the first start as that which trained last', 'record', _REPORT, 'write_report',
    "record['starts'][-1]", "record['starts'][0]", _TEST_REPORT,
  ),
  Fault(
    "changes in a user's own repository are not called uncommitted", 'record', _REPORT, 'is_uncommitted',
    "(code, *code['repositories'])", '(code,)', _TEST_REPORT,
  ),
  Fault(
    'floats in a table have a digit too few', 'record', 'diffusion/reporting/tables.py', 'number',
    'max(digits - 1 - exponent, 0)', 'max(digits - 2 - exponent, 0)', ('tests/reporting/test_tables.py',),
  ),
]  # fmt: skip
