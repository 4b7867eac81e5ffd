"""Checkpoints: the best outlives NaN, the latest outlives the best, damage is stepped over."""

import hashlib
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading

import jax
import numpy as np
import pytest

from benchmarks import resume
from diffusion import processes
from diffusion.training import checkpoint, trees


def tree(value):
  return {'w': np.full((50, 7), value, np.float32), 'n': np.asarray(int(value), np.int32)}


TARGET = tree(0)
ABOUT = '_CHECKPOINT_METADATA'  # where Orbax writes what is saved with the arrays


def save_all(directory, metrics):
  """Saves step i (from 1) with tree(i) and metrics[i - 1]."""
  keeper = checkpoint.open_checkpoints(directory)
  for step, metric in enumerate(metrics, 1):
    keeper.save(
      step,
      tree(step),
      {'callbacks': {'early_stopping': {'best': math.inf}}, 'reason': None},
      metric,
    )
  keeper.close()
  return checkpoint.open_checkpoints(directory)


@pytest.mark.parametrize('bad', [math.nan, -math.inf, math.inf])
def test_best_survives_a_non_finite_metric_and_latest_survives_best_keeping(tmp_path, bad):
  keeper = save_all(tmp_path / 'c', [3.0, 1.0, 2.0, bad, bad, bad])
  assert [step for step, _ in keeper.steps()] == [2, 5, 6]
  best, latest = keeper.restore(TARGET, 'best'), keeper.restore(TARGET, 'latest')
  assert (best.number, latest.number) == (2, 6)
  np.testing.assert_array_equal(best.state['w'], tree(2)['w'])
  np.testing.assert_array_equal(latest.state['w'], tree(6)['w'])
  assert best.record['callbacks']['early_stopping']['best'] == math.inf
  keeper.close()


def test_round_trip_keeps_types_and_bits(tmp_path):
  odd = {
    'a': np.float32([1 / 3, -0.0, 1e-45]),
    'u': np.asarray(2**32 - 1, np.uint32),
    'b': np.arange(3, dtype=np.int32),
  }
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  keeper.save(1, odd, {}, 0.0)
  keeper.close()
  back = checkpoint.open_checkpoints(tmp_path / 'c', read_only=True).restore(
    {k: np.zeros_like(v) for k, v in odd.items()}, 'latest'
  )
  for name, value in odd.items():
    assert back.state[name].dtype == value.dtype
    assert back.state[name].tobytes() == value.tobytes()


