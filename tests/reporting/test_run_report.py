import re

from diffusion.citations import Technique
from diffusion.reporting import bibliography, run_report
from diffusion.statistics import Interval


def whole(**changes):
  arguments = {
    'summary_rows': [
      ('held-out loss', 0.1234567, 'lower is better'),
      ('copies', Interval(0.0, 0.0, 0.0037), None),
    ],
    'pictures': [('Samples', 'samples/final grid.png')],
    'tables': [('Samplers', ('name', 'nfe'), [('ddim', 50)])],
    'provenance': {'commit': 'abc', 'config': {'learning_rate': 0.00030000000000000003}},
    'techniques': [
      Technique('dropout', 'network', ('srivastava2014dropout',), 'a.b'),
      Technique('plain', 'core', (), 'a.c'),
    ],
    'bibtex': bibliography.entries(['srivastava2014dropout']),
  }
  return run_report.markdown_report('A run', **(arguments | changes))


def test_the_result_comes_first_then_pictures_then_details_then_sources():
  text = whole()
  places = [
    text.index(part)
    for part in (
      '# A run',
      '0.1235',
      '![Samples](<samples/final grid.png>)',
      '## Samplers',
      '## Provenance',
      '## Techniques used',
      '```bibtex',
    )
  ]
  assert places == sorted(places)
  assert text.endswith('```\n')


def test_settings_are_written_whole_and_nested_ones_by_their_path():
  line = next(line for line in whole().split('\n') if 'learning_rate' in line)
  name, value = (part.strip() for part in line.strip('|').split('|'))
  assert name == 'config.learning_rate'
  assert float(value) == 0.00030000000000000003


def test_each_technique_has_its_place_and_its_entry():
  text = whole()
  assert '| dropout | network | srivastava2014dropout |' in text
  assert '| plain | core | – |' in text
  fenced = re.search(r'```bibtex\n(.*)\n```', text, re.DOTALL)[1]
  assert fenced == bibliography.entries(['srivastava2014dropout'])


def test_sections_without_content_are_left_out():
  text = whole(pictures=[], tables=[], provenance={}, techniques=[], bibtex='')
  assert re.findall(r'^#+ .*$', text, re.MULTILINE) == ['# A run', '## Result']
