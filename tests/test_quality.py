"""Documents, metrics and evaluations against plain float64 loops."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

import tda
from experiments.train import BOS, byte_tokenizer
from tda.engine.score import Scores
from tda.methods import Griffin
from tda.metrics import METRICS
from tda.models import load_model
from tda.quality import (
    Evaluator,
    calibration_batches,
    evaluation_documents,
    random_documents,
    recall,
    recall_questions,
)
from tda.quality.documents import encode, read_jsonl
from tda.selection import Selection


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny model of the byte tokenizer's vocabulary."""
    return tiny.build("llama", vocab_size=300, max_position_embeddings=600)


class TestMetrics:
    B, G, V = 3, 5, 11

    def scores(self, seed: int) -> Scores:
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(self.B, self.G, self.V, generator=generator)
        valid = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]).bool()
        sparse = valid.clone()
        sparse[:, 0] = False
        nll = torch.rand(self.B, self.G, generator=generator).masked_fill(~valid, 0)
        return Scores(nll, sparse, valid, logits)

    def loop(self, method: Scores, dense: Scores, token: Any) -> list[float]:
        """Mean of a token's value over the sparse tokens of each document."""
        return [
            float(np.mean([token(method, dense, b, g) for g in range(self.G) if method.sparse[b, g]]))
            for b in range(self.B)
        ]

    @staticmethod
    def probabilities(scores: Scores, b: int, g: int) -> np.ndarray:
        x = np.exp(scores.logits[b, g].double().numpy())
        return x / x.sum()

    def test_equal_plain_loops(self) -> None:
        method, dense = self.scores(0), self.scores(1)

        def kl(m: Scores, d: Scores, b: int, g: int) -> float:
            p, q = self.probabilities(d, b, g), self.probabilities(m, b, g)
            return float((p * np.log(p / q)).sum())

        expected = {
            "nll_nats": self.loop(method, dense, lambda m, d, b, g: float(m.nll[b, g])),
            "kl_to_dense_nats": self.loop(method, dense, kl),
            "top1_disagreement": self.loop(
                method, dense, lambda m, d, b, g: float(m.logits[b, g].argmax() != d.logits[b, g].argmax())
            ),
        }
        expected["perplexity"] = [math.exp(value) for value in expected["nll_nats"]]
        assert set(expected) == set(METRICS), "a new metric needs its plain loop here"
        for name, metric in METRICS.items():
            found = metric(method, dense)
            assert found.dtype == torch.float64
            assert found.tolist() == pytest.approx(expected[name], rel=1e-5), name

    def test_dense_against_itself(self) -> None:
        dense = self.scores(0)
        assert METRICS["kl_to_dense_nats"](dense, dense).tolist() == [0.0] * self.B
        assert METRICS["top1_disagreement"](dense, dense).tolist() == [0.0] * self.B

    def test_metrics_are_finite_in_bfloat16_far_apart(self) -> None:
        method, dense = self.scores(0), self.scores(1)
        far = Scores(method.nll, method.sparse, method.valid, (100 * method.logits).bfloat16())
        found = METRICS["kl_to_dense_nats"](far, dense)
        assert found.isfinite().all()
        assert (found > 10).all()

    @pytest.mark.parametrize("name", METRICS)
    def test_a_document_without_a_sparse_token_is_refused(self, name: str) -> None:
        dense = self.scores(0)
        scores = Scores(dense.nll, dense.sparse.clone(), dense.valid, dense.logits)
        scores.sparse[1] = False
        with pytest.raises(ValueError, match="no sparsely computed token"):
            METRICS[name](scores, dense)


