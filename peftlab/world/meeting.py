"""The connections between the processes of a launch: what ends when one of them does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed import DistError

from peftlab.errors import LaunchError, one_line

UNMET = (
    "the processes of this launch did not meet: {}; if another one ended, read its output; the same command starts "
    "them again"
)


def is_lost_connection(error: BaseException) -> bool:
    """Return whether an error says that another process closed its connection, or never answered.

    torch has a class for those of its store and of NCCL; gloo's are plain RuntimeErrors with a place in its source.
    """
    return isinstance(error, DistError) or isinstance(error, RuntimeError) and "/gloo/" in str(error)


@contextmanager
def meeting() -> Iterator[None]:
    """Raise LaunchError where an exchange fails before the processes of a launch know which others there are."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise LaunchError(UNMET.format(one_line(error)), []) from error
