"""Products: every library gives what torch gives; which one is asked; several matrices as one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from kit.base import threads
from kit.models import fast_linear
from kit.models.fast_linear import ROWS, WAYS, Joined, product, way, ways


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the libraries that were asked, in order."""
    names: list[str] = []

    def noted(name: str, multiply: Any) -> Any:
        def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            names.append(name)
            return multiply(x, weight, bias)

        return run

    for name, multiply in WAYS.items():
        monkeypatch.setitem(WAYS, name, noted(name, multiply))
    return names


def kept(monkeypatch: pytest.MonkeyPatch, alone: str, together: str = "") -> None:
    monkeypatch.setattr(threads, "kept", lambda: {"products": {"alone": alone, "together": together}})


@pytest.mark.parametrize("name", ways())
@pytest.mark.parametrize("shape", [(1024, 512), (1000, 512), (997, 512), (512, 1024)])
@pytest.mark.parametrize("lead", [(1,), (1, 1), (2, 1), (3, 1), (7, 3), (0, 4)])
@torch.no_grad()
def test_every_library_gives_what_torch_gives(name: str, shape: tuple[int, int], lead: tuple[int, ...]) -> None:
    weight, x = nn.Parameter(torch.randn(shape)), torch.randn(*lead, shape[1], requires_grad=True)
    for bias in (None, torch.randn(shape[0])):
        expected = nn.functional.linear(x, weight, bias)
        made = WAYS[name](x, weight, bias)
        assert made.shape == expected.shape and torch.allclose(made, expected, atol=1e-3)
    wide = torch.randn(*lead, 2 * shape[1])[..., ::2]  # strides of its own
    assert torch.allclose(WAYS[name](wide, weight, None), nn.functional.linear(wide, weight), atol=1e-3)


