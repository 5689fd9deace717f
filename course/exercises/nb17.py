"""Exercises of notebook 17: a stream in words, a row of the lens, a word as a direction, a swap."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course.exercises import Exercise

if TYPE_CHECKING:
    import torch


# --- 17.1 a stream in words ----------------------------------------------------------------------


def say(stream: torch.Tensor, gain: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """What a stream says: logits, by the model's final norm and its unembedding.

    The final norm (RMSNorm) divides each token's stream by the root of the mean of its squares,
    and multiplies number by number with the gain.

    stream: [pos, d_model]; gain: [d_model]; table: [d_vocab, d_model], a row a word
    -> logits [pos, d_vocab]
    """
    normed = stream / stream.square().mean(-1, keepdim=True).sqrt() * gain
    return normed @ table.T


def _say_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(171)
    stream = torch.randn(3, 6, generator=rng) * torch.tensor([[1.0], [20.0], [4.0]]) + 0.7
    gain, table = torch.randn(6, generator=rng) + 1, torch.randn(5, 6, generator=rng)
    want = torch.zeros(3, 5)
    for t in range(3):
        size = (sum(float(x) ** 2 for x in stream[t]) / 6) ** 0.5
        for v in range(5):
            want[t, v] = sum(float(stream[t, i] / size * gain[i] * table[v, i]) for i in range(6))
    SAY.expect(answer, stream, gain, table, want=want)


SAY = Exercise.of(
    say,
    id="17.1",
    title="a stream in words",
    spec=_say_spec,
    hints=(
        "The mean of the squares is stream.square().mean(-1, keepdim=True), one number a token.",
        "Divide by its root, multiply with gain; every word's logit is a dot product with its row of table.",
    ),
    on_error="keepdim=True keeps [pos, 1], so that it divides [pos, d_model]",
    wrong={
        "the gain is missing": ("* gain", ""),
        "the norm is missing: a long stream would shout": "stream * gain @ table.T",
        "divided by the whole length: the mean of the squares, not their sum": ("mean(-1", "sum(-1"),
        "the mean was taken off first: that is LayerNorm, this model has RMSNorm": (
            "(stream - stream.mean(-1, keepdim=True)) / stream.std(-1, correction=0, keepdim=True) * gain @ table.T"
        ),
        "one size for all tokens: each has its own": ("mean(-1, keepdim=True)", "mean()"),
    },
    moral="Nothing here was fitted: any stream of any layer can be made to say something. Whether it means it is the question.",
)


# --- 17.2 a row of the lens ----------------------------------------------------------------------


def row(end: torch.Tensor, stream: torch.Tensor, number: int, skip: int) -> torch.Tensor:
    """How one number of the last stream follows an earlier stream: a row of the lens, [d_model].

    Add that number up over the tokens that count, from `skip` to the last but one; take the
    gradient with respect to the earlier stream; average it over the tokens that count.

    end, stream: [1, pos, d_model], the first computed from the second; keep the graph for more rows
    """
    import torch

    total = end[0, skip:-1, number].sum()
    (gradient,) = torch.autograd.grad(total, stream, retain_graph=True)
    return gradient[0, skip:-1].mean(0)


def _row_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(172)
    stream = torch.randn(1, 6, 4, generator=rng).requires_grad_()
    mix = torch.rand(6, 6, generator=rng).tril()  # token t reads tokens up to t, as attention does
    weight = torch.randn(4, 4, generator=rng)
    end = (mix @ stream[0] @ weight.T)[None]  # end[t] = sum over s of mix[t, s] weight stream[s]
    want = torch.zeros(4)
    counted = range(2, 5)
    for s in counted:
        for t in counted:
            want += mix[t, s] * weight[3] / len(counted)
    ROW.expect(answer, _Kept(end), _Kept(stream), 3, 2, want=want)


class _Kept:
    """A tensor of a graph, which copying would take out of it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        return self.tensor


ROW = Exercise.of(
    row,
    id="17.2",
    title="a row of the lens",
    spec=_row_spec,
    hints=(
        "torch.autograd.grad(one number, stream, retain_graph=True) gives a tuple with one gradient, as large as stream.",
        "end[0, skip:-1, number].sum() is the number; of its gradient [1, pos, d_model] the tokens skip:-1 are averaged.",
    ),
    on_error="torch.autograd.grad(total, stream, retain_graph=True)[0] is [1, pos, d_model]",
    wrong={
        "the gradient was added up over tokens: take its mean": ("mean(0)", "sum(0)"),
        "the target was averaged, too: what a token does to *all* later ones is added up": (
            "number].sum()",
            "number].mean()",
        ),
        "the first tokens were counted: start at skip": ("skip:-1", ":-1"),
        "the last token was counted: end before it": ("skip:-1", "skip:"),
        "only what a token does to itself was counted: the sum runs over all tokens that count": (
            "torch.stack([torch.autograd.grad(end[0, t, number], stream, retain_graph=True)[0][0, t] "
            "for t in range(skip, end.shape[1] - 1)]).mean(0)"
        ),
    },
    moral="576 such rows are a layer's lens for one text. The mean over texts is all the fitting there is.",
)


