"""Programs beside the experiments: join runs, judge images, compare two runs, prepare data."""