@torch.inference_mode()
def test_what_the_machine_was_found_to_do_best_is_asked(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(512, 512)
    usual = torch.get_num_threads()
    kept(monkeypatch, "oneDNN numpy torch oneDNN", "torch torch torch numpy")
    for count, names in ((1, ["oneDNN", "numpy", "numpy", "torch", "torch", "oneDNN"]), (2, [*["torch"] * 5, "numpy"])):
        torch.set_num_threads(count)
        asked.clear()
        for rows in (1, 2, 5, 6, 32, 33):
            product(torch.randn(rows, 512), weight)
        assert asked == names
    torch.set_num_threads(usual)


@pytest.mark.parametrize("told", ["", "numpy", "numpy numpy numpy ctypes", 4 * "numpy"])
def test_what_makes_no_sense_is_what_was_not_measured(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_linear.platform, "machine", lambda: "x86_64")
    fast_linear._table.cache_clear()
    kept(monkeypatch, told, told)
    assert [way(rows, 1) for rows in ROWS] == ["numpy", "numpy", "oneDNN", "oneDNN"]
    assert [way(rows, 2) for rows in ROWS] == ["numpy", "oneDNN", "oneDNN", "oneDNN"]
    monkeypatch.setattr(fast_linear.platform, "machine", lambda: "arm64")
    fast_linear._table.cache_clear()
    assert {way(rows, count) for rows in ROWS for count in (1, 2)} == {"torch"}
    fast_linear._table.cache_clear()


def test_a_torch_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    fast_linear._table.cache_clear()
    kept(monkeypatch, "numpy oneDNN oneDNN oneDNN")  # by another torch on this machine
    assert {way(rows, 1) for rows in ROWS} == {"torch"}
    fast_linear._table.cache_clear()


class Other(nn.Parameter):
    """As quantised weights and those shared between machines are, which lie nowhere."""

    def data_ptr(self) -> int:
        raise RuntimeError("no storage")


@torch.no_grad()
def test_what_only_torch_can_multiply_is_left_to_it(asked: list[str]) -> None:
    weight, x = torch.randn(512, 512), torch.randn(1, 512)
    for other in (weight.t(), Other(weight, requires_grad=False), torch.randn(8, 512)):
        assert torch.equal(product(x, other), nn.functional.linear(x, other))
    assert product(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    assert product(x.to("meta"), weight.to("meta")).is_meta
    with pytest.raises(RuntimeError, match="dtype"):
        product(x.double(), weight)
    assert asked == []
    product(x, weight)
    assert len(asked) == 1


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """All products are oneDNN's; the shapes of what it multiplied, backwards too."""
    kept(monkeypatch, 4 * "oneDNN ", 4 * "oneDNN ")
    shapes: list[tuple[int, ...]] = []
    real = fast_linear._onednn
    monkeypatch.setattr(fast_linear, "_onednn", lambda x, w, b: (shapes.append(tuple(w.shape)), real(x, w, b))[1])
    return shapes


def test_it_is_differentiable(onednn: list[tuple[int, ...]]) -> None:
    weight, x = torch.randn(512, 256), torch.randn(3, 256, requires_grad=True)
    plain = lambda t: nn.functional.linear(t, weight)
    first, second = product(x, weight), plain(x)
    along = torch.randn(3, 512)
    (mine,) = torch.autograd.grad(first, x, along, retain_graph=True)
    (right,) = torch.autograd.grad(second, x, along, retain_graph=True)
    assert torch.allclose(first, second, atol=1e-3) and torch.allclose(mine, right, atol=1e-3)
    assert onednn == [(512, 256), (256, 512)]
    many = torch.randn(5, 3, 512)
    mine, right = (torch.autograd.grad(y, x, many, is_grads_batched=True)[0] for y in (first, second))
    assert torch.allclose(mine, right, atol=1e-3)


def test_its_derivative_is_differentiable(onednn: list[tuple[int, ...]]) -> None:
    weight, x = torch.randn(512, 256) / 16, torch.randn(3, 256, requires_grad=True)

    def twice(multiply: Any) -> Tensor:
        (slope,) = torch.autograd.grad(multiply(x, weight).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), x)[0]

    assert torch.allclose(twice(product), twice(nn.functional.linear), atol=1e-3) and onednn


def test_a_matrix_that_is_trained_is_left_to_torch(onednn: list[tuple[int, ...]]) -> None:
    weight, bias = nn.Parameter(torch.randn(512, 256)), nn.Parameter(torch.zeros(512))
    x = torch.randn(3, 256)
    product(x, weight, bias).sum().backward()
    assert weight.grad is not None and torch.allclose(weight.grad, x.sum(0).expand(512, -1), atol=1e-3)
    product(x, weight.detach(), bias).sum().backward()
    assert bias.grad is not None and torch.equal(bias.grad, torch.full((512,), 6.0))
    assert onednn == []


def test_a_matrix_that_changes_before_the_derivative_is_an_error(onednn: list[tuple[int, ...]]) -> None:
    weight, x = torch.randn(512, 256), torch.randn(3, 256, requires_grad=True)
    y = product(x, weight)
    weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("grad", [True, False])
def test_transforms_and_forward_mode_are_seen(onednn: list[tuple[int, ...]], asked: list[str], grad: bool) -> None:
    weight, x = torch.randn(512, 512), torch.randn(3, 512)
    with torch.set_grad_enabled(grad):  # which stops neither
        out, change = torch.func.jvp(lambda t: product(t, weight), (x,), (x,))
        rows = torch.func.vmap(lambda t: product(t, weight), 1, 1)(x.T.contiguous())
        slopes = torch.func.vmap(torch.func.grad(lambda t: product(t, weight).square().sum()))(x)
        bent = torch.func.jvp(torch.func.grad(lambda t: product(t, weight).sin().sum()), (x,), (x,))[1]
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(product(forward_ad.make_dual(x, 2 * x), weight))
    expected = x @ weight.T
    for made, right in (
        (out, expected),
        (change, expected),
        (rows.T, expected),
        (slopes, 2 * expected @ weight),
        (bent, -(expected.sin() * expected) @ weight),
    ):
        assert torch.allclose(made, right, atol=0.05, rtol=1e-3)
    if grad:
        assert dual.tangent is not None and torch.allclose(dual.tangent, 2 * out, atol=1e-3)
    assert asked == [] and set(onednn) == {(512, 512)}


def test_transforms_over_the_matrix_are_torchs(onednn: list[tuple[int, ...]]) -> None:
    weight, x = torch.randn(512, 512), torch.randn(3, 512)
    many = torch.func.vmap(lambda w: product(x, w))(torch.stack([weight, 2 * weight]))
    assert torch.allclose(many[1], 2 * x @ weight.T, atol=1e-3)
    change = torch.func.jvp(lambda w: product(x, w), (weight,), (weight,))[1]
    assert torch.allclose(change, x @ weight.T, atol=1e-3)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(product(x, forward_ad.make_dual(weight, weight)))
    assert dual.tangent is not None and torch.allclose(dual.tangent, change, atol=1e-3)
    assert onednn == []


# --- several matrices as one ---


def parts(sizes: tuple[int, ...] = (512, 256, 256), width: int = 512) -> list[nn.Parameter]:
    whole = torch.randn(sum(sizes), width)
    return [nn.Parameter(part, requires_grad=False) for part in whole.split(sizes)]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each matrix that was multiplied."""
    seen: list[int] = []
    real = fast_linear.product
    monkeypatch.setattr(fast_linear, "product", lambda x, w: (seen.append(len(w)), real(x, w))[1])
    return seen


def right(made: Any, x: Tensor, groups: list[list[Tensor]]) -> bool:
    expected = [torch.cat([x @ weight.T for weight in group], -1) for group in groups]
    return all(torch.allclose(a, b, atol=1e-3) for a, b in zip(made, expected, strict=True))


@torch.no_grad()
def test_what_lies_together_is_multiplied_at_once(products: list[int]) -> None:
    q, k, v = parts()
    x, joined = torch.randn(2, 3, 512), Joined()
    for _ in range(2):
        assert right(joined(x, [(q, k), (v,)]), x, [[q, k], [v]])
    q.mul_(2)  # in place: the same memory
    assert right(joined(x, [(q, k), (v,)]), x, [[q, k], [v]])
    assert products == [1024, 1024, 1024]


@torch.no_grad()
def test_what_does_not_is_multiplied_apart(products: list[int]) -> None:
    q, k, v = parts()
    x, joined = torch.randn(2, 3, 512), Joined()
    alone = nn.Parameter(torch.randn(256, 512), requires_grad=False)
    others = [[v, k], [q, v], [q, alone], [q[:256], k], [k, alone], [q, Other(k, requires_grad=False)]]
    for pair in others:
        assert right(joined(x, [[weight] for weight in pair]), x, [[weight] for weight in pair])
    assert products == [len(weight) for pair in others for weight in pair]


@torch.no_grad()
def test_another_matrix_in_its_place_is_seen(products: list[int]) -> None:
    q, k, v = parts()
    x, joined = torch.randn(2, 512), Joined()
    joined(x, [(q, k), (v,)])
    k.data = torch.randn(256, 512)
    assert right(joined(x, [(q, k), (v,)]), x, [[q, k], [v]])
    assert products == [1024, 512, 256, 256]


@torch.no_grad()
def test_a_copy_has_matrices_of_its_own() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, _ = parts()
            self.joined = Joined()

        def forward(self, x: Tensor) -> Any:
            return self.joined(x, [(self.q,), (self.k,)])

    block, x = Block(), torch.randn(2, 512)
    block(x)
    twin = copy.deepcopy(block)
    assert twin.joined._whole is None
    twin.k.mul_(2)
    assert right(twin(x), x, [[twin.q], [twin.k]]) and right(block(x), x, [[block.q], [block.k]])


def test_where_nothing_is_trained_derivatives_are_of_the_whole(products: list[int]) -> None:
    q, k, v = parts()
    x, joined = torch.randn(2, 512, requires_grad=True), Joined()
    for trained, seen in ((False, [1024]), (True, [512, 256, 256])):
        products.clear()
        k.requires_grad_(trained)
        first, second = joined(x, [(q, k), (v,)])
        x.grad = None
        (first.sum() + second.sum()).backward()
        assert x.grad is not None and torch.allclose(x.grad[0], torch.cat([q, k, v]).sum(0), atol=1e-3)
        assert products == seen
    assert k.grad is not None


def test_a_transform_over_one_of_them_takes_each(products: list[int]) -> None:
    q, k, v = (part.detach() for part in parts())
    x, joined = torch.randn(2, 512), Joined()
    made = torch.func.vmap(lambda t: torch.cat(list(joined(t, [(q, k), (v,)]))))(x)
    assert torch.allclose(made, x @ torch.cat([q, k, v]).T, atol=1e-3) and products == [1024]
    products.clear()
    many = torch.stack([k, 2 * k])
    made = torch.func.vmap(lambda each: joined(x, [(q, each), (v,)])[0])(many)
    assert torch.allclose(made[1, :, 512:], 2 * x @ k.T, atol=1e-3)
    slope = torch.func.grad(lambda each: joined(x, [(q, each), (v,)])[0].sum())(k)
    assert torch.allclose(slope, x.sum(0).expand(256, -1), atol=1e-3)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(joined(x, [(q, forward_ad.make_dual(k, k)), (v,)])[0])
    assert dual.tangent is not None and torch.allclose(dual.tangent[:, 512:], x @ k.T, atol=1e-3)
    assert products == 3 * [512, 256, 256]
