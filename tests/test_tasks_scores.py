"""Scores of one item against numbers worked by hand."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.metrics import mean, perplexity
from lm_eval.tasks.qasper.metrics import f1_abstractive

from tda.tasks import scores
from tda.tasks.catalogue import CATALOGUE


def test_rouge_by_hand() -> None:
    # Six words each. All six are shared. Of five pairs each, "on the", "the mat" and "the cat" are shared.
    # The longest common subsequence has three words ("on the mat").
    found = scores.rouge(["The cat sat on the mat."], "on the mat\nsat the cat")
    assert found == pytest.approx({"rouge1": 1.0, "rouge2": 3 / 5, "rougeL": 3 / 6})


def test_rouge_of_unequal_lengths() -> None:
    # Of 4 and 6 words 3 are shared: 2 * 3 / (4 + 6). Of 3 and 5 pairs 2 are: 2 * 2 / (3 + 5).
    found = scores.rouge(["the cat sat on the mat"], "the cat sat down")
    assert found == pytest.approx({"rouge1": 0.6, "rouge2": 0.5, "rougeL": 0.6})


def test_rouge_on_stems_and_best_reference() -> None:
    # "jumping" and "jumped" have one stem. The second reference shares nothing.
    assert scores.rouge(["jumping cats", "nothing"], "jumped cat")["rouge2"] == 1.0
    assert scores.rouge(["other words"], "jumped cat") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}
    assert scores.rouge(["other words"], "") == {"rouge1": 0.0, "rouge2": 0.0, "rougeL": 0.0}


def test_qasper_by_hand() -> None:
    # Without article, case and comma: bert base model / bert model large. Two of three are shared: 2 * 2 / (3 + 3).
    assert scores.token_f1("The BERT base model", "a BERT model, large") == pytest.approx(2 / 3)
    assert scores.qasper(["something else", "The BERT base model"], "a BERT model, large") == pytest.approx(
        {"f1": 2 / 3}
    )
    # A word counts as often as it stands in both: one of two against one of one.
    assert scores.token_f1("cat cat", "cat") == pytest.approx(2 * 1 / (2 + 1))
    assert scores.token_f1("the", "a") == scores.token_f1("cat", "") == 0.0


@given(*[st.lists(st.sampled_from(["a", "The", "cat", "Cat,", "sat", "on!", "mats"]), max_size=6).map(" ".join)] * 2)
def test_f1_against_lm_eval(answer: str, output: str) -> None:
    assert scores.token_f1(answer, output) == pytest.approx(f1_abstractive([output], [answer]))


def test_coqa_by_hand() -> None:
    # Against "at home" alone: exact 0, F1 2 * 1 / (2 + 1). Against "home" alone: 1 and 1. The mean of both.
    found = scores.coqa(["home", "at home"], " Home.\n\nQ: Who?")
    assert found == pytest.approx({"em": 0.5, "f1": (2 / 3 + 1) / 2})
    # Three: "home" right, "house" and "flat" wrong. It is left out once: (0 + 1 + 1) / 3.
    assert scores.coqa(["home", "house", "flat"], "home") == pytest.approx({"em": 2 / 3, "f1": 2 / 3})
    assert scores.coqa(["home"], "") == {"em": 0.0, "f1": 0.0}
    assert scores.coqa(["The."], "a") == {"em": 1.0, "f1": 1.0}  # as SQuAD has it: neither holds a word


def test_names_of_scores() -> None:
    assert scores.score_name("exact_match", "strict-match") == "exact_match_strict_match"
    assert scores.score_name("acc_norm", "none") == "acc_norm"
    assert scores.score_name("pass@1", "none") == "pass_1"
    assert set(scores.plain_name("leaderboard::math-hard (x)")) <= set(string.ascii_letters + string.digits + "_")


def test_a_value_of_an_item() -> None:
    assert scores.of_item("acc", True, averaged=True, higher=True) == ("acc", 1.0)
    # -16 nats over 8 bytes: 16 / (8 ln 2) bits a byte.
    bits = scores.of_item("bits_per_byte", (-16.0, 8), averaged=False, higher=False)
    assert bits is not None
    assert bits == ("bits_per_byte", pytest.approx(2 / math.log(2)))
    assert scores.of_item("perplexity", -2.5, averaged=False, higher=False) == ("nll", 2.5)


@pytest.mark.parametrize(
    ("metric", "value", "averaged", "higher"),
    [
        ("mcc", (0, 1), False, True),
        ("word_perplexity", (-16.0, 3), False, False),
        ("ter", 0.4, True, False),
        ("median", 0.4, False, True),
        ("bits_per_byte", (0.0, 0), False, False),
    ],
)
def test_what_is_no_mean_of_items_is_left_out(metric: str, value: object, averaged: bool, higher: bool) -> None:
    assert scores.of_item(metric, value, averaged=averaged, higher=higher) is None


def test_what_lm_eval_averages() -> None:
    assert scores.is_mean(None)
    assert scores.is_mean(mean)
    assert not scores.is_mean(perplexity)


def test_our_tasks_give_the_scores_that_they_name() -> None:
    for entry in CATALOGUE.values():
        if entry.own is not None:
            assert set(entry.own.scorer(["a cat"], "a cat")) == set(entry.own.metrics)
            assert entry.headline in entry.own.metrics
