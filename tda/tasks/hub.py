"""Whether the Hugging Face hub answers; where it does not, its cache alone is read."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import datasets
import huggingface_hub.constants

REACH_S = 3.0
"""How long the hub may take to answer."""


@contextmanager
def reachable_hub() -> Iterator[bool]:
    """Let data sets be read from the hub; where it does not answer, from the cache alone, without waiting for it.

    Yields whether the hub may answer.
    """
    constants: Any = huggingface_hub.constants
    offline = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    reachable = any(offline) or answers(constants.ENDPOINT)
    if not reachable:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = offline


def answers(endpoint: str) -> bool:
    """Whether a server can be connected to; behind a proxy that is not known."""
    if any(name.lower() in ("https_proxy", "http_proxy", "all_proxy") for name in os.environ):
        return True
    url = urlsplit(endpoint)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), timeout=REACH_S).close()
    except OSError:
        return False
    return True
