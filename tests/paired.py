"""What a claim needs: the same seeds with and without, a margin, and a paired test."""

import numpy as np
from scipy.stats import ttest_rel


def assert_better(scores, others, margin=0.0, level=0.01):
    """``scores`` are greater than ``others``, seed by seed: by ``margin`` on average, by a paired t-test.

    With three seeds, where a t-test has little power, every seed must be better.
    """
    scores, others = np.asarray(scores, float), np.asarray(others, float)
    difference = (scores - others).mean()
    text = f"{scores.round(3)} against {others.round(3)}: mean difference {difference:.3f}, wanted above {margin}"
    assert difference > margin, text
    if len(scores) < 5:
        assert (scores > others).all(), text
    else:
        chance = ttest_rel(scores, others, alternative="greater").pvalue
        assert chance < level, f"{text}; p {chance:.3f}"
