"""A server of published pages that this machine alone can reach."""

import functools
import os
import re
import sys
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
"""Names under which the server answers: a page of another site that resolves to this machine gets nothing."""


class _Handler(SimpleHTTPRequestHandler):
    """Sends files of one folder. Everything else is one sentence."""

    error_message_format = "%(message)s\n"
    error_content_type = "text/plain; charset=utf-8"
    timeout = 30  # a client that sends nothing holds no thread for ever

    def send_head(self) -> Any:
        """Open the file that a request names; None after an error was sent."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not HOSTS.fullmatch(hosts[0].strip()):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this server answers to 127.0.0.1, [::1] and localhost")
            return None
        try:
            root = Path(self.directory).resolve(strict=True)
            path = Path(self.translate_path(self.path))
            path = (path / "index.html" if path.is_dir() else path).resolve(strict=True)
            inside = path.is_relative_to(root) and path.is_file()
        except (OSError, ValueError, RuntimeError):  # missing, no path at all, links in a circle
            inside = False
        if not inside:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page; the dashboard begins at /")
            return None
        return super().send_head()

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self.send_error(status, sentence)

    def list_directory(self, path: str | os.PathLike[str]) -> None:
        """Refuse what a folder holds."""
        self._refuse(HTTPStatus.NOT_FOUND, "folders are not listed; the dashboard begins at /")

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Leave successes out of the terminal; errors are logged by another method."""


class _Server(ThreadingHTTPServer):
    """Answers many connections at once."""

    request_queue_size = 128  # a browser opens many connections at once, and the default of 5 makes some wait a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error, but not that a browser went away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Make a server of a folder that this machine alone can reach; port 0 takes a free one.

    Raises
    ------
    ValueError
        If nothing is published in the folder, or the port cannot be had.
    """
    if not (folder / "index.html").is_file():
        raise ValueError(f"nothing is published in {folder} yet; leave --no-publish out")
    try:
        return _Server((LOOPBACK, port), functools.partial(_Handler, directory=str(folder)))
    except OSError as error:
        said = f"no server on {LOOPBACK}:{port}: {error.strerror}; --port 0 takes a free one"
        raise ValueError(said) from None
