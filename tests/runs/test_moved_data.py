"""A run is known by the data that was read, wherever it lies and whatever it is called."""

import importlib.util
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion import calling, provenance
from diffusion.commands import agreement, places
from diffusion.models import mlp
from diffusion.reporting import rows
from diffusion.runs import evaluating, loading, training
from diffusion.runs.claiming import Terms
from diffusion.runs.run import prepare
from diffusion.sampling import plan
from diffusion.training import callbacks
from diffusion.training.experiment import AS_THE_RUN

SOURCE = """
import dataclasses
import diffusion
from diffusion.data import sources
from diffusion.models import activations, unet
from tests.training import tiny

ACTIVATIONS = {'relu': activations.relu, 'mish': activations.mish}

@dataclasses.dataclass
class Config(diffusion.Numbers):
  folder: str = 'FOLDER'
  activation: str = 'relu'

def build(c):
  return tiny.experiment(
    seed=c.seed, batch_size=32, data=sources.folder(c.folder),
    model=unet.unet(8, (1,), 1, (), 0, num_classes=2, activation=ACTIVATIONS[c.activation]),
  )
"""


class Place:
  """A folder of pictures, an experiment file that names it, and a run of it; nothing is trained."""

  def __init__(self, root):
    self.root, self.run, self.source = root, root / 'run', root / 'mine.py'
    self.photos = root / 'here' / 'photos'
    pictures = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    for i, picture in enumerate(pictures):
      path = self.photos / ('cat', 'dog')[i % 2] / f'{i}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(picture).save(path)
    self.source.write_text(SOURCE.replace('FOLDER', str(self.photos)))
    spec = importlib.util.spec_from_file_location('mine', self.source)
    self.module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(self.module)

  def prepared(self, **config):
    return prepare(
      self.module.build, self.module.Config(batch_size=32, **config), self.source, self.run
    )

  def move(self):
    new = self.root / 'there' / 'pictures'
    new.parent.mkdir()
    self.photos.rename(new)
    return str(new)


@pytest.fixture
def place(tmp_path):
  made = Place(tmp_path)
  made.prepared().claim()
  return made


def test_a_start_goes_on_where_the_data_has_moved_and_the_run_knows_where_it_lies(place, capsys):
  new = place.move()
  place.prepared(folder=new).claim()
  said = capsys.readouterr().out
  assert said.count('\n') == 1
  assert f'is the same, and has moved: folder: {str(place.photos)!r} -> {new!r}' in said
  assert "name: 'photos' -> 'pictures'" in said
  record = provenance.read_record(place.run)
  assert record['config']['folder'] == new
  assert len(record['starts']) == 2
  assert record['starts'][1]['moved'][0].endswith(f'-> {new!r}')
  assert loading.data_of(place.run).sizes == {'train': 20, 'validation': 10, 'test': 10}
  place.prepared(folder=new).claim()
  assert capsys.readouterr().out == ''


def test_other_data_other_numbers_and_a_text_that_builds_something_else_are_refused(place):
  new = place.move()
  path = next((place.root / 'there').rglob('*.png'))
  for config, says in (
    ({'folder': new, 'seed': 1}, r"another experiment \(folder: [^;]*; seed: 0 -> 1\)"),
    ({'folder': new, 'clip_norm': 2.0}, 'another experiment .*clip_norm: 1.0 -> 2.0'),  # of which nothing is built
    ({'folder': new, 'activation': 'mish'}, r"activation: 'relu' -> 'mish'; .*; model.unet.activation: .*mish'\)"),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=says):
      place.prepared(**config).claim()
  Image.fromarray(np.asarray(Image.open(path)) ^ 1).save(path)
  with pytest.raises(ValueError, match='other data .*fingerprint'):
    place.prepared(folder=new).claim()