class TestDocuments:
    def write(self, folder: Path, *texts: str) -> Path:
        path = folder / "text.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    def test_of_a_file(self, tokenizer: Any, tmp_path: Path) -> None:
        path = self.write(tmp_path, "short", "abcdefghijklmnop", "Grüße an alle dort")
        found = evaluation_documents(tokenizer, 6, 4, 2, text=path)
        assert [d.number for d in found] == [0, 1]
        assert [d.kind for d in found] == ["text.jsonl"] * 2
        assert tokenizer.decode(found[0].prompt[1:]) == "abcde"
        assert tokenizer.decode(found[0].continuation) == "fghi"
        assert all(d.prompt[0] == BOS for d in found)
        assert [len(d.prompt) for d in found] == [6, 6]
        assert [len(d.continuation) for d in found] == [4, 4]

    def test_too_few(self, tokenizer: Any, tmp_path: Path) -> None:
        path = self.write(tmp_path, "short", "abcdefghijklmnop")
        with pytest.raises(ValueError, match=r"text\.jsonl: 1 .*10 tokens, 2 "):
            evaluation_documents(tokenizer, 6, 4, 2, text=path)
        with pytest.raises(ValueError, match=r"0 documents .*90 tokens, 1 "):
            calibration_batches(tokenizer, 90, 5, text=path)

    @pytest.mark.parametrize("line", ["not json", '{"txt": "a"}', '"text"', '{"text": 3}', "[1]", "null"])
    def test_malformed_lines_are_named(self, line: str, tmp_path: Path) -> None:
        path = self.write(tmp_path, "fine")
        path.write_text(path.read_text() + "\n" + line + "\n")
        with pytest.raises(ValueError, match=r'text\.jsonl, line 3: expected {"text": "\.\.\."}, got') as caught:
            list(read_jsonl(path))
        assert line in str(caught.value)

    def test_missing_file(self, tokenizer: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no text at .*none\.jsonl"):
            evaluation_documents(tokenizer, 6, 4, 2, text=tmp_path / "none.jsonl")

    @pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
    def test_a_file_in_another_encoding_is_named_with_its_line(self, encoding: str, tmp_path: Path) -> None:
        path = tmp_path / "text.jsonl"
        path.write_bytes('{"text": "fine"}\n{"text": "Grüße"}\n'.encode(encoding))
        line = 2 if encoding == "latin-1" else 1
        with pytest.raises(ValueError, match=rf"text\.jsonl, line {line}: expected .*, got") as caught:
            list(read_jsonl(path))
        assert encoding == "utf-16-le" or "expected UTF-8, got the byte 0xF" in str(caught.value)

    def test_the_mark_that_some_editors_put_in_front_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "text.jsonl"
        path.write_text('{"text": "Grüße"}\n', encoding="utf-8-sig")
        assert list(read_jsonl(path)) == ["Grüße"]

    @pytest.mark.parametrize("escape", ["\\ud800", "\\udc80", "\\udfff\\ud800"])
    def test_half_a_character_is_named_with_its_line(self, escape: str, tmp_path: Path) -> None:
        path = tmp_path / "text.jsonl"
        path.write_text('{"text": "fine \\ud83d\\ude00"}\n{"text": "ab' + escape + '"}\n')
        code = escape[2:6].upper()
        with pytest.raises(ValueError, match=rf"text\.jsonl, line 2: .*U\+{code}, .*character 3"):
            list(read_jsonl(path))

    @pytest.mark.parametrize("line", ["[" * 100_000, '{"text": ' + "9" * 5000 + "}"], ids=["deep", "long number"])
    def test_what_the_parser_gives_up_on_is_named_with_its_line(self, line: str, tmp_path: Path) -> None:
        path = tmp_path / "text.jsonl"
        path.write_text(line)
        with pytest.raises(ValueError, match=r'text\.jsonl, line 1: expected {"text": "\.\.\."}, got'):
            list(read_jsonl(path))

    def test_a_text_may_hold_any_character(self, tokenizer: Any, tmp_path: Path) -> None:
        texts = ["a\0b", "\ufeff\u2028\x85", "\U0001f600\U0010ffff\r\n"]
        path = self.write(tmp_path, *texts)
        assert list(read_jsonl(path)) == texts
        for text in texts:
            assert tokenizer.decode(encode(tokenizer, text)[1:]) == text

    def test_an_empty_file_holds_no_documents(self, tokenizer: Any, tmp_path: Path) -> None:
        path = tmp_path / "text.jsonl"
        path.write_text("\n \n")
        assert list(read_jsonl(path)) == []
        with pytest.raises(ValueError, match=r"text\.jsonl: 0 .*10 tokens, 2 "):
            evaluation_documents(tokenizer, 6, 4, 2, text=path)

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"{tmp_path}: Is a directory; .*JSONL"):
            list(read_jsonl(tmp_path))
        unreadable = Path("/proc/self/mem")  # root too gets an error from it
        if unreadable.exists():
            with pytest.raises(ValueError, match=r"/proc/self/mem: .*JSONL"):
                list(read_jsonl(unreadable))

    def test_built_in(self, tokenizer: Any) -> None:
        found = evaluation_documents(tokenizer, 40, 20, 12)
        assert len({d.kind for d in found}) == 10
        assert found[3].prompt.tolist() == evaluation_documents(tokenizer, 40, 20, 12)[3].prompt.tolist()
        text = calibration_batches(tokenizer, 100, 20, batch=8)
        assert [len(batch["input_ids"]) for batch in text] == [8, 8, 4]
        assert all(batch["input_ids"].shape[1] == 100 for batch in text)

    def test_calibration_and_evaluation_text_are_disjoint(self, tokenizer: Any, model: Any) -> None:
        method = tda.TT(sparsity=0.5)
        thresholds = tda.calibrate(model, method, calibration_batches(tokenizer, 200, 20), progress=False)
        found = evaluation_documents(tokenizer, 150, 50, 20)
        Evaluator(model, found).evaluate(method.with_thresholds(thresholds))
        leaked = calibration_batches(tokenizer, 200, 20)[0]["input_ids"]
        with pytest.raises(ValueError, match="use other text"):
            tda.score(model, method, leaked[:, 20:120], leaked[:, 120:], thresholds)

    def test_random_documents(self) -> None:
        one, same, other = (random_documents(50, 8, 4, 6, seed) for seed in (0, 0, 1))
        assert [d.prompt.tolist() for d in one] == [d.prompt.tolist() for d in same]
        assert [d.prompt.tolist() for d in one] != [d.prompt.tolist() for d in other]
        assert len({tuple(d.prompt.tolist()) for d in one}) == 6
        assert [(len(d.prompt), len(d.continuation)) for d in one] == [(8, 4)] * 6


