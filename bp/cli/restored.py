"""A run taken up from its folder: the configuration it was made with, and the weights it saved."""

from pathlib import Path

from bp.checkpoint import find_checkpoint, load_model_arrays, read_snapshot
from bp.cli.session import Session, make_session
from bp.config import resolve
from bp.errors import CheckpointError

WHICH = ("last", "best")


def restore(folder: Path, which: str, data_root: str | None) -> tuple[Session, Path]:
    """The session of a run with the weights of its checkpoint "last" or "best", and that checkpoint's folder."""
    file = folder / "config.yaml"
    if not file.is_file():
        raise CheckpointError("not the folder of a run: it has no config.yaml").at(str(folder))
    config = resolve(str(file), [f"--data.root={data_root}"] if data_root is not None else [])
    checkpoint = find_checkpoint(folder, which)
    if checkpoint is None:
        raise CheckpointError(f"the run has no checkpoint '{which}'").at(str(folder))
    snapshot = read_snapshot(checkpoint)
    session = make_session(config)
    load_model_arrays(session.model, snapshot.model, str(checkpoint))
    if session.trainer.average is not None:
        session.trainer.average.load_state_dict(snapshot.average)
    return session, checkpoint
