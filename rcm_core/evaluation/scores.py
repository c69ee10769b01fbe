"""How good samples are: every number of one row of the results, each with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Bootstrap, Estimate, counts, estimate, halves, share
from rcm_core.evaluation.judges.base import Judge, one_thread
from rcm_core.evaluation.metrics.accuracy import accuracy_replicates
from rcm_core.evaluation.metrics.diversity import pairwise, pairwise_replicates, vendi, vendi_replicates
from rcm_core.evaluation.metrics.frechet import frechet, frechet_replicates
from rcm_core.evaluation.metrics.precision_recall import precise, precision_recall, recall_replicates

NO_BOUND = (0.0, float("inf"))
PROPORTION = (0.0, 1.0)


def score(
    samples: Tensor,
    prompts: Sequence[str],
    judge: Judge,
    real: np.ndarray | None,
    teacher: np.ndarray,
    groups: Tensor,
    bootstrap: Bootstrap,
) -> dict[str, Estimate]:
    """frechet, frechet_teacher, accuracy, precision, recall, diversity (Vendi) and pairwise of one generator.

    If the judge has categories, also ``accuracy_<category>`` of each and ``accuracy_mean`` over them; and the means
    of its further measures. Without ``real`` neither frechet nor precision and recall; pairwise is of pixels, so only
    of judges that keep them.
    ``samples`` [N, ...] as the judge looked at them, with one prompt each; ``real`` [M, D] features of held-out real
    images; ``teacher`` [K, D] features of the teacher's samples, drawn independently of ``samples`` (so
    that the teacher's own distance to them is the floor, not 0); ``groups`` [P, S, ...] holds S
    samples of each of P prompts. Deterministic; takes about a second for 1,000 samples and 200 resamples of 64
    features. InputError names what does not fit.
    """
    with one_thread():
        features, correct = judge.features(samples), judge.correct(samples, prompts)
        categories = np.array([judge.category(prompt) for prompt in prompts])
        return {
            **({} if real is None else {"frechet": frechet_estimate(features, real, bootstrap)}),
            "frechet_teacher": frechet_estimate(features, teacher, bootstrap),
            "accuracy": accuracy_estimate(correct, bootstrap),
            **by_category(correct, categories, judge.categories, bootstrap),
            **{
                name: _mean_of(values, name, bootstrap)
                for name, values in judge.measures(samples, prompts).items()
            },
            **({} if real is None else _precision_and_recall(features, real, bootstrap)),
            **_diversity(groups, judge, bootstrap),
        }


def score_one(
    metric: str,
    samples: Tensor,
    prompts: Sequence[str],
    judge: Judge,
    reference: np.ndarray,
    bootstrap: Bootstrap,
) -> Estimate:
    """One number alone, as selection needs it; both Frechet distances are to ``reference`` [M, D]."""
    with one_thread():
        if metric == "accuracy":
            return accuracy_estimate(judge.correct(samples, prompts), bootstrap)
        if metric in ("frechet", "frechet_teacher"):
            return frechet_estimate(judge.features(samples), reference, bootstrap)
    raise InputError(
        f"unknown metric {metric!r}; candidates are scored by accuracy, frechet or frechet_teacher"
    )


def frechet_estimate(features: np.ndarray, reference: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Frechet distance of ``features`` [N, D] to ``reference`` [M, D]; lower is better."""
    if min(len(features), len(reference)) < 2:
        raise InputError(
            f"a Frechet distance of {len(features)} samples to {len(reference)} has no variance; make at least 2"
            " (select.samples, evaluate.samples, trajectories.samples)"
        )
    drawn = counts(len(features), bootstrap, "frechet")
    replicates = frechet_replicates(features, reference, drawn)
    return estimate(frechet(features, reference), replicates, len(features), NO_BOUND)


def accuracy_estimate(correct: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Share of ``correct`` [N]; higher is better."""
    return share(correct, accuracy_replicates(correct, counts(len(correct), bootstrap, "accuracy")))


def _mean_of(values: np.ndarray, name: str, bootstrap: Bootstrap) -> Estimate:
    drawn = counts(len(values), bootstrap, name)
    return estimate(float(values.mean()), drawn @ values / len(values), len(values), PROPORTION)


def by_category(
    correct: np.ndarray, found: np.ndarray, categories: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """``accuracy_<category>`` for each of ``categories`` and ``accuracy_mean``, which weighs them equally.

    ``found`` [N] is every sample's category. The mean is GenEval's overall score; its interval resamples within
    the categories. Nothing without categories; InputError if one has no sample.
    """
    rows: dict[str, Estimate] = {}
    replicates = []
    for category in categories:
        flags = correct[found == category]
        if not len(flags):
            raise InputError(
                f"none of {len(correct)} prompts is of the category {category!r}; evaluate at least"
                f" {len(categories)} samples, of prompt lists in which categories take turns"
            )
        drawn = accuracy_replicates(flags, counts(len(flags), bootstrap, "accuracy", category))
        rows[f"accuracy_{category}"] = share(flags, drawn)
        replicates.append(drawn)
    if rows:
        values = [row["value"] for row in rows.values()]
        spread = np.mean(replicates, axis=0)
        rows["accuracy_mean"] = estimate(float(np.mean(values)), spread, len(correct), PROPORTION)
    return rows


def _precision_and_recall(
    features: np.ndarray, real: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    n = len(features)
    inside = precise(features, real)
    recall = precision_recall(features, real)[1]
    spread = recall_replicates(features, real, halves(n, bootstrap, "recall"))
    return {
        "precision": share(inside, accuracy_replicates(inside, counts(n, bootstrap, "precision"))),
        "recall": estimate(recall, spread, n, PROPORTION),
    }


def _diversity(groups: Tensor, judge: Judge, bootstrap: Bootstrap) -> dict[str, Estimate]:
    if groups.ndim < 3 or groups.shape[1] < 2:
        raise InputError(
            f"diversity was given samples of shape {list(groups.shape)};"
            " give [prompts, samples >= 2, C, T, H, W]"
        )
    many, each = groups.shape[:2]
    features = judge.features(groups.flatten(0, 1)).reshape(many, each, -1)
    drawn = np.stack([counts(each, bootstrap, "diversity", i) for i in range(many)], axis=1)
    rows = {
        "diversity": estimate(vendi(features), vendi_replicates(features, drawn), many * each, (1.0, each))
    }
    if judge.pixels:
        pixels = groups.flatten(2).double().numpy()
        rows["pairwise"] = estimate(
            pairwise(pixels), pairwise_replicates(pixels, drawn), many * each, NO_BOUND
        )
    return rows
