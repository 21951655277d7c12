"""Tasks asked and scored through lm-eval: all ten on local lines and on the hub's own fields, by hand-worked items."""

import json
import logging
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import lm_eval.tasks
import pytest
import tiny_tokenizers
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from task_rows import ROWS, Played, write_lines
from transformers import LlamaConfig, LlamaForCausalLM

from tda.tasks import Ask, Item, TaskResult, harness
from tda.tasks.catalogue import CATALOGUE
from tda.tasks.harness import load
from tda.tasks.hub import answers
from tda.tasks.local import examples_path
from tda.tasks.quiet import quiet
from tda.tasks.run import PreparedTask, evaluate, prepare

SPLITS = ("train", "dev", "validation", "test")
TASKS = Path(lm_eval.tasks.__file__).parent
CHOICES: list[dict[str, Any]] = [
    {"query": f"Question {number}: which?", "choices": ["the first", "second"], "gold": number % 2}
    for number in range(6)
]


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A test that expects records looks at them and clears them."""
    caplog.set_level(logging.INFO, "tda")
    yield
    assert [record.getMessage() for record in caplog.get_records("call")] == []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], list[tuple[str, str | None]]]:
    """Lets the hub answer with given rows in every split; what is asked of it comes back."""
    monkeypatch.setattr("tda.tasks.hub.answers", lambda endpoint: True)

    def plays(row: dict[str, Any]) -> list[tuple[str, str | None]]:
        asked: list[tuple[str, str | None]] = []

        def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
            asked.append((path, name))
            return datasets.DatasetDict({split: datasets.Dataset.from_list([row]) for split in SPLITS})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return plays


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lm-eval's tasks of two folders in place of all, which take seconds to read."""
    folders = [TASKS / name for name in ("hellaswag", "lambada", "wikitext", "arc", "winogrande")]
    few = TaskManager(include_defaults=False, include_path=folders)
    whole = harness.index
    monkeypatch.setattr(harness, "index", lambda folder=None: few if folder is None else whole(folder))
    return


def likelihood_of(answer: str) -> Callable[[str, str], float]:
    """Takes the choice that holds a text for likely."""
    return lambda prompt, choice: -1.0 if answer in choice else -50.0


def only(results: list[TaskResult]) -> TaskResult:
    (result,) = results
    return result


def played_for(name: str, right: bool) -> Played:
    """A model that knows the row's answer, or another."""
    expected = ROWS[name]
    if expected.choices:
        wrong = next(choice for choice in expected.choices if expected.target not in choice)
        return Played(likelihood_of(expected.target if right else wrong))
    answers = json.loads(expected.target) if expected.target.startswith("[") else [expected.target]
    return Played(answer=lambda prompt: f" {answers[-1]}" if right else " Unlike.")


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_hub_is_asked_and_scored(
    name: str, hub: Callable[[dict[str, Any]], list[tuple[str, str | None]]], tmp_path: Path
) -> None:
    """The catalogue's data set through the task's own definition; the same line in a file gives the same item."""
    expected, entry = ROWS[name], CATALOGUE[name]
    asked = hub(expected.row)
    for right in (True, False):
        result = only(evaluate(played_for(name, right), [Ask(name, shots=0)]))
        assert result.generated == (entry.kind == "generation")
        (item,) = result.items
        assert item.prompt == expected.prompt
        assert item.target == expected.target
        assert (item.output.strip() == item.target.strip()) == (right and not expected.target.startswith("["))
        assert item.scores[entry.headline] == pytest.approx(expected.best if right else 0.0)
        assert len(item.likelihoods) == len(expected.choices)
        assert (item.tokens, item.sparse_tokens) == ((4 * len(expected.choices)) or 4, (3 * len(expected.choices)) or 3)
        assert result.facts.sparse_share == 0.75
    assert set(asked) == {(entry.dataset, entry.subset)}
    assert result.facts.source == " ".join(filter(None, (entry.dataset, entry.subset)))
    local = Ask(name, write_lines(tmp_path / "items.jsonl", [expected.row]), shots=0)
    again = only(evaluate(played_for(name, False), [local]))
    assert again.items == result.items
    assert (again.facts.digest, again.facts.source) == (result.facts.digest, "items.jsonl")
    assert prepare([local])[0].content.items[0].choices == expected.choices


