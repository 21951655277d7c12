"""Wider models are the same function; packed weights are exactly what they say; reference models in more bytes."""

import shutil
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tda
from tda.bench.plan import Plan, Subject
from tda.bench.run import Bench
from tda.models import parameter_count, reference
from tda.models.packed import GROUP, pack, pack_state, unpack, unpack_state
from tda.models.reference import TIMES, Reference
from tda.models.widen import wider_config, wider_state
from tda.records import Record, merge

NAMES = ("llama", "gemma", "opt")


def widen(model: Any, seed: int | None = None, **factors: int) -> nn.Module:
    """The wider model, built from nothing but its configuration and tensors."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    state = wider_state(model.config, model.state_dict(), **factors, generator=generator)
    config = wider_config(model.config, **factors)
    wider, report = type(model).from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return wider.eval()


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits


class TestWider:
    @given(
        name=st.sampled_from(NAMES),
        hidden=st.integers(1, 3),
        neurons=st.integers(1, 9),
        seed=st.none() | st.integers(0, 99),
        tied=st.booleans(),
        F=st.integers(1, 40),
        heads=st.sampled_from([2, 4, 6]),
    )
    def test_no_logit_changes(
        self, name: str, hidden: int, neurons: int, seed: int | None, tied: bool, F: int, heads: int
    ) -> None:
        sizes = {"num_attention_heads": heads, "ffn_dim" if name == "opt" else "intermediate_size": F}
        model = tiny.build(name, tie_word_embeddings=tied, **sizes)
        tokens = torch.randint(tiny.VOCABULARY, (2, 17), generator=torch.Generator().manual_seed(1))
        wider = widen(model, seed, hidden=hidden, neurons=neurons)
        was, found = logits(model, tokens), logits(wider, tokens)
        assert float((found - was).abs().max()) <= 1e-4 * float(was.abs().max())

    def test_sizes(self) -> None:
        wider = widen(tiny.model("llama"), hidden=2, neurons=3)
        assert (wider.config.hidden_size, wider.config.intermediate_size) == (2 * tiny.D, 3 * tiny.F)
        assert wider.model.layers[0].mlp.down_proj.weight.shape == (2 * tiny.D, 3 * tiny.F)
        assert wider.config.head_dim == tiny.D // 4

    def test_parts_are_unequal_where_they_are_drawn(self) -> None:
        """Equal copies with equal parts would get equal gradients for ever."""
        model = tiny.model("llama")
        drawn = wider_state(model.config, model.state_dict(), neurons=2, generator=torch.Generator().manual_seed(0))
        equal = wider_state(model.config, model.state_dict(), neurons=2)
        down = "model.layers.0.mlp.down_proj.weight"
        one, two = drawn[down].chunk(2, 1)
        assert bool((one != two).all())
        assert torch.equal(*equal[down].chunk(2, 1))
        assert torch.allclose(one + two, model.state_dict()[down])

    def test_what_is_not_known_is_refused(self) -> None:
        model = tiny.model("opt-post-norm")
        for call in (wider_config, lambda config: wider_state(config, model.state_dict())):
            with pytest.raises(ValueError, match=r"llama, gemma, opt .*got 'opt'"):
                call(model.config)
        llama = tiny.model("llama")
        with pytest.raises(ValueError, match=r"lora\.weight .*widened"):
            wider_state(llama.config, {**llama.state_dict(), "model.lora.weight": torch.ones(1)}, neurons=2)
        with pytest.raises(ValueError, match="1 time or more; got 1 and 0"):
            wider_config(llama.config, neurons=0)


def by_hand(levels: Tensor, scales: Tensor) -> np.ndarray:
    """Weights by the words of the format, in float64."""
    rows = []
    for row, row_scales in zip(levels.tolist(), scales.double().tolist(), strict=True):
        if levels.dtype == torch.uint8:
            row = [level for byte in row for level in (byte % 16 - 8, byte // 16 - 8)]
        rows.append([level * row_scales[column // GROUP] for column, level in enumerate(row)])
    return np.array(rows)


class TestPacked:
    @given(bits=st.sampled_from([4, 8]), rows=st.integers(1, 3), groups=st.integers(1, 3), seed=st.integers(0, 999),
           size=st.sampled_from([1e-2, 1.0, 100.0]))  # fmt: skip
    def test_it_is_the_nearest_level(self, bits: Any, rows: int, groups: int, seed: int, size: float) -> None:
        weights = size * torch.randn(rows, groups * GROUP, generator=torch.Generator().manual_seed(seed))
        levels, scales = pack(weights, bits)
        found = unpack(levels, scales)
        assert np.array_equal(found.double().numpy(), by_hand(levels, scales))
        step = scales.double().abs().repeat_interleave(GROUP, 1)
        apart = (found.double() - weights.double()).abs()
        is_clamped = apart > 0.5 * step * (1 + 1e-9)  # 8 bits: the scale was rounded; 4: there is no level 8
        assert bool((apart <= step * 1.01).all())
        assert float(is_clamped.double().mean()) < 0.1
        assert levels.numel() * levels.itemsize == weights.numel() * bits // 8

    def test_nothing_but_zeros(self) -> None:
        for bits in (4, 8):
            assert not unpack(*pack(torch.zeros(2, GROUP), bits)).any()

    def test_a_state_comes_back(self) -> None:
        state = {"a.weight": torch.randn(4, GROUP), "b.mlp.weight": torch.randn(2, GROUP), "norm.weight": torch.ones(3)}
        kept = pack_state(state, lambda name: 4 if ".mlp." in name else 8)
        assert kept["a.weight.levels"].dtype == torch.int8
        assert kept["b.mlp.weight.levels"].dtype == torch.uint8
        back = unpack_state(kept)
        assert back.keys() == state.keys()
        assert torch.equal(back["norm.weight"].float(), state["norm.weight"])
        assert torch.equal(back["b.mlp.weight"], unpack(*pack(state["b.mlp.weight"], 4)))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.tensor([tda.load_model("ref:swiglu").tokenizer("Once there was a quiet child called ").input_ids])


class TestReferences:
    @pytest.mark.parametrize("name", ["swiglu", "relu", "geglu", "wide"])
    def test_more_bytes_are_the_same_function(self, name: str, tokens: Tensor) -> None:
        one, four = (tda.load_model(f"ref:{name}{times}").model for times in ("", ":4x"))
        assert four.config._name_or_path == f"ref:{name}:4x"
        was, found = logits(one, tokens), logits(four, tokens)
        assert float((found - was).abs().max()) <= 1e-4 * float(was.abs().max())

    @pytest.mark.parametrize("name", ["ref:geglu", "ref:wide", "ref:wide:2x"])
    def test_parameters_are_counted_without_building(self, name: str) -> None:
        model = tda.load_model(name).model
        assert parameter_count(name) == sum(parameter.numel() for parameter in model.parameters())

    def test_weights_of_the_type_asked_for(self, tokens: Tensor) -> None:
        one, two = (tda.load_model(name, dtype="bfloat16").model for name in ("ref:swiglu", "ref:swiglu:2x"))
        down, twice = (model.model.layers[0].mlp.down_proj.weight for model in (one, two))
        assert twice.dtype == torch.bfloat16
        assert torch.equal(twice, torch.cat([down / 2, down / 2], 1))

    def test_names(self) -> None:
        assert Reference.find("ref:swiglu").times == 1
        assert Reference.find("ref:swiglu:16x").times == 16
        for name in (
            "ref:swiglu:3x",
            "ref:swiglu:1x",
            "ref:swiglu:02x",
            "ref:swiglu:1x:2x",
            "ref:swiglu:x",
            "ref:none",
            "ref:",
            "ref:swiglu:32x",
            "ref:../swiglu",
        ):
            with pytest.raises(ValueError, match=r"reference model .*:2x, :4x, :8x, :16x"):
                tda.load_model(name)
        assert TIMES == (2, 4, 8, 16)

    def test_another_file_of_weights_is_refused(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(reference.WEIGHTS / "swiglu", tmp_path / "swiglu")
        path = tmp_path / "swiglu" / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        monkeypatch.setattr(reference, "WEIGHTS", tmp_path)
        with pytest.raises(ValueError, match="not the file that ships"):
            tda.load_model("ref:swiglu")


@pytest.mark.parametrize("name", ["ref:swiglu", pytest.param("ref:wide", marks=pytest.mark.slow)])
def test_quality_is_that_of_the_model_before(name: str, tmp_path: Any) -> None:
    """Copies tie in every statistic, and both stay or go; random draws neurons, so it may keep one of two."""
    subjects = tuple(Subject(each, prompt_tokens=48, new_tokens=16, speed=False) for each in (name, f"{name}:2x"))
    plan = Plan(subjects, sparsities=(0.5,), documents=3, calibration_documents=4)
    one: dict[Any, Record] = {}
    two: dict[Any, Record] = {}
    for record in merge(Bench(plan, tmp_path).run()):
        (one if record.case.model == name else two)[record.case.spec, record.case.control] = record
    assert one.keys() == two.keys()
    for key, record in one.items():
        was, found = (np.array(each.samples("nll_nats")) for each in (record, two[key]))
        if key[0].name == "random":
            assert np.abs(found - was).max() > 1e-3
        else:
            assert abs(float((found - was).mean())) <= 1e-6, key
            assert two[key].achieved_sparsity == pytest.approx(record.achieved_sparsity, abs=1e-3), key
