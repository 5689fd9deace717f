"""The kinds of file that the kit reads, and for each the bad ones that only it can have."""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import kit
from course import rules
from course.room import machines
from course.studies import recovery
from kit import sae as saes
from kit.data.corpora import corpus
from kit.models import lora
from kit.sae import FeatureStore
from kit.sae.crosscoders.model import Crosscoder
from kit.steering.rank_one import Factor
from kit.steering.vectors import load_gguf
from kit.widgets.gallery import sets
from kit.widgets.gallery.features import Feature
from kit.widgets.panel.rating import Item, Ratings
from tests.faults.files import Kind
from tests.faults.subjects import TEXTS, Subjects, trained

Bad = Iterator[tuple[str, Callable[[], Any]]]
# of a file of ours: texts that are free, numbers that a vector may have, tensors that nobody asks for
_FREE = (
    r"^(unit|method|layer_convention|convention|name|fingerprint)='|^metadata='\{\"gallery"
    r"|^of (-1e\+38|10{9})$|^further"
)
_UNREAD = r"/(cfg\.json|sparsity\.safetensors) "  # of a snapshot: sae-lens writes them


def kinds(subjects: Subjects) -> list[Kind]:
    """Every kind of file that the kit reads."""
    model = subjects.model
    dictionary, store, crosscoder = trained(subjects)
    items = [Item(f"text {i}", "0.2", True) for i in range(4)]

    def rated(home: Path) -> Path:
        found = Ratings(items, home / "ratings.csv")
        found.rate(4, True)
        found.rate(2, False)
        return home / "ratings.csv"

    def a_set(home: Path) -> Path:
        about = [Feature(subjects.vector(f"v{i}", i), i + 1, 0.5, {"a": 1.0}) for i in range(2)]
        return sets.save(about, home / "set")

    def adapter(home: Path) -> Path:
        factors = {"model.layers.1.mlp.up_proj": (torch.randn(2, 48), torch.randn(96, 2))}
        return lora.write(home / "adapter", factors, base="x")

    def notebook(home: Path) -> Path:
        from nbformat import v4, writes

        found = v4.new_notebook(cells=[v4.new_markdown_cell("# t"), v4.new_code_cell("1")])
        found.metadata["kit"] = {"budget_seconds": 5, "machine_seconds": 2, "human_minutes": 3}
        (home / "n.ipynb").write_text(writes(found))
        return home / "n.ipynb"

    def look_at_notebook(path: Path) -> None:
        rules.problems(path)  # says what is wrong, whatever it is
        rules.read(path)

    def text(name: str, content: str) -> Callable[[Path], Path]:
        return lambda home: (home / name, (home / name).write_text(content))[0]

    def snapshot(run: Any, home: Path) -> Path:
        run.advance()
        return run.save(home / "run")

    def cache(home: Path) -> Path:
        subjects.source(cache=home / "cache").harvest(0)
        return home / "cache"

    def torch_file(home: Path) -> Path:
        torch.save(torch.arange(1.0, 49), home / "v.pt")
        return home / "v.pt"

    def use(found: FeatureStore) -> None:
        busy = int(found.density().argmax())
        found.top(busy, 2)
        found.together(busy, 2)

    def report(home: Path) -> Path:
        (home / "d").mkdir()
        checks = [{"name": "torch", "ok": True, "detail": "2.13.0", "fix": ""}]
        (home / "d" / "one.json").write_text(json.dumps({"kit": kit.__version__, "checks": checks}))
        return home / "d"

    def read_report(path: Path) -> None:
        (found,) = machines.machines(path)
        if found.word == "damaged":
            raise ValueError(found.worst)

    def load_and_chat(path: Path) -> None:
        kit.chat_tokens(kit.load_model(str(path), dtype="float32"), "Hello")

    def model_folder(home: Path) -> Path:
        return Path(shutil.copytree(subjects.folder / "one", home / "m"))

    jsonl = "\n".join(json.dumps({"text": text}) for text in TEXTS[:5])
    return [
        Kind(
            "vector",
            lambda home: subjects.vector().save(home / "v.safetensors"),
            kit.SteeringVector.load,
            lambda bad: _vectors(bad, "direction"),
            _FREE,
        ),
        Kind(
            "factor",
            lambda home: subjects.factor().save(home / "f.safetensors"),
            Factor.load,
            lambda bad: _vectors(bad, "reads"),
            _FREE,
        ),
        Kind("vector of torch", torch_file, lambda p: kit.SteeringVector.from_pt(p, 1), _pickles),
        Kind(
            "control vector",
            lambda home: subjects.vector().to_gguf(home / "v.gguf", model),
            lambda p: load_gguf(p, model),
            _ggufs,
        ),
        Kind(
            "dictionary",
            lambda home: dictionary.save(home / "sae"),
            lambda p: saes.load(p, model=model),
            _configs,
            r"^(dtype|device|apply_b_dec_to_input|extra)=|^integers$|^metadata "
            r"(kit_name|kit_fingerprint|kit|hook_head_index|model_from_pretrained_kwargs)=",
        ),
        Kind(
            "crosscoder",
            lambda home: crosscoder.save(home / "c.safetensors"),
            lambda p: Crosscoder.load(p, subjects.pair),
            lambda bad: _vectors(bad, "encoder"),
            _FREE,
        ),
        Kind(
            "feature store",
            lambda home: store.save(home / "s.safetensors", model),
            lambda p: use(FeatureStore.open(p, dictionary, model)),
            _stores,
            "^further",
        ),
        Kind("activation cache", cache, lambda p: subjects.source(cache=p).harvest(0)),
        Kind(
            "training snapshot",
            lambda home: snapshot(subjects.training(), home),
            lambda p: subjects.training().restore(p),
            harmless=_UNREAD,
        ),
        Kind(
            "snapshot of a crosscoder",
            lambda home: snapshot(subjects.paired(), home),
            lambda p: subjects.paired().restore(p),
            harmless=_UNREAD,
        ),
        Kind(
            "adapter",
            adapter,
            lora.read,
            _adapters,
            r"^(base_model_name_or_path|fan_in_fan_out|inference_mode|lora_dropout|r|target_modules|task_type)="
            r"|^lora_alpha=-1$|^init_lora_weights=|^(use_dora|modules_to_save)=(None|\[\]|\{\})",
        ),
        Kind(
            "gallery",
            a_set,
            sets.load,
            _galleries,
            r"^(rank=-?10*|coefficient=-1|scores=\{\}|result=None)$|^(first_name|starred)=",
        ),
        Kind("ratings", rated, lambda p: Ratings(items, p), _ratings, "cut at 0$"),
        Kind("corpus", text("t.jsonl", jsonl), corpus),
        Kind(
            "texts",
            text("t.txt", "\n".join(TEXTS)),
            corpus,
            _texts,
            r"cut at [1-9]|of letters|deep|long|twice|[\]\[}{1xNl\"]$",
        ),
        Kind(
            "records",
            text("r.json", json.dumps([{"organism": "x", "arm": "baseline"}] * 9)),
            recovery.read,
            None,
            r" \[\]$",
        ),
        Kind("report of a machine", report, read_report),
        Kind("notebook", notebook, look_at_notebook, _notebooks, r"^source_sha256=|^\{'cells': \[\]\}$"),
        Kind(
            "model folder",
            model_folder,
            load_and_chat,
            _model_codes,
            r"generation_config\.json |chat_template\.jinja header|tokenizer_config\.json (twice|\{\})|^code of its own",
        ),
    ]