@pytest.mark.parametrize("name", ROWS)
def test_the_simple_shape_is_asked_and_scored(name: str, tmp_path: Path) -> None:
    """The same text in the simple shape: the prompt as it stands there, each choice after a space."""
    expected, entry = ROWS[name], CATALOGUE[name]
    if entry.kind == "choice":
        choices = [choice.strip() for choice in expected.choices]
        row: dict[str, Any] = {"query": expected.prompt, "choices": choices, "gold": choices.index(expected.target)}
    else:
        answers = json.loads(expected.target) if expected.target.startswith("[") else [expected.target]
        row = {"prompt": expected.prompt, "answers": answers}
    ask = Ask(name, write_lines(tmp_path / "items.jsonl", [row]), shots=0)
    for right in (True, False):
        (item,) = only(evaluate(played_for(name, right), [ask])).items
        assert (item.prompt, item.target) == (expected.prompt, expected.target)
        assert item.scores[entry.headline] == pytest.approx(expected.best if right else 0.0)
        if entry.kind == "choice":
            assert prepare([ask])[0].content.items[0].choices == tuple(f" {choice}" for choice in choices)


def test_splits_are_those_of_the_definitions(hub: Callable[[dict[str, Any]], Any]) -> None:
    for name, entry in CATALOGUE.items():
        hub(ROWS[name].row)
        (loaded,) = load(Ask(name, shots=0))
        assert (loaded.task.config.test_split or loaded.task.config.validation_split) == entry.split
        assert entry.own is None or entry.own.examples != entry.split
        kinds = {"multiple_choice": "choice", "generate_until": "generation"}
        assert kinds[loaded.task.OUTPUT_TYPE] == entry.kind


@pytest.mark.parametrize(
    ("name", "stop", "tokens"),
    [("xsum", ["\n\n"], 64), ("cnn_dailymail", ["\n\n"], 128), ("qasper", ["\n"], 256), ("coqa", ["\nQ:"], 256)],
)
def test_how_answers_end(name: str, stop: list[str], tokens: int, hub: Callable[[dict[str, Any]], Any]) -> None:
    hub(ROWS[name].row)
    (prepared,) = prepare([Ask(name)])
    (request,) = prepared.loaded.task.instances
    assert request.args[1] == {"until": stop, "max_gen_toks": tokens, "do_sample": False}


def test_gsm8k_by_hand(tmp_path: Path) -> None:
    """Only what stands after "####" counts strictly; the last number counts flexibly."""
    rows = [
        {"prompt": f"Question: {number}?\nAnswer:", "answers": [f"So.\n#### {number}"]} for number in (41, 42, 1_043)
    ]
    outputs = {41: " It is 41.", 42: " 6*7\n#### 42", 1043: " #### 1,043 and 7"}
    lm = Played(answer=lambda prompt: outputs[int(prompt.split()[1][:-1])])
    result = only(evaluate(lm, [Ask("gsm8k", write_lines(tmp_path / "i.jsonl", rows), shots=0)]))
    assert [item.scores["exact_match_strict_match"] for item in result.items] == [0.0, 1.0, 1.0]
    assert [item.scores["exact_match_flexible_extract"] for item in result.items] == [1.0, 1.0, 0.0]
    assert [item.output for item in result.items] == list(outputs.values())
    assert set(result.measurements()) == {
        "task_gsm8k_exact_match_strict_match",
        "task_gsm8k_exact_match_flexible_extract",
        "task_gsm8k_output_tokens",
    }


