"""Training dictionaries: sae-lens's losses and steps on one stream of activations.

Every dictionary has a trainer of its own (``sae_lens.training.sae_trainer.SAETrainer``, driven by
its public ``step``), and all of them see the same batches: one pass of the model serves them all.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kit.base.checks import check_counts, check_positive
from kit.base.files import header, junk, must_exist, read_json, unpacked_at_most, whole
from kit.base.progress import to_the_end, track
from kit.base.scratch import as_umask, locked, scratch
from kit.base.threads import fitted
from kit.models.sites import Kind, Site
from kit.sae.architectures import ARCHITECTURES, COEFFICIENTS, Architecture, classes, options
from kit.sae.dictionary import Dictionary
from kit.sae.plain import inference
from kit.sae.source import Source

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def train(
    model: TransformerBridge,
    texts: Sequence[str],
    layer: int,
    site: Kind = "resid",
    *,
    widths: Sequence[float] = (1, 2, 4, 8),
    architecture: Architecture = "batchtopk",
    k: float = 32,
    sparsity: float | None = None,
    tokens: int = 400_000,
    lr: float = 8e-4,
    seed: int = 0,
    folder: str | Path | None = None,
    watch: Callable[[Report], None] | None = None,
    batch: int = 2048,
    context: int = 128,
    rows: int = 256,
    chunks: int | None = None,
    sink: float = 10.0,
    cache: str | Path | None = None,
) -> list[Dictionary]:
    """Train dictionaries of several widths on one site.

    Args:
        texts: to harvest activations from; read again from the start where they are used up.
        layer, site: see :class:`kit.sae.Site`.
        widths: latents, as multiples of ``d_model``.
        architecture: as sae-lens has them: BatchTopK (Bussmann et al. 2024, arXiv:2412.06410),
            TopK (Gao et al. 2024, arXiv:2406.04093), Matryoshka BatchTopK (Bussmann et al. 2025,
            arXiv:2503.17547), JumpReLU (Rajamanoharan et al. 2024, arXiv:2407.14435), Gated
            (2024, arXiv:2404.16014), standard (L1).
        k: how many latents fire on a token (the mean, for BatchTopK), for the top-k family.
        sparsity: coefficient of the sparsity term, for the others.
        tokens: activations to train on.
        lr: peak learning rate of Adam: warmed up over a twentieth of the steps, down to zero over
            the last fifth.
        folder: where an interrupt (and every tenth of the run) leaves a checkpoint; if one lies
            there, training goes on from it, on the very next batch.
        watch: gets a :class:`Report` every ten steps.
        batch, context, rows, chunks, sink, cache: of the :class:`kit.sae.Source` of activations.

    Returns:
        A :class:`Dictionary` for each width. A keyboard interrupt ends training early and returns
        what there is.

    Raises:
        ValueError: names the argument, its value, and what would be right.
    """
    place, steps = [Site(layer, site)], max(1, tokens // batch)
    source = Source(
        model, texts, place, batch=batch, context=context, rows=rows, chunks=chunks, sink=sink, seed=seed, cache=cache
    )
    run = Training(
        source, widths=widths, architecture=architecture, k=k, sparsity=sparsity, steps=steps, lr=lr, seed=seed
    )
    if folder is not None and (Path(folder) / "training.json").is_file():
        run.restore(folder)
    run.run(folder=folder, watch=watch)
    return run.dictionaries()


@dataclass(frozen=True)
class Figures:
    """One dictionary on one batch.

    Attributes:
        loss: what is minimised; explained_variance: 1 less the share of variance left over.
        l0: latents that fire on a token, mean; dead: share that has not fired for long.
    """

    loss: float
    explained_variance: float
    l0: float
    dead: float


@dataclass(frozen=True)
class Report:
    """Where a training stands: ``figures`` by the dictionaries' names."""

    step: int
    steps: int
    tokens: int
    figures: Mapping[str, Figures]