def _texts(bad: Path) -> Bad:
    yield "latin-1", lambda: bad.write_bytes("caf\u00e9".encode("latin-1"))
    yield "UTF-16", lambda: bad.write_text("a text", encoding="utf-16")
    yield "a byte 0", lambda: bad.write_bytes(b"a text\0and more")
    yield "empty lines", lambda: bad.write_text("\n \n\n")


def _stores(bad: Path) -> Bad:
    yield from _vectors(bad, "where")
    told = load_file(bad)
    with safe_open(str(bad), framework="pt") as file:
        about = file.metadata()
    for name, value in (("value", torch.nan), ("value", torch.inf), ("value", -1.0), ("where", 0)):
        for at in (1, len(told[name]) // 2, -1):
            changed = {k: v.clone() for k, v in told.items()}
            changed[name][at] = value
            yield f"{name}[{at}]={value}", lambda changed=changed: save_file(changed, bad, about)


def _json(path: Path, content: Any) -> Callable[[], Any]:
    return lambda: path.write_text(json.dumps(content))


def _vectors(bad: Path, tensor: str) -> Bad:
    """Files that are well formed, and hold what makes no sense."""
    with safe_open(str(bad), framework="pt") as file:
        about, content = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}

    def wrote(other: Any = None, **told: str) -> Callable[[], None]:
        changed = content if other is None else content | {tensor: other}
        return lambda: save_file({k: v.contiguous() for k, v in changed.items()}, bad, {**about, **told})

    one = content[tensor]
    yield "no numbers", wrote(torch.zeros(0))
    yield "one number", wrote(torch.tensor(1.0))
    yield "five dimensions", wrote(torch.ones(1, 1, 2, 2, 2))
    yield "too long", wrote(torch.ones((2**24 + 1,) + (1,) * (one.dim() - 1), dtype=torch.float16))
    for dtype in (torch.bool, torch.int64, torch.uint8, torch.float8_e4m3fn, torch.complex64):
        yield f"of {dtype}", wrote(one.to(dtype))
    for value in (float("nan"), float("inf"), -1e38, 10**9):
        if one.is_floating_point() or value == 10**9:
            yield f"of {value}", wrote(torch.full_like(one, value))
    for key in about:
        for junk in (
            "",
            "[]",
            "null",
            "{",
            "NaN",
            "-1",
            "1e999",
            "9" * 5000,
            "[" * 100_000,
            '{"a": 1, "a": 2}',
            "../../etc/passwd",
            "\0",
            '{"gallery": 7}',
        ):
            yield f"{key}={junk[:12]!r}", wrote(**{key: junk})
    yield "further tensors", lambda: save_file(content | {"x" * 9999: torch.ones(3)}, bad, about)