def test_normalised_accuracy_by_hand(tmp_path: Path) -> None:
    """A long choice of -12 is less likely than a short one of -10, and more so by the character: 12/12 against 10/4."""
    row = {"query": "Which?", "choices": ["abcd", "abcdefghijkl"], "gold": 1}
    lm = Played(lambda prompt, choice: -12.0 if len(choice) > 5 else -10.0)
    result = only(evaluate(lm, [Ask("hellaswag", write_lines(tmp_path / "i.jsonl", [row]))]))
    assert result.items[0].scores == {"acc": 0.0, "acc_norm": 1.0}
    assert result.items[0].likelihoods == (-10.0, -12.0)
    assert result.items[0].output == "abcd"


# --- few-shot examples, limits, chat


def test_examples_come_from_the_file_beside(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "items.jsonl", CHOICES[:2])
    write_lines(examples_path(path), CHOICES[3:])
    for item in prepare([Ask("hellaswag", path, shots=2)])[0].content.items:
        first, second, question = item.prompt.split("\n\n")
        shown = {f"{row['query']} {row['choices'][row['gold']]}" for row in CHOICES[3:]}
        assert {first, second} < shown
        assert first != second
        assert question == item.question == item.bare == CHOICES[item.number]["query"]


@pytest.mark.parametrize("name", ["hellaswag", "boolq"])
def test_an_item_is_no_example_for_itself(name: str, tmp_path: Path) -> None:
    """With as many examples as there are other items, each item sees all the others, and never itself."""
    ask = Ask(name, write_lines(tmp_path / "items.jsonl", CHOICES), shots=5)
    for item in prepare([ask])[0].content.items:
        assert item.prompt.count(CHOICES[item.number]["query"]) == 1
        assert all(row["query"] in item.prompt for row in CHOICES)
    with pytest.raises(ValueError, match=r"items\.jsonl .*5 examples .* 6 "):
        prepare([Ask(name, ask.data, shots=6)])


