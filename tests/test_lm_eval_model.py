"""lm-eval's class under a method: equal to loops token by token, whatever the batch; dense equal to lm-eval's own."""

import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_tokenizers
import torch

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import tda
from tda.contracts import Method
from tda.engine.transformers_api import new_cache, returned_cache
from tda.methods import METHODS, method
from tda.tasks.model import TDALM
from tda.tasks.requests import DoesNotFitError, Ends

CHOICES = 4
WORDS = ("Once", "upon", "a", "time", "there", "was", "little", "girl", "quick", "brown", "fox", "lazy", "dog", "in")
PROTOCOLS = ("all_sparse", "decode", "griffin")


# What is asked of whom.


@pytest.fixture(scope="session")
def items(shared_data: Path) -> list[tuple[str, int, list[str]]]:
    """Context, gold index and endings of 600 HellaSwag items."""
    lines = (shared_data / "hellaswag_600.txt").read_text().split("\n")
    blocks = [lines[start : start + 6] for start in range(0, 3600, 6)]
    return [(context, int(gold), endings) for context, gold, *endings in blocks]


@pytest.fixture(scope="session")
def stories(shared_data: Path) -> str:
    return str(shared_data / "stories260K")


@pytest.fixture(scope="session")
def story_texts(shared_data: Path) -> list[str]:
    lines = (shared_data / "tinystories.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def loaded(stories: str) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(stories).eval(), AutoTokenizer.from_pretrained(stories)


@pytest.fixture(scope="session")
def fitted(loaded: tuple[Any, Any], story_texts: list[str]) -> Callable[[str], Method]:
    """Methods by name at 0.5, fitted on stories, which HellaSwag shares nothing with."""
    made: dict[str, Method] = {}

    def of(name: str) -> Method:
        if name not in made:
            asked = method(name, 0.5)
            made[name] = asked.fit(loaded[0], story_texts[:12], loaded[1]) if asked.needs_fit else asked
        return made[name]

    return of


def choices(items: Sequence[tuple[str, int, list[str]]]) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, (context, " " + ending), number, ("hellaswag", document, 1))
        for document, (context, _, endings) in enumerate(items)
        for number, ending in enumerate(endings)
    ]


def scored(context: str, continuation: str, document: int = 0) -> Instance:
    return Instance("loglikelihood", {}, (context, continuation), 0, ("mini", document, 1))


def generated(context: str, document: int = 0, **options: Any) -> Instance:
    return Instance("generate_until", {}, (context, {"until": [], **options}), 0, ("written", document, 1))


def rolled(text: str, document: int = 0) -> Instance:
    return Instance("loglikelihood_rolling", {}, (text,), 0, ("read", document, 1))


