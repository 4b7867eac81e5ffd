"""Moved to `diffusion.commands.evaluate`."""

if __name__ == '__main__':
  import sys

  print('error: this is now `python -m diffusion.commands.evaluate`', file=sys.stderr)
  sys.exit(2)
