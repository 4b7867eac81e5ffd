"""A run's folder is taken by that run alone."""

import pytest

from diffusion import provenance
from diffusion.runs import claiming


def test_what_a_start_left_that_was_killed_at_once_is_in_nobodys_way(tmp_path):
  folder, source = tmp_path / 'run', tmp_path / 'digits.py'
  folder.mkdir()
  source.write_text('whole')
  (folder / 'experiment.py').write_text('who')
  (folder / '.run.json.7.tmp').write_text('{')
  fresh = {'starts': [{}], 'config': {}, 'data': {}, 'format': provenance.RECORD_FORMAT}
  claiming.claim(folder, fresh, source.read_bytes())
  assert provenance.read_record(folder) == fresh
  assert (folder / 'experiment.py').read_text() == 'whole'


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(ValueError, match=r'is not empty and holds no run \(thesis.tex\)'):
    claiming.claim(tmp_path, {}, None)
