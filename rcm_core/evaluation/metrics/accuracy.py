"""Prompt accuracy: the share of samples in which the judge recognises what the prompt asks for; at best 1.

Source: the classification accuracy score of Ravuri and Vinyals, arXiv 1905.10887, with the roles reversed: a
classifier of real images scores generated ones.
"""

from __future__ import annotations

import numpy as np

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import (
    Bootstrap,
    Estimate,
    counts,
    estimate,
    share,
    share_of,
    share_replicates,
)
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric


def accuracy(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the share of correct samples."""
    return share(inputs["correct"], bootstrap, "accuracy")


def by_category(inputs: Inputs, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Return the accuracy of each category, and "mean", which weighs the categories equally.

    The mean is GenEval's overall score (arXiv 2310.11513); its interval resamples within the categories. Empty without
    categories; InputError if a category has no sample.
    """
    correct, categories = inputs["correct"], inputs["categories"]
    rows: dict[str, Estimate] = {}
    replicates = []
    for category in categories:
        flags = correct[inputs["category"] == category]
        if not len(flags):
            raise InputError(
                f"none of the {len(correct)} prompts belongs to the category {category!r}; evaluate at least"
                f" {len(categories)} samples from a prompt file that interleaves the categories"
            )
        drawn = share_replicates(flags, counts(len(flags), bootstrap, "accuracy", category))
        rows[category] = share_of(flags, drawn)
        replicates.append(drawn)
    if rows:
        values = [row["value"] for row in rows.values()]
        spread = np.mean(replicates, axis=0)
        rows["mean"] = estimate(float(np.mean(values)), spread, len(correct), PROPORTION)
    return rows


METRICS = (
    Metric(
        name="accuracy",
        title="Accuracy",
        note="prompt recognised",
        higher_is_better=True,
        bounds=PROPORTION,
        needs=frozenset({"correct", "category", "categories"}),
        estimate=accuracy,
        parts=by_category,
        place=30,
        shown=frozenset({"results", "card", "comparison", "advice"}),
    ),
)
