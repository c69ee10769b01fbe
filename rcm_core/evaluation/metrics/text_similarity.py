"""Text similarity: how well a sample fits its prompt by the embeddings of images and texts; at best 1.

Source: CLIPScore (Hessel et al., arXiv 2104.08718), without its weight of 2.5: the cosine, and 0 where it is negative.
"""

from __future__ import annotations

from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, mean
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric


def text_similarity_estimate(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Mean cosine of samples to their own prompts."""
    return mean(inputs["similarity"].clip(0, 1), bootstrap, "text_similarity", bounds=PROPORTION)


METRICS = (
    Metric(
        name="text_similarity",
        title="Text similarity",
        higher_is_better=True,
        bounds=PROPORTION,
        needs=frozenset({"similarity"}),
        estimate=text_similarity_estimate,
        place=35,
        selects=False,
        shown=frozenset({"measures", "card", "comparison"}),
    ),
)
