"""A model under a method as lm-eval sees it: every task of the harness, with sparsity applied to what is scored."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from lm_eval.api.registry import register_model

from tda.contracts import Method
from tda.names import Execution, Protocol
from tda.tasks.cache import Hook
from tda.tasks.generation import GenerationLM
from tda.tasks.scoring import ScoringLM


@register_model("tda")
class TDALM(ScoringLM, GenerationLM):
    """lm-eval's class for Hugging Face models, every scored and generated token under a method.

    Dense, without windows of its own, computes what lm-eval's class computes, to the last digit at the same batch size.
    Log-likelihoods of a method are computed masked; generation runs as `execution` says.

    Parameters
    ----------
    pretrained : str or PreTrainedModel
        A folder or a hub id, as for lm-eval's class; or a loaded model.
    method : str or Method
        A method's name or spec; its options may also be given by themselves, as ``sparsity=0.5``.
    protocol : {"all_sparse", "decode", "griffin"}
        Which tokens of a scored continuation are computed sparsely, as for `tda.score`. Of a generated text, all but
        the first are.
    execution : str
        How generation runs, as for `tda.attach`.
    thresholds : str, optional
        What the method is fitted with: a file of `tda calibrate`, or the folder of a saved method.
    calibration_text : str, optional
        Instead: a JSONL file of texts to fit the method on.
    calibration_documents : int
        Documents of it at most.
    prompt_tokens, new_tokens : int, optional
        Windows of a rolling log-likelihood: each scores so many tokens after a prompt of at most so many. A method has
        256 and 128 where nothing is said, or what its context holds; dense then does as lm-eval's class.
    journal : str or Path, optional
        JSONL file that keeps every answer as it comes; what it holds is not computed again.
    advance : callable
        Called before each batch; what it raises ends the work, and answers so far are kept.
    batch_size : int or "auto"
        Rows of a batch; a batch that does not fit into memory is halved. "auto" begins with `max_batch_size`.
    **options
        Options of the method, and arguments of lm-eval's class.

    Attributes
    ----------
    tally : Tally
        Tokens of the requests that were answered.
    latest : TDALM or None
        The last one that lm-eval made of ``--model_args``.

    Raises
    ------
    ValueError
        If an argument is unknown, or a method is to be fitted and nothing says with what.
    """

    latest: ClassVar["TDALM | None"] = None

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        method: Method,
        *,
        protocol: Protocol = "all_sparse",
        execution: Execution = "auto",
        batch_size: int = 8,
        prompt_tokens: int | None = None,
        new_tokens: int | None = None,
        journal: Path | None = None,
        advance: Callable[[], None] = lambda: None,
    ) -> "TDALM":
        """A loaded model under a method, fitted where it needs that; parameters as of the class.

        Log-softmax is computed in float32, whatever the model's type.
        """
        with _unnoticed():
            return cls(
                model,
                tokenizer=copy.deepcopy(tokenizer),  # it is given a pad token
                method=method,
                protocol=protocol,
                execution=execution,
                batch_size=batch_size,
                prompt_tokens=prompt_tokens,
                new_tokens=new_tokens,
                journal=journal,
                advance=advance,
                softmax_dtype="float32",
            )

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> "TDALM":
        """As lm-eval makes it of ``--model_args``."""
        made: TDALM = super().create_from_arg_obj(arg_dict, additional_config)
        TDALM.latest = made
        return made

    @property
    def tokens(self) -> dict[str, tuple[int, int]]:
        """For each task: tokens that were scored or generated, and how many of them were computed sparsely."""
        if isinstance(self.cache_hook, Hook):
            for place, counts in self.cache_hook.found():
                if place not in self.tally.by_request:
                    self.tally.add(place, counts)
        return self.tally.of_tasks()

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results: the method and what it did, beside what is known of the model."""
        info: dict[str, Any] = super().get_model_info()
        tokens = self.tokens
        return info | {
            "method": str(self.method.spec),
            "protocol": self.protocol,
            "execution": self.execution,
            "windows": self.windows,
            "achieved_sparsity": list(self.tally.achieved_sparsity),
            "sparse_share": {task: sparse / max(count, 1) for task, (count, sparse) in tokens.items()},
        }


@contextmanager
def _unnoticed() -> Iterator[None]:
    """Keep lm-eval's class from warning of a model that is loaded already: that is what is meant."""
    log = logging.getLogger("lm_eval.models.huggingface")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
