"""A trace and speedscope in one HTML file, which opens in a browser, from a disk or a server, without a network.

speedscope comes from npm once, as an archive of pinned contents. Nothing of it runs but in the browser, where the
page's own policy lets it reach nothing. It is told of a trace what its own format holds: nested ranges of each thread.
"""

import base64
import gzip
import json
import logging
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from html import escape
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from tda.profiler.store import TRACE
from tda.results import write_whole
from tda.web.theme.npm import Package, PackageError, archives, fetched

logger = logging.getLogger(__name__)

SPEEDSCOPE = Package(
    name="speedscope",
    version="1.25.0",
    integrity="sha512-cpf9HWTZf1ijLXBJrk87Ve/54tnYx6rlf0gUThvn3ook6h63hLXVOQiMf44PT+XoV503cPfvfiT5gP5vojp6Ag==",
)
VIEWER = "trace.html"
"""Name of the page beside a trace."""
ELSEWHERE = "the trace itself opens in Perfetto (ui.perfetto.dev reads it in the browser) and in TensorBoard"
HOST = ("cpu_op", "user_annotation", "cuda_runtime", "cuda_driver", "python_function")
DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of events that are shown; ranges that the profiler repeats on the device are not."""
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)
"""What the page may load: nothing but what it holds. Names of C++ are unmangled by a module of WebAssembly in it."""
HAND_OVER = """
addEventListener("load", () => setTimeout(() => {
  const packed = atob(document.getElementById("trace").textContent);
  const file = new File([Uint8Array.from(packed, (letter) => letter.charCodeAt(0))], "trace.json.gz");
  const handed = new DataTransfer();
  handed.items.add(file);
  const drop = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: handed });
  document.querySelector("body > div").dispatchEvent(drop);
}));
"""
"""Gives the page's trace to speedscope as a reader would who drops a file."""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<!-- {notice} -->
<style>{style}</style>
</head>
<body>
<script type="application/gzip" id="trace">{trace}</script>
<script>{script}</script>
<script>{hand_over}</script>
</body>
</html>
"""


def speedscope(*, fetch: bool = False) -> Path:
    """Archive of speedscope in this user's cache.

    Parameters
    ----------
    fetch : bool
        Whether npm may be asked for it where it is not there.

    Raises
    ------
    tda.web.theme.npm.PackageError
        If it is not there and cannot be had; the message says how a trace can be looked at all the same.
    """
    if not fetch and not (archives() / SPEEDSCOPE.tarball).is_file():
        missing = f"{SPEEDSCOPE.spec} is not in {archives()}"
        raise PackageError(f"no viewer: {missing}; `tda profile --viewer` fetches it with npm; {ELSEWHERE}")
    try:
        return fetched(SPEEDSCOPE)
    except PackageError as error:
        raise PackageError(f"no viewer: {error}; {ELSEWHERE}") from None


def page_writer(*, fetch: bool = False) -> Callable[[Path], str | None]:
    """What `tda.web.profile.build_profile_report` asks for pages of traces.

    Parameters
    ----------
    fetch : bool
        As for `speedscope`.

    Returns
    -------
    callable
        Writes the page of a case's folder into it and returns its name; None where there is nothing to show.
    """
    try:
        package = speedscope(fetch=fetch)
    except PackageError as error:
        logger.warning(str(error))
        return lambda folder: None

    def write(folder: Path) -> str | None:
        if not (folder / TRACE).is_file():
            return None
        write_viewer(folder / TRACE, folder / VIEWER, package, folder.name)
        return VIEWER

    return write


def write_viewer(trace: Path, out: Path, speedscope: Path, title: str = "Trace") -> None:
    """Write a page that shows a trace; parameters and errors as of `viewer_page`."""
    write_whole(out, viewer_page(trace, speedscope, title))


def viewer_page(trace: Path, speedscope: Path, title: str = "Trace") -> str:
    """Make a page that shows a trace.

    Parameters
    ----------
    trace : Path
        Chrome trace of `torch.profiler`, gzipped.
    speedscope : Path
        Archive of the package, as `speedscope` or the dashboard's cache gives it.
    title : str
        What the page and the profile are called.

    Returns
    -------
    str
        HTML that loads nothing from anywhere.

    Raises
    ------
    ValueError
        If the trace cannot be read, or holds nothing to show.
    """
    packed = gzip.compress(json.dumps(speedscope_file(trace, title), separators=(",", ":")).encode(), mtime=0)
    app = _app(speedscope)
    return PAGE.format(
        policy=POLICY,
        title=escape(title),
        notice=app.notice,
        style=app.style,
        script=app.script,
        trace=base64.b64encode(packed).decode(),
        hand_over=HAND_OVER,
    )


# The application.


class App(NamedTuple):
    """What a page holds of speedscope: style with its font, script, and whose they are."""

    style: str
    script: str
    notice: str


@cache
def _app(speedscope: Path) -> App:
    """Read the archive: its index names one style and one script."""
    with tarfile.open(speedscope) as archive:
        files = {member.name: member for member in archive.getmembers() if member.isfile()}

        def read(name: str) -> bytes:
            opened = archive.extractfile(files[name])
            assert opened is not None
            return opened.read()

        (index,) = [name for name in files if name.endswith("dist/release/index.html")]
        home, page = PurePosixPath(index).parent, read(index).decode()
        styles = [read(str(home / name)).decode() for name in _linked(page, "link", "href", ".css")]
        scripts = [read(str(home / name)).decode() for name in _linked(page, "script", "src", ".js")]
        licence = next((read(name).decode() for name in files if name.endswith("package/LICENSE")), "MIT licence")
        style = re.sub(
            r"url\([\"']?(?:\./)?([^)\"']+\.woff2)[\"']?\)",
            lambda found: f"url(data:font/woff2;base64,{base64.b64encode(read(str(home / found[1]))).decode()})",
            "\n".join(styles),
        )
    return App(_without_map(style), _inert("\n".join(map(_without_map, scripts))), _comment(licence))


def _linked(page: str, tag: str, attribute: str, ending: str) -> Iterable[str]:
    """Files that a page loads by a tag."""
    return re.findall(rf'<{tag}\b[^>]*\b{attribute}="([^"]+{re.escape(ending)})"', page)


def _without_map(text: str) -> str:
    """Leave out the name of a source map, which the page does not hold."""
    return re.sub(r"(?://[#@]|/\*#) ?sourceMappingURL=\S+(?: \*/)?", "", text)


def _inert(script: str) -> str:
    """A script that no parser of HTML takes for the end of itself."""
    return re.sub(r"</(?=script)", r"<\\/", script, flags=re.IGNORECASE).replace("<!--", "<\\!--")


def _comment(text: str) -> str:
    """Text that does not end a comment."""
    return f"{SPEEDSCOPE.spec}, " + text.strip().replace("--", "- -").replace(">", "&gt;")


# The trace.


class Bar(NamedTuple):
    """An event: its name, and from when to when in µs."""

    name: str
    start: float
    end: float


def speedscope_file(trace: Path, name: str) -> dict[str, Any]:
    """A trace in speedscope's format: a profile for each thread and device stream, the one that drives first.

    Raises
    ------
    ValueError
        If it is no trace, or holds nothing to show.
    """
    threads = _threads(_events(trace))
    if not threads:
        raise ValueError(f"{trace} holds no complete events of a thread or device")
    begin = min(bar.start for bars in threads.values() for bar in bars)
    frames: dict[str, int] = {}
    profiles = [_evented(f"{name} · {thread}", bars, begin, frames) for thread, bars in threads.items()]
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "name": name,
        "exporter": "tda",
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": frame} for frame in frames]},
        "profiles": profiles,
    }


def _events(trace: Path) -> list[dict[str, Any]]:
    try:
        with gzip.open(trace, "rt", encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
        return [event for event in events if event.get("ph") == "X" and isinstance(event.get("pid"), int)]
    except (ValueError, KeyError, TypeError, AttributeError, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{trace} is no gzipped Chrome trace: {error}") from None


def _threads(events: Iterable[Mapping[str, Any]]) -> dict[str, list[Bar]]:
    """Events by thread or stream; the busiest thread of the host, which drives, comes first."""
    host: dict[str, list[Bar]] = {}
    device: dict[str, list[Bar]] = {}
    for event in events:
        bar = Bar(str(event["name"]), float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        if event.get("cat") in HOST:
            host.setdefault(f"host, thread {event['tid']}", []).append(bar)
        elif event.get("cat") in DEVICE:
            device.setdefault(f"device {event['pid']}, stream {event['tid']}", []).append(bar)
    busiest = sorted(host, key=lambda thread: -len(host[thread]))
    return {**{thread: host[thread] for thread in busiest}, **dict(sorted(device.items()))}


def _evented(name: str, bars: list[Bar], begin: float, frames: dict[str, int]) -> dict[str, Any]:
    """Openings and closings in order; a bar ends with what it lies in, whatever rounding says."""
    events: list[dict[str, Any]] = []
    around: list[tuple[int, float]] = []

    def note(kind: str, frame: int, at: float) -> None:
        events.append({"type": kind, "frame": frame, "at": round(at - begin, 3)})

    def close_until(moment: float) -> None:
        while around and around[-1][1] <= moment:
            note("C", *around.pop())

    for bar in sorted(bars, key=lambda bar: (bar.start, -bar.end)):
        close_until(bar.start)
        frame = frames.setdefault(bar.name, len(frames))
        note("O", frame, bar.start)
        around.append((frame, min(bar.end, around[-1][1]) if around else bar.end))
    close_until(float("inf"))
    return {
        "type": "evented",
        "name": name,
        "unit": "microseconds",
        "startValue": events[0]["at"],
        "endValue": max(event["at"] for event in events),
        "events": events,
    }
