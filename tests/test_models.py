"""Models by name: shapes with the sizes they claim, local folders, and errors that say what to do."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import tiny_tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, MistralConfig, OPTConfig

import tda
from tda.engine.identity import identify
from tda.families import FAMILIES, find_ffns
from tda.models import configuration, describe_models, is_shape, load_model, memory, parameter_count
from tda.models.shapes import SHAPES, build_shape, shape_config

# Parameters as the models' own pages and papers give them, in thousands of millions (tied weights once).
PUBLISHED = {
    "0.1b": 0.112,
    "0.3b": 0.335,
    "1b": 1.100,  # TinyLlama
    "opt-350m": 0.331,
    "25m": 0.02937,
    "opt-2.7b": 2.652,
    "gemma-2b": 2.506,
    "llama-2-7b": 6.738,
    "llama-3-8b": 8.030,
    "mistral-7b": 7.242,
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
SMALL_SHAPES: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**GATED),
    "llama-theta": lambda: LlamaConfig(**GATED, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "gemma": lambda: GemmaConfig(**GATED, head_dim=8),
    "mistral": lambda: MistralConfig(**GATED),
    "opt": lambda: OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=32),
    "opt-post-norm": lambda: OPTConfig(**SMALL, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
}


class TestShapes:
    @pytest.mark.parametrize("name", SHAPES)
    def test_parameter_count(self, name: str) -> None:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape_config(name))
        count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
        assert count == pytest.approx(PUBLISHED[name], rel=5e-3)

    @pytest.mark.parametrize("name", SHAPES)
    def test_family_is_supported(self, name: str) -> None:
        supported = [kind for family in FAMILIES.values() for kind in family.model_types]
        assert shape_config(name).model_type in supported

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("name", SMALL_SHAPES)
    def test_equals_a_normally_built_model_but_for_its_weights(
        self, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rotary frequencies, embedding scales and tied weights; with its weights, the normal model's logits."""
        monkeypatch.setitem(SHAPES, name, ("small", SMALL_SHAPES[name]))
        built: Any = build_shape(name, dtype, torch.device("cpu"))
        normal = AutoModelForCausalLM.from_config(SMALL_SHAPES[name](), dtype=dtype).eval()
        buffers = dict(normal.named_buffers())
        assert dict(built.named_buffers()).keys() == buffers.keys()
        for path, buffer in built.named_buffers():
            assert torch.equal(buffer, buffers[path]), path
            assert buffer.dtype == buffers[path].dtype
        assert [path for path, _ in built.named_parameters()] == [path for path, _ in normal.named_parameters()]
        tied = built.get_input_embeddings().weight is built.get_output_embeddings().weight
        assert tied == (normal.get_input_embeddings().weight is normal.get_output_embeddings().weight)
        assert not built.training
        assert all(p.dtype == dtype and not p.is_meta and p.requires_grad for p in built.parameters())
        normal.load_state_dict(built.state_dict())
        tokens = torch.arange(20).view(2, 10) * 7
        with torch.no_grad():
            logits = built(tokens).logits
            assert torch.equal(logits, normal(tokens).logits)
        assert logits.isfinite().all()
        assert logits.std() > 1e-3

    def test_same_seed_same_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(SHAPES, "llama", ("small", SMALL_SHAPES["llama"]))
        one, same, other = (build_shape("llama", torch.float32, torch.device("cpu"), seed) for seed in (0, 0, 1))
        for (path, a), (_, b), (_, c) in zip(*(m.named_parameters() for m in (one, same, other)), strict=True):
            assert torch.equal(a, b), path
            assert "norm" in path or not torch.equal(a, c), path
        layers: Any = one.model
        assert not torch.equal(layers.layers[0].mlp.up_proj.weight, layers.layers[1].mlp.up_proj.weight)

    def test_the_smallest_shape_generates(self) -> None:
        model, tokenizer = load_model("shape:0.1b", dtype="bfloat16")
        assert tokenizer is None
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        weight = find_ffns(model)[3].up.weight.detach().float()
        assert float(weight.std()) == pytest.approx(0.02, rel=0.02)
        assert abs(weight.mean()) < 1e-3
        with torch.no_grad(), tda.attach(model, tda.Griffin(sparsity=0.5)) as run:
            logits = model(tiny.text(1, 6)).logits
            assert logits.isfinite().all()
            assert all(int(kept.sum()) == 1024 for kept in run.selection())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model with a byte tokenizer."""
    from experiments.train import byte_tokenizer

    path = tmp_path_factory.mktemp("model")
    tiny.build("llama", vocab_size=300).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


class TestFolders:
    def test_loads_what_was_saved(self, folder: Path) -> None:
        model, tokenizer = load_model(str(folder))
        original = tiny.build("llama", vocab_size=300)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), original.parameters(), strict=True))
        assert not model.training
        assert tokenizer.padding_side == "left"
        assert tokenizer.pad_token is not None
        assert tokenizer("a").input_ids == [257, *tokenizer("a", add_special_tokens=False).input_ids]
        assert tokenizer.decode(tokenizer("Grüße, 3 €", add_special_tokens=False).input_ids) == "Grüße, 3 €"

    def test_dtype(self, folder: Path) -> None:
        for dtype in ("bfloat16", torch.bfloat16):
            model = load_model(str(folder), dtype=dtype).model
            assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    def test_a_model_has_one_identity_however_it_was_loaded(self, folder: Path, tmp_path: Path) -> None:
        """Built, saved and loaded, moved and in another dtype: thresholds of one serve the others."""
        shutil.copytree(folder, tmp_path / "moved")
        built = tiny.build("llama", vocab_size=300)
        models = [built, load_model(str(folder)).model, load_model(str(tmp_path / "moved"), dtype="bfloat16").model]
        hashes = {identify(model, find_ffns(model)).config_hash for model in models}
        assert len(hashes) == 1
        with torch.no_grad():
            models[1](tiny.text(1, 4))
            models[1].generate(tiny.text(1, 4), max_new_tokens=2)
        assert identify(models[1], find_ffns(models[1])).config_hash in hashes

    def test_pickled_weights_are_refused(self, folder: Path, tmp_path: Path) -> None:
        """A pickle could run code: a folder with pytorch_model.bin alone holds no model."""
        path = tmp_path / "pickled"
        shutil.copytree(folder, path)
        torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
        with pytest.raises(ValueError, match="cannot load model") as caught:
            load_model(str(path))
        assert "safetensors" in str(caught.value)

    @pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
    def test_missing_files(self, missing: str, folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "partial"
        shutil.copytree(folder, path)
        (path / missing).unlink()
        with pytest.raises(ValueError, match="cannot load model"):
            load_model(str(path))

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("nowhere", "no such folder"),
            ("empty", "no config.json"),
            ("file", "a file"),
            ("./nowhere", "no such folder"),
        ],
    )
    def test_a_place_without_a_model(
        self, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Said at once, and not in words about hub ids."""
        (tmp_path / "empty").mkdir()
        (tmp_path / "file").touch()
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=said):
            load_model(name if name.startswith(".") else str(tmp_path / name))

    def test_damaged_weights(self, folder: Path, tmp_path: Path) -> None:
        path = tmp_path / "damaged"
        shutil.copytree(folder, path)
        content = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="cannot load model"):
            load_model(str(path))

    @pytest.mark.parametrize("change", ["missing", "shape"])
    def test_weights_that_do_not_fit_the_config(self, change: str, folder: Path, tmp_path: Path) -> None:
        """Transformers would fill them with random numbers and go on."""
        path = tmp_path / "unlike"
        shutil.copytree(folder, path)
        weights = load_file(path / "model.safetensors")
        name = "model.layers.1.mlp.up_proj.weight"
        if change == "missing":
            del weights[name]
        else:
            weights[name] = weights[name][:, :-1].contiguous()
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="cannot load model") as caught:
            load_model(str(path))
        assert name in str(caught.value)


