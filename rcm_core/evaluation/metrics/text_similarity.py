"""Text similarity: the similarity of a sample's and its prompt's embeddings; at best 1.

Source: CLIPScore (Hessel et al., arXiv 2104.08718), without its weight of 2.5: max(0, cosine).
"""

from __future__ import annotations

from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, mean
from rcm_core.evaluation.metric import PROPORTION, Inputs, Metric


def text_similarity_estimate(inputs: Inputs, bootstrap: Bootstrap) -> Estimate:
    """Return the mean cosine of samples to their own prompts."""
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