@pytest.fixture(scope="session")
def small() -> tuple[Any, Any]:
    """A tiny Llama with the words of a tiny tokenizer."""
    tokenizer = tiny_tokenizers.build("llama-3")
    model = tiny.build("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    return model, tokenizer


def made(small: tuple[Any, Any], chosen: Method | None = None, **options: Any) -> TDALM:
    return TDALM.of(*small, tda.Griffin(sparsity=0.5) if chosen is None else chosen, **options)


def sentences(count: int) -> list[str]:
    """Texts of unlike lengths and words."""
    return [" ".join(WORDS[(3 * row + 5 * place) % 14] for place in range(3 + 4 * row % 9)) for row in range(count)]


# A loop, token by token, of plain forward steps.


@torch.no_grad()
def loop(model: Any, chosen: Method, context: Sequence[int], continuation: Sequence[int], protocol: str) -> list[float]:
    """Log-likelihood of each token in nats, a forward for every token that is computed sparsely."""
    given, predicted = torch.tensor([context]), list(continuation)
    fed = torch.tensor([[*context, *continuation[:-1]]])
    logits: list[torch.Tensor] = []
    with tda.attach(model, chosen, execution="masked") as run:
        if protocol == "griffin":
            output = model(input_ids=fed[:, :-1], use_cache=True)
            last = model(input_ids=fed[:, -1:], **tiny.on(model, returned_cache(output)))
            logits = [*output.logits[0, len(context) - 1 :], last.logits[0, -1]]
        else:
            cache = new_cache()
            logits.append(model(input_ids=given, use_cache=True, **tiny.on(model, cache)).logits[0, -1])
            run.select()
            if protocol == "all_sparse":
                cache.crop(-1)
                with run.decode():  # the prompt's last token, again
                    logits[0] = model(input_ids=given[:, -1:], **tiny.on(model, cache)).logits[0, -1]
            for token in continuation[:-1]:
                step = model(input_ids=torch.tensor([[token]]), **tiny.on(model, cache))
                logits.append(step.logits[0, -1])
            run.attachment.forget()  # of a single dense token nothing is decoded
    logs = torch.stack(logits).double().log_softmax(-1)
    return [float(row[token]) for row, token in zip(logs, predicted, strict=True)]


def pairs(lm: TDALM, requests: Sequence[Instance]) -> list[tuple[list[int], list[int]]]:
    """Context and continuation as token ids, as lm-eval cuts them."""
    return [lm._encode_pair(*request.args) for request in requests]


# Dense is lm-eval's own class.


def test_dense_equals_lm_evals_class_to_the_last_digit(items: Any, stories: str) -> None:
    requests = choices(items[:40])
    for batch_size in (1, 8):
        own = HFLM(stories, device="cpu", batch_size=batch_size).loglikelihood(requests, disable_tqdm=True)
        lm = TDALM(stories, device="cpu", batch_size=batch_size)
        assert lm.loglikelihood(requests, disable_tqdm=True) == own
        assert {sparse for _, sparse in lm.tally.by_request.values()} == {0}


@pytest.mark.slow
def test_dense_equals_lm_evals_class_on_all_items(items: Any, stories: str) -> None:
    requests = choices(items)
    own = HFLM(stories, device="cpu", batch_size=16).loglikelihood(requests, disable_tqdm=True)
    assert TDALM(stories, device="cpu", batch_size=16).loglikelihood(requests, disable_tqdm=True) == own


def test_dense_reads_and_writes_as_lm_evals_class(items: Any, stories: str, story_texts: list[str]) -> None:
    """Rolling log-likelihoods to the last digit; texts, with a stop string; a long text has several windows."""
    own, lm = (kind(stories, device="cpu", batch_size=3) for kind in (HFLM, TDALM))
    texts = [rolled(text, number) for number, text in enumerate([*story_texts[:3], " ".join(story_texts[3:6])])]
    assert lm.loglikelihood_rolling(texts, True) == own.loglikelihood_rolling(texts, True)
    asked = [generated(context, until=[".", " the"], max_gen_toks=24) for context, _, _ in items[:7]]
    assert lm.generate_until(asked, True) == own.generate_until(asked, True)


@pytest.mark.parametrize("adds", [None, True, False])
def test_bos_comes_once_or_never(adds: bool | None, stories: str) -> None:
    own, lm = (kind(stories, device="cpu", add_bos_token=adds) for kind in (HFLM, TDALM))
    context, continuation = lm._encode_pair("Once upon a time", " there was")
    assert [*context, *continuation].count(1) == (1 if adds else 0)
    requests = [scored("Once upon a time", " there was"), scored("", "Once"), scored("<s>Once", " upon")]
    assert lm.loglikelihood(requests, True) == own.loglikelihood(requests, True)


def test_answers_that_differ_in_their_last_token_share_a_row(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As letters of choices do: one row, and each answer as it is alone."""
    lm = made(small)
    rows: list[int] = []
    forward = small[0].forward
    monkeypatch.setattr(small[0], "forward", lambda *a, **k: rows.append(len(k["input_ids"])) or forward(*a, **k))
    requests = [(None, [5, 6, 7, 8], [9, last]) for last in (10, 11, 12, 10)]
    together = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert set(rows) == {1}
    for request, answer in zip(requests, together, strict=True):
        wanted = loop(small[0], lm.method, request[1], request[2], "all_sparse")
        assert answer[0] == pytest.approx(math.fsum(wanted), abs=1e-4)


# Methods against the loop.


def arithmetic(model: Any, chosen: Method) -> Any:
    """The model, in float64 for a cut per token: a neuron within float32's rounding of one moves a score by 0.06."""
    return copy.deepcopy(model).double() if chosen.kind in ("token", "threshold") else model


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", sorted(set(METHODS) - {"dense", "int8"}))
def test_equals_a_loop_token_by_token(
    name: str, protocol: Any, items: Any, loaded: Any, fitted: Callable[[str], Method]
) -> None:
    chosen, requests = fitted(name), choices(items[:3])
    model = arithmetic(loaded[0], chosen)
    lm = TDALM.of(model, loaded[1], chosen, protocol=protocol, batch_size=5)
    found = lm.loglikelihood(requests, disable_tqdm=True)
    for request, answer, (context, continuation) in zip(requests, found, pairs(lm, requests), strict=True):
        wanted = loop(model, chosen, context, continuation, protocol)
        assert answer[0] == pytest.approx(math.fsum(wanted), abs=1e-4 * len(wanted))
        sparse = {"all_sparse": len(wanted), "decode": len(wanted) - 1, "griffin": 1}[protocol]
        assert lm.tally.by_request["hellaswag", request.doc_id, request.idx] == (len(wanted), sparse)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["griffin", "cats"])
def test_equals_a_loop_on_all_items(name: str, items: Any, loaded: Any, fitted: Callable[[str], Method]) -> None:
    chosen, requests = fitted(name), choices(items)
    model = arithmetic(loaded[0], chosen)
    lm = TDALM.of(model, loaded[1], chosen, batch_size=16)
    found = lm.loglikelihood(requests, disable_tqdm=True)
    assert sum(lm.tally.achieved_sparsity) / 5 == pytest.approx(0.5, abs=0.2)
    right = [CHOICES * document + gold for document, (_, gold, _) in enumerate(items)]  # a loop is slow: one of four
    answers = [found[number] for number in right]
    for answer, (context, continuation) in zip(answers, pairs(lm, [requests[n] for n in right]), strict=True):
        wanted = loop(model, chosen, context, continuation, "all_sparse")
        assert answer[0] == pytest.approx(math.fsum(wanted), abs=1e-4 * len(wanted))


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_and_padding_side_change_no_score(
    side: str, items: Any, loaded: Any, fitted: Callable[[str], Method]
) -> None:
    requests, scores = choices(items[:8]), {}
    for batch_size in (1, 4, 16):
        lm = TDALM.of(*loaded, fitted("griffin"), batch_size=batch_size)
        lm.tokenizer.padding_side = side
        scores[batch_size] = lm.loglikelihood(requests, disable_tqdm=True)
    for batch_size in (4, 16):
        for alone, together in zip(scores[1], scores[batch_size], strict=True):
            assert together == (pytest.approx(alone[0], abs=1e-3), alone[1])


def test_a_shared_set_is_one_request_s_own(small: Any) -> None:
    """What is scored with it is chance: rows="shared" scores as rows="per_row" does."""
    requests = [scored(one, " quick brown dog", number) for number, one in enumerate(sentences(5))]
    shared = made(small, tda.Griffin(sparsity=0.5, rows="shared"), batch_size=4).loglikelihood(requests, True)
    alone = made(small, batch_size=1).loglikelihood(requests, True)
    assert [value for value, _ in shared] == pytest.approx([value for value, _ in alone], abs=1e-4)


def test_is_greedy_where_every_token_is_the_likeliest(small: Any) -> None:
    """A text that greedy decoding gave is greedy; with another last token it is not."""
    lm = made(small, protocol="decode")
    context = lm.tok_encode("Once upon a time")
    with tda.attach(small[0], lm.method, execution="masked"):
        given = torch.tensor([context])
        tokens = small[0].generate(given, attention_mask=torch.ones_like(given), max_new_tokens=5, do_sample=False)
    answer = tokens[0, len(context) :].tolist()
    other = [*answer[:-1], (answer[-1] + 1) % 300]
    found = lm._loglikelihood_tokens([(None, context, answer), (None, context, other)], disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


# What protocols have in common.

READS_NO_PROMPT = ("magnitude", "static_mean", "oracle", "tt", "cats")


@pytest.mark.parametrize("name", READS_NO_PROMPT)
def test_of_one_token_griffin_is_all_sparse_where_the_prompt_decides_nothing(
    name: str, small: Any, fitted_small: Callable[[str], Method]
) -> None:
    """Both make the last position's pass sparse and no other; they differ in what a prompt's statistic holds."""
    requests = [(None, lm_ids, [30 + number]) for number, lm_ids in enumerate(([5, 9, 7, 8], [11, 12, 5], [6, 40]))]
    chosen = fitted_small(name)
    scores = {
        protocol: made(small, chosen, protocol=protocol)._loglikelihood_tokens(requests, disable_tqdm=True)
        for protocol in ("griffin", "all_sparse")
    }
    values = {protocol: [value for value, _ in found] for protocol, found in scores.items()}
    assert values["griffin"] == pytest.approx(values["all_sparse"], abs=1e-4)


def test_griffin_s_statistic_lacks_the_last_position(small: Any) -> None:
    """Of one token: what `griffin` selects on is the context without its last token, and that is all that differs."""
    lm, (context, last) = made(small, protocol="griffin"), ([5, 9, 7, 8, 30, 31], [12])
    ((value, _),) = lm._loglikelihood_tokens([(None, context, last)], disable_tqdm=True)
    imposed = tda.score(
        small[0],
        lm.method,
        torch.tensor([context]),
        torch.tensor([last]),
        protocol="all_sparse",
        selection_ids=torch.tensor([context[:-1]]),
        execution="masked",
    )
    assert value == pytest.approx(-float(imposed.nll[0, 0]), abs=1e-4)


def test_all_but_the_last_token_are_dense_under_griffin(small: Any) -> None:
    context, continuation = [5, 9, 7, 8], [30, 31, 12, 13]
    per_token = {
        one: loop(small[0], chosen, context, continuation, one)
        for one, chosen in (("griffin", tda.Griffin(sparsity=0.5)), ("decode", tda.Dense()))
    }
    assert per_token["griffin"][:-1] == pytest.approx(per_token["decode"][:-1], abs=1e-4)
    totals = {
        protocol: made(small, protocol=protocol)._loglikelihood_tokens([(None, context, continuation)], True)[0][0]
        for protocol in PROTOCOLS
    }
    dense = made(small, tda.Dense())._loglikelihood_tokens([(None, context, continuation[:-1])], True)[0][0]
    assert totals["griffin"] - per_token["griffin"][-1] == pytest.approx(dense, abs=1e-4)
    assert len({round(total, 2) for total in totals.values()}) == 3


def test_decode_takes_its_first_token_from_the_dense_prefill(small: Any) -> None:
    """Of one token `decode` is dense, and says that no token was sparse."""
    context = [5, 9, 7, 8]
    lm = made(small, protocol="decode")
    dense = made(small, tda.Dense())._loglikelihood_tokens([(None, context, [30])], True)
    assert lm._loglikelihood_tokens([(None, context, [30])], True)[0][0] == pytest.approx(dense[0][0], abs=1e-4)
    request = scored("Once upon", " a")
    assert len(pairs(lm, [request])[0][1]) == 1
    lm.loglikelihood([request], True)
    assert lm.tally.by_request == {("mini", 0, 0): (1, 0)}


@pytest.mark.parametrize("name", READS_NO_PROMPT)
def test_all_sparse_is_decode_one_token_earlier_where_the_prompt_decides_nothing(
    name: str, small: Any, fitted_small: Callable[[str], Method]
) -> None:
    """The last context token's pass is what `decode` does with it when it is the first token after a prompt."""
    context, continuation, chosen = [5, 9, 7, 8], [30, 31, 12], fitted_small(name)
    all_sparse = made(small, chosen)._loglikelihood_tokens([(None, context, continuation)], True)[0][0]
    requests = [(None, context[:-1], [8, *continuation]), (None, context[:-1], [8])]
    whole, first = made(small, chosen, protocol="decode")._loglikelihood_tokens(requests, True)
    assert all_sparse == pytest.approx(whole[0] - first[0], abs=1e-4)


@pytest.fixture(scope="session")
def fitted_small(small: Any) -> Callable[[str], Method]:
    def of(name: str) -> Method:
        asked = method(name, 0.5)
        batches = [{"input_ids": tiny.text(4, 32, seed=70 + number, vocabulary=300)} for number in range(3)]
        return asked.fit(small[0], batches) if asked.needs_fit else asked

    return of


# Texts as a whole.


@pytest.mark.parametrize("windows", [{}, {"prompt_tokens": 7, "new_tokens": 5}])
def test_rolling_equals_a_loop_over_windows(windows: dict[str, int], small: Any) -> None:
    """Every token is predicted once, after up to P tokens before its window; the first of them the prefix token."""
    texts = [" ".join(sentences(7)), "Once", " ".join(sentences(3))]
    lm = made(small, batch_size=3, **windows)
    prompt, new = (7, 5) if windows else (65, 64)
    found = lm.loglikelihood_rolling([rolled(text, number) for number, text in enumerate(texts)], True)
    for number, (text, value) in enumerate(zip(texts, found, strict=True)):
        whole = [lm.prefix_token_id, *lm.tok_encode(text)]
        wanted = 0.0
        for start in range(1, len(whole), new):
            context, continuation = whole[max(0, start - prompt) : start], whole[start : start + new]
            wanted += math.fsum(loop(small[0], lm.method, context, continuation, "all_sparse"))
        assert value == pytest.approx(wanted, abs=1e-3)
        assert lm.tally.by_request["read", number, 0] == (len(whole) - 1, len(whole) - 1)


def test_dense_reads_in_given_windows_too(small: Any) -> None:
    text = " ".join(sentences(7))
    lm = made(small, tda.Dense(), prompt_tokens=7, new_tokens=5)
    whole = [lm.prefix_token_id, *lm.tok_encode(text)]
    wanted = [
        loop(small[0], tda.Dense(), whole[max(0, start - 7) : start], whole[start : start + 5], "decode")
        for start in range(1, len(whole), 5)
    ]
    assert lm.loglikelihood_rolling([rolled(text)], True) == [pytest.approx(sum(map(sum, wanted)), abs=1e-3)]
    with pytest.raises(ValueError, match=r"100 and 60 .*159 positions.* 128\b"):
        made(small, prompt_tokens=100, new_tokens=60)


def test_a_text_without_tokens_has_none(small: Any) -> None:
    lm = made((small[0], tiny_tokenizers.build("gpt-2")))
    assert lm.loglikelihood_rolling([rolled("")], True) == [0.0]


# Generated texts.


@torch.no_grad()
def written(model: Any, tokenizer: Any, chosen: Method, context: str, stops: Sequence[str], most: int) -> list[int]:
    """Tokens of a greedy loop until a stop string, the end of text, or so many."""
    tokens: list[int] = []
    given = tokenizer(context, return_tensors="pt").input_ids
    with tda.attach(model, chosen, execution="masked"):
        output = model(input_ids=given, use_cache=True)
        while True:
            tokens.append(int(output.logits[0, -1].argmax()))
            text = tokenizer.decode(tokens)
            if len(tokens) == most or tokens[-1] == tokenizer.eos_token_id or any(stop in text for stop in stops):
                return tokens
            output = model(input_ids=torch.tensor([tokens[-1:]]), **tiny.on(model, returned_cache(output)))


@pytest.mark.filterwarnings("ignore:1 prompt was run through the model")
@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("name", ["griffin", "dense"])
def test_generates_what_a_loop_does(name: str, batch_size: int, items: Any, loaded: Any) -> None:
    """Rows end by themselves: at stop strings across tokens' borders, at the end of text, or at the last token."""
    chosen, (model, tokenizer) = method(name, 0.5), loaded
    contexts = [context for context, _, _ in items[:6]]
    stops = ["d the", "s.", "ot"]
    asked = [generated(context, number, until=stops, max_gen_toks=30) for number, context in enumerate(contexts)]
    lm = TDALM.of(*loaded, chosen, batch_size=batch_size, execution="masked")
    texts = lm.generate_until(asked, disable_tqdm=True)
    crossed = 0
    for number, (context, text) in enumerate(zip(contexts, texts, strict=True)):
        tokens = written(model, tokenizer, chosen, context, stops, 30)
        whole = tokenizer.decode(tokens, skip_special_tokens=True)
        crossed += any(stop in whole for stop in stops) and not any(
            stop in tokenizer.decode(tokens[-1:]) for stop in stops
        )
        for stop in stops:
            whole = whole.split(stop)[0]
        assert text == whole
        sparse = 0 if name == "dense" else len(tokens) - 1
        assert lm.tally.by_request["written", number, 0] == (len(tokens), sparse)
    assert crossed >= 2
    assert lm.tally.generated == {"written"}


def test_rows_of_a_batch_that_share_a_set_come_alone(small: Any) -> None:
    asked = [generated(text, number, max_gen_toks=6) for number, text in enumerate(sentences(4))]
    shared = made(small, tda.Griffin(sparsity=0.5, rows="shared")).generate_until(asked, True)
    assert shared == made(small, batch_size=1).generate_until(asked, True)


def test_a_stop_string_is_found_across_tokens() -> None:
    tokenizer = tiny_tokenizers.build("llama-3")
    tokens = tokenizer.encode("The quick brown fox", add_special_tokens=False)
    text = ""
    where = Ends(tokenizer, frozenset({0}), ("ick br",))
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count])
        assert where.reached([tokens[:count]]) == ["ick br" in text]
    assert where.length([*tokens[:2], 0, 5]) == 3
    assert where.length(tokens[:1]) == 1
    assert "ick br" in text