def _pickles(bad: Path) -> Bad:
    yield "a view of 10^12", lambda: torch.save(torch.ones(1).expand(10**12), bad)
    yield "sparse", lambda: torch.save(torch.eye(48).to_sparse(), bad)
    yield "on no device", lambda: torch.save(torch.empty(10**12, device="meta"), bad)
    yield "a list", lambda: torch.save([torch.ones(3)], bad)

    def packed() -> None:
        with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("archive/data.pkl", "w", force_zip64=True) as part:
                for _ in range(600):
                    part.write(bytes(2**20))

    yield "a packed bomb", packed


def _ggufs(bad: Path) -> Bad:
    whole = bad.read_bytes()

    def header(tensors: int, fields: int, rest: bytes = whole[24:]) -> Callable[[], Any]:
        return lambda: bad.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + rest)

    for n in (10**12, 2**63, 2**64 - 1):
        yield f"{n} tensors", header(n, 3)
        yield f"{n} fields", header(1, n)
    for kind, size in ((0, 1), (8, 8), (9, 12), (12, 8), (77, 1)):
        field = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, kind, 2**40)
        yield f"a list of 2^40 of {kind}", header(1, 1, field + bytes(2**20 * size))
    field = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 0, 2**22)
    yield "a long list", header(1, 1, field + bytes(2**23))


def _configs(bad: Path) -> Bad:
    told = json.loads((bad / "cfg.json").read_text())

    def wrote(**changes: Any) -> Callable[[], Any]:
        return _json(bad / "cfg.json", told | changes)

    for size in (10**12, 0, -1, 1.5, "48", None, True, float("inf"), float("nan"), [48], 10**400):
        for name in ("d_in", "d_sae"):
            yield f"{name}={size!r:.9}", wrote(**{name: size})
    for name in (*told, "extra"):
        for junk in (None, [], {}, "../../etc/passwd", "__import__('os')", -1, float("nan"), True):
            if name in told and told[name] == junk:  # as it should be
                continue
            yield f"{name}={junk!r}", wrote(**{name: junk})
    for name in ("hook_name", "kit_name", "kit_fingerprint", "kit", "hook_head_index", "model_from_pretrained_kwargs"):
        for junk in (None, [], 7, "../../x", "blocks.99999999999.hook_out", {"a": 1}):
            yield f"metadata {name}={junk!r}", wrote(metadata=told["metadata"] | {name: junk})

    def weights(**changes: torch.Tensor) -> Callable[[], Any]:
        path = bad / "sae_weights.safetensors"
        return lambda: save_file({k: v.clone() for k, v in load_file(path).items()} | changes, path)

    yield "NaN", weights(W_dec=torch.full((48, 48), float("nan")))
    yield "another width", weights(W_enc=torch.ones(49, 48))
    yield "integers", weights(W_dec=torch.ones(48, 48).int())
    yield "more weights", weights(other=torch.ones(3))


