"""Exercises of notebook 16: a threshold that travels, the rank-one change, a score for an edit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise

if TYPE_CHECKING:
    import torch


# --- 16.1 a threshold from the training texts ---------------------------------------------------


def judged(
    train: torch.Tensor,  # [n]
    labels: torch.Tensor,  # [n], bool
    test: torch.Tensor,  # [m]
    truth: torch.Tensor,  # [m], bool
) -> torch.Tensor:
    """Balanced accuracy of a probe on other texts: the mean of two shares, of the true statements
    that it calls true, and of the false ones that it calls false.

    It says true above a threshold: midway between the two classes' mean scores in training.

    train: [n], scores of the training texts; labels: [n], bool; test: [m], scores; truth: [m], bool
    -> a tensor with one number
    """
    threshold = (train[labels].mean() + train[~labels].mean()) / 2
    says = test > threshold
    return (says[truth].float().mean() + (~says[~truth]).float().mean()) / 2


def _judged_spec(answer: Any) -> None:
    import torch

    train = torch.tensor([2.0, 3.0, 4.0, 5.0, 6.0, 4.0, -1.0, 1.0])
    labels = torch.tensor([True] * 6 + [False] * 2)
    test = torch.tensor([1.8, 2.6, 3.4, 6.0, 7.0, 9.0, 10.0, 1.5, 1.9, 3.1])
    truth = torch.tensor([True] * 7 + [False] * 3)
    high = sum(train[labels].tolist()) / 6
    low = sum(train[~labels].tolist()) / 2
    shares = {}
    for kind in (True, False):
        some = [float(s) for s, t in zip(test, truth, strict=True) if bool(t) is kind]
        shares[kind] = sum((s > (high + low) / 2) is kind for s in some) / len(some)
    want = torch.tensor((shares[True] + shares[False]) / 2)
    JUDGED.expect(answer, train, labels, test, truth, want=want)


JUDGED = Exercise.of(
    judged,
    id="16.1",
    title="a threshold from the training texts",
    spec=_judged_spec,
    hints=(
        "The threshold is made of train[labels].mean() and train[~labels].mean() alone.",
        "Each share has its own statements: index with truth, and with ~truth. A false one is right where it is not called true.",
    ),
    on_error="train[labels] are the true ones' scores, train[~labels] the false ones'",
    wrong={
        "the threshold was set on the test's scores: it must come from training": (
            "train[labels].mean() + train[~labels].mean()",
            "test[truth].mean() + test[~truth].mean()",
        ),
        "the mean of all training scores is not midway: the classes differ in size": (
            "test > threshold",
            "test > train.mean()",
        ),
        "plain accuracy: the larger class counts more; take the mean of the two shares": (
            "(says == truth).float().mean()"
        ),
        "the threshold is 0: scores have no natural zero": ("test > threshold", "test > 0"),
        "only the true statements were counted": "says[truth].float().mean()",
        "true is what lies below the threshold": ("test > threshold", "test < threshold"),
    },
    moral="A threshold set on the test flatters the probe; AUROC hides that it moved.",
)


# --- 16.2 the rank-one change ---------------------------------------------------------------------


def rewritten(W: torch.Tensor, C: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The matrix after a rank-one edit: it maps k to v, and changes least for the keys in use.

    The change is (v - W k) (C^-1 k)^T / (k^T C^-1 k).

    W: [d, n]; C: [n, n], second moment of the keys; k: [n]; v: [d] -> [d, n]
    """
    import torch

    read = torch.linalg.solve(C, k)
    return W + torch.outer(v - W @ k, read) / (k @ read)


def _rewritten_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(162)
    W, k, v = (torch.randn(*shape, generator=rng) for shape in ((3, 5), (5,), (3,)))
    keys = torch.randn(40, 5, generator=rng) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5])
    C = keys.T @ keys / 40
    # the smallest change D with D k = v - W k, where C measures: tr(D C D^T). With C = L L^T it is
    # the D whose D L has the smallest norm, which a pseudo-inverse gives
    L = torch.linalg.cholesky(C)
    reached = torch.linalg.solve(L, k)[:, None]
    want = W + ((v - W @ k)[:, None] @ torch.linalg.pinv(reached)) @ torch.linalg.inv(L)
    REWRITTEN.expect(answer, W, C, k, v, want=want)


