"""What a user sees of a method that is attached to a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from tda.device import current
from tda.engine.attachment import Attachment
from tda.kernels import BackendInfo
from tda.selection import Selection


class Run:
    """What `attach` yields: tells phases, shows selections, reports what was left out.

    Attributes
    ----------
    attachment : Attachment
        What works behind it; not for users, and not stable.
    """

    def __init__(self, attachment: Attachment) -> None:
        self.attachment = attachment

    @contextmanager
    def prefill(self) -> Iterator[None]:
        """Tell that forwards inside are prompt, where the caller drives the model by hand.

        On an empty cache a new request starts; on a filled one the prompt goes on: its new tokens join the
        statistic, and the selection is renewed.
        """
        with self.attachment.phases.set_phase("prefill"):
            yield

    @contextmanager
    def decode(self) -> Iterator[None]:
        """Tell that forwards inside are decode, where the caller feeds several tokens at once, as to score them."""
        with self.attachment.phases.set_phase("decode"):
            yield

    def select(self) -> None:
        """Make the selection of the last request now, if it is still to be made.

        Otherwise the first decode step makes it.
        """
        request = self.attachment.requests.last
        if request is not None:
            self.attachment.unseen.used(request)
            if request.kept is None:
                with current(request.device):
                    self.attachment.policy.select(request)

    def selection(self) -> Selection:
        """Kept sets, bool [B, F] for each place, of the last prompt; of per-token methods, the last decode step.

        `Selection.sites` says which axes of which linears they lie on, `Selection.nbytes` what is read.

        Raises
        ------
        ValueError
            If nothing was selected yet.
        """
        request = self.attachment.requests.last
        if request is None:
            raise ValueError("no prompt was prefilled yet, so nothing is selected")
        if self.attachment.method.kind == "prompt":
            self.select()
        return self.attachment.policy.selection(request).like(self._placed)

    @cached_property
    def _placed(self) -> Selection:
        """An empty selection on the linears that every one of this run is on."""
        found, method, places = Selection(), self.attachment.method, self.attachment.ffns
        found.sites = tuple(map(method.sites, places))
        found.whole = tuple(
            tuple(site for site in place.sites if site not in sites)
            for place, sites in zip(places, found.sites, strict=True)
        )
        found.quantizer = method.quantizer
        return found

    def achieved_sparsity(self) -> list[float]:
        """Share left out per layer, mean over the decode steps (and rows) so far.

        Raises
        ------
        ValueError
            If no decode step ran yet.
        """
        counter = self.attachment.counter
        if not counter.started:
            raise ValueError("no decode step ran yet, so no sparsity was achieved")
        return counter.mean()

    @property
    def execution(self) -> str | None:
        """The execution that the last decode step really ran: dense, masked, compact or indexed."""
        return self.attachment.executed

    @property
    def backend(self) -> str:
        """The kernels that run decode: "c", "triton", or "torch" with the reason."""
        decoding, request = self.attachment.decoding, self.attachment.requests.last
        if self.execution == "masked" and decoding.execution != "masked":
            return str(BackendInfo("torch"))
        rows = 1 if request is None else request.rows
        ran = self.execution or decoding.execution
        if rows > 1 and ran in ("dense", "compact") and decoding.backend.name == "c":
            return str(BackendInfo("torch", f"products of {rows} rows run there"))
        return str(decoding.backend)
