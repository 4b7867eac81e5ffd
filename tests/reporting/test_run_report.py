import io
import pathlib
import re
import shlex
from types import SimpleNamespace

import pytest

from diffusion.citations import Technique
from diffusion.commands import report as command
from diffusion.proportions import Counts
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


RECORD = {
  'experiment': 'digits', 'status': 'finished', 'reason': 'all 40 steps done', 'step': 40, 'wall_seconds': 1.0,
  'data': {'name': 'digits', 'note': ''}, 'config': {'sampling_steps': 50}, 'speed': None,
  'starts': [{
    'command': ['python', '-m', 'experiments.digits', '--workdir=runs/a'], 'devices': {'kind': 'cpu'},
    'code': {'commit': 'a' * 40, 'diff': '', 'repositories': []}, 'versions': {'jax': '0.12'},
  }],
  'evaluations': [{
    'time': 'now', 'code': 'b' * 40, 'uncommitted changes': True, 'devices': {'kind': 'gpu'}, 'samples': 60,
    'changed': ['guidance: 1.5 -> 3.0'],
    'command': [
      'python', '-m', 'experiments.digits', '--workdir=runs/a', '--mode=evaluate', '--sampler=heun', '--seed=7',
    ],
    'sampling': {
      'checkpoint': 30, 'weights': 'ema', 'sampler': 'heun', 'grid': 'karras', 'steps': 13, 'evaluations a sample': 50,
      'guidance': 3.0, 'guided log-SNR': None, 'around the denoiser': ['clip_x0'], 'thinned networks': 0, 'seed': 0,
    },
  }],
}  # fmt: skip


def test_a_report_says_what_its_evaluation_judged_and_not_what_the_training_would_have(tmp_path):
  (tmp_path / 'samples_evaluation1.png').write_bytes(b'')
  (tmp_path / 'nearest_evaluation1.png').write_bytes(b'')
  findings = [('recognized', Counts(59, 60).interval(), 'share, higher is better', 'of 60')]
  path = run_report.write_report(tmp_path, RECORD, findings, [], [], '_evaluation1')
  text = path.read_text()
  drawn = 'step 30: heun, 13 steps, grid karras, guidance 3, seed 0'
  assert text.count(drawn) == 4  # under both pictures, and as their names
  rows = dict(re.findall(r'^\| ([^|]+) \| ([^|]+) \|$', text, re.MULTILINE))
  for name, value in (
    ('sampler', 'heun'), ('grid', 'karras'), ('steps', '13'), ('seed', '0'), ('guidance', '3.0'), ('samples', '60'),
    ('evaluations a sample', '50'), ('configuration, other than trained', 'guidance: 1.5 -> 3.0'),
    ('command', 'python -m experiments.digits --workdir=runs/a --mode=evaluate --sampler=heun --seed=7'),
    ('trained.command', 'python -m experiments.digits --workdir=runs/a'), ('evaluated.devices.kind', 'gpu'),
    ('evaluated.code', 'b' * 40), ('trained.code', 'a' * 40), ('evaluated.uncommitted changes', 'yes'),
    ('trained.uncommitted changes', 'no'),
  ):  # fmt: skip
    assert rows[name] == value
  assert 'thinned networks' not in rows  # off
  assert '| recognized | 0.983 [0.911, 0.997] | share, higher is better |' in text


def test_a_report_names_the_code_that_trained_last_and_whether_all_of_it_is_in_a_commit(tmp_path):
  (start,) = RECORD['starts']
  own = {'commit': 'd' * 40, 'diff': '+ a line'}
  last = start | {'code': {'commit': 'c' * 40, 'diff': '', 'repositories': [own]}}
  path = run_report.write_report(tmp_path, RECORD | {'starts': [start, last]}, [], [], [], '')
  rows = dict(re.findall(r'^\| ([^|]+) \| ([^|]+) \|$', path.read_text(), re.MULTILINE))
  assert rows['trained.code'] == 'c' * 40
  assert rows['trained.starts'] == '2'
  assert rows['trained.uncommitted changes'] == 'yes'  # in the user's own repository