def test_sampled_texts_are_drawn_each_time(small: Any, tmp_path: Path) -> None:
    lm = made(small, journal=tmp_path / "answers.jsonl")
    asked = [generated("Once upon", number, do_sample=True, temperature=5.0, max_gen_toks=12) for number in range(4)]
    assert len(set(lm.generate_until(asked, True))) > 1
    assert not (tmp_path / "answers.jsonl").exists()


# Wrong requests.


def test_what_cannot_be_asked_is_named(small: Any) -> None:
    lm, dense = made(small), made(small, tda.Dense())
    for one in (lm, dense):
        with pytest.raises(ValueError, match=r"mini, document 3, request 0: .*empty"):
            one.loglikelihood([scored("Once", " upon"), scored("Once", "", 3)], True)
        with pytest.raises(ValueError, match=r"mini, document 3, request 0: .*Unicode .*U\+D800"):
            one.loglikelihood([scored("Once \ud800", " upon", 3)], True)
        with pytest.raises(ValueError, match=r"mini, document 3, request 0: the continuation has \d{3} "):
            one.loglikelihood([scored("Once", " upon" * 200, 3)], True)
        with pytest.raises(ValueError, match=r"request 0: the context .*no tokens"):
            one._loglikelihood_tokens([(None, [], [5])])
        with pytest.raises(ValueError, match=r"request 0: the continuation .*no tokens"):
            one._loglikelihood_tokens([(None, [5], [])])
        with pytest.raises(ValueError, match=r"written, document 0, request 0 .* 128 new tokens"):
            one.generate_until([generated("Once", max_gen_toks=128)], True)
    with pytest.raises(ValueError, match=r"read, document 0, request 0: .*Unicode"):
        lm.loglikelihood_rolling([rolled("a\udfff")], True)
    with pytest.raises(ValueError, match=r"written, document 0, request 0: .*context .*no tokens"):
        made((small[0], tiny_tokenizers.build("gpt-2"))).generate_until([generated("", max_gen_toks=3)], True)
    with pytest.raises(ValueError, match=r"request 0: protocol 'griffin' .*two tokens"):
        made(small, protocol="griffin")._loglikelihood_tokens([(None, [5], [6])], True)


