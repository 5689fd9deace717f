"""Further sections of a latent's page: a latent in two models, and what a latent is made of.

Both are HTML like the page itself; a :class:`kit.widgets.FeatureBrowser` shows them with
``more=``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from kit.base.html import WRAP, number
from kit.models.logit_lens import logit_lens
from kit.sae.crosscoders.model import PairedLatents
from kit.sae.meta_sae import MetaLatents
from kit.sae.pages import SILENT, Words, box, code, example, note, shaded, words
from kit.sae.store import FeatureStore

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_MODELS = ("first model", "second model")


def both_models(store: FeatureStore, latent: int, n: int = 4) -> str:
    """The strongest examples of a crosscoder's latent, and beneath each text what either model's
    activations add to it there (:meth:`kit.sae.crosscoders.model.PairedLatents.contributions`).

    Args:
        store: of :class:`kit.sae.crosscoders.model.PairedLatents` that know their models.
        n: examples.

    Raises:
        ValueError: a store of other latents, latents without their models, or no such latent.
    """
    paired = store.dictionary
    if not isinstance(paired, PairedLatents):
        raise ValueError(f"store is of {paired!r}: give one of a crosscoder's PairedLatents")
    paired.check_latent(latent)
    top, found = store.top(latent, n), paired.crosscoder
    share, cosine = float(found.relative_norm[latent]), float(found.cosine[latent])
    head = (
        f"<b>the same text in both models</b><div>relative norm {share:.2f} (0: only the first "
        f"writes it, 1: only the second), cosine of the two rows {cosine:+.2f}</div>"
    )
    if not top:
        return box(head + SILENT)
    rows = store.tokens[[e.row for e in top]].long()
    parts = paired.contributions(latent, rows).cpu()
    texts = words(paired.models[0])
    cut = [parts[:, i, e.first : e.first + len(e.tokens)].clone() for i, e in enumerate(top)]
    for e, part in zip(top, cut, strict=True):
        if e.first == 0:
            part[:, 0] = 0.0  # a sink, on which nothing counts as firing
    full = max(float(part[:, e.at].abs().max()) for e, part in zip(top, cut, strict=True))
    lines = []
    for e, part in zip(top, cut, strict=True):
        pieces = texts(e.tokens.tolist())
        lines.append(f'<div style="margin-top:10px">{example(e, texts, top[0].value)}</div>')
        lines += [
            f'<div style="padding:2px 0 2px 4.5em"><span style="opacity:.7">{name} {number(float(values[e.at]))}</span>'
            f'<br><span style="{WRAP}">{shaded(pieces, values.tolist(), full, breaks=False)}</span></div>'
            for name, values in zip(_MODELS, part, strict=True)
        ]
    lines.append(
        note(
            "numbers: what the model adds to the latent's pre-activation on the token where it is strongest; "
            "with the latent's bias, which belongs to neither, they add up to it"
        )
    )
    return box(head + "".join(lines))


def tree(
    store: FeatureStore,
    meta: MetaLatents,
    model: TransformerBridge,
    latent: int,
    *,
    parts: int = 4,
    members: int = 5,
    reads: Callable[[Tensor], str] | None = None,
) -> str:
    """A latent, the meta-latents that it is made of, and the other latents that contain each.

    Args:
        store: of the latents that ``meta`` is of.
        parts: meta-latents; members: latents of each, with where they fire and an example.
        reads: of a meta-latent's row ``[d_model]``, HTML that names it (a lens's words, say).

    Raises:
        ValueError: a store of other latents than ``meta``, or no such latent.
    """
    if store.dictionary is not meta.latents:
        raise ValueError(f"store is of {store.dictionary!r}: give one of {meta.latents!r}")
    texts, made = words(model), meta.parts(latent)
    r2 = float(meta.codes.r2[latent])
    head = f"<b>what #{latent} is made of</b><div>{len(made)} meta-latents explain {r2:.0%} of its row</div>"
    branches = []
    for i, (which, weight) in enumerate(made[:parts]):
        said = logit_lens(model, meta.rows[which].to(model.cfg.device), 5).top
        promotes = ", ".join(code(texts, token) for token, _ in said)
        found = [m for m in meta.members(which, members + 1) if m[0] != latent][:members]
        leaves = "".join(_leaf(store, texts, member, share) for member, share in found)
        branches.append(
            f'<details style="margin:4px 0 4px 1em"{" open" if i == 0 else ""}>'
            f'<summary style="cursor:pointer"><b>meta-latent #{which}</b> weight {weight:.2f}, promotes {promotes}'
            f"</summary>{'' if reads is None else reads(meta.rows[which])}"
            f'<div style="margin-left:1.2em">{leaves or "no other latent contains it"}</div></details>'
        )
    return box(head + "".join(branches))


def _leaf(store: FeatureStore, texts: Words, latent: int, weight: float) -> str:
    fires = ", ".join(code(texts, int(r.token)) for r in store.by_token(latent, 3, least=1).itertuples())
    some = store.top(latent, 1, (8, 3))
    shown = example(some[0], texts, some[0].value) if some else ""
    told = f"<b>#{latent}</b> weight {weight:.2f}, fires on {fires or 'nothing here'}{shown}"
    return f'<div style="padding:3px 0">{told}</div>'