WORDS = st.sampled_from([*"The quick brown girl 1987 .,\n\t\r\0é日😀\u0301", " ", "  ", "</s>", "<s>", "<|im_start|>"])
TEXTS = st.lists(st.tuples(WORDS, st.integers(1, 40)), max_size=60).map(
    lambda parts: "".join(word * times for word, times in parts)
)


@pytest.fixture(params=tiny_tokenizers.NAMES)
def each_tokenizer(request: pytest.FixtureRequest) -> Any:
    return tiny_tokenizers.build(request.param)


class TestEncode:
    def front(self, tokenizer: Any) -> list[int]:
        return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def test_bos_comes_once_and_eos_never(self, each_tokenizer: Any) -> None:
        plain = each_tokenizer("The girl", add_special_tokens=False).input_ids
        assert encode(each_tokenizer, "The girl").tolist() == [*self.front(each_tokenizer), *plain]
        assert encode(each_tokenizer, "").tolist() == self.front(each_tokenizer)

    @given(text=TEXTS)
    @pytest.mark.parametrize("name", tiny_tokenizers.NAMES)
    def test_control_words_in_a_document_are_text(self, name: str, text: str) -> None:
        tokenizer = tiny_tokenizers.build(name)
        text = f"x{text}"  # some take a space in front away
        ids = encode(tokenizer, text).tolist()
        front = self.front(tokenizer)
        assert ids[: len(front)] == front
        assert not set(tokenizer.all_special_ids) & set(ids[len(front) :])
        assert tokenizer.decode(ids[len(front) :]) == text

    @pytest.mark.parametrize("typed", ["", "{bos}", "{bos}{bos}"])
    def test_control_words_that_are_typed_count_as_such_and_bos_comes_once(
        self, typed: str, each_tokenizer: Any
    ) -> None:
        typed = typed.format(bos=each_tokenizer.bos_token or "")
        found = encode(each_tokenizer, f"{typed}<|im_start|>The girl<|im_end|>", control_words=True).tolist()
        start, end = (each_tokenizer.convert_tokens_to_ids(word) for word in tiny_tokenizers.CONTROL)
        front = self.front(each_tokenizer)
        assert found[: len(front) + 1] == [*front, start]
        assert found[-1] == end
        assert [found.count(token) for token in (*front, start, end)] == [1] * (len(front) + 2)

    def test_one_way_of_encoding_leaves_no_trace_in_the_other(self, each_tokenizer: Any) -> None:
        word = "<|im_start|>"
        documents, prompts = zip(
            *(
                (encode(each_tokenizer, word).tolist(), encode(each_tokenizer, word, control_words=True).tolist())
                for _ in range(2)
            ),
            strict=True,
        )
        assert documents[0] == documents[1] != prompts[0] == prompts[1]
        assert each_tokenizer(word, add_special_tokens=False).input_ids == prompts[0][len(self.front(each_tokenizer)) :]

    @given(text=TEXTS, at_most=st.integers(1, 40))
    @pytest.mark.parametrize("name", tiny_tokenizers.NAMES)
    def test_the_first_tokens_are_those_of_the_whole_text(self, name: str, text: str, at_most: int) -> None:
        tokenizer = tiny_tokenizers.build(name)
        assert encode(tokenizer, text, at_most=at_most).tolist() == encode(tokenizer, text).tolist()[:at_most]

    def test_a_long_text_is_read_only_as_far_as_it_takes(self, tokenizer: Any) -> None:
        read: list[int] = []

        class Watched:
            bos_token_id = tokenizer.bos_token_id

            def __call__(self, text: str, **options: Any) -> Any:
                read.append(len(text))
                return tokenizer(text, **options)

        text = "The quick brown fox. " * 50_000
        assert tokenizer.decode(encode(Watched(), text, at_most=48)[1:]) == text[:47]
        assert sum(read) < 2000

    def test_where_tokens_are_long_more_text_is_read(self) -> None:
        tokenizer, sentence = tiny_tokenizers.build("gpt-2"), tiny_tokenizers.SENTENCES[0]
        assert len(encode(tokenizer, sentence)) == 2, "with BOS: a token holds far more than is reckoned with"
        text = sentence * 500
        assert encode(tokenizer, text, at_most=300).tolist() == encode(tokenizer, text).tolist()[:300]

    @pytest.mark.parametrize("control_words", [True, False])
    def test_half_a_character_is_refused(self, control_words: bool, each_tokenizer: Any) -> None:
        with pytest.raises(ValueError, match=r"Unicode .*U\+DCE9, .*character 3"):
            encode(each_tokenizer, "ab\udce9", control_words=control_words)


