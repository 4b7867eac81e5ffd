import hashlib
import io
import json
import math
import os
import signal
import stat
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from diffusion.reporting import encoding, rows


def write_rows(path, steps, start_step=0):
  sink = rows.json_lines(path, start_step)
  for step in steps:
    sink.write({'step': step, 'loss': 1 / step}, {'wall_seconds': step / 3})
  sink.close()


def test_floats_come_back_to_the_bit(tmp_path):
  path = tmp_path / 'new' / 'metrics.jsonl'
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 2**63, size=500, dtype=np.uint64)
  values = [value for value in bits.view(np.float64).tolist() if math.isfinite(value)]
  sink = rows.json_lines(path)
  for step, value in enumerate(values):
    sink.write({'step': step, 'x': value, 'single': np.float32(value % 1)}, {})
  sink.close()
  found = rows.read_json_lines(path)
  assert [row['x'] for row in found] == values
  assert [np.float32(row['single']) for row in found] == [np.float32(v % 1) for v in values]


def test_what_was_written_is_known_by_number_and_hash_also_after_a_restart(tmp_path):
  path = tmp_path / 'm.jsonl'
  sink = rows.json_lines(path)
  seen = [sink.written()]
  for step in (1, 2, 3):
    sink.write({'step': step}, {})
    seen.append(sink.written())
  sink.close()
  lines = path.read_bytes().splitlines(keepends=True)
  for n, one in enumerate(seen):
    digest = hashlib.sha256(b''.join(lines[:n])).hexdigest()
    assert one == {'rows': n, 'sha256': digest}
    assert rows.differing(path, seen[: n + 1], n) == ''
  again = rows.chain(rows.json_lines(path, 2), rows.progress(3, stream=io.StringIO()))
  assert again.written() == seen[2]
  again.write({'step': 3}, {})
  assert again.written() == seen[3]
  again.close()
  assert rows.chain().written() == seen[0]


def test_a_row_with_another_number_in_it_is_not_what_was_written(tmp_path):
  """As many rows, each of the right step: only their hash knows, and says up to where they are as they were."""
  path = tmp_path / 'm.jsonl'
  sink, seen = rows.json_lines(path), []
  for step in (1, 2, 3):
    sink.write({'step': step, 'loss': 0.25}, {})
    seen.append(sink.written())
  sink.close()
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(lines[0] + lines[1].replace('0.25', '0.24') + lines[2])
  found = rows.differing(path, seen, 3)
  assert found == '3 rows up to step 3 in place of 3, the first 1 as they were written'


