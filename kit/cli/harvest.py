"""Activations of a whole corpus into a folder: ``python -m kit.cli.harvest``, on as many processes
as ``torchrun --nproc-per-node N -m kit.cli.harvest`` starts.

The folder is the ``cache`` of :class:`kit.sae.Source`: a dictionary trained on the same texts with
the same settings then runs no model. Started again, it makes the chunks that are missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kit.base.progress import processes
from kit.base.texts import read

if TYPE_CHECKING:
    from kit.sae import Source


def main(argv: Sequence[str] | None = None) -> int:
    """Fill a folder; returns the exit status."""
    args = _parser().parse_args(argv)
    first = processes()[0] == 0
    try:
        source = prepare(args)
        if args.estimate:
            from kit.cli import estimates

            if first:
                sys.stdout.write(f"{estimates.filling(source)}\n")
            return 0
        folder = source.fill()
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        sys.stderr.write(f"kit.harvest: {' '.join(str(error).split())}\n")
        return 1
    if first:
        size = sum(file.stat().st_size for file in folder.glob("chunk-*.safetensors"))
        sys.stdout.write(
            f"{source.chunks} chunks of {source.rows} rows, "
            f"{source.chunks * source.rows * source.tokens.shape[1]:,} tokens, "
            f"{size / 2**30:.2f} GB in {folder}\n"
        )
    return 0


def prepare(args: argparse.Namespace) -> Source:
    """The model and the texts that a command line names, as a source with a cache."""
    import kit
    from kit import sae
    from kit.search import parallel

    texts = read(args.texts, paragraphs=True)
    device = parallel.device() if args.device == "auto" else args.device
    model = kit.load_model(args.model, dtype=args.dtype, device=device)
    tokens = sae.pack(model, texts, args.context)
    if args.tokens is not None:
        tokens = tokens[: max(1, args.tokens // args.context)]
    sites = [sae.Site(layer, args.site) for layer in args.layer]
    rows = min(args.rows, len(tokens))
    return sae.Source(model, tokens, sites, batch=1, rows=rows, seed=args.seed, cache=args.out)


def _parser() -> argparse.ArgumentParser:
    from kit.models.weights import EMBEDDED

    parser = argparse.ArgumentParser(
        prog="python -m kit.cli.harvest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default=EMBEDDED, help="a folder or a hub id (default: the embedded model)")
    add("--texts", required=True, help=".jsonl with a field 'text', or paragraphs of plain text")
    add("--layer", type=int, action="append", required=True, help="may be given several times")
    add("--site", default="resid", help="resid, mlp_in, neurons or mlp_out")
    add("--out", required=True, help="the folder to fill")
    add("--tokens", type=int, help="use so many tokens of the texts (default: all)")
    add("--context", type=int, default=128, help="tokens in a row (default: 128)")
    add("--rows", type=int, default=256, help="rows in a chunk, one file (default: 256)")
    add("--seed", type=int, default=0)
    add("--dtype", default="auto")
    add("--device", default="auto", help="default: this process's GPU, or the CPU")
    add("--estimate", action="store_true", help="say what it would take, and stop")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