def test_an_empty_context_is_the_prefix_token(small: Any) -> None:
    lm = made(small)
    (found,) = lm.loglikelihood([scored("", "Once upon")], True)
    tokens = lm.tok_encode("Once upon", add_special_tokens=False)
    wanted = loop(small[0], lm.method, [lm.prefix_token_id], tokens, "all_sparse")
    assert found[0] == pytest.approx(math.fsum(wanted), abs=1e-4)


def test_a_long_context_is_cut_on_the_left_and_told_once(small: Any, caplog: pytest.LogCaptureFixture) -> None:
    """As lm-eval's class does: the model reads the last tokens before the answer's last one."""
    lm = made(small)
    context, continuation = tiny.text(1, 200, vocabulary=300)[0].tolist(), [30, 31, 12]
    requests = [(None, context, continuation), (None, context[:50], continuation), (None, context[:127], continuation)]
    found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    for (_, whole, _), (value, _) in zip(requests, found, strict=True):
        wanted = loop(small[0], lm.method, whole[-126:], continuation, "all_sparse")
        assert value == pytest.approx(math.fsum(wanted), abs=1e-4)
    (once,) = caplog.messages
    assert re.search("2 of 3 requests .*128 tokens: .* 74 tokens on the left", once)


@pytest.mark.parametrize("chosen", [tda.Griffin(sparsity=0.5), tda.Dense()], ids=["griffin", "dense"])
def test_numbers_that_are_not_finite_are_told(chosen: Method, small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = small[0].forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        if kwargs.get("use_cache") is not False:  # but for what attaching tries
            output.logits[..., 5] = math.nan
        return output

    monkeypatch.setattr(small[0], "forward", broken)
    with pytest.raises(FloatingPointError, match=f"{chosen.name} on mini, document 2, request 0: .* float32 "):
        made(small, chosen).loglikelihood([scored("Once upon", " a time", 2)], True)


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"method": "grifin"}, "unknown method 'grifin'; known: cats, dense"),
        ({"metod": "griffin"}, "model tda knows no 'metod'. It takes pretrained, method, protocol"),
        ({"method": "griffin", "statistic": "max"}, "options of method 'griffin': sparsity, .*; and of lm-eval's hf: "),
        (
            {"method": "griffin", "protocol": "sparse"},
            "protocol must be one of decode, all_sparse, griffin; got 'sparse'",
        ),
        ({"method": "tt"}, "give thresholds=FILE .*, or calibration_text=FILE.jsonl to fit it on; got neither"),
        ({"method": "tt", "thresholds": "a", "calibration_text": "b"}, "; got both"),
        ({"method": "griffin:sparsity=0.5", "sparsity": 0.25}, "sparsity is said twice"),
        ({"method": "griffin", "sparsity": 1.5}, "0 <= sparsity < 1; got 1.5"),
        ({"prompt_tokens": 0}, "prompt_tokens is a number of tokens, at least 1; got 0"),
    ],
)
def test_wrong_arguments_are_said(arguments: dict[str, Any], told: str, folder: str) -> None:
    with pytest.raises(ValueError, match=told):
        TDALM(folder, device="cpu", **arguments)


