"""Products: every library gives what torch gives; which one is asked; several matrices as one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
    """As quantised weights and those shared between machines are."""


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


def test_it_is_differentiable_in_every_way_of_torch(asked: list[str]) -> None:
    weight, x = torch.randn(512, 512), torch.randn(3, 512)
    given = x.clone().requires_grad_()
    product(given, weight).square().sum().backward()
    assert given.grad is not None and torch.allclose(given.grad, 2 * x @ weight.T @ weight, rtol=1e-3, atol=1e-2)
    with torch.no_grad():  # which does not stop a transform
        out, change = torch.func.jvp(lambda t: product(t, weight), (x,), (x,))
        assert torch.allclose(out, change, atol=1e-3)
        rows = torch.func.vmap(lambda t: product(t, weight))(x)
        assert torch.allclose(rows, x @ weight.T, atol=1e-3)
    assert asked == []


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
        assert right(joined(x, (q, k), (v,)), x, [[q, k], [v]])
    q.mul_(2)  # in place: the same memory
    assert right(joined(x, (q, k), (v,)), x, [[q, k], [v]])
    assert products == [1024, 1024, 1024]


@torch.no_grad()
def test_what_does_not_is_multiplied_apart(products: list[int]) -> None:
    q, k, v = parts()
    x, joined = torch.randn(2, 3, 512), Joined()
    alone = nn.Parameter(torch.randn(256, 512), requires_grad=False)
    others = [[v, k], [q, v], [q, alone], [q[:256], k], [k, alone]]
    for pair in others:
        assert right(joined(x, *([weight] for weight in pair)), x, [[weight] for weight in pair])
    assert products == [len(weight) for pair in others for weight in pair]


@torch.no_grad()
def test_another_matrix_in_its_place_is_seen(products: list[int]) -> None:
    q, k, v = parts()
    x, joined = torch.randn(2, 512), Joined()
    joined(x, (q, k), (v,))
    k.data = torch.randn(256, 512)
    assert right(joined(x, (q, k), (v,)), x, [[q, k], [v]])
    assert products == [1024, 512, 256, 256]


@torch.no_grad()
def test_a_copy_has_matrices_of_its_own() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, _ = parts()
            self.joined = Joined()

        def forward(self, x: Tensor) -> Any:
            return self.joined(x, (self.q,), (self.k,))

    block, x = Block(), torch.randn(2, 512)
    block(x)
    twin = copy.deepcopy(block)
    assert twin.joined._whole is None
    twin.k.mul_(2)
    assert right(twin(x), x, [[twin.q], [twin.k]]) and right(block(x), x, [[block.q], [block.k]])


def test_with_derivatives_each_matrix_is_its_own(products: list[int]) -> None:
    q, k, v = parts()
    x, joined = torch.randn(2, 512, requires_grad=True), Joined()
    first, second = joined(x, (q, k), (v,))
    (first.sum() + second.sum()).backward()
    assert x.grad is not None and torch.allclose(x.grad[0], torch.cat([q, k, v]).sum(0), atol=1e-3)
    with torch.no_grad():
        made = torch.func.vmap(lambda t: torch.cat(list(joined(t, (q, k), (v,)))))(x.detach())
        assert torch.allclose(made, x @ torch.cat([q, k, v]).T, atol=1e-3)
    assert 1024 not in products