def test_a_report_tells_all_that_a_record_holds_of_every_start(tmp_path):
  (start,), (evaluation,) = RECORD['starts'], RECORD['evaluations']
  starts = [
    start | {'versions': {'jax': '0.11'}},
    start | {
      'resharded': {'step': 10, 'from': 4, 'to': 2}, 'lost': 'checkpoint 20 is gone', 'changes': ['a: 0 -> 1', 'b: 1'],
    },
    start | {'resharded': {'step': 20, 'from': 2, 'to': 8}, 'rows': 'it is gone', 'changes': ['c: 3 -> 4']},
  ]  # fmt: skip
  sampling = evaluation['sampling'] | {'guidance': 0.0, 'around the denoiser': ['one', 'two']}
  judged = evaluation | {'sampling': sampling, 'changed': [], 'time': 'later'}
  record = RECORD | {
    'starts': starts, 'evaluations': [evaluation, judged], 'reason': '', 'status': 'running', 'wall_seconds': 12.5,
    'data': {'name': 'digits', 'note': 'made up'},
    'speed': {
      'images_per_second': 11.0, 'flops_per_image': 22.0, 'flops_per_second': 33.0, 'utilization': None,
      'peak_memory': 55.0,
    },
  }  # fmt: skip
  for name in ('curves.png', 'nearest.png', 'data.png', 'samples.png', 'nearest_evaluation1.png'):
    (tmp_path / name).touch()
  keys = ['srivastava2014dropout', 'ho2020denoising']
  used = [Technique(key, 'network', (key,), 'a.b') for key in keys]
  findings = [('loss', 0.25, 'lower is better', 'of all'), ('count', 3, 'all', 'how many')]
  levels = [(4.0, 0.5, 0.75, 0.25), (0.0, 1.5, 2.0, 0.5)]
  path = run_report.write_report(tmp_path, record, findings, levels, used, '')
  assert path == tmp_path / 'report.md'
  text = path.read_text()
  assert re.findall(r'^#+ (.*)$', text, re.MULTILINE) == [
    'digits: digits (made up)', 'Result', 'How the samples were drawn', 'What the numbers mean', 'Loss per noise level',
    'Speed of training', 'Provenance', 'Techniques used', 'References',
  ]  # fmt: skip
  shown = re.findall(r'!\[(.*?)\]\(<(.*?)>\)', text)
  assert [name for _, name in shown] == ['samples.png', 'curves.png', 'nearest.png', 'data.png']
  assert shown[0][0] == 'Samples of step 30: heun, 13 steps, grid karras, guidance 0, seed 0.'
  assert re.findall(r'^\| ([^|]+) \| (\S+) \| ([^|]+) \|$', text, re.MULTILINE)[2:5] == [
    ('how training ended', 'running', '–'), ('loss', '0.2500', 'lower is better'), ('count', '3', 'all'),
  ]  # fmt: skip
  rows = dict(re.findall(r'^\| ([^|]+) \| ([^|]+) \|$', text, re.MULTILINE))
  for name, value in (
    ('loss', 'of all'), ('count', 'how many'), ('guidance', '0.0'), ('around the denoiser', 'one, two'),
    ('experiment', 'digits'), ('status', 'running'), ('step', '40'), ('wall_seconds', '12.5'),
    ('config.sampling_steps', '50'), ('data.note', 'made up'), ('versions.jax', '0.12'), ('evaluated.time', 'later'),
    ('trained.starts', '3'), ('trained.devices.kind', 'cpu'),
    ('resharded', 'step 10: 4 to 2 devices; step 20: 2 to 8 devices'),
    ('start 2, checkpoints', 'checkpoint 20 is gone'), ('start 3, metrics.jsonl', 'it is gone'),
    ('changed while it trained', 'start 2: a: 0 -> 1; b: 1. start 3: c: 3 -> 4'),
  ):  # fmt: skip
    assert rows[name] == value, name
  assert 'configuration, other than trained' not in rows
  speed = text.partition('## Speed of training')[2].partition('##')[0]
  cells = [line.strip('| ').split(' | ') for line in speed.strip().splitlines()[2:]]
  assert [(name.split()[0], float(value)) for name, value in cells] == [
    ('images', 11), ('floating-point', 22), ('floating-point', 33), ('most', 55)
  ]  # fmt: skip
  assert 'per image' in cells[1][0] and 'per second' in cells[2][0]
  table = text.partition('## Loss per noise level')[2].partition('##')[0].strip().splitlines()
  assert table[0] == '| log-SNR (nats) | train | validation | gap |'
  assert [tuple(map(float, row.strip('|').split('|'))) for row in table[2:]] == levels
  assert (tmp_path / 'references.bib').read_text() == bibliography.entries(keys)
  assert f'```bibtex\n{bibliography.entries(keys)}\n```' in text
  plain = run_report.write_report(tmp_path, RECORD, [], [], [], '_2').read_text()
  assert not re.search('resharded|start 1|changed while|Speed|Techniques|References', plain)
  assert '| how training ended | all 40 steps done |' in plain
  assert '(' not in plain.splitlines()[0]


