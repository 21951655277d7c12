"""What a user sees of a method that is attached to a model."""

from collections.abc import Iterator
from contextlib import contextmanager

from tda.engine.attachment import Attachment
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
        with self.attachment.phases.tell("prefill"):
            yield

    @contextmanager
    def decode(self) -> Iterator[None]:
        """Tell that forwards inside are decode, where the caller feeds several tokens at once, as to score them."""
        with self.attachment.phases.tell("decode"):
            yield

    def select(self) -> None:
        """Make the selection of the last request now, if it is still to be made.

        Otherwise the first decode step makes it.
        """
        self.attachment.select()

    def selection(self) -> Selection:
        """Kept neurons per layer: bool [B, F], of the last prompt; of per-token methods, the last decode step.

        Raises
        ------
        ValueError
            If nothing was selected yet.
        """
        return self.attachment.selection()

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
        return str(self.attachment.backend)