REWRITTEN = Exercise.of(
    rewritten,
    id="16.2",
    title="the rank-one change",
    spec=_rewritten_spec,
    hints=(
        "C^-1 k is torch.linalg.solve(C, k). A key q with q^T C^-1 k = 0 must not move at all.",
        "The change is a column times a row: check that W' k = v. The number below makes that so.",
    ),
    on_error="read = torch.linalg.solve(C, k); torch.outer(v - W @ k, read) is [d, n]",
    wrong={
        "C is not used: k maps to v, but keys in use move more than they need to": ("torch.linalg.solve(C, k)", "k"),
        "v was added on top: k now maps to W k + v; write what is missing, v - W k": ("v - W @ k", "v"),
        "C k in place of C^-1 k: the change now falls on the keys that are used most": (
            "torch.linalg.solve(C, k)",
            "C @ k",
        ),
        "divide by k^T C^-1 k, a number: without it k does not map to v": (" / (k @ read)", ""),
        "divided by k^T k; the number is k^T C^-1 k": ("k @ read", "k @ k"),
        "that is the change; add W": ("W + ", ""),
    },
    moral="It maps k to v exactly. Other keys move by what they share with C^-1 k.",
)


# --- 16.3 a score for an edit --------------------------------------------------------------------


def scored(fact: torch.Tensor, paraphrases: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
    """One number for an edit: the harmonic mean of three shares of prompts on which it did right.

    Each argument: [prompts, 2], probabilities after the edit: of the answer that was right before,
    and of the new one. On the fact and on paraphrases the new one should be the likelier; on
    neighbours the one that was right. -> a tensor with one number, 0 if any share is 0
    """
    changed = [(p[:, 1] > p[:, 0]).float().mean() for p in (fact, paraphrases)]
    kept = (neighbours[:, 0] > neighbours[:, 1]).float().mean()
    return 3 / (1 / changed[0] + 1 / changed[1] + 1 / kept)


def _scored_spec(answer: Any) -> None:
    import torch

    fact = torch.tensor([[0.1, 0.8]])
    paraphrases = torch.tensor([[0.2, 0.5], [0.4, 0.1], [0.0, 0.9], [0.1, 0.3]])
    for neighbours in (
        torch.tensor([[0.7, 0.0], [0.1, 0.8], [0.2, 0.6], [0.3, 0.2], [0.1, 0.5]]),
        torch.tensor([[0.0, 0.7], [0.1, 0.8], [0.2, 0.6]]),  # all spoilt
    ):
        shares = [
            sum(float(new) > float(old) for old, new in fact) / len(fact),
            sum(float(new) > float(old) for old, new in paraphrases) / len(paraphrases),
            sum(float(old) > float(new) for old, new in neighbours) / len(neighbours),
        ]
        want = torch.tensor(0.0 if 0 in shares else 3 / sum(1 / share for share in shares))
        both = torch.cat([fact, paraphrases])
        hits = torch.cat([both[:, 1] > both[:, 0], neighbours[:, 0] > neighbours[:, 1]])
        SCORED.expect(
            answer,
            fact,
            paraphrases,
            neighbours,
            want=want,
            also={"all prompts in one pot: the kind with the most prompts decides": hits.float().mean()},
        )


SCORED = Exercise.of(
    scored,
    id="16.3",
    title="a score for an edit",
    spec=_scored_spec,
    hints=(
        "Three shares: fact and paraphrases count p[:, 1] > p[:, 0], neighbours p[:, 0] > p[:, 1].",
        "The harmonic mean is 1 over the mean of 1/share. In torch 1 / 0 is inf, and 1 / inf is 0: no special case.",
    ),
    on_error="p[:, 0] is the answer that was right before, p[:, 1] the new one",
    wrong={
        "the plain mean: an edit that spoils every neighbour still gets two thirds": (
            "(changed[0] + changed[1] + kept) / 3"
        ),
        "only the fact was counted: that says that the edit was loud": "changed[0]",
        "neighbours are right when they did not change: their old answer should win": ("1 / kept", "1 / (1 - kept)"),
        "neighbours are left out": "2 / (1 / changed[0] + 1 / changed[1])",
        "the geometric mean; the harmonic one is 3 / (1/a + 1/b + 1/c)": "(changed[0] * changed[1] * kept) ** (1 / 3)",
    },
    moral="A harmonic mean cannot be bought: one share of 0 makes the whole score 0.",
)

EXERCISES = [JUDGED, REWRITTEN, SCORED]
