"""Texts that lm-eval has generated, under a method."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from torch import Tensor
from tqdm import tqdm

from tda.cases import digest_of
from tda.tasks.cache import Hook
from tda.tasks.instances import check_text, named, place
from tda.tasks.journal import Answer, Journal
from tda.tasks.method_lm import MethodLM
from tda.tasks.requests import (
    Ends,
    generate,
    grouped,
    rounded,
)
from tda.tasks.tally import counts_of, present


class GenerationLM(MethodLM):
    """What generates: each row of a batch ends by itself."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generated texts, each up to its first stop string."""
        journal, drawn = self._journal_of_call(), Journal(None, {})
        lengths = [self._check_generation(request) for request in requests]
        self._check_unseen(requests)
        keys, homes = [], []
        for number, request in enumerate(requests):
            sampled = request.args[1].get("do_sample", False)  # a text drawn once is none for the next time
            homes.append(drawn if sampled else journal)
            keys.append(homes[-1].key("generate_until", *request.args, *([number] if sampled else [])))
        room = [self.max_length - self._new_tokens(request) for request in requests]
        self._tell_of_lengths([min(length, left) for length, left in zip(lengths, room, strict=True)])
        order = sorted(range(len(requests)), key=lambda number: (-lengths[number], requests[number].args[0]))
        todo = {keys[number]: number for number in reversed(order) if homes[number].get(keys[number]) is None}
        alike = grouped(
            [number for number in order if todo.get(keys[number]) == number], self._generated_alike(requests)
        )
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="Running generate_until requests")
        bar.update(len(requests) - len(todo))

        def run(batch: Sequence[int]) -> None:
            asked = [requests[number] for number in batch]
            with self._asking(asked, ()), self._rows(len(batch)):
                texts = HFLM.generate_until(self, asked, disable_tqdm=True)
                found = zip(batch, texts, self._answers, strict=True)
                answers = {number: answer.model_copy(update={"value": text}) for number, text, answer in found}
                for home in (drawn, journal):
                    home.add({keys[number]: answers[number] for number in batch if homes[number] is home})
            bar.update(len(batch))

        with self._attached(self.execution) if alike else nullcontext():
            for group in alike:
                self._generating.each(
                    group,
                    run,
                    lambda number: f"{named(requests[number])}: generation from {lengths[number]} tokens",
                )
        bar.close()
        answers = [present(home.get(key)) for home, key in zip(homes, keys, strict=True)]
        for request, answer in zip(requests, answers, strict=True):
            self.tally.add(place(request), counts_of(answer))
        return [str(answer.value) for answer in answers]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """Generate a batch; each row ends by itself, so that it is what it would be alone."""
        temperature, sampling = options.pop("temperature", 0.0), options.pop("do_sample", None)
        sampling = temperature > 0 if sampling is None else sampling
        options |= {"do_sample": True, "temperature": temperature} if sampling else {"do_sample": False}
        ends = self.model.generation_config.eos_token_id
        ending = {self.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        where = Ends(self.tokenizer, frozenset(ending), tuple(one for one in stop if one))
        if self._run is not None:
            self._run.attachment.forget()
        with torch.autocast(
            device_type=self.device.type,
            dtype=self.mixed_precision_dtype,
            enabled=self.mixed_precision_dtype is not None,
        ):
            sequences, lengths = generate(
                self.model,
                context,
                options.pop("attention_mask"),
                where,
                max_length=max_length,
                pad_token_id=self.tokenizer.pad_token_id,
                **options,
            )
        achieved: tuple[float, ...] = ()
        if self._run is not None and self.method.selects and max(lengths) > 1:
            achieved = rounded(self._run.achieved_sparsity())
        sparse = [max(0, length - 1) if self.method.selects else 0 for length in lengths]
        self._answers = [
            Answer(value="", tokens=length, sparse_tokens=count, achieved_sparsity=achieved if count else ())
            for length, count in zip(lengths, sparse, strict=True)
        ]
        if isinstance(self.cache_hook, Hook):
            for request, answer in zip(self._requests, self._answers, strict=True):
                self.cache_hook.expect("generate_until", request.args, place(request), counts_of(answer))
        return sequences

    def _generated_alike(self, requests: Sequence[Instance]) -> Callable[[int], object]:
        """What requests of one batch have in common; lm-eval's class looks for a BOS in the first context alone."""
        bos = self.tokenizer.bos_token

        def key(number: int) -> object:
            context, options = requests[number].args
            return digest_of(options), bos is not None and context.startswith(bos)

        return key

    def _check_generation(self, request: Instance) -> int:
        """Tokens of a context to generate from; ValueError where that cannot be."""
        context = request.args[0]
        check_text(request, context)
        new = self._new_tokens(request)
        if not 0 < new < self.max_length:
            raise ValueError(
                f"{named(request)} asks for {new} new tokens; expected at least 1, and fewer than the model's context "
                f"of {self.max_length}"
            )
        count = len(self.tok_encode(context))
        if not count:
            raise ValueError(f"{named(request)}: the context has no tokens, so there is nothing to generate from")
        return count

    def _new_tokens(self, request: Instance) -> int:
        """How many tokens are generated at most."""
        count: int = normalize_gen_kwargs(request.args[1], self.max_gen_toks)["max_gen_toks"]
        return count