def damage(folder, how):
  files = sorted((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  if how == 'truncate':
    big = files[-1]
    big.write_bytes(big.read_bytes()[: big.stat().st_size // 2])
  elif how == 'no metadata':
    (folder / 'state' / '_METADATA').unlink()
  else:
    for p in (folder / 'state').rglob('*'):
      if p.is_file() and p.parent.name == 'd':
        p.unlink()


@pytest.mark.parametrize('how', ['truncate', 'no metadata', 'no data'])
def test_a_damaged_newest_checkpoint_is_set_aside_for_the_one_before(tmp_path, capsys, how):
  keeper = save_all(tmp_path / 'c', [1.0, 2.0, 3.0])
  damage(tmp_path / 'c' / '3', how)
  restored = keeper.restore(TARGET, 'latest')
  assert restored.number == 2
  assert restored.damaged == (3,)
  np.testing.assert_array_equal(restored.state['w'], tree(2)['w'])
  assert 'checkpoint 3 is damaged and set aside' in capsys.readouterr().out
  assert (tmp_path / 'damaged' / '3').is_dir()
  keeper.save(3, tree(33), {}, 0.5)  # the way is free again
  keeper.close()
  again = checkpoint.open_checkpoints(tmp_path / 'c', read_only=True).restore(TARGET, 'best')
  assert again.number == 3
  assert again.state['n'] == 33


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
  keeper = save_all(tmp_path / 'c', [1.0])
  damage(tmp_path / 'c' / '1', 'no data')
  with pytest.raises(ValueError, match=f'put one back .* from {tmp_path}/damaged'):
    keeper.restore(TARGET, 'latest')
  keeper.close()


@pytest.mark.slow
def test_a_directory_that_another_process_has_open_is_left_alone(tmp_path):
  program = (
    'import sys, time; from diffusion.training import checkpoint; '
    'keeper = checkpoint.open_checkpoints(sys.argv[1]); print("open", flush=True); time.sleep(600)'
  )
  environment = os.environ | {'PYTHONPATH': os.getcwd()}
  command = [sys.executable, '-c', program, str(tmp_path / 'c')]
  with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as other:
    assert other.stdout.readline() == 'open\n'
    with pytest.raises(ValueError, match='in use by another process'):
      checkpoint.open_checkpoints(tmp_path / 'c')
    other.kill()
  checkpoint.open_checkpoints(tmp_path / 'c').close()


@pytest.mark.parametrize('kind', [jax.errors.JaxRuntimeError, TimeoutError])  # of a barrier
def test_a_lost_process_is_not_blamed_on_the_disk(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(processes, 'alone', lambda: False)
  saving = checkpoint._saving(tmp_path / '1', tmp_path.stat())
  with pytest.raises(jax.errors.JaxRuntimeError, match='closed by peer') as caught, saving:
    raise kind('Connection closed by peer')
  assert processes.is_loss(caught.value)


def test_an_empty_folder_restores_nothing(tmp_path):
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  assert keeper.restore(TARGET, 'latest') is None
  keeper.close()


def test_another_network_is_named_and_nothing_is_set_aside(tmp_path):
  keeper = save_all(tmp_path / 'c', [1.0])
  said = r"another network: \['w'\] is float32\[50, 7\] there and float32\[50, 9\] here"
  with pytest.raises(checkpoint.FormatError, match=said):
    keeper.restore({'w': np.zeros((50, 9), np.float32), 'n': TARGET['n']}, 'latest')
  said = r"another network: \['more'\] is None there and float32\[3\] here"
  with pytest.raises(checkpoint.FormatError, match=said):
    keeper.restore({'w': TARGET['w'], 'n': TARGET['n'], 'more': np.zeros(3, np.float32)}, 'latest')
  assert (tmp_path / 'c' / '1').is_dir()
  keeper.close()


def test_another_format_version_is_refused(tmp_path, monkeypatch):
  save_all(tmp_path / 'c', [1.0]).close()
  monkeypatch.setattr(checkpoint, 'FORMAT_VERSION', 6)
  for read_only in (False, True):
    with pytest.raises(checkpoint.FormatError, match='1 has format 5, this version reads 6'):
      checkpoint.open_checkpoints(tmp_path / 'c', read_only=read_only)
  assert (tmp_path / 'c' / '1.sha256').exists()


@pytest.mark.parametrize('read_only', [False, True])
def test_something_else_than_a_folder_is_refused_with_a_remedy(tmp_path, read_only):
  (tmp_path / 'file').write_text('mine')
  (tmp_path / 'link').symlink_to('/nowhere/at/all')
  for name in ('file', 'link'):
    with pytest.raises(ValueError, match=f'{name} is no folder: put the checkpoints back there'):
      checkpoint.open_checkpoints(tmp_path / name, read_only=read_only)
  assert (tmp_path / 'file').read_text() == 'mine'


def test_a_save_in_flight_is_found(tmp_path):
  keeper = checkpoint.open_checkpoints(tmp_path / 'c', latest=3, best=0)
  for number in (1, 2, 3, 4):
    keeper.save(number, tree(number), {'n': number}, 0.0, written={'rows': 10 * number})
  assert keeper.written() == [{'rows': 20}, {'rows': 30}, {'rows': 40}]
  assert keeper.restore(TARGET, 'latest').number == 4  # the last save was not waited for
  assert keeper.restore(TARGET, 'latest', 3).number == 3
  whole = keeper.restore(None, 'latest', 3).state  # as it lies there
  assert whole.keys() == TARGET.keys() and whole['n'] == 3
  assert keeper.restore(TARGET, 'latest', 1) is None
  assert keeper.last_record() == {'n': 4}
  assert [number for number, _ in keeper.steps()] == [2, 3, 4]
  keeper.close()


def test_what_is_kept_is_the_newest_the_best_and_the_newest_of_a_guard_whatever_the_order(tmp_path):
  """Against the whole history; the directory is opened anew in between."""
  generator, history = np.random.default_rng(3), []
  for _ in range(3):
    keeper = checkpoint.open_checkpoints(tmp_path / 'c', latest=2, best=1, guarded=2)
    for _ in range(8):
      number = len(history) + 1
      history.append((float(generator.integers(5)), bool(generator.integers(2))))
      keeper.save(number, TARGET, {}, history[-1][0], guarded=history[-1][1])
      numbers = range(1, number + 1)
      best = min(numbers, key=lambda n: (history[n - 1][0], -n))
      tagged = [n for n in numbers if history[n - 1][1]][-2:]
      assert [n for n, _ in keeper.steps()] == sorted({*numbers[-2:], best, *tagged})
    keeper.close()
    reader = checkpoint.open_checkpoints(tmp_path / 'c', read_only=True)
    assert reader.restore(TARGET, 'guarded').number == tagged[-1]
    assert reader.restore(TARGET, 'guarded', tagged[-1] - 1).number == tagged[-2]
    assert reader.restore(TARGET, 'guarded', tagged[-2] - 1) is None


def test_what_lost_its_tag_stays_without_once_a_save_has_followed_and_may_be_the_best(tmp_path):
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  for number, metric in ((2, 3.0), (4, 1.0), (5, 2.0)):
    keeper.save(number, tree(number), {}, metric, guarded=number != 5)
  keeper.untag(4)  # as when it goes back to 4, to which it may go back once more
  assert keeper.restore(TARGET, 'guarded').number == 4
  keeper.untag(3)
  assert keeper.restore(TARGET, 'guarded').number == 2
  assert keeper.restore(TARGET, 'best').number == 4
  keeper.close()
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')  # as after a kill: it will go back once more
  assert keeper.restore(TARGET, 'guarded').number == 4
  keeper.untag(3)
  keeper.save(6, tree(6), {}, 2.0)
  keeper.close()
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  assert keeper.restore(TARGET, 'guarded').number == 2
  keeper.save(7, tree(7), {}, 2.0, guarded=True)
  assert [number for number, _ in keeper.steps()] == [2, 4, 6, 7]
  assert keeper.restore(TARGET, 'guarded', 6).number == 2
  keeper.close()


def test_bad_numbers_and_kinds_are_named(tmp_path):
  for name, value in (('latest', 0), ('best', -1), ('guarded', 0.5)):
    with pytest.raises(ValueError, match=f'{name} must be an integer >= .*, got {value}'):
      checkpoint.open_checkpoints(tmp_path / 'c', **{name: value})
  reader = checkpoint.open_checkpoints(tmp_path / 'c', read_only=True)
  with pytest.raises(ValueError, match="which must be one of latest, best, guarded, got 'last'"):
    reader.restore(TARGET, 'last')
  with pytest.raises(ValueError, match='opened read-only: open it with read_only=False'):
    reader.save(1, TARGET, {}, 0.0)
  assert reader.restore(TARGET) is None
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('kind', resume.KINDS)
def test_ten_damages_of_a_kind_are_each_noticed_by_name_and_the_one_before_is_used(tmp_path, kind):
  save_all(tmp_path / 'c', [1.0, 2.0, 3.0]).close()
  generator = np.random.default_rng(7)
  for i in range(10):
    root = tmp_path / str(i) / 'c'
    shutil.copytree(tmp_path / 'c', root)
    found = resume.notice(root, kind, generator, TARGET)
    assert found.named, found.said
    assert (found.restored.number, found.restored.damaged) == (2, (3,))
    for name, value in tree(2).items():
      assert found.restored.state[name].tobytes() == value.tobytes()


def test_no_flipped_bit_of_a_manifest_passes(tmp_path):
  folder = tmp_path / '7'
  folder.mkdir()
  (folder / 'a').write_bytes(b'abc')
  (folder / 'b').write_bytes(b'')
  checkpoint.write_manifest(folder)
  path, content = tmp_path / '7.sha256', (tmp_path / '7.sha256').read_bytes()
  assert checkpoint.find_fault(folder) is None
  for i in range(0, 8 * len(content), 5):
    flipped = bytearray(content)
    flipped[i // 8] ^= 1 << i % 8
    path.write_bytes(flipped)
    assert checkpoint.find_fault(folder) == '7.sha256 is damaged'


def test_a_manifest_is_what_sha256sum_reads_and_names_what_is_wrong(tmp_path):
  folder = tmp_path / '7'
  (folder / 'deep').mkdir(parents=True)
  (folder / 'deep' / 'a').write_bytes(b'abc')
  (folder / 'b').write_bytes(b'12345')
  checkpoint.write_manifest(folder)
  text = (tmp_path / '7.sha256').read_text()
  assert f'# 3 bytes\n{hashlib.sha256(b"abc").hexdigest()}  7/deep/a\n' in text
  if shutil.which('sha256sum'):
    subprocess.run(['sha256sum', '--quiet', '-c', '7.sha256'], cwd=tmp_path, check=True)
  (folder / 'b').write_bytes(b'1234')
  assert checkpoint.find_fault(folder) == '7/b has changed: 5 bytes when it was saved, 4 bytes now'
  (folder / 'b').write_bytes(b'12346')
  assert checkpoint.find_fault(folder) == '7/b has changed: 5 bytes when it was saved, 5 bytes now'
  (folder / 'b').unlink()
  assert checkpoint.find_fault(folder) == '7/b has changed: 5 bytes when it was saved, nothing now'
  (folder / 'b').write_bytes(b'12345')
  (folder / 'c').write_bytes(b'')
  assert checkpoint.find_fault(folder) == '7/c has changed: nothing when it was saved, 0 bytes now'


def test_a_checkpoint_whose_start_was_killed_before_its_manifest_is_not_used(tmp_path, capsys):
  root = tmp_path / 'c'
  save_all(root, [1.0, 2.0, 3.0]).close()
  (root / '3.sha256').unlink()
  (root / '.3.sha256.99.tmp').write_text('half')
  (root / '1').rename(root / '1.deleted')  # and it was deleting this one
  keeper = checkpoint.open_checkpoints(root)
  assert keeper.restore(TARGET, 'latest').number == 2
  keeper.close()
  assert 'checkpoint 3 is incomplete and set aside' in capsys.readouterr().out
  assert sorted(path.name for path in root.iterdir()) == ['2', '2.sha256']


def test_a_kill_in_the_first_save_starts_anew_and_a_lost_folder_does_not(tmp_path, capsys):
  root = tmp_path / 'c'
  save_all(root, [1.0]).close()
  (root / '1.sha256').rename(tmp_path / 'kept')
  keeper = checkpoint.open_checkpoints(root)
  assert keeper.restore(TARGET, 'latest') is None
  keeper.close()
  (tmp_path / 'kept').rename(root / '1.sha256')
  keeper = checkpoint.open_checkpoints(root)
  assert 'the folder 1 is missing' in capsys.readouterr().out
  with pytest.raises(ValueError, match='none of the checkpoints'):
    keeper.restore(TARGET, 'latest')
  keeper.close()


def test_a_damaged_metric_neither_opens_with_an_error_nor_evicts_the_best(tmp_path, capsys):
  root = tmp_path / 'c'
  save_all(root, [2.0, 1.0, 3.0, 4.0]).close()
  file, text = root / '4' / ABOUT, (root / '4' / ABOUT).read_text()
  file.write_text(text.replace('"saved": [4.0', '"saved": [0.0'))  # now the lowest
  assert file.read_text() != text
  keeper = checkpoint.open_checkpoints(root)
  keeper.save(5, tree(5), {}, 5.0)
  assert keeper.restore(TARGET, 'best').number == 2
  keeper.close()
  assert f'4/{ABOUT} has changed' in capsys.readouterr().out
  (root / '5' / ABOUT).write_text('{')
  keeper = checkpoint.open_checkpoints(root)
  assert keeper.restore(TARGET, 'latest').number == 3
  keeper.close()


def test_manifests_stay_in_step_with_what_is_kept(tmp_path):
  root = tmp_path / 'c'
  keeper = save_all(root, [3.0, 1.0, 2.0, 5.0])

  def there():
    keeper.wait()
    return sorted(path.name for path in root.iterdir())

  assert there() == ['2', '2.sha256', '3', '3.sha256', '4', '4.sha256']
  keeper.save(5, TARGET, {}, 0.5)
  assert there() == ['4', '4.sha256', '5', '5.sha256']
  keeper.close()


def test_a_checkpoint_counts_only_after_what_must_come_before_it(tmp_path):
  seen = []
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  here = tmp_path / 'c' / '1.sha256'
  keeper.save(1, TARGET, {}, 0.0, before=lambda: seen.append(here.exists()))
  keeper.close()
  assert seen == [False]
  assert here.exists()


def test_a_save_that_cannot_be_written_is_one_line_and_leaves_the_others_whole(tmp_path):
  """No file may grow beyond 4,000 bytes, as on a full disk."""
  noise = {'w': np.random.default_rng(0).normal(size=20_000)}
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  keeper.save(1, noise, {}, 1.0)
  keeper.wait()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
  try:
    with pytest.raises(
      checkpoint.SaveError, match=f'cannot save checkpoint {tmp_path}/c/2 '
    ) as error:
      keeper.save(2, noise, {}, 0.5)
      keeper.close()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert os.linesep not in str(error.value)
  again = checkpoint.open_checkpoints(tmp_path / 'c')
  restored = again.restore({'w': np.zeros(20_000)}, 'latest')
  assert (restored.number, restored.damaged) == (1, ())
  assert restored.state['w'].tobytes() == noise['w'].tobytes()
  again.save(2, noise, {}, 0.5)
  assert [number for number, _ in again.steps()] == [1, 2]
  again.close()


# What shells, globs, URLs, and the readers of paths in Orbax, TensorStore and epath take for something else.
NAMES = (
  '[1]', '[!a]', 'a*b', 'a?b', '**', '{a,b}', 'a\\b', 'gs:', 'a\nb', '~', '-x,y=1',
  's3:file:#c=d&%41$HOME`"\'|;<>()^ @+caf\u00e9 e\u0301 \u65e5\u672c',
)  # fmt: skip


def test_a_folder_may_have_any_name_and_is_not_taken_for_another(tmp_path):
  (tmp_path / 'axb').mkdir()  # which the globs mean too
  for i, name in enumerate(['axb', *NAMES]):
    save_all(tmp_path / name / 'c', [float(i)]).close()
  for i, name in enumerate(['axb', *NAMES]):
    reader = checkpoint.open_checkpoints(tmp_path / name / 'c', read_only=True)
    found = reader.restore(TARGET, 'best')
    assert (found.number, found.metric, found.damaged) == (1, float(i), ()), name
    assert found.state['w'].tobytes() == tree(1)['w'].tobytes(), name
  trees.save(tmp_path / '[1]' / 'step_7', tree(7))
  trees.save(tmp_path / '[1]' / 'step_7', tree(8))
  assert trees.load(tmp_path / '[1]' / 'step_7')['n'] == 8
  assert checkpoint.find_fault(tmp_path / '[1]' / 'step_7') is None


def test_a_folder_that_cannot_be_reached_is_refused_before_there_is_anything_to_lose(
  tmp_path, monkeypatch
):
  with pytest.raises(ValueError, match=r"the name of .*a\\udcffb' is not UTF-8: choose another"):
    trees.check_folder(tmp_path / 'a\udcffb')
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / '[tmp]'))
  with pytest.raises(ValueError, match='set TMPDIR to another folder'):
    checkpoint.open_checkpoints(tmp_path / '[1]')
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  (tmp_path / f'diffusion-{os.getuid()}').symlink_to(tmp_path)
  with pytest.raises(ValueError, match='this one is not yours'):
    checkpoint.open_checkpoints(tmp_path / '[1]')


def test_what_cannot_be_read_back_does_not_count(tmp_path, monkeypatch):
  """Orbax itself, given a folder whose name it expands, never merges the index of what it has written."""
  monkeypatch.setattr(trees, 'reachable', lambda folder: folder)
  keeper = checkpoint.open_checkpoints(tmp_path / '[1]' / 'c')
  keeper.save(1, tree(1), {}, 0.0)
  with pytest.raises(
    checkpoint.SaveError, match='read back, .* holds 0 arrays and not the 2 saved'
  ):
    keeper.close()
  assert not (tmp_path / '[1]' / 'c' / '1.sha256').exists()
  save_all(tmp_path / 'c', [1.0]).close()
  trees.check(tmp_path / 'c' / '1', tree(1))
  for other in ({'w': tree(1)['w']}, tree(1) | {'n': np.zeros(2, np.int32)}):
    with pytest.raises(ValueError, match='read back'):
      trees.check(tmp_path / 'c' / '1', other)


def test_a_save_whose_folder_cannot_be_made_leaves_no_thread_to_wait_for(tmp_path):
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  keeper.save(1, tree(1), {}, 0.0)
  keeper.wait()
  before = set(threading.enumerate())
  long = tmp_path / 'c' / ('9' * 300)  # a name that no file system takes
  with pytest.raises(OSError, match='File name too long'):
    trees.begin(long, tree(2), {})
  left = [one for one in threading.enumerate() if one not in before and not one.daemon]
  for one in left:
    one.join(10)
  assert not [one.name for one in left if one.is_alive() and 'asyncio' not in one.name]
  keeper.close()


def test_leftovers_and_odd_names_end_nothing_and_nothing_set_aside_is_overwritten(tmp_path, capsys):
  root = tmp_path / 'c'
  save_all(root, [1.0, 2.0, 3.0]).close()
  (tmp_path / '.c.lock').unlink()
  (tmp_path / '.c.lock').mkdir()
  (tmp_path / 'damaged').write_text('a file')
  (root / '3.deleted').mkdir()  # beside a whole one
  (root / '9.orbax-checkpoint-tmp').write_text('a file')
  for name in ('007', '\u0663', 'notes'):
    (root / name).mkdir()
  keeper = checkpoint.open_checkpoints(root)
  assert [number for number, _ in keeper.steps()] == [1, 2, 3]
  assert not capsys.readouterr().out
  for value in (33, 34):
    damage(root / '3', 'truncate')
    assert keeper.restore(TARGET).number == 2
    keeper.save(3, tree(value), {}, 3.0)
    keeper.wait()
  keeper.close()
  names = {'.c.lock', '3', '3.sha256', '3_1', '3_1.sha256'}
  assert {path.name for path in (tmp_path / 'damaged_1').iterdir()} == names
  assert (tmp_path / 'damaged').read_text() == 'a file'


def test_what_is_noted_after_a_save_is_that_it_counts_and_its_metric(tmp_path):
  seen, here = [], tmp_path / 'c' / '1.sha256'
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  keeper.save(1, TARGET, {}, math.nan, after=lambda metric: seen.append((metric, here.exists())))
  keeper.close()
  assert seen == [(math.inf, True)]