def test_texts_of_the_data_are_texts_in_the_report(tmp_path):
  """A class, a folder or a file may be named by anybody."""
  reader = pytest.importorskip('markdown_it').MarkdownIt('commonmark').enable('table')
  evil = '<img src=x onerror=a()>|`*\x1b[2J](http://t)'
  data = {'name': evil, 'note': evil, 'class_names': [evil], 'found': {evil: evil}}
  record = RECORD | {'data': data, 'experiment': evil, 'reason': evil, 'config': {'folder': evil}}
  (tmp_path / 'samples.png').touch()
  findings = [(f'recognized, {evil}', 0.5, evil, evil)]
  text = run_report.write_report(tmp_path, record, findings, [], [], '').read_text()
  assert '\x1b' not in text
  assert 'src=x' in text
  html = reader.render(text)
  assert set(re.findall(r'<(\w+)', html)) <= {
    'h1', 'h2', 'p', 'em', 'img', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'code', 'pre',
  }  # fmt: skip
  assert re.findall(r'<img src="([^"]*)"', html) == ['samples.png']
  assert 'onerror=a()>' not in html
  assert '<a' not in html


def test_a_command_can_be_given_again_as_it_stands_in_whatever_script_and_locale(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(io, 'text_encoding', lambda encoding, *_: encoding or 'ascii')  # of LC_ALL=C
  command = [
    'python',
    '-m',
    'experiments.own',
    '--config.folder=my photos',
    "--config.name=\u00fc's",
  ]
  record = RECORD | {'evaluations': [RECORD['evaluations'][0] | {'command': command}]}
  path = run_report.write_report(tmp_path, record, [], [], [], '')
  (line,) = re.findall(r'^\| command \| (.+) \|$', path.read_text(encoding='utf-8'), re.MULTILINE)
  assert shlex.split(line) == command


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


def test_the_command_hands_on_what_it_is_given_and_prints_tables_and_files(monkeypatch, capsys):
  asked = []
  monkeypatch.setenv('HOME', '/home/me')
  monkeypatch.setattr(command.compare, 'load', lambda folders: [*folders, 'read'])

  def write(*given):
    asked.append(given)
    tables = [('one\x1b', ('a', 'b'), [(1, 'x')]), ('two', ('c',), [])]
    return tables, [given[1] / 'report.md', given[1] / 'runs.csv']

  monkeypatch.setattr(command.compare, 'write', write)
  given = SimpleNamespace(output='~/out', baseline='runs/b', quantities=['loss'])
  command.main(['runs/a', 'runs/b'], given)
  out = pathlib.Path('/home/me/out')
  assert asked == [(['runs/a', 'runs/b', 'read'], out, 'runs/b', ['loss'])]
  said = capsys.readouterr().out.splitlines()
  assert said == [
    '| a | b |', '| ---: | --- |', '| 1 | x |', 'one\\x1b', '', '| c |', '| --- |', 'two', '',
    f'{out}/report.md', f'{out}/runs.csv',
  ]  # fmt: skip