@pytest.fixture(scope="session")
def folder(small: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tiny model as files."""
    place = tmp_path_factory.mktemp("model")
    for part in small:
        part.save_pretrained(place)
    return str(place)


def test_options_go_where_they_belong(folder: str, tmp_path: Path) -> None:
    """As lm-eval makes it of --model_args: the method's, lm-eval's and ours; fitted on a text."""
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"{number} " + one * 8}) + "\n" for number, one in enumerate(sentences(6)))
    )
    arguments = {"pretrained": folder, "method": "tda", "sparsity": 0.25, "rows": "shared", "dtype": "bfloat16"}
    arguments |= {"calibration_text": str(text), "calibration_documents": 4, "prompt_tokens": 16, "new_tokens": 8}
    lm = TDALM.create_from_arg_obj(arguments, {"batch_size": "auto", "max_batch_size": 4, "device": "cpu"})
    assert TDALM.latest is lm
    assert (lm.method.sparsity, lm.method.options["rows"], lm.model.dtype) == (0.25, "shared", torch.bfloat16)
    assert lm.method.fitted.lengths[-1] == 16
    assert lm.windows == (16, 8)
    lm.method.save_pretrained(tmp_path / "saved")
    again = TDALM(folder, method="tda:sparsity=0.25,rows=shared", thresholds=str(tmp_path / "saved"), dtype="bfloat16")
    assert again.method.thresholds == lm.method.thresholds
    lm.loglikelihood([scored(" ".join(sentences(4)), " fox")], True)
    info = lm.get_model_info()
    assert info["method"].startswith("tda:sparsity=0.25")
    assert info["protocol"] == "all_sparse"
    assert info["sparse_share"] == {"mini": 1.0}
    assert len(info["achieved_sparsity"]) == tiny.LAYERS


WORDS = "river lantern keeper stone bridge winter morning letter garden window silver market cloud valley".split()  # noqa: SIM905


@pytest.mark.parametrize(
    "ask",
    [
        lambda lm, planted: lm.loglikelihood([scored("What is next?", f" {planted}", 3)], True),
        lambda lm, planted: lm.loglikelihood([scored(f"Q: a A: b\n\nQ: {planted} A: c\n\nQ: d A:", " e", 3)], True),
        lambda lm, planted: lm.loglikelihood_rolling([rolled(f"Once. {planted}", 3)], True),
        lambda lm, planted: lm.generate_until([generated(f"Read: {planted}", 3, max_gen_toks=2)], True),
    ],
    ids=["answer", "few-shot example", "rolling", "generation"],
)
def test_text_that_a_method_was_fitted_on_is_refused(
    folder: str, tmp_path: Path, ask: Callable[[Any, str], Any]
) -> None:
    lm, documents = fitted_on_words(folder, tmp_path)
    with pytest.raises(ValueError, match=r"calibration .*task (mini|read|written) .*item 3, "):
        ask(lm, documents[2][:130])
    ask(lm, " ".join(f"{word}9" for word in WORDS)[:100])


def test_text_of_saved_thresholds_is_refused(folder: str, tmp_path: Path) -> None:
    lm, documents = fitted_on_words(folder, tmp_path)
    lm.method.save_pretrained(tmp_path / "saved")
    again = TDALM(folder, method="tt:sparsity=0.5", thresholds=str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"task mini, item 3: .* calibration"):
        again.loglikelihood([scored("What is next?", " this"), scored(documents[1][:150], " end", 3)], True)


def fitted_on_words(folder: str, place: Path) -> tuple[TDALM, list[str]]:
    """A method fitted on documents of a file, and these."""
    documents = [" ".join(f"{word}{number}" for word in WORDS * 2) for number in range(4)]
    text = place / "text.jsonl"
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents))
    sizes: dict[str, Any] = {"calibration_text": str(text), "calibration_documents": 4, "prompt_tokens": 24}
    return TDALM(folder, method="tt:sparsity=0.5", new_tokens=8, **sizes), documents


def test_lengths_beyond_calibration_are_told_once(small: Any, caplog: pytest.LogCaptureFixture) -> None:
    chosen = tda.TDA(sparsity=0.5).fit(small[0], [{"input_ids": tiny.text(4, 32, seed=5, vocabulary=300)}])
    lm = made(small, chosen)
    context = tiny.text(1, 60, vocabulary=300)[0].tolist()
    lm._loglikelihood_tokens([(None, context, [7]), (None, context[:50], [8]), (None, context[:20], [8])], True)
    (told,) = caplog.messages
    assert "2 of 3 contexts have 50 to 60 tokens" in told


# Memory.


@pytest.fixture
def little_memory(small: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """A model that has memory for so many rows; what is given is the rows of every forward."""

    def of(most: int) -> list[int]:
        rows: list[int] = []
        forward = small[0].forward

        def limited(*args: Any, **kwargs: Any) -> Any:
            count = len(args[0] if args else kwargs["input_ids"])
            rows.append(count)
            if count > most and kwargs.get("use_cache") is not False:  # but for what attaching tries
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return forward(*args, **kwargs)

        monkeypatch.setattr(small[0], "forward", limited)
        return rows

    return of


@pytest.mark.parametrize("chosen", [tda.Griffin(sparsity=0.5), tda.Dense()], ids=["griffin", "dense"])
def test_a_batch_without_memory_is_halved(
    chosen: Method, small: Any, little_memory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [scored(one, " quick brown dog", number) for number, one in enumerate(sentences(9))]
    asked = [generated(one, number, max_gen_toks=4) for number, one in enumerate(sentences(9))]
    whole = made(small, chosen, batch_size=2)
    wanted, texts = whole.loglikelihood(requests, True), whole.generate_until(asked, True)
    rows = little_memory(2)
    lm = made(small, chosen, batch_size=8)
    found = lm.loglikelihood(requests, True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-4)
    assert [count for count in rows if count > 2] == [8, 4]
    assert [re.findall(r"\d+", sentence) for sentence in caplog.messages] == [["8", "4"], ["4", "2"]]
    lm.loglikelihood([scored(one, " lazy", number) for number, one in enumerate(sentences(9))], True)
    assert len(caplog.messages) == 2  # remembered
    assert lm.generate_until(asked, True) == texts


def test_a_request_without_memory_is_named(small: Any, little_memory: Any) -> None:
    lm = made(small)
    little_memory(0)
    with pytest.raises(DoesNotFitError, match=r"mini, document 4, request 0: .*5 tokens .*memory"):
        lm.loglikelihood([scored("Once upon", " a time", 4)], True)


# Journal.


def test_a_journal_answers_what_it_holds(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "answers.jsonl"
    requests = [scored(one, " quick brown dog", number) for number, one in enumerate(sentences(5))]
    requests.append(scored(sentences(1)[0], " quick brown dog", 5))  # the first one again
    asked = [generated(one, number, max_gen_toks=4) for number, one in enumerate(sentences(3))]
    texts = [rolled(" ".join(sentences(5)))]

    def everything(lm: TDALM) -> list[Any]:
        return [lm.loglikelihood(requests, True), lm.generate_until(asked, True), lm.loglikelihood_rolling(texts, True)]

    options: dict[str, Any] = {"journal": path, "batch_size": 2, "prompt_tokens": 7, "new_tokens": 5}
    first = made(small, **options)
    wanted = everything(first)
    lines = path.read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines)
    path.write_text("\n".join([*lines[:2], "{damaged", *lines[2:]])[:-9])
    again = made(small, **options)
    assert again.tally.by_request == {}
    with monkeypatch.context() as patch:
        passes: list[int] = []
        forward = small[0].forward
        patch.setattr(small[0], "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
        found = everything(again)
    assert [pytest.approx(part) if isinstance(part[0], float) else part for part in wanted] == found
    assert (again.tally.by_request, again.tally.achieved_sparsity) == (
        first.tally.by_request,
        pytest.approx(first.tally.achieved_sparsity),
    )
    assert len(caplog.messages) == 2  # a line that was damaged, and the last, which was cut
    assert len(passes) <= 4  # one window, and what attaching tries
    assert len(path.read_text().splitlines()) == len(lines) + 2
    for other in (made(small, tda.Griffin(sparsity=0.25), **options), made(small, protocol="decode", **options)):
        assert other.loglikelihood(requests[:1], True) != wanted[0][:1]
    passes.clear()


KILLED = """
import sys, time
from pathlib import Path
import tiny, tiny_tokenizers, tda, torch
from lm_eval.api.instance import Instance
from tda.tasks.model import TDALM
tokenizer = tiny_tokenizers.build("llama-3")
model = tiny.build("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
passes = Path(sys.argv[2])
forward = model.forward
def slow(*args, **kwargs):
    with passes.open("a") as file:
        file.write("pass\\n")
    time.sleep(float(sys.argv[3]))
    return forward(*args, **kwargs)
model.forward = slow
chosen = tda.Dense() if sys.argv[4] == "dense" else tda.Griffin(sparsity=0.5)
lm = TDALM.of(model, tokenizer, chosen, batch_size=2, journal=Path(sys.argv[1]))
requests = [
    Instance("loglikelihood", {}, ("Once upon a time " * (1 + row % 5), f" in 19{row} dog"), 0, ("mini", row, 1))
    for row in range(30)
]
print(lm.loglikelihood(requests, True))
"""


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["griffin", "dense"])
def test_a_killed_evaluation_goes_on(name: str, tmp_path: Path) -> None:
    """Really killed, midway; what was answered is not computed again, and the numbers are those of a whole run."""
    environment = {**os.environ, "PYTHONPATH": f"{Path(tda.__file__).parents[1]}:{Path(__file__).parent}"}

    def start(journal: str, passes: str, pause: float) -> subprocess.Popen[str]:
        words = [str(tmp_path / journal), str(tmp_path / passes), str(pause), name]
        return subprocess.Popen(
            [sys.executable, "-c", KILLED, *words], env=environment, stdout=subprocess.PIPE, text=True
        )

    whole = start("whole.jsonl", "whole", 0)
    wanted, _ = whole.communicate()
    killed = start("killed.jsonl", "first", 0.2)
    while len(lines_of(tmp_path / "killed.jsonl")) < 8:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = len(lines_of(tmp_path / "killed.jsonl"))
    assert 8 <= kept < 30
    resumed = start("killed.jsonl", "second", 0)
    found, _ = resumed.communicate()
    assert (resumed.returncode, whole.returncode) == (0, 0)
    keys = [json.loads(line)["key"] for line in lines_of(tmp_path / "killed.jsonl")]
    assert len(keys) == len(set(keys)) == 30
    spared = len(lines_of(tmp_path / "whole")) - len(lines_of(tmp_path / "second"))
    assert spared == kept // 2 * (2 if name == "griffin" else 1)  # passes of a batch of two
    numbers = [[value for value, _ in eval(text)] for text in (found, wanted)]
    assert numbers[0] == (numbers[1] if name == "dense" else pytest.approx(numbers[1], abs=1e-4))


# lm-eval's own cache.


@pytest.fixture
def cached(tmp_path: Path) -> Iterator[Callable[[TDALM], Any]]:
    opened: list[Any] = []

    def of(lm: TDALM) -> Any:
        opened.append(CachingLM(lm, str(tmp_path / "cache.db")))
        return opened[-1]

    yield of
    for one in opened:
        one.dbdict.close()


@pytest.mark.parametrize("chosen", [tda.Griffin(sparsity=0.5), tda.Dense()], ids=["griffin", "dense"])
def test_the_cache_tells_what_was_sparse(chosen: Method, small: Any, cached: Any) -> None:
    requests = [scored(one, " quick brown dog", number) for number, one in enumerate(sentences(5))]
    asked, texts = [generated("Once upon", max_gen_toks=4)], [rolled(" ".join(sentences(5)))]
    first = made(small, chosen)
    wanted = [cached(first).loglikelihood(requests), cached(first).generate_until(asked)]
    wanted.append(cached(first).loglikelihood_rolling(texts))
    again = made(small, chosen)
    held = cached(again)
    found = [held.loglikelihood(requests), held.generate_until(asked), held.loglikelihood_rolling(texts)]
    assert found == wanted
    assert held.get_model_info()["sparse_share"] == first.get_model_info()["sparse_share"]
    assert again.tokens == first.tokens
    assert again.tally.generated == {"written"}
    assert again.tally.by_request == first.tally.by_request


def test_a_cache_is_of_one_method_and_protocol(small: Any, cached: Any) -> None:
    cached(made(small)).loglikelihood([scored("Once", " upon")])
    with pytest.raises(ValueError, match=r"griffin:sparsity=0\.5.* not griffin:sparsity=0\.25.*--use_cache"):
        cached(made(small, tda.Griffin(sparsity=0.25)))
    with pytest.raises(ValueError, match=r"all_sparse and not decode; .*--use_cache"):
        cached(made(small, protocol="decode"))
    cached(made(small))


def test_a_cache_of_nobody_knows_what_is_refused(small: Any, cached: Any, folder: str) -> None:
    cached(HFLM(folder, device="cpu")).loglikelihood([scored("Once", " upon")])
    with pytest.raises(ValueError, match=r"holds answers, .*which method and protocol"):
        cached(made(small))


def test_a_tokenizer_given_is_left_as_it_was(small: Any) -> None:
    tokenizer = tiny_tokenizers.build("qwen")
    model = tiny.build("llama", vocab_size=len(tokenizer) + 8)
    assert tokenizer.pad_token is None
    TDALM.of(model, tokenizer, tda.Griffin(sparsity=0.5))
    assert tokenizer.pad_token is None