class TestEvaluator:
    @pytest.mark.parametrize("batch", [1, 3, 8])
    def test_equals_documents_one_by_one(self, model: Any, tokenizer: Any, batch: int) -> None:
        found = evaluation_documents(tokenizer, 24, 12, 7)
        method, ticks = tda.Griffin(sparsity=0.5), []
        evaluation = Evaluator(model, found, batch=batch, advance=lambda: ticks.append(1)).evaluate(method)
        assert len(ticks) == math.ceil(7 / batch)
        assert evaluation.documents == list(range(7))
        assert evaluation.sparse_share == pytest.approx(11 / 12)
        for number, one in enumerate(found):
            scores, dense = (
                tda.score(model, m, one.prompt.unsqueeze(0), one.continuation.unsqueeze(0))
                for m in (method, tda.Dense())
            )
            for name, metric in METRICS.items():
                wanted = float(metric(scores, dense)[0])
                assert evaluation.values[name][number] == pytest.approx(wanted, rel=1e-4, abs=1e-6), name
            assert evaluation.values["selection_digest"][number] == scores.selection.digest(0)
        assert evaluation.achieved_sparsity == pytest.approx([27 / 53] * tiny.LAYERS)
        kept = evaluation.measurements()["nll_nats"]
        assert kept.groups == tuple(range(7))
        assert kept.unit == "nats/token"

    def test_selection_of_other_documents(self, model: Any, tokenizer: Any) -> None:
        found = evaluation_documents(tokenizer, 24, 12, 4)
        others = [*found[1:], found[0]]
        evaluator = Evaluator(model, found, batch=3)
        own = evaluator.evaluate(tda.Griffin(sparsity=0.5))
        swapped = evaluator.evaluate(tda.Griffin(sparsity=0.5), select_on=others)
        digests = own.values["selection_digest"]
        assert swapped.values["selection_digest"] == [*digests[1:], digests[0]]
        assert swapped.values["nll_nats"] != own.values["nll_nats"]

    def test_dense_is_the_reference(self, model: Any, tokenizer: Any) -> None:
        evaluation = Evaluator(model, evaluation_documents(tokenizer, 24, 12, 4)).evaluate(tda.Dense())
        assert evaluation.values["kl_to_dense_nats"] == [0.0] * 4
        assert evaluation.values["top1_disagreement"] == [0.0] * 4
        assert "selection_digest" not in evaluation.values

    def test_dense_is_computed_once_or_anew_and_means_the_same(
        self, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = evaluation_documents(tokenizer, 24, 12, 4)
        cached = Evaluator(model, found, batch=2).evaluate(tda.Griffin(sparsity=0.5))
        monkeypatch.setattr("tda.quality.evaluate.CACHED_BYTES", 0)
        assert Evaluator(model, found, batch=2).evaluate(tda.Griffin(sparsity=0.5)) == cached

    def test_digests_tell_sets_apart(self) -> None:
        sets = Selection(torch.rand(2, 53) < 0.5 for _ in range(2))
        changed = Selection(kept.clone() for kept in sets)
        changed[1][0, 52] ^= True
        assert sets.digest(0) == Selection(kept.clone() for kept in sets).digest(0)
        assert sets.digest(0) != changed.digest(0)
        assert sets.digest(1) == changed.digest(1)
        assert float(int(sets.digest(0))) == sets.digest(0) < 2**48


def test_recall_scores_the_whole_answer_sparsely(model: Any, tokenizer: Any) -> None:
    questions = recall_questions(tokenizer, 10)
    method = tda.Griffin(sparsity=0.5)
    found = recall(model, method, questions)
    assert found["task_recall_nll"].groups == tuple(range(10))
    for number, question in enumerate(questions):
        scores = tda.score(
            model, method, question.context.unsqueeze(0), question.answer.unsqueeze(0), protocol="all_sparse"
        )
        assert found["task_recall_nll"].samples[number] == pytest.approx(float(scores.nll.mean()), rel=1e-4)
        right = scores.logits[0].argmax(-1).tolist() == question.answer.tolist()
        assert found["task_recall_accuracy"].samples[number] == float(right)


def test_a_document_has_the_set_that_it_has_alone_though_scored_with_others() -> None:
    """Eight documents scored together shared one set with rows="shared", though each request is of one row."""
    model, tokenizer = load_model("ref:swiglu")
    documents = evaluation_documents(tokenizer, 32, 8, 6)
    together = Evaluator(model, documents, batch=6).evaluate(Griffin(sparsity=0.5, rows="shared"))
    alone = Evaluator(model, documents, batch=1).evaluate(Griffin(sparsity=0.5))
    assert together.values["selection_digest"] == alone.values["selection_digest"]
    assert together.values["nll_nats"] == pytest.approx(alone.values["nll_nats"], abs=1e-5)
    pairs = Evaluator(model, documents, batch=6, together=2).evaluate(Griffin(sparsity=0.5, rows="shared"))
    digests = pairs.values["selection_digest"]
    assert digests[::2] == digests[1::2]
    assert len(set(digests)) == 3