class Training:
    """Dictionaries of all sites of a source in all widths, step by step."""

    architectures: tuple[str, ...] = ARCHITECTURES

    def __init__(
        self,
        source: Source,
        *,
        widths: Sequence[float] = (4,),
        architecture: Architecture = "batchtopk",
        k: float = 32,
        sparsity: float | None = None,
        steps: int = 200,
        lr: float = 8e-4,
        seed: int = 0,
    ) -> None:
        """Harvest the first chunk, which sets the scale; arguments as for :func:`train`."""
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        if architecture not in self.architectures:
            raise ValueError(f"architecture={architecture!r}: use {', '.join(self.architectures)}")
        if not widths or any(not w > 0 for w in widths):
            raise ValueError(f"widths={list(widths)}: give multiples of d_model above 0")
        check_counts(steps=steps)
        check_positive(lr=lr)
        self.source, self.steps, self.step = source, steps, 0
        self._last = ""  # a report in short
        self.settings = {
            "architecture": architecture,
            "k": k,
            "sparsity": sparsity,
            "lr": lr,
            "widths": list(widths),
            "steps": steps,
            "seed": seed,
        }
        device = str(source.device)
        config = SAETrainerConfig(
            device=device,
            total_training_samples=steps * source.batch,
            train_batch_size_samples=source.batch,
            lr=lr,
            lr_end=lr,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 5,
            # latents that have not fired for so many steps get the auxiliary loss
            dead_feature_window=max(20, min(1000, steps // 8)),
            feature_sampling_window=steps + 1,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.changes: list[tuple[int, float]] = []  # of the sparsity: step, and value from there on
        self.trainers: dict[str, Any] = {}
        self.sites: dict[str, Site] = {}
        for site, (mean, scale) in source.scales().items():
            for times in widths:
                # one seed for all widths would start them from the same first rows
                torch.manual_seed(seed + len(self.trainers))
                d_sae = round(times * len(mean))
                cls, of = self._classes(architecture)
                sae = cls(
                    of(d_in=len(mean), d_sae=d_sae, device=device, **options(architecture, d_sae, k, sparsity, steps))
                )
                with torch.no_grad():
                    sae.b_dec.copy_(mean * scale)  # the mean needs no latent
                name = f"{site} x{times:g}"
                trainer = SAETrainer(config, sae, iter(()))
                trainer.activation_scaler.scaling_factor = scale
                self.trainers[name], self.sites[name] = trainer, site

    def _classes(self, architecture: str) -> tuple[Any, Any]:
        return classes(architecture)

    @property
    def sparsity(self) -> float:
        """k for the top-k family, the coefficient of the sparsity term for the others, as it is
        now. Setting it holds from the next step on, for every dictionary.

        Raises:
            ValueError: a value that the architecture cannot have.
        """
        if self.changes:
            return self.changes[-1][1]
        architecture = str(self.settings["architecture"])
        given = self.settings["k" if architecture not in COEFFICIENTS else "sparsity"]
        return float(COEFFICIENTS[architecture][1] if given is None else given)  # type: ignore[arg-type]

    @sparsity.setter
    def sparsity(self, value: float) -> None:
        architecture = str(self.settings["architecture"])
        dense = architecture in COEFFICIENTS
        trainers, (k, sparsity) = list(self.trainers.values()), (1, value) if dense else (value, None)
        told = [options(architecture, len(trainer.sae.W_dec), k, sparsity, self.steps) for trainer in trainers]
        for trainer, new in zip(trainers, told, strict=True):
            if dense:
                (scheduler,) = trainer.coefficient_schedulers.values()
                scheduler.final_value = value
                scheduler.load_state_dict(scheduler.state_dict())  # makes the present value of it
            else:
                trainer.sae.cfg.k = new["k"]
                trainer.sae.activation_fn = trainer.sae.get_activation_fn()
        self.changes.append((self.step, value))

    def advance(self) -> dict[str, Any]:
        """One batch for every dictionary; sae-lens's output of each step."""
        batch = next(self.source)
        outputs = {}
        with fitted(self.source.batch):
            for name, trainer in self.trainers.items():
                outputs[name] = trainer.step(batch[self.sites[name]])
                trainer.n_training_steps += 1
        self.step += 1
        return outputs

    def run(
        self,
        folder: str | Path | None = None,
        watch: Callable[[Report], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the end, or until ``stop()``, or an interrupt; see :func:`train`."""
        with suppress(KeyboardInterrupt):
            for _ in track(range(self.step, self.steps), "steps", status=lambda: self._last):
                with to_the_end():  # half a step could not be resumed
                    outputs = self.advance()
                if self.step % 10 == 0 or self.step == self.steps:
                    report = self.report(outputs)
                    one = list(report.figures.values())[-1]
                    self._last = f"explained variance {one.explained_variance:.3f}, L0 {one.l0:.0f}"
                    if watch is not None:
                        watch(report)
                if folder is not None and self.step % max(1, self.steps // 10) == 0:
                    with to_the_end():
                        self.save(folder)
                if stop():
                    break
        if folder is not None:
            self.save(folder)

    @torch.no_grad()
    def report(self, outputs: Mapping[str, Any]) -> Report:
        """Figures of a step's outputs."""
        return Report(
            self.step,
            self.steps,
            self.source.served,
            {
                name: Figures(
                    float(out.loss),
                    float(explained_variance(out.sae_in, out.sae_out)),
                    float((out.feature_acts > 0).float().sum(-1).mean()),
                    float(self.trainers[name].dead_neurons.float().mean()),
                )
                for name, out in outputs.items()
            },
        )

    def dictionaries(self) -> list[Dictionary]:
        """The dictionaries as they are now, in the form and the scale that inference uses."""
        return [self.dictionary(name) for name in self.trainers]

    @torch.no_grad()
    def dictionary(self, name: str) -> Dictionary:
        """One of them, by its name.

        Raises:
            ValueError: no such name.
        """
        if name not in self.trainers:
            raise ValueError(f"name={name!r}: use {', '.join(map(repr, self.trainers))}")
        trainer, site = self.trainers[name], self.sites[name]
        trained = copy.deepcopy(trainer.sae).to("cpu")
        trained.cfg.metadata.hook_name = site.hook_name
        sae = inference(trained, trainer.activation_scaler.scaling_factor)
        return Dictionary(sae, site, name, self.source.fingerprint, self.told())

    def told(self) -> dict[str, Any]:
        """What a dictionary's file says of its training."""
        return {
            **self.settings,
            "changes": self.changes,
            "step": self.step,
            "tokens": self.source.served,
            "dropped": self.source.dropped,
        }

    def save(self, folder: str | Path) -> Path:
        """A checkpoint: weights, optimisers, and where the source stands."""
        folder = Path(folder)
        told = folder / "training.json"
        with locked(told):
            # of two places the one that is free: the last whole checkpoint stays until the end
            slot = "b" if told.is_file() and _state(told)["slot"] == "a" else "a"
            shutil.rmtree(folder / slot, ignore_errors=True)
            with scratch(folder / slot) as part:
                for name, trainer in self.trainers.items():
                    trainer.save_checkpoint(name.replace(" ", "_"), base_path=part / slot)
                as_umask(part)
                os.rename(part / slot, folder / slot)
            state = {
                "settings": self.settings,
                "step": self.step,
                "changes": self.changes,
                "source": self.source.state_dict(),
                "slot": slot,
            }
            with whole(told) as part:
                part.write_text(json.dumps(state), encoding="utf-8")
            shutil.rmtree(folder / ("a" if slot == "b" else "b"), ignore_errors=True)
        return folder

    def restore(self, folder: str | Path) -> None:
        """Go on from a checkpoint, on the very next batch.

        Raises:
            FileNotFoundError: no whole checkpoint; ValueError: other settings, or a checkpoint that
                is damaged: then this training is not to be used any more.
        """
        folder = Path(folder)
        must_exist(folder / "training.json")
        state = _state(folder / "training.json")
        with junk(f"the checkpoint in {folder.name!r}"):
            for name, value in self.settings.items():
                if state["settings"][name] != value:
                    raise ValueError(
                        f"{name}={value!r}: the checkpoint in {folder.name!r} was made with {state['settings'][name]!r}"
                    )
            step, changes = state["step"], [(s, v) for s, v in state["changes"]]
            if not isinstance(step, int) or not 0 <= step <= self.steps:
                raise ValueError(f"step={step!r:.40}: of {self.steps} steps")
            self.source.load_state_dict(state["source"])
            for _, value in changes[-1:]:
                self.sparsity = value
            for name, trainer in self.trainers.items():
                self._restore(trainer, folder / state["slot"] / name.replace(" ", "_"))
            self.step, self.changes = step, changes

    def _restore(self, trainer: Any, part: Path) -> None:
        """One trainer; its optimiser's state is read by torch's restricted loader."""
        what = f"the checkpoint in {part.parent.parent.name!r}"
        try:
            wide = 4 * sum(p.numel() for p in trainer.sae.parameters())
            for file in part.iterdir():
                # Adam keeps two numbers beside each of the weights
                unpacked_at_most(file, 2**20 if file.suffix == ".json" else 4 * wide + 2**24)
                if file.suffix == ".safetensors":
                    header(file)
            trainer.sae.load_weights_from_checkpoint(part)
            trainer.load_trainer_state(part)
        except Exception as error:  # junk makes the unpickler raise anything
            raise ValueError(f"{what} is damaged: {type(error).__name__}: {error!s:.200}") from error
        if not all(bool(p.isfinite().all()) for p in trainer.sae.parameters()):
            raise ValueError(f"{what} holds NaN or infinity")


def _state(path: Path) -> dict[str, Any]:
    """What stands in a folder's ``training.json``."""
    found = read_json(path)
    slot = found.get("slot") if isinstance(found, dict) else None
    if slot not in ("a", "b"):
        raise ValueError(
            f"{path}: slot={slot!r:.40}: expected 'a' or 'b'; this is no checkpoint of this kit: give another folder"
        )
    return found


def explained_variance(x: Tensor, found: Tensor) -> Tensor:
    """``1 - E|x - found|^2 / E|x - E x|^2`` over activations ``[n, width]``."""
    left = (x - found).float().square().sum()
    return 1 - left / (x - x.mean(0)).float().square().sum().clamp(min=1e-12)
