"""`python -m reports.serve`: publish the dashboard and serve it to this machine alone."""

import argparse
import functools
import subprocess
import sys
from collections.abc import Iterable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from asv.benchmarks import Benchmarks
from asv.config import Config

from tda import git
from tda.regression.repository import Repository

LOOPBACK = "127.0.0.1"


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing of what went well."""

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Leave successes out of the terminal; errors are logged by another method."""


def publish(config: Path) -> None:
    """Run ``asv publish``.

    Raises
    ------
    ValueError
        If the repository does not hold what asv would publish.
    subprocess.CalledProcessError
        If asv fails; it has said why.
    """
    conf = Config.load(str(config))
    if (config.parent / conf.repo / ".git").exists():  # else asv makes a clone of its own
        _check(Repository(config.parent / conf.repo), conf.branches)
    conf.results_dir = str(config.parent / conf.results_dir)
    if not Path(conf.results_dir, "benchmarks.json").is_file():
        Benchmarks(conf, []).save()  # lets asv publish a history that its own suite has not run on yet
    command = [sys.executable, "-m", "asv", "--config", str(config), "publish", "--no-pull"]
    subprocess.run(command, check=True, env=git.environment())


def _check(repository: Repository, branches: Iterable[str | None]) -> None:
    """Refuse what asv would end at with a traceback, or leave commits out for."""
    repository.check_whole()
    for branch in filter(None, branches):
        try:
            repository.resolve(branch)
        except ValueError as error:
            raise ValueError(f"{error}: asv publishes the branches that its settings name") from None
        if repository.has(f"refs/heads/{branch}") and repository.has(f"refs/tags/{branch}"):
            raise ValueError(f"{repository.folder} has a tag {branch!r} too, which asv takes for the branch: rename it")


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Make a server of a folder that this machine alone can reach; port 0 takes a free one."""
    return ThreadingHTTPServer((LOOPBACK, port), functools.partial(_Quiet, directory=str(folder)))


def main() -> int:
    """Publish unless told not to, then serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m reports.serve", description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("asv.conf.json"), help="asv's configuration")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--no-publish", action="store_true", help="serve what was published last")
    which.add_argument("--publish-only", action="store_true", help="write the pages and serve nothing")
    options = parser.parse_args()
    try:
        if not options.no_publish:
            publish(options.config)
        if options.publish_only:
            return 0
        folder = options.config.parent / Config.load(str(options.config)).html_dir
        served = server(folder, options.port)
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"no server on {LOOPBACK}:{options.port}: {error.strerror}; --port 0 takes a free one", file=sys.stderr)
        return 2
    print(f"Dashboard: http://{LOOPBACK}:{served.server_port}/tda/alarms.html (Ctrl-C stops)", flush=True)
    try:
        served.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        served.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
