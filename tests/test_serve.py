"""The server of published pages: to this machine alone, and nothing but what is published."""

import http.client
import socket
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tda.web.serve import server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "deep").mkdir(parents=True)
    (site / "empty").mkdir()
    (site / "index.html").write_text("start")
    (site / "deep" / "page.html").write_text("page")
    (tmp_path / "secret").write_text("secret")
    (site / "link").symlink_to(tmp_path / "secret")
    (site / "linked").symlink_to(tmp_path)
    (site / "circle").symlink_to(site / "circle")
    (site / "inside").symlink_to(site / "deep" / "page.html")
    return site


@pytest.fixture
def port(folder: Path) -> Iterator[int]:
    with server(folder) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield served.server_port
        served.shutdown()
        thread.join()


def ask(port: int, path: str, host: str | None = None, method: str = "GET") -> tuple[int, str]:
    """Status and body of a request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


@pytest.mark.parametrize("path", ["/", "/deep/page.html", "/deep/../index.html", "/inside", "/?x=1", "/%69ndex.html"])
def test_pages_are_sent(port: int, path: str) -> None:
    assert ask(port, path)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/none", "/deep", "/deep/", "/empty/", "/link", "/linked/secret", "/circle", "/../secret", "/%2e%2e/secret"),
        *("/..%2fsecret", "/%00", "/index.html/", "//", "/" + "a" * 5000, "/%ff%fe", "/deep/page.html/x"),
    ],
)
def test_everything_else_is_one_sentence(port: int, path: str) -> None:
    status, body = ask(port, path)
    assert status == (200 if path == "//" else 404)
    assert "secret" not in body
    assert body.count("\n") <= 1


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]", "[::1]:8080"])
def test_loopback_names_are_answered(port: int, host: str) -> None:
    assert ask(port, "/", host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]", "::1", "[::1]evil.example"),
        *("[::1].evil.example:80", "localhost:evil.example", "localhost:80@evil.example"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/none"])
def test_other_names_get_nothing(port: int, host: str, path: str) -> None:
    """A page of another site whose name resolves to this machine must not read the dashboard."""
    status, body = ask(port, path, host)
    assert status == 421
    assert "start" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_pages_are_only_read(port: int, method: str) -> None:
    assert ask(port, "/", method=method)[0] == 501


def test_many_connections_at_once_are_answered(port: int) -> None:
    """Some send nothing at all, and hold nobody up."""
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: ask(port, "/")[0], range(200)))
    assert answers == [200] * 200
    for one in silent:
        one.close()


def test_a_taken_port_and_an_empty_folder_are_refused(folder: Path, port: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"127.0.0.1:{port}"):
        server(folder, port)
    with pytest.raises(ValueError, match="nothing is published in"):
        server(tmp_path / "nowhere")


def test_it_listens_on_loopback_alone(folder: Path) -> None:
    with server(folder) as served:
        assert served.server_address[0] == "127.0.0.1"


def test_pages_load_as_a_browser_asks(port: int) -> None:
    with urllib.request.urlopen(f"http://localhost:{port}/deep/page.html") as answer:
        assert answer.read() == b"page"
