"""Where log records go: each module logs by ``logging.getLogger(__name__)``, and what runs it says who takes that."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _FunctionHandler(logging.Handler):
    def __init__(self, take: Callable[[logging.LogRecord], None], level: int) -> None:
        super().__init__(level)
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        self._take(record)


@contextmanager
def handled(name: str, take: Callable[[logging.LogRecord], None], level: int = logging.INFO) -> Iterator[None]:
    """Inside, records of a logger and of those below it go to one function alone, from a level on."""
    logger = logging.getLogger(name)
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [_FunctionHandler(take, level)], False
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


def log_again(record: logging.LogRecord) -> None:
    """Log a record of another process as one of this."""
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