def _adapters(bad: Path) -> Bad:
    told = json.loads((bad / lora.CONFIG).read_text())
    for name in (*told, "use_dora", "modules_to_save"):
        for junk in (None, [], {}, "x", -1, float("nan"), 1e400, 10**400, True):
            yield f"{name}={junk!r:.9}", _json(bad / lora.CONFIG, told | {name: junk})


def _galleries(bad: Path) -> Bad:
    first = min(bad.glob("*.safetensors"))
    v = kit.SteeringVector.load(first)
    for name in ("rank", "coefficient", "scores", "result", "first_name", "starred"):
        for junk in (None, [], {}, "x", -1, float("nan"), float("inf"), 10**400, {"a": "b"}):
            about = {"gallery": {**v.metadata["gallery"], name: junk}}
            other = kit.SteeringVector(v.direction, 1, "v", metadata=about)
            yield f"{name}={junk!r:.9}", lambda other=other: other.save(first)


def _ratings(bad: Path) -> Bad:
    head = "item,prompt,text,label,steered,score,guess\n"
    for told, text in (
        ("a long field", "x" * 200_000),
        ("no closing quote", '"' + "x" * 200_000),
        ("NUL", "a\0b,,,,1,3,1"),
        ("score 9", "a,,,,1,9,1"),
        ("score NaN", "a,,,,1,nan,1"),
        ("too few", "a"),
        ("digits", "a,,,,1," + "9" * 5000 + ",1"),
    ):
        yield told, lambda text=text: bad.write_text(head + text)


def _notebooks(bad: Path) -> Bad:
    told = json.loads(bad.read_text())
    for name in ("budget_seconds", "machine_seconds", "human_minutes", "max_mb", "source_sha256"):
        for junk in (None, [], {}, "x", -1, float("nan"), 1e308, 10**400, True):
            changed = {**told, "metadata": {"kit": {name: junk}}}
            yield f"{name}={junk!r:.9}", _json(bad, changed)
    for junk in (None, [], "x", 7):
        for changes in ({"metadata": {"kit": junk}}, {"metadata": junk}, {"cells": junk}, {"nbformat": junk}):
            yield f"{changes}", _json(bad, {**told, **changes})


def _model_codes(bad: Path) -> Bad:
    """A model's folder may bring code along, which must not run: it would write a file that is
    seen as one outside of the folder."""
    told = json.loads((bad / "config.json").read_text())
    witness = bad.parent.parent / "ran"

    def code(**changes: Any) -> Callable[[], None]:
        def change() -> None:
            (bad / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass C: pass\nM = C\n")
            (bad / "config.json").write_text(json.dumps(told | changes))

        return change

    classes = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    yield "code of its own", code(auto_map=classes)
    yield "a type of its own", code(auto_map=classes, model_type="evil", architectures=["evil.M"])
    for name, value in (
        ("hidden_size", 10**12),
        ("num_hidden_layers", 10**6),
        ("num_hidden_layers", -1),
        ("num_labels", 10**9),
        ("vocab_size", "x"),
    ):
        yield f"{name}={value}", code(**{name: value})
    weights = load_file(bad / "model.safetensors")
    for value in (float("nan"), float("inf")):
        changed = weights | {min(weights): torch.full_like(weights[min(weights)], value)}
        yield (
            f"weights of {value}",
            lambda changed=changed: save_file(changed, bad / "model.safetensors", {"format": "pt"}),
        )
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    yield "a template without an end", lambda: (bad / "chat_template.jinja").write_text(loop)
