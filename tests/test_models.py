"""Models by name: shapes with the sizes they claim, local folders, and errors that say what to do."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import tda
from tda.engine.identity import identify
from tda.families import FAMILIES, find_ffns
from tda.models import describe_models, is_shape, load_model
from tda.models import shapes as module
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
    "llama": lambda: module._llama(**GATED),
    "llama-theta": lambda: module._llama(**GATED, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "gemma": lambda: module._gemma(**GATED, head_dim=8),
    "mistral": lambda: module._mistral(**GATED),
    "opt": lambda: module._opt(**SMALL, ffn_dim=48, word_embed_proj_dim=32),
    "opt-post-norm": lambda: module._opt(**SMALL, ffn_dim=48, word_embed_proj_dim=16, do_layer_norm_before=False),
}


class TestShapes:
    @pytest.mark.parametrize("name", SHAPES)
    def test_parameter_count(self, name: str) -> None:
        from transformers import AutoModelForCausalLM

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
        from transformers import AutoModelForCausalLM

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
    from tda.reference.train import byte_tokenizer

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


@pytest.mark.parametrize("name", ["ref:none", "shape:9b", "no/such-model", "", "/nowhere"])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"shape:0\.1b|ref:swiglu") as caught:
        load_model(name)
    assert name.removeprefix("shape:") in str(caught.value)


def test_wrong_dtype_and_device() -> None:
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16; got 'int8'"):
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