def test_an_item_of_the_hub_is_no_example_for_itself(
    monkeypatch: pytest.MonkeyPatch, hub: Callable[[dict[str, Any]], Any]
) -> None:
    """lm-eval draws from the asked split, and leaves the item itself out only where that split is called test."""
    hub({"text": ""})
    rows = datasets.Dataset.from_list(CHOICES)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({"validation": rows}))
    own = harness.ConfigurableTask

    def built(config: dict[str, Any]) -> Any:
        shape = {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold", "process_docs": None}
        where = {"test_split": None, "validation_split": "validation", "fewshot_split": "validation"}
        scored = {"output_type": "multiple_choice", "process_results": None, "generation_kwargs": None}
        metrics = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
        return own(config={**config, **shape, **where, **scored, "metric_list": metrics})

    monkeypatch.setattr(harness, "ConfigurableTask", built)
    for item in prepare([Ask("xsum", shots=5)])[0].content.items:
        assert item.prompt.count(CHOICES[item.number]["query"]) == 1


def test_examples_asked_of_tasks_without(hub: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hub(ROWS["piqa"].row)
    monkeypatch.setattr(harness.ConfigurableTask, "get_config", lambda self, key: 0)
    with pytest.raises(ValueError, match=r"task piqa .*examples, got 2"):
        prepare([Ask("piqa", shots=2)])


def test_gsm8k_has_five_examples_of_its_own(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question: {number}?\nAnswer:", "answers": [f"#### {number}"]} for number in range(8)]
    (prepared,) = prepare([Ask("gsm8k", write_lines(tmp_path / "items.jsonl", rows))])
    assert {item.prompt.count("####") for item in prepared.content.items} == {5}
    result = only(evaluate(Played(answer=lambda prompt: ""), [prepared]))
    assert result.facts.shots == 5


def test_prepared_tasks_are_run_again_and_alike(tmp_path: Path) -> None:
    """Whatever random numbers were drawn in between, and equal to what is prepared anew."""
    path = write_lines(tmp_path / "items.jsonl", CHOICES)
    prepared = prepare([Ask("piqa", path, shots=2, items=4)])
    lm = Played(likelihood_of("first"))
    first = evaluate(lm, prepared)
    random.random()
    assert evaluate(lm, prepared) == first
    assert evaluate(lm, [Ask("piqa", path, shots=2, items=4)]) == first
    assert [item.number for item in first[0].items] == [0, 1, 2, 3]
    assert first[0].facts.items == 4
    assert first[0].items[0].scores["acc"] == 1.0


def test_the_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    def digest(rows: list[dict[str, Any]], **how: Any) -> str:
        path = write_lines(tmp_path / "items.jsonl", rows)
        return prepare([Ask("piqa", path, **how)])[0].digest

    first = digest(CHOICES)
    changed = [{**CHOICES[0], **change} for change in ({"query": "Other"}, {"gold": 1}, {"choices": ["a", "second"]})]
    others = [digest([row, *CHOICES[1:]]) for row in changed] + [digest(CHOICES, shots=1), digest(CHOICES, items=5)]
    assert len({first, *others}) == 6
    assert digest(CHOICES) == first


def test_items_asked_otherwise_than_prepared(tmp_path: Path) -> None:
    prepared = prepare([Ask("piqa", write_lines(tmp_path / "items.jsonl", CHOICES))])
    prepared[0].loaded.task.set_config("target_delimiter", ": ")
    with pytest.raises(ValueError, match=r"task piqa: .*another way"):
        evaluate(Played(likelihood_of("first")), prepared)


@pytest.fixture(scope="module")
def model() -> HFLM:
    """lm-eval's own model on a tiny network whose tokenizer has a chat template."""
    tokenizer = tiny_tokenizers.build.__wrapped__("qwen")  # one of its own: the built one is shared
    tokenizer.chat_template = (
        "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, num_key_value_heads=2, **sizes)
    return HFLM(pretrained=LlamaForCausalLM(config).eval(), tokenizer=tokenizer, batch_size=2, device="cpu")


def test_chat_template(model: HFLM, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "items.jsonl", CHOICES)
    ask = Ask("piqa", path, shots=1, items=2, chat=True)
    (prepared,) = prepare([ask], model.tokenizer)
    result = only(evaluate(model, [prepared]))
    turn = "<|im_start|>{}\n{}<|im_end|>\n"
    for item in result.items:
        example = next(row for row in CHOICES if row["query"] in item.prompt and row != CHOICES[item.number])
        turns = [("user", example["query"]), ("assistant", example["choices"][example["gold"]])]
        turns.append(("user", CHOICES[item.number]["query"]))
        assert item.prompt == "".join(turn.format(*each) for each in turns) + "<|im_start|>assistant\n"
        # dense: nothing sparse, and the choices' own tokens
        counted = sum(len(model.tok_encode(choice)) for choice in prepared.content.items[item.number].choices)
        assert (item.tokens, item.sparse_tokens) == (counted, 0)
    assert prepared.content.items[0].choices == ("the first", "second")  # an answer is a turn: no space before it
    assert only(evaluate(model, [ask])) == result


def test_no_chat_template(tmp_path: Path) -> None:
    ask = Ask("piqa", write_lines(tmp_path / "items.jsonl", CHOICES), chat=True)
    with pytest.raises(ValueError, match=r"task piqa .*chat template"):
        prepare([ask], tiny_tokenizers.build("qwen"))
    with pytest.raises(ValueError, match="no chat template"):
        evaluate(Played(), [ask])


def test_likelihoods_against_the_model_itself(model: HFLM, tmp_path: Path) -> None:
    """Token by token, from logits, on a choice and on a generated answer."""
    path = write_lines(tmp_path / "items.jsonl", CHOICES)
    (item, *_) = only(evaluate(model, [Ask("piqa", path, items=1)])).items
    for choice, likelihood in zip([" the first", " second"], item.likelihoods, strict=True):
        front, behind = (model.tokenizer(text, add_special_tokens=False).input_ids for text in (item.prompt, choice))
        with torch.no_grad():
            logits = model.model(torch.tensor([front + behind])).logits[0].double().log_softmax(-1)
        told = sum(float(logits[len(front) + place - 1, token]) for place, token in enumerate(behind))
        assert likelihood == pytest.approx(told, abs=1e-4)


def test_progress_and_notes_stay_quiet(model: HFLM, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evaluate(model, [Ask("piqa", write_lines(tmp_path / "items.jsonl", CHOICES), shots=1)])
    assert capfd.readouterr() == ("", "")


def test_real_warnings_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lm_eval")
    before = logger.handlers, logger.level, logger.propagate
    with quiet():
        for _ in range(2):
            logging.getLogger("lm_eval.api.task").warning("a label is\n  wrong")
        logging.getLogger("lm_eval.api.task").warning("x: No `until` specified in `generation_kwargs`!")
        logging.getLogger("lm_eval.evaluator").info("a note")
    assert caplog.record_tuples == [("tda.tasks.quiet", logging.WARNING, "lm-eval: a label is wrong")]
    caplog.clear()
    assert (logger.handlers, logger.level, logger.propagate) == before


# --- lm-eval's other tasks


@pytest.mark.usefixtures("few_tasks")
def test_lm_evals_tasks_by_their_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Perplexity of answers becomes each answer's likelihood; of rolling text, each document's bits per byte stay."""
    path = write_lines(tmp_path / "words.jsonl", [{"text": "a b c"}, {"text": "d e"}])
    result = only(evaluate(Played(lambda prompt, word: -2.5), [Ask("lambada_openai", path)]))
    assert [(item.prompt, item.target, item.scores) for item in result.items] == [
        ("a b", " c", {"nll": 2.5, "acc": 0.0}),
        ("d", " e", {"nll": 2.5, "acc": 0.0}),
    ]
    path = write_lines(tmp_path / "pages.jsonl", [{"page": "abcdefgh"}])
    result = only(evaluate(Played(lambda _, text: -16.0), [Ask("wikitext", path)]))
    assert result.items[0].scores == {"bits_per_byte": pytest.approx(2.0 / 0.6931471805599453)}
    (once,) = caplog.messages
    assert re.fullmatch("task wikitext: left out, .*: word_perplexity, byte_perplexity", once)
    caplog.clear()
    assert (result.items[0].prompt, result.items[0].target) == ("", "abcdefgh")


@pytest.mark.usefixtures("few_tasks")
def test_choices_within_the_prompt(tmp_path: Path) -> None:
    """Winogrande weighs one ending after two beginnings."""
    row = {
        "sentence": "The cat ate the fish as _ was hungry.",
        "option1": "the cat",
        "option2": "the fish",
        "answer": "1",
    }
    path = write_lines(tmp_path / "items.jsonl", [row])
    lm = Played(lambda prompt, ending: -1.0 if prompt.endswith("the cat") else -2.0)
    (item,) = only(evaluate(lm, [Ask("winogrande", path)])).items
    beginnings = [f"The cat ate the fish as the {word}" for word in ("cat", "fish")]
    assert json.loads(item.prompt) == beginnings
    assert (item.output, item.target, item.scores["acc"]) == (beginnings[0], beginnings[0], 1.0)


@pytest.mark.usefixtures("few_tasks")
def test_groups_stand_for_their_tasks(hub: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    hub(ROWS["arc_challenge"].row)
    found = prepare([Ask("ai2_arc", shots=0)])
    assert [task.content.name for task in found] == ["arc_challenge", "arc_easy"]
    with pytest.raises(ValueError, match=r"ai2_arc .*group of tasks"):
        prepare([Ask("ai2_arc", write_lines(tmp_path / "items.jsonl", CHOICES))])
    with pytest.raises(ValueError, match="the task arc_easy is asked twice"):
        prepare([Ask("ai2_arc"), Ask("arc_easy")])


@pytest.mark.usefixtures("few_tasks")
def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"'hellaswga'; .*hellaswag\b.*: xsum, cnn"):
        prepare([Ask("hellaswga")])
    with pytest.raises(ValueError, match=r"unknown task 'qqqqqqqq'\. By our names"):
        prepare([Ask("qqqqqqqq")])
    for wrong in (Ask("piqa", shots=-1), Ask("piqa", items=0)):
        with pytest.raises(ValueError, match=r"task piqa: .* got"):
            prepare([wrong])


@pytest.mark.slow
def test_all_of_lm_evals_names(hub: Callable[[dict[str, Any]], Any]) -> None:
    """The whole index: a group of groups, and that our folders hold what the catalogue says."""
    row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "x"}
    hub(row)
    found = prepare([Ask("mmlu", shots=0)])
    assert len(found) == 57
    assert all(task.content.name.startswith("mmlu_") for task in found)
    for entry in CATALOGUE.values():
        if entry.harness is not None and entry.folder is not None:
            assert harness.index().task_index[entry.harness].yaml_path.parent == TASKS / entry.folder
            assert entry.harness in harness.index(entry.folder).task_index


# --- data that cannot be had


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is tried: the sentence names task, data set and what a local line looks like."""
    monkeypatch.setattr("tda.tasks.hub.answers", lambda endpoint: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name, shape in (("xsum", r'\{"prompt"'), ("copa", r'\{"query"')):
        entry = CATALOGUE[name]
        source = " ".join(filter(None, (entry.dataset, entry.subset)))
        with pytest.raises(ValueError, match=rf"task {name}: .*{source} .*not answer.* {shape}"):
            prepare([Ask(name)])
    assert not datasets.config.HF_HUB_OFFLINE


def test_offline_by_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot be had from the Hugging Face hub \(ConnectionError: .*Offline"):
        prepare([Ask("boolq")])


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert not answers("http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert answers("http://127.0.0.1:9")  # asked through the proxy, which may know the way


def test_lines_that_do_not_suit(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    write_lines(path, [{**ROWS["hellaswag"].row, "label": "first"}])
    with pytest.raises(ValueError, match=r"items\.jsonl: .*task hellaswag \(ValueError"):
        prepare([Ask("hellaswag", path)])
    write_lines(path, [ROWS["hellaswag"].row, {**ROWS["hellaswag"].row, "label": "2"}])
    with pytest.raises(ValueError, match=r"items\.jsonl: .*answer of item 1 "):
        prepare([Ask("hellaswag", path)])
    write_lines(path, [{**ROWS["hellaswag"].row, "endings": []}])
    with pytest.raises(ValueError, match=r"items\.jsonl: .*task hellaswag"):
        prepare([Ask("hellaswag", path)])


def test_copies_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lines(tmp_path / "items.jsonl", [*CHOICES, *CHOICES[:2]])
    assert len(prepare([Ask("piqa", path)])[0].content.items) == 6
    (once,) = caplog.messages
    assert once.startswith(f"{path}: 2 lines ")
    caplog.clear()


def test_hellaswag_from_the_shared_file(shared_data: Path, tmp_path: Path) -> None:
    """600 real questions to a model that likes the longest ending."""
    lines = (shared_data / "hellaswag_600.txt").read_text().split("\n")
    starts = range(0, 6 * 600, 6)
    rows = [{"query": lines[at], "gold": int(lines[at + 1]), "choices": lines[at + 2 : at + 6]} for at in starts]
    path = write_lines(tmp_path / "items.jsonl", rows)
    prepared: list[PreparedTask] = prepare([Ask("hellaswag", path)])
    items = only(evaluate(Played(lambda prompt, choice: float(len(choice))), prepared)).items
    assert [item.number for item in items] == list(range(600))
    longest = [max(row["choices"], key=len) for row in rows]
    assert [item.output for item in items] == longest
    right = [float(row["choices"][row["gold"]] == choice) for row, choice in zip(rows, longest, strict=True)]
    assert [item.scores["acc"] for item in items] == right
    assert isinstance(items[0], Item)
