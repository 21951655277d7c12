"""Fitted methods: what text gives them is their state, which goes to disk and back, and nowhere else."""

import json
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import tda
from tda.contracts import Method
from tda.methods import METHODS
from tda.thresholds import Thresholds

NEEDY = [name for name, kind in METHODS.items() if kind().needs_fit]


def batches() -> list[dict[str, Tensor]]:
    return [{"input_ids": tiny.text(4, 24, seed=number)} for number in range(2)]


def fitted(name: str = "tda", **options: Any) -> Method:
    return METHODS[name](**options).fit(tiny.model("llama"), batches())


def choices(method: Method) -> list[Tensor]:
    """What a method keeps after a prompt and one step."""
    model: Any = tiny.model("llama")
    with torch.no_grad(), tda.attach(model, method, execution="masked") as run:
        cache = tiny.new_cache(model)
        model(tiny.text(1, 9, seed=7), **tiny.on(model, cache))
        model(tiny.text(1, 1), **tiny.on(model, cache))
        return run.selection()


@pytest.mark.parametrize("name", NEEDY)
def test_fit_gives_a_copy_that_runs_where_the_method_itself_does_not(name: str) -> None:
    method = METHODS[name]()
    found = method.fit(tiny.model("llama"), batches())
    assert method.thresholds is None
    assert found == method
    assert found.spec == method.spec
    assert hash(found) == hash(method)
    assert found.thresholds == tda.calibrate(tiny.model("llama"), method, batches(), progress=False)
    assert choices(found)
    with pytest.raises(ValueError, match=f"'{name}' needs thresholds: method.fit"):
        choices(method)


def test_what_needs_no_text_is_its_own_fit() -> None:
    for name in METHODS.keys() - set(NEEDY):
        method = METHODS[name]()
        assert method.fit(tiny.model("llama"), batches()) is method


def test_fitting_a_fitted_method_starts_anew() -> None:
    other = [{"input_ids": tiny.text(4, 24, seed=90)}]
    again = fitted().fit(tiny.model("llama"), other)
    assert again.thresholds == tda.calibrate(tiny.model("llama"), tda.TDA(), other, progress=False)


def test_batches_that_come_once_are_enough() -> None:
    assert tda.TDA().fit(tiny.model("llama"), iter(batches())).thresholds == fitted().thresholds


class TestTexts:
    """Texts are tokenized one by one."""

    @staticmethod
    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [1 + ord(letter) % 60 for letter in text]}

    def test_they_are_what_their_tokens_are(self) -> None:
        texts = ["The quick brown fox", "jumps over the lazy dog, twice"]
        tokens = [{"input_ids": torch.tensor([self.tokenizer(text)["input_ids"]])} for text in texts]
        model = tiny.model("llama")
        assert tda.TDA().fit(model, texts, self.tokenizer).thresholds == tda.TDA().fit(model, tokens).thresholds

    def test_they_need_a_tokenizer(self) -> None:
        with pytest.raises(TypeError, match=r"method\.fit\(model, texts, tokenizer\)"):
            tda.TDA().fit(tiny.model("llama"), ["some text"])

    def test_one_text_is_not_taken_letter_by_letter(self) -> None:
        with pytest.raises(TypeError, match=r"method\.fit\(model, \[text, \.\.\.\], tokenizer\)"):
            tda.TDA().fit(tiny.model("llama"), "The quick brown fox", self.tokenizer)

    def test_one_batch_is_one_batch(self) -> None:
        """Not the names of its fields; also as tokenizers give it."""
        batch = batches()[0]
        wanted = tda.TDA().fit(tiny.model("llama"), [batch]).thresholds
        for given in (batch, UserDict(batch), [UserDict(batch)], {**batch, "attention_mask": None}):
            assert tda.TDA().fit(tiny.model("llama"), given).thresholds == wanted
        lists: Any = {"input_ids": batch["input_ids"].tolist()}
        with pytest.raises(TypeError, match="a calibration batch is"):
            tda.TDA().fit(tiny.model("llama"), lists)

    def test_not_while_a_method_is_attached(self) -> None:
        for name in ("llama", "mixtral"):
            model = tiny.build(name)
            with tda.attach(model, tda.Griffin()), pytest.raises(ValueError, match="calibrate outside"):
                tda.TT().fit(model, batches())

    def test_the_model_comes_first(self) -> None:
        texts: Any = ["a text"]
        with pytest.raises(TypeError, match="the model comes first"):
            tda.TDA().fit(texts, tiny.model("llama"), self.tokenizer)

    def test_long_ones_are_cut_where_the_context_ends(self) -> None:
        long, model = "The quick brown fox. " * 20, tiny.model("llama")
        cut = [{"input_ids": torch.tensor([self.tokenizer(long)["input_ids"][:128]])}]
        assert tda.TDA().fit(model, [long], self.tokenizer).thresholds == tda.TDA().fit(model, cut).thresholds

    def test_they_do_not_mix_with_tokens(self) -> None:
        with pytest.raises(TypeError, match="not both"):
            tda.TDA().fit(tiny.model("llama"), ["some text", *batches()], self.tokenizer)


