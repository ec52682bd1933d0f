"""bp eval: test a finished run again, from its folder."""

from collections.abc import Sequence
from pathlib import Path

from bp.cli.arguments import Parser
from bp.cli.restored import WHICH, restore


def main(argv: Sequence[str]) -> None:
    """Run `bp eval` with these arguments."""
    parser = Parser("eval", "Rebuild a run's model from its config.yaml and a checkpoint, and test it.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="output directory of `bp train`")
    parser.add_argument("--checkpoint", choices=WHICH, default="last", help="which weights (default: last)")
    parser.add_argument("--split", choices=("test", "valid"), default="test", help="which samples (default: test)")
    parser.add_argument(
        "--data.root", dest="root", metavar="DIR", help="where the data sets are, if not where they were"
    )
    arguments = parser.parse_args(argv)
    session, checkpoint = restore(arguments.folder, arguments.checkpoint, arguments.root)
    loader = getattr(session, arguments.split)
    figures = session.trainer.evaluate(loader)
    shown = " | ".join(f"{arguments.split}_{name} {value:.4f}" for name, value in figures.items())
    print(f"{shown} | {len(loader.dataset):,} samples | {checkpoint}")
