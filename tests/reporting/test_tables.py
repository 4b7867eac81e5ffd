import math
import re

import numpy as np
import pytest

from diffusion.naming import printable
from diffusion.processes import one_line
from diffusion.reporting import latex, tables
from diffusion.statistics import Interval


def cells(line):
  """A Markdown reader's view of one line of a table."""
  parts = re.split(r'(?<!\\)\|', line)
  assert parts[0] == parts[-1] == ''
  return [part.strip().replace('\\|', '|') for part in parts[1:-1]]


@pytest.mark.parametrize('digits', [1, 3, 5])
def test_a_number_is_within_half_a_unit_of_its_last_digit(digits):
  rng = np.random.default_rng(0)
  for value in rng.normal(size=200) * 10 ** rng.uniform(-8, 8, size=200):
    written = float(tables.number(value, digits))
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
    assert abs(written - value) <= 0.5 * unit * (1 + 1e-9)


@pytest.mark.parametrize(
  'value, text',
  [
    (0.25, '0.250'),
    (0.9996, '1.00'),
    (12.0, '12.0'),
    (20_000, '20000'),
    (np.int64(7), '7'),
    (np.float32(0.5), '0.500'),
    (1234.6, '1235'),
    (1e-4, '0.000100'),
    (9.99e-5, '9.99e-05'),
    (999_499.0, '999499'),
    (999_501.0, '1.00e+06'),
    (1.5e-7, '1.50e-07'),
    (2.5e9, '2.50e+09'),
    (0.0, '0'),
    (math.nan, 'nan'),
    (-math.inf, '-inf'),
    (None, '–'),
  ],
)
def test_numbers_are_written_plainly(value, text):
  assert tables.number(value) == text


def test_a_table_reads_back_as_what_was_put_in():
  headers = ('arm', 'f', 'some', 'copied', 'none')
  rows = [
    ('a|b', 0.5, 3, True, None),
    ('two\nlines', None, 'three', False, None),
    ('c', Interval(0.34212, 0.25018, 0.42941), None, None, None),
  ]
  lines = tables.markdown(headers, rows).split('\n')
  assert cells(lines[0]) == ['arm', 'f', 'some', 'copied', 'none']
  # Numbers to the right, where all that is there is one.
  assert cells(lines[1]) == ['---', '---:', '---', '---', '---']
  assert [cells(line) for line in lines[2:]] == [
    ['a|b', '0.500', '3', 'yes', '–'],
    ['two<br>lines', '–', 'three', 'no', '–'],
    ['c', '0.34 [0.25, 0.43]', '–', '–', '–'],
  ]


def test_a_reading_is_the_unit_and_what_is_better_where_either_is_there():
  assert tables.reading('bits/dim', 'lower') == 'bits/dim, lower is better'
  assert tables.reading('', 'nearer 0') == 'nearer 0 is better'
  assert tables.reading('calls', '') == 'calls'
  assert tables.reading('', '') == ''


NASTY = (
  'a|b', 'a\\|b', 'a\\', '\\\\|', '`rm -rf`', '``', '<script>alert(1)</script>', '<img src=x onerror=y>', '&lt;b&gt;',
  '&#60;b&#62;', '![x](http://t/x.png)', '[x](javascript:alert(1))', '[x][y]', '[x]: y', '**bold** _it_ ~~no~~', '*',
  '_', '__init__', 'a_b', 'snow_ _man', '$x$', '# head', '- item', '1. one', '> said', '[1, 2, 2]',
  '\x1b[31mred\x1b[0m', '\u202egnp.exe', 'a\x00b\x7f', 'é – ±', '<!-- -->', '<http://a.b>', 'lambda d, p: d * p < 3',
)  # fmt: skip


@pytest.mark.parametrize('text', NASTY)
def test_markdown_shows_anybodys_text_as_it_is(text):
  """As a reader of Markdown sees it; HTML, too, is text alone."""
  reader = (
    pytest.importorskip('markdown_it').MarkdownIt('commonmark').enable(['table', 'strikethrough'])
  )
  tokens = reader.parse(tables.markdown((text, 'n'), [(text, 1.5), ('x', None)]))
  inline = [token for token in tokens if token.type == 'inline']
  assert len(inline) == 6
  for cell in (inline[0], inline[2]):
    assert [child.type for child in cell.children] == ['text']
    assert cell.children[0].content == printable(text)
  (_, title, _) = reader.parse(f'# {tables.escape(text)}')
  assert [child.type for child in title.children] == ['text']
  assert title.children[0].content == printable(text)


def test_what_a_terminal_would_obey_is_written_out():
  text = printable('\x1b[2J\r\n\u202e\x9b31m\ud800 å–±')
  assert text == r'\x1b[2J\r\n\u202e\x9b31m\ud800 å–±'
  assert one_line(ValueError('no\x1b[2J\nfile')) == r'no\x1b[2J file'
  assert '\x1b' not in latex.tabular(('\x1b[0m',), [('\x1b[0m',)])


def test_a_table_without_rows_keeps_its_headers():
  lines = tables.markdown(('a', 'b'), []).split('\n')
  assert [cells(line) for line in lines] == [['a', 'b'], ['---', '---']]


@pytest.mark.parametrize(
  'call, error, value',
  [
    (lambda: tables.markdown(('a', 'b'), [(1,)]), ValueError, r'\(1,\)'),
    (lambda: tables.markdown((), []), ValueError, r'\(\)'),
    (lambda: tables.number(1.0, 0), ValueError, '0'),
    (lambda: tables.number('x'), TypeError, 'x'),
    (lambda: tables.number(True), TypeError, 'True'),
  ],
)
def test_bad_input_is_refused(call, error, value):
  with pytest.raises(error, match=value):
    call()