@pytest.mark.parametrize("name", [*NEEDY, "griffin", "int8"])
def test_what_was_saved_is_loaded(name: str, tmp_path: Path) -> None:
    method = fitted(name)
    method.save_pretrained(tmp_path / "deep" / "one")
    loaded = tda.load_method(tmp_path / "deep" / "one")
    assert loaded == method
    assert type(loaded) is type(method)
    assert loaded.thresholds == method.thresholds
    if name != "int8":
        pairs = zip(choices(loaded), choices(method), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_folder_holds_what_was_saved_last(tmp_path: Path) -> None:
    fitted().save_pretrained(tmp_path)
    tda.TDA(rows="shared").save_pretrained(tmp_path)
    loaded = tda.load_method(tmp_path)
    assert loaded == tda.TDA(rows="shared")
    assert loaded.thresholds is None


def test_a_folder_that_is_called_like_a_method_hides_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "griffin").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tda.load_method("griffin") == tda.Griffin()
    tda.Griffin(sparsity=0.25).save_pretrained("griffin")
    assert tda.load_method("griffin") == tda.Griffin(sparsity=0.25) == tda.load_method("griffin/method.json")


def test_thresholds_lie_in_the_folder_of_their_method(tmp_path: Path) -> None:
    method = fitted()
    method.save_pretrained(tmp_path)
    assert tda.Thresholds.load(tmp_path) == method.thresholds
    with pytest.raises(FileNotFoundError, match="nope; `tda calibrate --out FILE`"):
        tda.Thresholds.load(tmp_path / "nope")


def test_a_spec_is_a_method_that_is_not_fitted() -> None:
    loaded = tda.load_method("tda:sparsity=0.25,statistic=max")
    assert loaded == tda.TDA(sparsity=0.25, statistic="max")
    assert loaded.thresholds is None


class TestOlderArtifacts:
    """A file of thresholds is loaded as the method that it was made for, or the sentence says what to do."""

    def written(self, tmp_path: Path, **changes: Any) -> Path:
        path = tmp_path / "old.json"
        found = json.loads(fitted().fitted.model_dump_json())
        found["method"] |= changes
        for name in [name for name, value in changes.items() if value is None]:
            del found["method"][name]
        path.write_text(json.dumps(found))
        return path

    def test_it_is_loaded(self, tmp_path: Path) -> None:
        loaded = tda.load_method(self.written(tmp_path))
        assert loaded == tda.TDA()
        assert loaded.thresholds == fitted().thresholds

    def test_an_option_that_it_does_not_know_has_its_default(self, tmp_path: Path) -> None:
        path = self.written(tmp_path, source=None)
        assert tda.load_method(path) == tda.TDA()
        tda.TDA().with_thresholds(Thresholds.load(path))
        with pytest.raises(ValueError, match="were calibrated for"):
            tda.TDA(source="gate").with_thresholds(Thresholds.load(path))

    def test_an_option_that_is_gone_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"'colour'.*calibrate anew"):
            tda.load_method(self.written(tmp_path, colour="blue"))

    def test_a_method_that_is_gone_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"'tdx'.*calibrate anew"):
            tda.load_method(self.written(tmp_path, name="tdx"))


class TestWrongSources:
    @pytest.mark.parametrize("source", ["no/such/folder", Path("nothing")])
    def test_a_missing_place_is_named(self, source: str | Path) -> None:
        with pytest.raises(ValueError, match=r"there is no .*save_pretrained"):
            tda.load_method(source)

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"has no method\.json"):
            tda.load_method(tmp_path)

    def test_a_damaged_spec(self, tmp_path: Path) -> None:
        fitted().save_pretrained(tmp_path)
        (tmp_path / "method.json").write_text('{"name": ')
        with pytest.raises(ValueError, match=r"method\.json is no method"):
            tda.load_method(tmp_path)

    def test_thresholds_of_another_method(self, tmp_path: Path) -> None:
        fitted().save_pretrained(tmp_path)
        fitted("tt").fitted.save(tmp_path / "thresholds.json")
        with pytest.raises(ValueError, match=r"calibrated for tt\(.* tda\("):
            tda.load_method(tmp_path)

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ValueError, match="unknown method 'griffon'"):
            tda.load_method("griffon:sparsity=0.5")


def test_text_that_it_was_fitted_on_is_refused_in_scoring() -> None:
    rows = tiny.text(4, 24, seed=0)
    with pytest.raises(ValueError, match="calibration"):
        tda.score(tiny.model("llama"), fitted(), rows[:, :16], rows[:, 16:])


def test_a_bench_takes_a_method_as_it_was_fitted(tmp_path: Path) -> None:
    """No other text is asked of it, and its record says by digest what it was fitted with."""
    from tda.bench.planning import plan_for
    from tda.bench.prepare import prepare

    model = tiny.build("llama", vocab_size=300)

    def prepared(method: Method) -> tuple[Method, Any]:
        plan = plan_for([(model, None)], [method], {"prompt_tokens": 8, "new_tokens": 4, "documents": 1, "rounds": 1})
        return prepare(plan, plan.subjects[0]).methods[-1]

    one, other = (tda.TDA().fit(model, [{"input_ids": tiny.text(4, 24, seed=seed)}]) for seed in (3, 4))
    found, inputs = prepared(one)
    assert found.thresholds == one.thresholds
    assert inputs.calibration not in (None, prepared(other)[1].calibration, prepared(tda.TDA())[1].calibration)
    with pytest.raises(ValueError, match="belong to"):
        prepared(fitted())