WHOLE = "a whole number from 1 to 2147483647"
ABSURD = {
    "far too wide": (
        {"intermediate_size": 10**12},
        f"intermediate_size in its config.json is 1000000000000; expected {WHOLE}",
    ),
    "wide as a float": ({"intermediate_size": 1e12}, f"is 1000000000000.0; expected {WHOLE}"),
    "wider than any integer": ({"intermediate_size": 10**40}, f"is 1{'0' * 40}; expected {WHOLE}"),
    "negative": ({"intermediate_size": -5}, f"intermediate_size in its config.json is -5; expected {WHOLE}"),
    "a word": ({"intermediate_size": "abc"}, f'intermediate_size in its config.json is "abc"; expected {WHOLE}'),
    "null": ({"intermediate_size": None}, f"intermediate_size in its config.json is null; expected {WHOLE}"),
    "no heads": ({"num_attention_heads": 0}, f"num_attention_heads in its config.json is 0; expected {WHOLE}"),
    "no key heads": ({"num_key_value_heads": 0}, f"num_key_value_heads in its config.json is 0; expected {WHOLE}"),
    "heads that do not divide": (
        {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None},
        "num_attention_heads in its config.json is 5; expected a divisor of hidden_size (24)",
    ),
    "key heads that do not divide": (
        {"num_key_value_heads": 3},
        "num_key_value_heads in its config.json is 3; expected a divisor of num_attention_heads (4)",
    ),
    "no layers": (
        {"num_hidden_layers": 0},
        "num_hidden_layers in its config.json is 0; expected a whole number from 1",
    ),
    "layers below none": ({"num_hidden_layers": -1}, "is -1; expected a whole number from 1 to 1000"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "is 1000000000; expected a whole number from 1 to 1000"),
    "part of a layer": ({"num_hidden_layers": 1.5}, "is 1.5; expected a whole number from 1 to 1000"),
    "a truth of layers": ({"num_hidden_layers": True}, "is true; expected a whole number from 1 to 1000"),
    "no vocabulary": ({"vocab_size": 0}, f"vocab_size in its config.json is 0; expected {WHOLE}"),
    "a list": ({"hidden_size": [24] * 99}, "is [24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, 24, …; expected"),
    "an unknown activation": ({"hidden_act": "foo"}, 'hidden_act in its config.json is "foo"; expected one of gelu,'),
    "no activation": ({"hidden_act": None}, "hidden_act"),
    "an odd head": ({"head_dim": 7}, "cannot load model"),
    "an unknown rotation": ({"rope_parameters": {"rope_type": "zz"}}, "its config.json makes no model: KeyError: 'zz'"),
    "a pad token that is none": (
        {"pad_token_id": 10**6},
        "its config.json makes no model: AssertionError: Padding_idx",
    ),
    "no kind": ({"model_type": None}, "no model_type in the model's configuration; `tda models` lists"),
    "an unknown kind": ({"model_type": "nonsense"}, "unsupported architecture 'nonsense' in the model's configuration"),
    "a kind that is a list": ({"model_type": ["llama"]}, "unsupported architecture ['llama'] in the model's"),
    "an encoder": (
        {"model_type": "bert"},
        "unsupported architecture 'bert' in the model's configuration; `tda models`",
    ),
    "an encoder and decoder": ({"model_type": "t5"}, "unsupported architecture 't5' in the model's configuration"),
    "quantised by what is not here": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "GPTQ"),
}


