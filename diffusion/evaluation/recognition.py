"""Are conditional samples recognized as what was asked for, by a classifier fitted on real data alone?"""

import numpy as np
from jaxtyping import Float64

from diffusion import checks
from diffusion.citations import technique
from diffusion.evaluation.metric import (
  Metric,
  MetricInputs,
  MetricResult,
  Plan,
  Stored,
  proportion,
)
from diffusion.proportions import Counts


@technique('support-vector recognition of samples', 'core', 'cortes1995support')
def recognition(c: float = 10.0) -> Metric:
  """The share of samples that a support-vector classifier of the real training data calls by their label.

  A radial kernel on pixels, its width from their variance (scikit-learn's 'scale'). Beside the share stands the
  classifier's accuracy on held-out data, the most that could be asked of perfect samples.

  Args:
    c: the classifier's penalty, > 0.

  Raises:
    ValueError: c out of its range; before training, one class, or samples of unknown classes.

  Source: Cortes & Vapnik (1995).
  """
  checks.positive('c', c)

  def check(plan: Plan) -> None:
    if plan.classes < 2:
      raise ValueError(
        f'recognition needs at least two classes, the data has {plan.classes}: leave it out of the metrics'
      )
    if not plan.labels:
      raise ValueError(
        'recognition needs to know what was asked for: put the images into class folders'
      )

  def measure(inputs: MetricInputs) -> list[MetricResult]:
    from sklearn import svm

    def flat(x: Stored) -> Float64[np.ndarray, 'n d']:
      return x.reshape(len(x), -1).astype(np.float64)

    classifier = svm.SVC(C=c, gamma='scale').fit(flat(inputs.train[0]), inputs.train[1])
    right = classifier.predict(flat(inputs.samples)) == inputs.labels
    x, label = inputs.held_out
    correct = classifier.predict(flat(x)) == label
    shares = {k: right[inputs.labels == k] for k in np.unique(inputs.labels)}
    worst = min(shares, key=lambda k: shares[k].mean())
    overall = Counts(int(right.sum()), right.size)
    lowest = Counts(int(shares[worst].sum()), shares[worst].size)
    real = Counts(int(correct.sum()), correct.size, shared=True)
    by, of_worst = 'by a support-vector classifier', f'class {inputs.class_names[worst]}'
    return [
      proportion('recognized as their label', overall, f'of {right.size} samples, {by}', 'higher'),
      proportion('worst class', lowest, f'{of_worst}, {lowest.trials} samples', 'higher'),
      proportion('held-out accuracy', real, f'of that classifier, on {correct.size} real examples'),
    ]

  return Metric(check, measure)
