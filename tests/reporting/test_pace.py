"""The time left is that of what was done without compiling; a long work says where it stands."""

import io

import pytest

from diffusion.reporting import pace, rows


@pytest.fixture
def clock(monkeypatch):
  """A clock that the test moves."""
  now = [0.0]
  monkeypatch.setattr(pace.time, 'monotonic', lambda: now[0])

  def wait(seconds):
    now[0] += seconds

  return wait


def said(stream):
  return [line.rpartition('left ')[2] for line in stream.getvalue().splitlines()]


def test_time_left_does_not_count_compilation(clock):
  """Steps of 0.1 s behind two minutes of compilation; a validation compiles for a minute, and then takes 5 s."""
  stream = io.StringIO()
  sink = rows.progress(18_000, stream=stream)
  for step in range(100, 1100, 100):
    validated = step % 300 == 0
    clock(10 + (120 if step == 100 else 0) + (65 if step == 300 else 5 if validated else 0))
    sink.write({'step': step, 'loss': 1.0} | ({'validation/eps': 0.5} if validated else {}), {})
  left = said(stream)
  assert left[0] == '?'  # it has only compiled
  assert left[1] == '29:40'  # 17,800 steps of 0.1 s
  assert left[2] == '29:30'  # not the minute of the first validation
  # Rows 200 and 400 to 600: 4 of 10 s and one validation of 5 s, so 45 s for 400 steps.
  assert left[5] == '32:37'


def test_what_a_rollback_repeats_is_not_progress(clock):
  stream = io.StringIO()
  sink = rows.progress(1000, start_step=500, stream=stream)
  for step, seconds in ((600, 50), (700, 10), (550, 40), (650, 10)):
    clock(seconds)
    sink.write({'step': step, 'loss': 1.0}, {})
  assert said(stream) == ['?', '00:30', '00:45', '00:35']


def test_a_count_says_what_is_done_and_left(clock):
  stream = io.StringIO()
  with pace.counter(1000, 'samples', stream=stream) as update:
    for seconds in (30, *[6] * 9):  # the first compiles
      clock(seconds)
      update(100)
  lines = stream.getvalue().splitlines()
  assert lines[0] == 'samples 0/1000'  # before the first is done
  assert lines[1] == 'samples 100/1000  left ?'
  assert lines[2] == 'samples 200/1000  left 00:48'
  assert lines[-1] == 'samples 1000/1000  left 00:00'
  silent = io.StringIO()
  with pace.counter(10, 'samples', shown=False, stream=silent) as update:
    update(10)
  assert silent.getvalue() == ''
  stream = io.StringIO()
  with pace.counter(10, 'rows', stream=stream) as update:
    for _ in range(8):  # a line where more than 5 s went by since the last one, and at the end
      clock(2)
      update(1)
    update(2)
  assert said(stream)[1:] == ['00:14', '00:08', '00:00']
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  with pace.counter(10, 'rows', stream=terminal) as update:
    update(4)
  assert '0/10' in terminal.getvalue() and '4/10' in terminal.getvalue().split('\r')[-1]
  assert ' rows' in terminal.getvalue()
  at_once = io.StringIO()
  with pace.counter(10, 'rows', stream=at_once) as update:
    update(10)
  assert at_once.getvalue().splitlines() == ['rows 0/10', 'rows 10/10  left 00:00']


def test_the_stages_of_a_work_are_announced_with_what_is_left(clock):
  stream = io.StringIO()
  following = pace.stages(['losses', 'samples', 'frechet'], 'evaluation', stream=stream)
  following()
  clock(61)
  following()
  following()
  assert stream.getvalue().splitlines() == [
    'evaluation 1/3 after 0 s: losses, then samples, frechet',
    'evaluation 2/3 after 61 s: samples, then frechet',
    'evaluation 3/3 after 61 s: frechet, the last',
  ]
  silent = io.StringIO()
  pace.stages(['losses'], 'evaluation', shown=False, stream=silent)()
  assert silent.getvalue() == ''