def test_an_evaluation_finds_data_that_has_moved(place, unchecked):
  new = place.move()
  with pytest.raises(
    ValueError, match=f'no folder of images at {place.photos}; if .*--moved=folder='
  ):
    loading.data_of(place.run)
  data = loading.data_of(place.run, {'folder': new})
  assert data.sizes['train'] == 20
  assert places([f'folder={new}']) == {'folder': new}
  with pytest.raises(ValueError, match=r'--moved takes FIELD=PLACE, .* got \'/new\''):
    places(['/new'])
  with pytest.raises(
    ValueError, match="'foldr' does not say where .*: its texts are folder, activ"
  ):
    loading.data_of(place.run, {'foldr': new})
  with pytest.raises(ValueError, match='no folder of images at .*--moved=folder='):
    agreement.compare(place.run, place.run, 3, 0)
  with pytest.raises(ValueError, match='no checkpoint in'):
    agreement.compare(place.run, place.run, 3, 0, moved={'folder': new})
  # What is refused now comes after the data: nothing was trained.
  with pytest.raises(ValueError, match='no checkpoint in'):
    evaluating.evaluate(place.prepared(folder=new), 'evaluate', AS_THE_RUN)
  with pytest.raises(ValueError, match='no checkpoint in'):
    calling.evaluate(place.run, moved={'folder': new}, metrics='all')
  path = next((place.root / 'there').rglob('*.png'))
  Image.fromarray(np.asarray(Image.open(path)) ^ 1).save(path)
  with pytest.raises(
    ValueError, match=f'the data is not what {place.run} was trained on: .*finger'
  ):
    loading.data_of(place.run, {'folder': new})


@pytest.mark.slow
def test_a_run_and_its_pictures_copied_to_another_path_and_owner_go_on_to_the_bit(place):
  """Trained to step 20, copied, and extended by 20 in both places."""

  def build(c):
    return place.module.build(c)._replace(
      num_steps=20, model=mlp.mlp(16, 2, 0.1, num_classes=2), callbacks=[callbacks.checkpoint()],
      sampling=plan.Sampling(steps=2, per_class=4),
    )  # fmt: skip

  def start(root, extend, **config):
    made = prepare(
      build, place.module.Config(batch_size=32, **config), place.source, place.root / root
    )
    training.train(made, extend)
    return provenance.read_record(place.root / root)

  start('first', 0)
  new = place.root / 'elsewhere' / 'copy [1]'
  shutil.copytree(place.root / 'first', new / 'run')
  shutil.copytree(place.photos, new / 'pictures')
  if os.geteuid() == 0:
    for path in (new, *new.rglob('*')):
      os.chown(path, 65534, 65534)
  here = start('first', 20)
  place.photos.rename(place.root / 'gone')
  there = start(new / 'run', 20, folder=str(new / 'pictures'))
  assert len(there['starts']) == 2
  assert [one['step'] for one in (here, there)] == [40, 40]
  assert here['results'] == there['results']
  assert here['saved'] == there['saved']
  found = [
    {name: row for name, row in one.items() if name != 'timing'}
    for root in (place.root / 'first', new / 'run')
    for one in rows.read_json_lines(root / 'metrics.jsonl')
  ]
  assert found[: len(found) // 2] == found[len(found) // 2 :]
  weights = [loading.load_parameters(root) for root in (place.root / 'first', new / 'run')]
  jax.tree.map(np.testing.assert_array_equal, *weights)
  assert jax.tree.leaves(weights[0])


def test_a_class_folder_that_has_another_name_is_the_same_class(place, capsys):
  (place.photos / 'dog').rename(place.photos / 'hound')
  place.prepared().claim()
  assert "class_names: ['cat', 'dog'] -> ['cat', 'hound']" in capsys.readouterr().out
  assert provenance.read_record(place.run)['data']['class_names'] == ['cat', 'dog']


def test_a_run_keeps_the_order_of_its_classes_that_it_was_trained_with(place):
  """Its labels are those of run.json, whatever order folders are read in by now."""
  record = provenance.read_record(place.run)
  assert record['data']['class_names'] == ['cat', 'dog']
  (place.photos / 'cat').rename(place.photos / '10')
  (place.photos / 'dog').rename(place.photos / '9')
  record['data']['class_names'] = ['10', '9']  # as the alphabet has them
  provenance.write_record(place.run, record)
  run = place.prepared()
  run.claim()
  assert run.data.dataset.class_names == ('10', '9')
  assert run.record['data']['fingerprint'] == record['data']['fingerprint']
  assert loading.data_of(place.run).dataset.class_names == ('10', '9')
  restarted = prepare(
    place.module.build, place.module.Config(batch_size=32), place.source, place.run, terms=Terms(restart=True)
  )  # fmt: skip
  assert restarted.data.dataset.class_names == ('9', '10')  # it begins anew
  fresh = prepare(place.module.build, place.module.Config(batch_size=32), place.source, None)
  assert fresh.data.dataset.class_names == ('9', '10')
  np.testing.assert_array_equal(fresh.data.dataset.label, 1 - run.data.dataset.label)