# --- 17.3 a word as a direction ------------------------------------------------------------------


def write(word: int, J: torch.Tensor, gain: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The direction after a layer along which a word's logit rises fastest, [d_model].

    The word's logit, less the mean of all words' logits, is a dot product with the last stream
    (leave the norm's division out: it is the same for all words). Pull that row back through J.

    J: [d_model, d_model], last stream = J @ stream; gain: [d_model]; table: [d_vocab, d_model]
    """
    centred = table[word] - table.mean(0)
    return J.T @ (gain * centred)


def _write_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(173)
    J, gain = torch.randn(5, 5, generator=rng), torch.randn(5, generator=rng) + 1
    table = torch.randn(7, 5, generator=rng) + 0.5

    def above(stream: torch.Tensor) -> torch.Tensor:
        logits = (J @ stream * gain) @ table.T
        return logits[4] - logits.mean()

    want = torch.stack([above(axis) for axis in torch.eye(5)])  # it is linear: its slopes, one by one
    WRITE.expect(answer, 4, J, gain, table, want=want)


WRITE = Exercise.of(
    write,
    id="17.3",
    title="a word as a direction",
    spec=_write_spec,
    hints=(
        "The logit of a word is table[word] @ (gain * last stream), which is (gain * table[word]) @ last stream.",
        "(row @ J) @ stream is row @ (J @ stream): the direction is row @ J, which is J.T @ row.",
    ),
    on_error="gain and a row of table are both [d_model]: multiply number by number",
    wrong={
        "J where its transpose belongs: J leads forward, you want to come back": ("J.T", "J"),
        "the gain is missing: the norm multiplies with it before the words are read": ("gain * centred", "centred"),
        "the mean over the vocabulary was not taken off: nearly all of a row is what all rows share": (
            "table[word] - table.mean(0)",
            "table[word]",
        ),
        "that is the logit lens's direction: J is missing": ("J.T @ (gain * centred)", "gain * centred"),
    },
    moral="Reading is J, writing is J transposed: one matrix, fitted once, does both.",
)


# --- 17.4 two words change places ----------------------------------------------------------------


def swap(stream: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The stream with its coordinates along a and b exchanged; what is at right angles stays.

    The coordinates are the x and y for which x * a + y * b comes closest to the stream. a and b
    are seldom at right angles, so two dot products are not the coordinates.

    stream, a, b: [d_model] -> [d_model]
    """
    import torch

    basis = torch.stack([a, b], dim=1)
    x, y = torch.linalg.lstsq(basis, stream[:, None]).solution[:, 0]
    return stream + (y - x) * a + (x - y) * b


def _swap_spec(answer: Any) -> None:
    import torch

    rng = torch.Generator().manual_seed(174)
    a, b, rest = torch.randn(3, 6, generator=rng)
    b = b + 0.8 * a
    for side in (a, b - (b @ a) / (a @ a) * a):  # rest is at right angles to both
        rest = rest - (rest @ side) / (side @ side) * side
    SWAP.expect(answer, 3.0 * a - 0.5 * b + rest, a, b, want=-0.5 * a + 3.0 * b + rest)


SWAP = Exercise.of(
    swap,
    id="17.4",
    title="two words change places",
    spec=_swap_spec,
    hints=(
        "torch.linalg.lstsq(basis, target).solution wants basis [d_model, 2] and target [d_model, 1], and gives [2, 1].",
        "With x and y at hand: the stream holds x of a and is to hold y of it. What do you add?",
    ),
    on_error="torch.stack([a, b], dim=1) is [d_model, 2]",
    wrong={
        "what is at right angles to both is gone: change the stream, do not replace it": (
            "stream + (y - x) * a + (x - y) * b",
            "y * a + x * b",
        ),
        "dot products are coordinates only where a and b are at right angles and of length 1": (
            "stream + ((stream @ b) - (stream @ a)) * a + ((stream @ a) - (stream @ b)) * b"
        ),
        "the coordinates changed sign, not place": ("(y - x) * a + (x - y) * b", "-2 * x * a - 2 * y * b"),
        "a was taken out and nothing put in: b gets what a had": ("(y - x) * a + (x - y) * b", "(y - x) * a"),
    },
    moral="Two numbers of 576 change. If the model then names another capital, these two carried it.",
)

EXERCISES = [SAY, ROW, WRITE, SWAP]
