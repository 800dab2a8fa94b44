"""Sums over hospitals."""

from collections.abc import Sequence

from protocol.messages import Evaluation


def add_evaluations(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """One evaluation over all held-out rows; None of none."""
    if not evaluations:
        return None
    loss = weighted_mean([(one.loss, one.examples) for one in evaluations])
    return Evaluation(
        examples=sum(one.examples for one in evaluations),
        loss=loss if loss is not None else 0.0,
        choice_examples=sum(one.choice_examples for one in evaluations),
        choice_correct=sum(one.choice_correct for one in evaluations),
        answer_examples=sum(one.answer_examples for one in evaluations),
        answer_correct=sum(one.answer_correct for one in evaluations),
    )


def weighted_mean(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Mean of (value, weight) pairs; None where there is no weight."""
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None
