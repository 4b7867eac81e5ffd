import importlib.resources
import re

import pytest

from diffusion.reporting import bibliography


def fields(entry):
  """The fields of an entry, by a walk over its braces."""
  found, depth, start = {}, 0, 0
  for place, letter in enumerate(entry):
    depth += (letter == '{') - (letter == '}')
    assert depth >= 0
    if letter == '{' and depth == 2:
      name = re.search(r'(\w+)\s*=\s*$', entry[:place])
      start = place + 1
    elif letter == '}' and depth == 1:
      found[name[1]] = entry[start:place]
  assert depth == 0
  return found


@pytest.mark.parametrize('key', bibliography.load())
def test_an_entry_is_whole(key):
  entry = bibliography.load()[key]
  assert re.fullmatch(r'@\w+\{' + key + r',\n(  \w+ = \{.*\},\n)+\}', entry)
  found = fields(entry)
  assert {'title', 'author', 'year'} <= found.keys()
  assert all(value.strip() for value in found.values())
  # The key is the first author's last name and the year.
  name = re.sub(r'\{\\["\'](\w)\}', r'\1', found['author']).strip('{}')
  family = re.split(r',| and ', name)[0].lower()
  assert key.startswith(re.sub(r'\W', '', family) + found['year'])
  if 'eprint' in found:
    # An arXiv number holds year and month: never later than the publication.
    assert re.fullmatch(r'\d{4}\.\d{4,5}', found['eprint'])
    assert 2000 + int(found['eprint'][:2]) <= int(found['year'])
    assert 1 <= int(found['eprint'][2:4]) <= 12


def test_no_key_title_or_arxiv_number_occurs_twice():
  all_fields = [fields(entry) for entry in bibliography.load().values()]
  titles = [one['title'] for one in all_fields]
  numbers = [one['eprint'] for one in all_fields if 'eprint' in one]
  assert len(set(titles)) == len(titles)
  assert len(set(numbers)) == len(numbers)


def test_every_at_sign_line_of_the_file_became_an_entry():
  text = (importlib.resources.files('diffusion.reporting') / 'references.bib').read_text('utf-8')
  assert len(re.findall(r'^@', text, re.MULTILINE)) == len(bibliography.load()) > 40


def test_entries_come_in_the_given_order_each_once():
  text = bibliography.entries(['wu2018group', 'ho2020denoising', 'wu2018group'])
  assert re.findall(r'^@\w+\{(\w+),', text, re.MULTILINE) == ['wu2018group', 'ho2020denoising']
  assert 'Group Normalization' in text
  known = bibliography.load()
  assert text == f'{known["wu2018group"]}\n\n{known["ho2020denoising"]}'
  assert bibliography.entries([]) == ''


def test_a_key_that_the_file_gives_twice_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.resources, 'files', lambda package: tmp_path)
  entries = [f'@misc{{{key},\n  title = {{{key}}},\n}}\n' for key in ('a', 'b', 'c')]
  (tmp_path / 'references.bib').write_text('\n'.join(entries))
  assert bibliography.load() == {key: one.strip() for key, one in zip('abc', entries, strict=True)}
  (tmp_path / 'references.bib').write_text('\n'.join([*entries, entries[1]]))
  with pytest.raises(ValueError, match="gives the key 'b' twice"):
    bibliography.load()


def test_an_unknown_key_names_the_nearest():
  with pytest.raises(KeyError, match="'ho2020denoise'.*'ho2020denoising'"):
    bibliography.entries(['ho2020denoise'])