class TestConfigurations:
    def changed(self, folder: Path, tmp_path: Path, changes: dict[str, Any]) -> str:
        """A copy of a model's folder with another config.json."""
        shutil.copytree(folder, tmp_path / "changed")
        path = tmp_path / "changed" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return str(path.parent)

    @pytest.mark.parametrize("what", ABSURD)
    def test_what_makes_no_model_is_named_with_what_is_accepted(self, what: str, folder: Path, tmp_path: Path) -> None:
        changes, told = ABSURD[what]
        path = self.changed(folder, tmp_path, changes)
        with pytest.raises(ValueError, match=re.escape(f"cannot load model {path!r}: ")) as caught:
            load_model(path)
        assert told in str(caught.value)
        assert len(str(caught.value)) < len(path) + 700

    @pytest.mark.parametrize("content", ["[1]", '"llama"', "3", "null"])
    def test_a_configuration_that_is_no_object(self, content: str, folder: Path, tmp_path: Path) -> None:
        path = self.changed(folder, tmp_path, {})
        (Path(path) / "config.json").write_text(content)
        with pytest.raises(ValueError, match=re.escape(f"cannot load model {path!r}: ")):
            load_model(path)

    def test_sizes_that_follow_from_others_may_be_null(self, folder: Path, tmp_path: Path) -> None:
        path = self.changed(folder, tmp_path, {"head_dim": None})
        assert load_model(path).model.config.head_dim == tiny.D // 4

    def test_heads_with_a_size_of_their_own_need_not_divide_the_width(self, tmp_path: Path, folder: Path) -> None:
        """Gemma has one where its config.json names none: then it is 256."""
        sizes = {"num_attention_heads": 5, "num_key_value_heads": 1, "vocab_size": 300}
        config = tiny.config("gemma", **sizes, head_dim=256)
        tiny.build("gemma", **sizes, head_dim=256).save_pretrained(tmp_path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(folder / name, tmp_path)
        fields = json.loads((tmp_path / "config.json").read_text())
        assert fields.pop("head_dim") == 256
        assert config.hidden_size % 5
        (tmp_path / "config.json").write_text(json.dumps(fields))
        assert load_model(str(tmp_path)).model.config.head_dim == 256

    def test_a_kind_that_brings_its_own_code_is_checked_by_its_sizes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(configuration, "family_for", lambda kind: None)
        fields = {"model_type": "own", "hidden_size": 30, "num_attention_heads": 4}
        configuration.check_fields(fields)
        with pytest.raises(ValueError, match="num_key_value_heads"):
            configuration.check_fields(fields | {"num_key_value_heads": 3})

    def test_weights_of_more_layers_than_it_has(self, folder: Path, tmp_path: Path) -> None:
        """Transformers would leave them out and go on."""
        path = self.changed(folder, tmp_path, {"num_hidden_layers": 1})
        with pytest.raises(ValueError, match=r"num_hidden_layers is 1, .*model\.layers\.1\."):
            load_model(path)


class TestTokenizers:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "You need to have sentencepiece or tiktoken installed"),
            ("", "Expecting value"),
            ("{", "Expecting property name"),
            ("{}", "KeyError: 'added_tokens'"),
            ("[]", "TypeError"),
        ],
    )
    def test_one_that_cannot_be_loaded_is_named_with_the_reason(
        self, content: str | None, reason: str, folder: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "without"
        shutil.copytree(folder, path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).unlink()
        if content is not None:
            (path / "tokenizer.json").write_text(content)
        with pytest.raises(ValueError, match=r"^cannot load model '.*': its tokenizer ") as caught:
            load_model(str(path))
        assert reason in str(caught.value)

    def test_one_of_another_model_is_refused(self, folder: Path, tmp_path: Path) -> None:
        """Its tokens would be looked up beyond the last embedding."""
        path = tmp_path / "mixed"
        shutil.copytree(folder, path)
        other = tiny_tokenizers.build("llama-2")
        other.save_pretrained(path)
        with pytest.raises(ValueError, match=rf"tokenizer has {other.vocab_size} .*config\.json has 300"):
            load_model(str(path))


class TestMemory:
    def available(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=size))

    @pytest.mark.parametrize("name", SHAPES)
    def test_parameters_of_a_shape_are_counted_from_one_layer(self, name: str) -> None:
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(shape_config(name))
        assert parameter_count(f"shape:{name}") == sum(parameter.numel() for parameter in whole.parameters())

    @pytest.mark.parametrize("name", tiny.names())
    def test_parameters_of_every_family_are_counted(self, name: str) -> None:
        config = tiny.config(name, num_hidden_layers=3)
        whole = AutoModelForCausalLM.from_config(config)
        assert configuration.parameters(config) == sum(parameter.numel() for parameter in whole.parameters())
        assert config.num_hidden_layers == 3

    def test_a_shape_that_does_not_fit_is_refused_before_it_is_built(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.available(monkeypatch, 20 << 30)
        told = (
            "cannot load model 'shape:llama-3-8b': its 8,030,261,248 parameters need 29.9 GiB in float32, and 20.0 GiB "
            "of memory are available on cpu; in bfloat16 they need 15.0 GiB"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
            load_model("shape:llama-3-8b")
        self.available(monkeypatch, 14 << 30)
        with pytest.raises(ValueError, match=r"15\.0 GiB in bfloat16.* 14\.0 GiB .*cpu$"):
            load_model("shape:llama-3-8b", dtype="bfloat16")

    def test_what_fits_exactly_is_loaded(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("shape:25m", str(folder)):
            model = load_model(name, dtype="bfloat16").model
            size = sum(parameter.nbytes for parameter in model.parameters())
            self.available(monkeypatch, size)
            load_model(name, dtype="bfloat16")
            self.available(monkeypatch, size - 1)
            with pytest.raises(ValueError, match=f"'{name}': .* parameters need"):
                load_model(name, dtype="bfloat16")
            monkeypatch.undo()

    def test_a_folder_that_asks_for_more_than_there_is(self, folder: Path, tmp_path: Path) -> None:
        path = TestConfigurations().changed(folder, tmp_path, {"vocab_size": 2**31 - 1})
        with pytest.raises(ValueError, match=r"384\.0 GiB in float32.* bfloat16 .*192\.0"):
            load_model(path)

    @pytest.mark.parametrize(
        ("own", "files", "left"),
        [
            (
                "0::/a/b\n",
                {"a/memory.max": "1000", "a/memory.current": "700", "a/memory.stat": "x 1\ninactive_file 200"},
                [500],
            ),
            ("0::/a\n", {"a/memory.max": "max", "a/memory.current": "7", "a/memory.stat": "inactive_file 2"}, []),
            ("0::/a\n", {"a/memory.max": "5", "a/memory.current": "9", "a/memory.stat": "inactive_file 2"}, [0]),
            (
                "4:memory:/a\n3:cpu:/b\n",
                {
                    "memory/a/memory.limit_in_bytes": "1000",
                    "memory/a/memory.usage_in_bytes": "300",
                    "memory/a/memory.stat": "total_inactive_file 100",
                    "cpu/b/memory.limit_in_bytes": "1",
                },
                [800],
            ),
        ],
        ids=["version 2", "without a limit", "over the limit", "version 1"],
    )
    def test_a_limit_of_a_control_group_counts(
        self, own: str, files: dict[str, str], left: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{content}\n")
        (tmp_path / "own").write_text(own)
        monkeypatch.setattr(memory, "GROUPS", tmp_path)
        monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
        self.available(monkeypatch, 10_000)
        assert memory.available_bytes(torch.device("cpu")) == min([10_000, *left])

    def test_without_control_groups_the_machine_counts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "none")
        self.available(monkeypatch, 10_000)
        assert memory.available_bytes(torch.device("cpu")) == 10_000


@pytest.mark.parametrize("name", ["ref:none", "shape:9b", "no/such-model", "", "/nowhere"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"shape:0\.1b|ref:swiglu") as caught:
        load_model(name)
    assert name.removeprefix("shape:") in str(caught.value)


def test_wrong_dtype_and_device() -> None:
    with pytest.raises(ValueError, match=r"dtype .*float32, bfloat16, float16; got 'int8'"):
        load_model("shape:0.1b", dtype="int8")
    with pytest.raises(ValueError, match="dtype must be one of"):
        load_model("shape:0.1b", dtype=torch.int8)
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        load_model("shape:0.1b", device="gpu")


def test_descriptions() -> None:
    rows = describe_models()
    names = [row["name"] for row in rows]
    assert {f"shape:{name}" for name in SHAPES} <= set(names)
    assert {"ref:swiglu", "ref:relu"} <= set(names)
    for row in rows:
        assert row["parameters"] > 0
        assert row["intermediate_size"] > row["hidden_size"]
        assert ("random weights" in row["source"]) == is_shape(row["name"])


@pytest.mark.parametrize("name", ["ref:swiglu", "ref:relu"])
def test_reference_models_load(name: str) -> None:
    model, tokenizer = tda.load_model(name)
    assert model.config._name_or_path == name
    text = "Once there was a quiet child called "
    ids = torch.tensor([tokenizer(text).input_ids])
    assert ids.shape[1] == len(text) + 1
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
    assert loss < 1.5, "it is trained on such text; an untrained one has log(259) = 5.6 nats a byte"
