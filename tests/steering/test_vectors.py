"""Vectors: a linear space that survives files, and files that are not vectors."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import kit
from kit import SteeringVector
from kit.steering import vectors as control_vectors
from kit.steering.dose import Dose
from tests import tiny

numbers = st.floats(-100, 100, width=32).filter(lambda x: abs(x) > 1e-3)
directions = st.lists(numbers, min_size=6, max_size=6).map(torch.tensor)
norms = st.floats(0.01, 100)


def length(v: SteeringVector) -> torch.Tensor:
    """The arrow itself, in units of the residual scale: what steering at 1 adds."""
    return v.norm * v.direction


@given(directions, norms)
@settings(deadline=None, max_examples=40)
def test_a_direction_has_unit_norm(d: torch.Tensor, norm: float) -> None:
    kept = d.clone()
    v = SteeringVector(d, 2, "v", norm=norm)
    assert v.direction.dtype == torch.float32 and v.direction.shape == d.shape
    assert float(v.direction.double().norm()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(v.direction, d / d.norm(), atol=1e-6) and v.norm == norm
    v.direction.add_(0)
    assert torch.equal(d, kept)  # the caller's tensor is not touched


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e6, 1e30])
def test_tiny_and_huge_directions(size: float) -> None:
    v = SteeringVector(torch.tensor([3.0, -4.0]) * size, 0, "v")
    assert torch.allclose(v.direction, torch.tensor([0.6, -0.8]), atol=1e-6)


def test_later_changes_to_the_source_do_not_reach_the_vector() -> None:
    source = torch.tensor([1.0, 0.0])
    v = SteeringVector(source, 0, "v")
    source.fill_(7)
    assert v.direction.tolist() == [1.0, 0.0]


@given(directions, directions, norms, norms, st.floats(-5, 5).filter(lambda x: abs(x) > 0.01))
@settings(deadline=None, max_examples=40)
def test_arithmetic_is_that_of_arrows(a: torch.Tensor, b: torch.Tensor, na: float, nb: float, factor: float) -> None:
    v, w = SteeringVector(a, 1, "v", norm=na), SteeringVector(b, 1, "w", norm=nb)
    close = {"atol": 2e-5 * (na + nb) * max(1, abs(factor)), "rtol": 1e-4}
    if length(v).add(length(w)).norm() > 0.01 * (na + nb):
        assert torch.allclose(length(v + w), length(v) + length(w), **close)
        assert torch.allclose(length(v + w), length(w + v), **close)
    if length(v).sub(length(w)).norm() > 0.01 * (na + nb):
        assert torch.allclose(length(v - w), length(v) - length(w), **close)
    assert torch.allclose(length(factor * v), factor * length(v), **close)
    assert torch.allclose(length(v * factor), length(factor * v))
    assert torch.allclose(length(v / factor), length(v) / factor, rtol=1e-4, atol=1e-3)
    assert torch.equal(length(-v), -length(v)) and torch.equal(length(-(-v)), length(v))
    for u in (v * factor, -v):
        assert u.layer == 1 and u.norm > 0


def test_steering_with_a_sum_is_steering_with_both(model: Any) -> None:
    a, b = tiny.vector(model, 1, 1, norm=0.7), tiny.vector(model, 1, 2, norm=1.9)
    tokens = tiny.prompt(model)
    for both, one in (
        ({a: 0.4, b: 0.4}, {a + b: 0.4}),
        ({a: 0.5, b: -0.5}, {a - b: 0.5}),
        ({a: 1.0, b: -0.25}, {2 * a - b / 2: 0.5}),
    ):
        with kit.steer(model, both):
            expected = tiny.stream_after(model, 1, tokens)
        with kit.steer(model, one):
            assert torch.allclose(tiny.stream_after(model, 1, tokens), expected, atol=1e-4)


def test_arithmetic_refuses_what_makes_no_sense() -> None:
    v = SteeringVector(torch.tensor([1.0, 2.0]), 1, "v")
    with pytest.raises(ValueError, match="one layer"):
        v + v.at(2)
    with pytest.raises(ValueError, match="width"):
        v + SteeringVector(torch.ones(3), 1, "w")
    with pytest.raises(ValueError, match="cancel"):
        v - v
    for factor in (0, 0.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="factor"):
            v * factor
    with pytest.raises(ZeroDivisionError):
        v / 0
    for other in (1, "v", None, torch.ones(2), True):
        with pytest.raises(TypeError):
            v + other  # type: ignore[operator]
    with pytest.raises(TypeError):
        v * v  # type: ignore[operator]
    one = dataclasses.replace(v, fingerprint="a")
    with pytest.raises(ValueError, match="different models"):
        one + dataclasses.replace(v, fingerprint="b")
    assert (one + v).fingerprint == "a" == (v + one).fingerprint


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"direction": torch.zeros(4)}, "zero"),
        ({"direction": torch.tensor([1.0, math.nan])}, "NaN"),
        ({"direction": torch.tensor([1.0, math.inf])}, "NaN or infinity"),
        ({"direction": torch.ones(2, 2)}, r"\[2, 2\]"),
        ({"direction": torch.tensor(1.0)}, "shape"),
        ({"direction": torch.ones(0)}, "shape"),
        ({"layer": -1}, "layer=-1"),
        ({"layer": 1.5}, "layer=1.5"),
        ({"layer": True}, "layer=True"),
        ({"layer": "3"}, "layer='3'"),
        ({"norm": 0.0}, "norm=0.0"),
        ({"norm": -1.0}, "norm=-1.0"),
        ({"norm": math.nan}, "norm=nan"),
        ({"norm": math.inf}, "norm=inf"),
    ],
)
def test_a_vector_that_makes_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SteeringVector(**({"direction": torch.ones(4), "layer": 0, "name": "v"} | fields))


def test_equality_is_identity_so_vectors_can_be_keys() -> None:
    v, w = (SteeringVector(torch.ones(4), 1, "same") for _ in range(2))
    assert v == v and v != w and len({v: 1, w: 2}) == 2 and {v: 1}[v] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        v.norm = 2.0  # type: ignore[misc]


def test_at_moves_it_and_keeps_the_rest() -> None:
    v = SteeringVector(torch.ones(4), 1, "v", "mean", norm=2.0, fingerprint="f", metadata={"a": 1})
    moved = v.at(3)
    assert moved.layer == 3 and v.layer == 1 and moved.norm == 2.0
    assert torch.equal(moved.direction, v.direction)
    assert moved.fingerprint == "f" and moved.method == "mean" and moved.metadata == {"a": 1}


NUMBERS = (np.float64(0.5), np.float32(0.5), np.array(0.5), torch.tensor(0.5))


@pytest.mark.parametrize("half", NUMBERS, ids=lambda n: type(n).__name__ + str(n.dtype))
def test_numbers_of_numpy_and_torch_are_numbers(half: Any, tmp_path: Path) -> None:
    v = SteeringVector(torch.arange(1.0, 9), 1, "v", norm=3.0)
    w = SteeringVector(torch.ones(8), 1, "w")
    for made in (v * half, v / (1 / half), SteeringVector(v.direction, np.int64(1), "v", norm=half)):
        assert type(made.norm) is float and type(made.layer) is int
        back = SteeringVector.load(made.save(tmp_path / "v.safetensors"))
        assert back.norm == made.norm and torch.equal(length(back), length(made))
    assert length(v * half).tolist() == pytest.approx((length(v) / 2).tolist())
    if not isinstance(half, torch.Tensor):
        assert torch.equal(length(half * v), length(v * half))  # the number stands first
    for mean in (np.mean([v, w]), (v + w) / np.int64(2), (v + w) * np.int8(1) / 2):
        assert torch.allclose(length(SteeringVector.load(mean.save(tmp_path / "m.safetensors"))), length((v + w) / 2))
    for bad in (np.bool_(True), np.ones(2), 1j, np.complex64(1), "2"):
        with pytest.raises(TypeError):
            v * bad
        with pytest.raises((TypeError, ValueError)):
            SteeringVector(v.direction, 1, "v", norm=bad)


def test_metadata_of_any_numbers_come_back(tmp_path: Path) -> None:
    told = {"a": np.float32(0.5), "b": torch.tensor([1.0, 2.0]), "c": tmp_path, "d": [np.int64(3), {"e": np.arange(2)}]}
    v = SteeringVector(torch.ones(4), 1, "v", metadata=told)
    back = SteeringVector.load(v.save(tmp_path / "v.safetensors"))
    assert back.metadata == {"a": 0.5, "b": [1.0, 2.0], "c": str(tmp_path), "d": [3, {"e": [0, 1]}]}
    for key, value, said in (
        ("x", {1, 2}, r"metadata\['x'\]=.*JSON holds no set"),
        ("x", [1j], r"metadata\['x'\]=.*JSON holds no complex"),
        ("x", torch.ones(5), "no complex"),
        ((1, 2), 3, r"metadata\[\(1, 2\)\]=3"),
        ("x", "a" * 2**22, "metadata is .* letters long"),
    ):
        value = value * 1j if said == "no complex" else value
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(v, metadata={"fine": 1, key: value}).save(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="'1' stands twice"):
        dataclasses.replace(v, metadata={1: 2, "1": 3}).save(tmp_path / "w.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["v.safetensors"]


CLAIMS = {
    "auroc": 0.97,
    "calibration": {"low": -0.2, "high": 0.33, "target_kl": 0.5, "curve": [(0.33, 0.5)]},
    "coefficient": 0.4,
    "effect": 5.3,
    "effect_of_random": [0.1, -0.2],
    "contrast": "happy-sad",
}


@pytest.mark.parametrize("factor", [0.5, 2, -0.23, -1, np.float64(-4)])
def test_coefficients_follow_a_factor_and_claims_of_a_sign_go_with_it(factor: float) -> None:
    v = SteeringVector(torch.ones(4), 1, "happy-sad", metadata=CLAIMS)
    made = v * factor
    was, now = Dose.of(v), Dose.of(made)
    ends = (now.low, now.high) if factor > 0 else (now.high, now.low)
    for before, after in ((was.coefficient, now.coefficient), (was.low, ends[0]), (was.high, ends[1])):
        # what the new vector does there is what the old one did at its own coefficient
        assert torch.allclose(after * length(made), before * length(v), atol=1e-6)
    assert now.low < now.high and (now.target, now.kind) == (was.target, was.kind)
    kept = {"auroc", "effect", "effect_of_random"} & set(made.metadata)
    assert len(kept) == (3 if factor > 0 else 0)
    assert made.metadata["contrast"] == "happy-sad" and v.metadata == CLAIMS
    assert Dose.of(-(-v)) == was and "curve" not in made.metadata["calibration"]


def test_sums_and_other_layers_claim_nothing() -> None:
    v = SteeringVector(torch.ones(4), 1, "v", metadata=CLAIMS | {"radius": 3.0, "loss": 0.1, "probabilities": [0.9]})
    assert v.at(2).metadata == {"contrast": "happy-sad"} and v.at(1).metadata == v.metadata
    w = SteeringVector(torch.arange(4.0), 1, "w", metadata=CLAIMS)
    for made in (v + w, v - w, 2 * v + w, v.random()):
        assert not set(made.metadata) & set(CLAIMS)


def test_the_random_control() -> None:
    v = SteeringVector(torch.arange(1.0, 49), 2, "v", norm=1.7, fingerprint="f")
    one, same, other = v.random(1), v.random(1), v.random(2)
    assert torch.equal(one.direction, same.direction)
    assert not torch.allclose(one.direction, other.direction)
    assert (one.norm, one.layer, one.fingerprint) == (v.norm, v.layer, v.fingerprint)
    assert float(one.direction.norm()) == pytest.approx(1, abs=1e-6)
    assert one.method == "random" and one.metadata["control of"] == "v"
    cosines = [abs(v.cosine(v.random(seed))) for seed in range(20)]
    assert max(cosines) < 0.7 and sum(cosines) / 20 < 0.3


@given(
    directions,
    st.integers(0, 500),
    st.text(max_size=20),
    st.text(max_size=20),
    norms,
    st.one_of(st.none(), st.text("0123456789abcdef", min_size=16, max_size=16)),
    st.dictionaries(
        st.text(max_size=5),
        st.one_of(st.integers(), st.text(), st.lists(st.floats(allow_nan=False, allow_infinity=False))),
    ),
)
@settings(deadline=None, max_examples=25)
def test_a_file_gives_back_what_was_saved(
    tmp_path_factory: pytest.TempPathFactory,
    d: torch.Tensor,
    layer: int,
    name: str,
    method: str,
    norm: float,
    mark: str | None,
    metadata: dict[str, Any],
) -> None:
    file = tmp_path_factory.getbasetemp() / "round.safetensors"
    v = SteeringVector(d, layer, name, method, norm, mark, metadata)
    assert v.save(file) == file
    back = SteeringVector.load(str(file))
    assert torch.equal(back.direction, v.direction)
    for field in ("layer", "name", "method", "norm", "fingerprint", "metadata"):
        assert getattr(back, field) == getattr(v, field)


def test_a_file_says_what_a_reader_needs(llama: Any, tmp_path: Path) -> None:
    tiny.vector(llama, 2, metadata={"auroc": 0.9}).save(tmp_path / "v.safetensors")
    with safe_open(str(tmp_path / "v.safetensors"), framework="pt") as file:
        about = file.metadata()
        assert list(file.keys()) == ["direction"]
    assert about["fingerprint"] == kit.fingerprint(llama)
    assert "blocks.{layer}.hook_out" in about["layer_convention"] and about["layer"] == "2"
    assert "median" in about["unit"] and json.loads(about["metadata"]) == {"auroc": 0.9}


def test_files_that_are_no_vector(tmp_path: Path) -> None:
    v = SteeringVector(torch.arange(1.0, 9), 1, "v")
    whole = v.save(tmp_path / "v.safetensors").read_bytes()
    bad = tmp_path / "bad.safetensors"
    for size in range(0, len(whole), 7):
        bad.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged"):
            SteeringVector.load(bad)
    for content in (b"hello", bytes(100), b"\xff" * 100, pickle.dumps([1, 2])):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            SteeringVector.load(bad)
    save_file({"weight": torch.ones(3)}, bad)
    with pytest.raises(ValueError, match="no steering vector"):
        SteeringVector.load(bad)
    save_file({"direction": torch.ones(3)}, bad, metadata={"format": "someone-else/2"})
    with pytest.raises(ValueError, match="someone-else/2"):
        SteeringVector.load(bad)
    with safe_open(str(tmp_path / "v.safetensors"), framework="pt") as file:
        about = file.metadata()
    for missing in ("layer", "norm", "metadata", "fingerprint"):
        some = {k: x for k, x in about.items() if k != missing}
        save_file({"direction": torch.ones(3)}, bad, metadata=some)
        with pytest.raises(ValueError, match=missing):
            SteeringVector.load(bad)
    for key, junk in (("layer", "two"), ("norm", "nan"), ("norm", "x"), ("metadata", "{")):
        save_file({"direction": torch.ones(3)}, bad, metadata=about | {key: junk})
        with pytest.raises(ValueError):
            SteeringVector.load(bad)
    save_file({"direction": torch.full((3,), math.nan)}, bad, metadata=about)
    with pytest.raises(ValueError, match="NaN"):
        SteeringVector.load(bad)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SteeringVector.load(tmp_path / "nowhere.safetensors")


def test_a_vector_of_another_model_is_refused_before_anything_runs(llama: Any, tiny_model: Any, tmp_path: Path) -> None:
    v = tiny.vector(tiny_model("gpt2"), 1)
    back = SteeringVector.load(v.save(tmp_path / "v.safetensors"))
    with pytest.raises(ValueError, match=r"was made on model.*fingerprint=None"):
        with kit.steer(llama, {back: 0.5}):
            raise AssertionError("the block ran")
    with pytest.raises(ValueError, match="was made on model"):
        kit.stream(llama, tiny.prompt(llama), back)
    free = dataclasses.replace(back, fingerprint=None)
    assert kit.generate(llama, tiny.prompt(llama), free, max_new_tokens=2).rows[0].tokens


def test_gguf_export_read_by_the_gguf_package(llama: Any, tmp_path: Path) -> None:
    v, w = tiny.vector(llama, 1, norm=0.6), tiny.vector(llama, 3, norm=2.5)
    v.to_gguf(tmp_path / "one.gguf", llama)
    control_vectors.save_gguf(tmp_path / "two.gguf", [w, v], llama)
    for name, vectors in (("one.gguf", [v]), ("two.gguf", [w, v])):
        reader = gguf.GGUFReader(str(tmp_path / name))
        assert reader.fields["general.architecture"].contents() == "controlvector"
        assert reader.fields["controlvector.model_hint"].contents() == "llama"
        assert reader.fields["controlvector.layer_count"].contents() == len(vectors)
        found = {t.name: torch.tensor(t.data) for t in reader.tensors}
        assert set(found) == {f"direction.{u.layer}" for u in vectors}
        for u in vectors:
            expected = u.norm * kit.residual_scale(llama, u.layer) * u.direction
            assert torch.allclose(found[f"direction.{u.layer}"], expected, rtol=1e-6)


def test_gguf_import_steers_as_the_original(llama: Any, tmp_path: Path) -> None:
    v, w = tiny.vector(llama, 1, norm=0.6), tiny.vector(llama, 3, norm=2.5)
    control_vectors.save_gguf(tmp_path / "c.gguf", [v, w], llama)
    back = {u.layer: u for u in control_vectors.load_gguf(tmp_path / "c.gguf", llama)}
    for u in (v, w):
        assert torch.allclose(length(back[u.layer]), length(u), atol=1e-5)
        assert back[u.layer].fingerprint == kit.fingerprint(llama)
        one = SteeringVector.from_gguf(tmp_path / "c.gguf", llama, u.layer)
        assert torch.equal(length(one), length(back[u.layer]))
    for layer in (None, 2):
        with pytest.raises(ValueError, match=r"\[1, 3\]"):
            SteeringVector.from_gguf(tmp_path / "c.gguf", llama, layer)


def test_one_layer_of_a_gguf_file_is_read_though_others_are_bad(llama: Any, tmp_path: Path) -> None:
    file = tmp_path / "r.gguf"
    step, bad = torch.randn(48), torch.ones(48)
    bad[3] = math.nan
    write_gguf(file, {"direction.1": bad, "direction.2": step, "direction.3": torch.zeros(48), "direction.31": step})
    found = SteeringVector.from_gguf(file, llama, 2)
    assert torch.allclose(length(found) * kit.residual_scale(llama, 2), step, atol=1e-5)
    for layer, said in ((1, "holds NaN"), (3, "is zero"), (31, "layers 0 to 3"), (0, r"holds layers \[1, 2, 3, 31\]")):
        with pytest.raises(ValueError, match=said):
            SteeringVector.from_gguf(file, llama, layer)
    with pytest.raises(ValueError, match="'r @1' holds NaN"):
        control_vectors.load_gguf(file, llama)


def write_gguf(path: Path, tensors: dict[str, torch.Tensor], kind: str = "controlvector") -> None:
    writer = gguf.GGUFWriter(str(path), kind)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_of_repeng_is_read(llama: Any, tmp_path: Path) -> None:
    """The same format from another program: activations, no hint of a unit."""
    step = torch.randn(48)
    write_gguf(tmp_path / "r.gguf", {"direction.2": step})
    v = SteeringVector.from_gguf(tmp_path / "r.gguf", llama)
    assert v.layer == 2
    assert torch.allclose(length(v) * kit.residual_scale(llama, 2), step, atol=1e-5)


def test_gguf_files_that_do_not_fit(llama: Any, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    ones = torch.ones(48)
    write_gguf(file, {"direction.2": torch.ones(47)})
    with pytest.raises(ValueError, match="d_model=48"):
        control_vectors.load_gguf(file, llama)
    write_gguf(file, {"direction.9": ones})
    with pytest.raises(ValueError, match="layers 0 to 3"):
        control_vectors.load_gguf(file, llama)
    write_gguf(file, {"blk.2.weight": ones})
    with pytest.raises(ValueError, match=r"blk\.2\.weight"):
        control_vectors.load_gguf(file, llama)
    write_gguf(file, {"direction.2": ones}, kind="llama")
    with pytest.raises(ValueError, match="'llama' model"):
        control_vectors.load_gguf(file, llama)
    write_gguf(file, {"direction.2": ones})
    whole = file.read_bytes()
    for size in [*range(24), *range(24, len(whole), 16)]:
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="damaged"):
            control_vectors.load_gguf(file, llama)
    for content in (b"GGUF" + b"\xff" * 60, struct.pack("<4sI", b"GGUF", 3) + bytes(3)):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            control_vectors.load_gguf(file, llama)
    with pytest.raises(FileNotFoundError):
        control_vectors.load_gguf(tmp_path / "nowhere.gguf", llama)


def test_gguf_export_refuses_what_llama_cpp_cannot_hold(llama: Any, tmp_path: Path) -> None:
    file = tmp_path / "v.gguf"
    with pytest.raises(ValueError, match="layer 0"):
        tiny.vector(llama, 0).to_gguf(file, llama)
    with pytest.raises(ValueError, match="layers 0 to 3"):
        tiny.vector(llama, 9).to_gguf(file, llama)
    v = tiny.vector(llama, 1)
    for vectors in ([], [v, v]):
        with pytest.raises(ValueError, match="one for each layer"):
            control_vectors.save_gguf(file, vectors, llama)
    assert not file.exists()


def test_pt_import(tmp_path: Path) -> None:
    for tensor in (torch.arange(1.0, 9), torch.arange(1.0, 9)[None], torch.arange(1, 9).half()):
        torch.save(tensor, tmp_path / "happy.pt")
        v = SteeringVector.from_pt(tmp_path / "happy.pt", 2)
        expected = torch.arange(1.0, 9)
        assert torch.allclose(v.direction, expected / expected.norm(), atol=1e-3)
        assert (v.name, v.layer, v.method) == ("happy", 2, "imported")


class Malice:
    """Unpickling this runs a command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "was-here"
    torch.save(Malice(witness), tmp_path / "bad.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Malice(witness), protocol=2))
    torch.save({"direction": torch.ones(3), "x": Malice(witness)}, tmp_path / "mixed.pt")
    for name in ("bad.pt", "raw.pt", "mixed.pt"):
        with pytest.raises(ValueError, match="holds no plain tensor"):
            SteeringVector.from_pt(tmp_path / name, 1)
        assert not witness.exists()
    with open(tmp_path / "raw.pt", "rb") as file:
        pickle.load(file)
    assert witness.exists()  # the trap was armed


def test_pt_files_that_are_no_tensor(tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save({"a": torch.ones(3)}, file)
    with pytest.raises(ValueError, match="dict"):
        SteeringVector.from_pt(file, 1)
    torch.save(torch.ones(2, 3), file)
    with pytest.raises(ValueError, match="shape"):
        SteeringVector.from_pt(file, 1)
    torch.save(torch.ones(300), file)
    whole = file.read_bytes()
    for size in (0, 1, 10, 100, len(whole) // 2, len(whole) - 30):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="holds no plain tensor"):
            SteeringVector.from_pt(file, 1)
    file.write_bytes(b"hello there")
    with pytest.raises(ValueError, match="holds no plain tensor"):
        SteeringVector.from_pt(file, 1)
    with pytest.raises(FileNotFoundError):
        SteeringVector.from_pt(tmp_path / "nowhere.pt", 1)