def test_every_line_is_json_in_one_order_whatever_the_rows_order(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  sink = rows.json_lines(path)
  metrics = {'loss': 0.5, 'loss_bucket/10': 1.0, 'loss_bucket/2': 2, 'note': 'é', 'gap': None}
  sink.write({**metrics, 'step': 3}, {'b': 1.0, 'a': 2.0})
  sink.write({'step': 3, **dict(reversed(metrics.items()))}, {'a': 2.0, 'b': 1.0})
  sink.close()
  first, second = path.read_text('utf-8').splitlines()
  assert first == second
  row = json.loads(first)
  assert list(row) == [
    'step', 'gap', 'loss', 'loss_bucket/2', 'loss_bucket/10', 'note', 'timing'
  ]  # fmt: skip
  assert row['timing'] == {'a': 2.0, 'b': 1.0}
  assert row['gap'] is None


def test_numbers_that_are_not_finite_are_strict_json_and_come_back(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  sink = rows.json_lines(path)
  sink.write({'step': 1, 'a': math.nan, 'b': np.float32(np.inf)}, {'c': -math.inf})
  with pytest.raises(ValueError, match='nan'):
    sink.write({'step': 2, 'a': 'nan'}, {})
  sink.close()

  def refuse(constant):
    raise AssertionError(constant)

  raw = json.loads(path.read_text(), parse_constant=refuse)
  assert (raw['a'], raw['b'], raw['timing']['c']) == ('nan', 'inf', '-inf')
  (row,) = rows.read_json_lines(path)
  assert math.isnan(row['a'])
  assert (row['b'], row['timing']['c']) == (math.inf, -math.inf)


def test_resuming_keeps_the_bytes_up_to_the_start_and_removes_the_rest(tmp_path):
  path, straight = tmp_path / 'a.jsonl', tmp_path / 'b.jsonl'
  write_rows(path, range(1, 8))
  before = path.read_bytes().splitlines(keepends=True)
  write_rows(path, [], start_step=5)
  assert path.read_bytes() == b''.join(before[:5])
  write_rows(path, range(6, 10), start_step=5)
  write_rows(straight, range(1, 10))
  assert path.read_bytes() == straight.read_bytes()
  assert sorted(os.listdir(tmp_path)) == ['a.jsonl', 'b.jsonl']  # no temporary file is left


def test_where_steps_were_turned_back_another_number_says_what_is_kept(tmp_path):
  path = tmp_path / 'm.jsonl'
  sink = rows.json_lines(path)
  seen = [sink.written()]
  for step, cursor in ((10, 10), (20, 20), (10, 30), (20, 40)):  # it went back once
    sink.write({'step': step, 'cursor': cursor}, {})
    seen.append(sink.written())
  sink.close()
  whole = path.read_bytes()
  assert rows.differing(path, [seen[3]], 30, 'cursor') == ''
  assert rows.differing(path, [seen[2]], 30, 'cursor').startswith('3 rows up to cursor 30 in place')
  assert rows.differing(path, seen, 40) != ''  # these steps do not rise
  path.write_bytes(whole + whole.splitlines(keepends=True)[1].replace(b'{"', b'{ "'))
  found = rows.salvaged(path, 'cursor')
  assert b''.join(line for line, _ in found) == whole
  assert [row['cursor'] for _, row in found] == [10, 20, 30, 40]
  assert [row['cursor'] for _, row in rows.salvaged(path)] == [10, 20]
  assert rows.salvaged(tmp_path / 'none.jsonl') == []
  path.write_bytes(whole)
  rows.json_lines(path, 30, 'cursor').close()
  assert path.read_bytes() == b''.join(whole.splitlines(keepends=True)[:3])


def test_rows_that_are_gone_are_missed_only_where_there_were_some(tmp_path):
  path = tmp_path / 'm.jsonl'
  assert rows.differing(path, [rows.NOTHING], 0) == ''
  assert (
    rows.differing(path, [rows.NOTHING, {'rows': 2, 'sha256': ''}], 9) == 'it is gone, with 2 rows'
  )


def test_bytes_that_this_writer_would_not_write_are_kept_too(tmp_path):
  path = tmp_path / 'm.jsonl'
  path.write_bytes(b'{"step":1,  "loss": 1e0}\n{"step": 2}\n')
  write_rows(path, [], start_step=1)
  assert path.read_bytes() == b'{"step":1,  "loss": 1e0}\n'


@pytest.mark.parametrize('cut', range(1, 40))
def test_a_row_torn_anywhere_is_removed(tmp_path, cut):
  path = tmp_path / 'm.jsonl'
  write_rows(path, [1, 2, 3])
  content = path.read_bytes()
  last = content.splitlines(keepends=True)[-1]
  path.write_bytes(content[:-cut])
  # Without its newline alone the row is still whole, and kept.
  survivors = [1, 2, 3] if cut in (1,) else [1, 2]
  assert cut < len(last)
  assert [row['step'] for row in rows.read_json_lines(path)] == survivors
  write_rows(path, [4], start_step=3)
  assert [row['step'] for row in rows.read_json_lines(path)] == [*survivors, 4]


@pytest.mark.parametrize(
  'content',
  [b'{"step": 1}\nnot json\n{"step": 3}\n', b'a letter', b'[1]\n', b'{"loss": 1}\n', b'\xff\n'],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content):
  path = tmp_path / 'm.jsonl'
  path.write_bytes(content)
  for call in (rows.json_lines, rows.read_json_lines):
    with pytest.raises(ValueError, match=r'm\.jsonl, line [12]'):
      call(path)
  assert path.read_bytes() == content


def test_rows_written_before_a_kill_are_there(tmp_path):
  path = tmp_path / 'm.jsonl'
  code = f"""
import os, signal
from diffusion.reporting import rows
sink = rows.json_lines({str(path)!r}, 0)
for step in range(1, 51):
  sink.write({{'step': step, 'loss': 1.0}}, {{}})
os.kill(os.getpid(), signal.SIGKILL)
"""
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == -signal.SIGKILL
  assert [row['step'] for row in rows.read_json_lines(path)] == list(range(1, 51))


@pytest.mark.parametrize(
  'row, timing, error, value',
  [
    ({'loss': 1.0}, {}, ValueError, 'step'),
    ({'step': 1.5}, {}, ValueError, '1.5'),
    ({'step': 1, 'timing': 2.0}, {}, ValueError, 'timing'),
    ({'step': 1, 'x': [1.0, 2.0]}, {}, TypeError, r'x=\[1.0, 2.0\]'),
    ({'step': 1, 'x': np.zeros(2)}, {}, TypeError, 'x='),
    ({'step': 1, 'x': object}, {}, TypeError, 'object'),
    ({'step': 1}, {'t': {}}, TypeError, 't='),
  ],
)
def test_a_bad_row_is_refused_and_leaves_no_trace(tmp_path, row, timing, error, value):
  path = tmp_path / 'm.jsonl'
  sink = rows.json_lines(path)
  with pytest.raises(error, match=value):
    sink.write(row, timing)
  sink.close()
  assert path.read_bytes() == b''


def test_json_documents_round_trip(tmp_path):
  path = tmp_path / 'new' / 'summary.json'
  data = {
    'a': [1, 2.5, None, True, 'text'],
    'b': {'nan': math.nan, 'low': -math.inf},
    'c': np.arange(3.0),
    'd': np.float32(0.1),
    'e': (1, 2),
  }
  rows.write_json(path, data)
  back = rows.read_json(path)
  assert back['a'] == data['a']
  assert math.isnan(back['b']['nan']) and back['b']['low'] == -math.inf
  assert (back['c'], back['d'], back['e']) == ([0.0, 1.0, 2.0], float(np.float32(0.1)), [1, 2])
  with pytest.raises(TypeError, match='1'):
    rows.write_json(path, {1: 2})
  with pytest.raises(TypeError, match='object'):
    rows.write_json(path, [object()])
  assert rows.read_json(path)['a'] == data['a']


def test_what_is_replaced_is_on_the_disk_before_it_has_the_name_and_the_name_after(
  tmp_path, monkeypatch
):
  done, real = [], os.replace

  def fsync(descriptor):
    about = os.fstat(descriptor)
    done.append('folder' if stat.S_ISDIR(about.st_mode) else f'{about.st_size} bytes')

  monkeypatch.setattr(os, 'fsync', fsync)
  monkeypatch.setattr(os, 'replace', lambda *names: [done.append('name'), real(*names)])
  encoding.replace(tmp_path / 'a.txt', b'twelve bytes')
  assert done == ['12 bytes', 'name', 'folder']


def test_what_is_set_aside_has_a_name_that_nothing_had(tmp_path):
  (tmp_path / 'damaged').touch()  # no folder
  for name in ('a.b.json', 'a.b_1.json', 'a.b_2.json'):
    path = encoding.aside(tmp_path, 'a.b.json')
    assert path == tmp_path / 'damaged_1' / name
    path.symlink_to(tmp_path / 'nowhere')  # which does not exist, and has the name


def test_a_lock_that_another_process_keeps_is_waited_for_and_then_done_without(tmp_path):
  path = tmp_path / 'run.json'
  code = (
    'import sys, time, pathlib\nfrom diffusion.reporting import encoding\n'
    'with encoding.locked(pathlib.Path(sys.argv[1])):\n  print("have", flush=True)\n  sys.stdin.read()'
  )
  with subprocess.Popen([sys.executable, '-c', code, path], stdin=-1, stdout=-1) as other:
    assert other.stdout.readline() == b'have\n'
    begin = time.monotonic()
    with encoding.locked(path, 0.2):
      assert 0.2 <= time.monotonic() - begin < 5
    with (tmp_path / '.run.json.lock').open('wb') as file:
      assert not encoding.take(file)
      other.stdin.close()
      other.wait()
      assert encoding.take(file)
  assert not path.exists()


def test_a_failed_replacement_leaves_the_old_document(tmp_path, monkeypatch):
  path = tmp_path / 'summary.json'
  rows.write_json(path, {'value': 1})

  def fail(*_):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='No space left.*summary.json') as caught:
      rows.write_json(path, {'value': 2})
  assert caught.value.errno == 28
  assert rows.read_json(path) == {'value': 1}
  assert os.listdir(tmp_path) == ['summary.json']


@pytest.mark.parametrize(
  'call',
  [
    rows.json_lines,
    rows.tensorboard,
    lambda path: rows.write_json(path, {}),
  ],
)
def test_an_unwritable_place_is_named(tmp_path, call):
  (tmp_path / 'file').write_text('')
  place = tmp_path / 'file' / 'below'
  with pytest.raises(OSError, match='cannot write.*file/below'):
    call(place)


def events(folder):
  """The events of a folder's TensorBoard files, by the record format: length, crc, data, crc."""
  found = []
  for path in sorted(folder.iterdir()):
    content, place = path.read_bytes(), 0
    while place < len(content):
      (length,) = struct.unpack_from('<Q', content, place)
      found.append(Event.FromString(content[place + 12 : place + 12 + length]))
      place += 16 + length
  return found


def scalars(folder):
  return [
    (event.step, value.tag, value.simple_value)
    for event in events(folder)
    for value in event.summary.value
  ]


def test_tensorboard_gets_each_number_under_its_key(tmp_path):
  sink = rows.tensorboard(tmp_path)
  sink.write({'step': 7, 'loss': 0.5, 'loss_bucket/3': np.float32(2), 'note': 'x', 'gap': None},
             {'images_per_second': 10.0})  # fmt: skip
  sink.write({'step': 8, 'loss': math.nan, 'norm': math.inf}, {})
  sink.close()
  assert scalars(tmp_path)[:3] == [
    (7, 'loss', 0.5),
    (7, 'loss_bucket/3', 2.0),
    (7, 'timing/images_per_second', 10.0),
  ]
  (_, _, nan), (_, _, infinite) = scalars(tmp_path)[3:]
  assert math.isnan(nan) and infinite == math.inf


def test_a_resumed_tensorboard_hides_what_lies_beyond_the_start(tmp_path):
  for start, steps in ((0, (1, 2, 3, 4)), (2, (3, 4))):
    sink = rows.tensorboard(tmp_path, start)
    for step in steps:
      sink.write({'step': step, 'loss': float(10 * start + step)}, {})
    sink.close()
  shown = {}
  for event in events(tmp_path):  # TensorBoard: a START event hides what has its step or a later
    if event.HasField('session_log'):
      shown = {step: value for step, value in shown.items() if step < event.step}
    for value in event.summary.value:
      shown[event.step] = value.simple_value
  assert shown == {1: 1.0, 2: 2.0, 3: 23.0, 4: 24.0}


def test_tensorboard_rows_are_on_the_disk_within_ten_seconds(tmp_path, monkeypatch):
  now = [100.0]
  monkeypatch.setattr(rows.time, 'monotonic', lambda: now[0])
  sink, seen = rows.tensorboard(tmp_path), []
  for step, seconds in ((1, 9), (2, 2), (3, 9), (4, 2)):
    now[0] += seconds
    sink.write({'step': step, 'loss': 1.0}, {})
    seen.append([step for step, _, _ in scalars(tmp_path)])
  sink.close()
  assert seen == [[], [1, 2], [1, 2], [1, 2, 3, 4]]
  assert [event.step for event in events(tmp_path) if event.HasField('session_log')] == [1]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_off_a_terminal_is_one_plain_line_per_row():
  stream = io.StringIO()
  sink = rows.progress(200, stream=stream)
  sink.write({'step': 0}, {})
  sink.write({'step': 50, 'loss': 0.25}, {'images_per_second': 25530.2})
  sink.write({'step': 100, 'loss': math.nan, 'validation/eps': 0.5}, {})
  sink.write({'step': 150, 'loss': None, 'other': 3.0}, {})
  sink.close()
  lines = stream.getvalue().splitlines()
  assert len(lines) == 4
  assert '\r' not in stream.getvalue()
  assert [line.split()[1] for line in lines] == ['0/200', '50/200', '100/200', '150/200']
  assert 'loss' not in lines[0]
  assert 'loss 0.25' in lines[1] and 'images/s 25530 ' in lines[1]
  assert 'loss nan' in lines[2] and 'validation/eps 0.5' in lines[2]
  assert 'validation/eps 0.5' in lines[3] and 'other' not in lines[3]
  assert [rows._short(x) for x in (999, 1000, -25530.4, 9e6, 1e7, 0.12345, True, None, 'x')] == [
    '999', '1000', '-25530', '9000000', '1e+07', '0.1235', '1', 'None', 'x'
  ]  # fmt: skip


def test_progress_counts_images_where_the_timing_does_not_say(monkeypatch):
  now, stream = [7.0], io.StringIO()
  monkeypatch.setattr(rows.time, 'monotonic', lambda: now[0])
  sink = rows.progress(10, start_step=4, stream=stream, batch_size=32)
  for step, timing in ((5, {}), (8, {}), (9, {'images_per_second': 3.0})):
    now[0] += 2
    sink.write({'step': step}, timing)
  sink.close()
  said = [line.partition('images/s ')[2].split()[0] for line in stream.getvalue().splitlines()]
  assert said == ['16', '32', '3']  # 32 in 2 s, 4 x 32 in 4 s


def test_progress_on_a_terminal_is_a_live_bar():
  stream = Terminal()
  sink = rows.progress(200, start_step=50, stream=stream)
  sink.write({'step': 100, 'loss': 0.25}, {})
  sink.write({'step': 80, 'validation/eps': 0.5}, {'images_per_second': 812.0})  # rolled back
  sink.write({'step': 200}, {})
  sink.close()
  drawn = stream.getvalue().split('\r')
  assert any('50/200' in one for one in drawn)
  assert any('100/200' in one and 'loss=0.25' in one for one in drawn)
  assert any('80/200' in one and 'validation/eps=0.5' in one for one in drawn)
  assert '100%' in drawn[-1] and 'images/s=812' in drawn[-1]


def test_a_chain_gives_each_sink_each_row_and_closes_all():
  calls = []

  def sink(name, fails=False):
    def close():
      calls.append((name, 'close'))
      if fails:
        raise OSError(name)

    return rows.Sink(
      lambda row, timing: calls.append((name, row, timing)), close, lambda: calls.append(name)
    )

  both = rows.chain(sink('a', fails=True), sink('b', fails=True), sink('c'))
  both.sync()
  assert calls == ['a', 'b', 'c']
  calls.clear()
  both.write({'step': 1}, {'t': 2.0})
  with pytest.raises(OSError):
    both.close()
  assert calls[:3] == [(name, {'step': 1}, {'t': 2.0}) for name in 'abc']
  assert sorted(calls[3:]) == [(name, 'close') for name in 'abc']


def test_a_negative_start_is_refused(tmp_path):
  with pytest.raises(ValueError, match='-1'):
    rows.json_lines(tmp_path / 'm.jsonl', -1)
