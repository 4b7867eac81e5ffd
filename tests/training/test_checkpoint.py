"""Checkpoints: the best outlives NaN, the latest outlives the best, damage is stepped over."""

import math

import numpy as np
import pytest

from diffusion.training import checkpoint


def tree(value):
  return {'w': np.full((50, 7), value, np.float32), 'n': np.asarray(int(value), np.int32)}


TARGET = tree(0)


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
  back = checkpoint.open_checkpoints(tmp_path / 'c').restore(
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
  again = checkpoint.open_checkpoints(tmp_path / 'c').restore(TARGET, 'best')
  assert again.number == 3
  assert again.state['n'] == 33


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
  keeper = save_all(tmp_path / 'c', [1.0])
  damage(tmp_path / 'c' / '1', 'no data')
  with pytest.raises(ValueError, match='none of the checkpoints'):
    keeper.restore(TARGET, 'latest')
  keeper.close()


def test_an_empty_folder_restores_nothing(tmp_path):
  keeper = checkpoint.open_checkpoints(tmp_path / 'c')
  assert keeper.restore(TARGET, 'latest') is None
  keeper.close()


def test_another_network_is_named_and_nothing_is_set_aside(tmp_path):
  keeper = save_all(tmp_path / 'c', [1.0])
  with pytest.raises(checkpoint.FormatError, match='another network'):
    keeper.restore({'w': np.zeros((50, 9), np.float32), 'n': TARGET['n']}, 'latest')
  with pytest.raises(checkpoint.FormatError, match='another network'):
    keeper.restore({'w': TARGET['w'], 'n': TARGET['n'], 'more': np.zeros(3, np.float32)}, 'latest')
  assert (tmp_path / 'c' / '1').is_dir()
  keeper.close()


def test_another_format_version_is_refused(tmp_path, monkeypatch):
  keeper = save_all(tmp_path / 'c', [1.0])
  monkeypatch.setattr(checkpoint, 'FORMAT_VERSION', 3)
  with pytest.raises(checkpoint.FormatError, match='has format 2, this version reads 3'):
    keeper.restore(TARGET, 'latest')
  keeper.close()


def test_forgetting_deletes_what_is_beyond_a_number_and_what_is_in_flight_is_found(tmp_path):
  keeper = checkpoint.open_checkpoints(tmp_path / 'c', latest=3, best=0)
  for number in (1, 2, 3, 4):
    keeper.save(number, TARGET, {'n': number}, 0.0)
  assert keeper.restore(TARGET, 'latest').number == 4  # the last save was not waited for
  assert keeper.restore(TARGET, 'latest', 3).number == 3
  assert keeper.last_record() == {'n': 4}
  keeper.forget(2)
  assert [number for number, _ in keeper.steps()] == [2]
  assert keeper.restore(TARGET, 'latest').record == {'n': 2}
  assert keeper.restore(TARGET, 'latest', 1) is None
  keeper.close()
