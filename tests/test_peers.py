"""The run against peers: its blocks, how they fail and go on, its tables, and that all contestants do the same work."""

import copy
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import tda
from experiments.peers import __main__ as command
from experiments.peers import blocks, child, gathered, huggingface, llama_weights, ours, vllm_engine
from experiments.peers.child import ChildOrder
from experiments.peers.contestants import SYSTEMS, Made, PeerSystem, on_device
from experiments.peers.job import Engine, Job, OnToken, PeerPlan, PeerReport, PeerRow, Served
from experiments.peers.table import BASES, GOALS, contestant_rows, markdown, speedup
from tda.engine.phases import prefill
from tda.process import alone, finish
from tda.records import Commit
from tests import nights

JOB = Job(model="shape:25m", prompt=(5, 6, 7), new_tokens=4, requests=2, threads=1)
FAKE = "tests.fake_contestant:serve"
TEXT = "Once there was a brave child called Ana who lived in the old town near the river. One day Ana"


def fake(**options: Any) -> PeerSystem:
    return PeerSystem(FAKE, options)


def plan(*names: str, job: Job = JOB) -> PeerPlan:
    return PeerPlan(job=job, contestants=names, machine=nights.MACHINE, commit=Commit(hash="c" * 40, dirty=False))


def run(out: Path, contestants: dict[str, PeerSystem], number: int, **options: Any) -> list[PeerRow]:
    options = {"say": lambda sentence: None, "stream": lambda device: 40.0, **options}
    return blocks.run(out, plan(*contestants), contestants, number, **options)


class TestBlocks:
    def test_go_forward_then_backward_with_a_process_each(self, tmp_path: Path) -> None:
        rows = run(tmp_path, {"a": fake(), "b": fake()}, 2)
        assert [(row.block, row.order, row.contestant) for row in rows] == [
            (1, 0, "a"),
            (1, 1, "b"),
            (2, 0, "b"),
            (2, 1, "a"),
        ]
        settings = [row.report.settings for row in rows if row.report is not None]
        assert len({told["pid"] for told in settings}) == 4
        assert {(told["threads"], told["torch"]) for told in settings} == {("1", False)}
        for row in rows:
            assert (row.status, row.stream_gb_per_s) == ("ok", 40.0)
            assert row.report is not None
            assert [served.tokens for served in row.report.served] == [(8, 9, 10, 11)] * JOB.requests

    def test_that_are_whole_are_not_run_again(self, tmp_path: Path) -> None:
        first = run(tmp_path, {"a": fake()}, 1)
        assert run(tmp_path, {"a": fake()}, 1) == first
        assert [row.block for row in run(tmp_path, {"a": fake()}, 2)] == [1, 2]

    def test_that_a_kill_cut_short_stay_and_a_new_one_begins(self, tmp_path: Path) -> None:
        pair = {"a": fake(), "b": fake()}
        run(tmp_path, pair, 1)
        lines = (tmp_path / blocks.ROWS).read_text().splitlines(keepends=True)
        (tmp_path / blocks.ROWS).write_text(lines[0] + lines[1][:50])
        rows = run(tmp_path, pair, 1)
        assert [(row.block, row.contestant) for row in rows] == [(1, "a"), (2, "b"), (2, "a")]
        assert blocks.held(tmp_path) == rows, "the unfinished line spoiled the next"

    def test_of_another_run_are_refused(self, tmp_path: Path) -> None:
        run(tmp_path, {"a": fake()}, 1)
        with pytest.raises(ValueError, match="another contestants"):
            run(tmp_path, {"a": fake(), "b": fake()}, 1)
        other = plan("a", job=JOB.model_copy(update={"new_tokens": 8}))
        with pytest.raises(ValueError, match="a run of another job"):
            blocks.run(tmp_path, other, {"a": fake()}, 1)

    def test_in_a_folder_where_another_measures_are_refused(self, tmp_path: Path) -> None:
        with alone(tmp_path), pytest.raises(ValueError, match="another measurement is running"):
            run(tmp_path, {"a": fake()}, 1)


FAILURES = {
    "raises": ("error", "exit code 1: OSError: boom"),
    "is killed": ("crash", "exit code -9: it said nothing"),
    "reports nothing": ("error", "it reported nothing sensible: FileNotFoundError"),
    "stops early": ("error", "asked for 4 tokens, got 3"),
}


class TestFailures:
    @pytest.mark.parametrize("how", FAILURES)
    def test_are_rows_that_say_why_and_lose_nothing(self, tmp_path: Path, how: str) -> None:
        rows = run(tmp_path, {"bad": fake(how=how), "good": fake()}, 1)
        status, reason = FAILURES[how]
        assert [row.status for row in rows] == [status, "ok"]
        assert reason in (rows[0].reason or "")

    def test_are_not_tried_for_ever(self, tmp_path: Path) -> None:
        rows = run(tmp_path, {"bad": fake(how="raises"), "good": fake()}, 3)
        assert [row.block for row in rows if row.contestant == "bad"] == [1, 2]
        assert [row.block for row in rows if row.contestant == "good"] == [1, 2, 3]

    def test_of_all_end_the_run(self, tmp_path: Path) -> None:
        assert len(run(tmp_path, {"bad": fake(how="raises")}, 5)) == 2

    def test_include_hanging(self, tmp_path: Path) -> None:
        (row,) = run(tmp_path, {"bad": fake(how="hangs")}, 1, timeout_s=1.5)
        assert (row.status, row.reason) == ("timeout", "no end after 2 s")
        begun = [path for path in [tmp_path / "pid"] if path.exists()]  # not where even an import takes longer
        assert all(_gone(int(path.read_text())) for path in begun)

    def test_do_not_pass_for_what_an_earlier_process_reported(self, tmp_path: Path) -> None:
        (tmp_path / blocks.REPORT).write_text(
            PeerReport(served=(), settings={}, versions={}, load_s=0, warm_up_s=0).model_dump_json()
        )
        (row,) = run(tmp_path, {"bad": fake(how="reports nothing")}, 1)
        assert row.status == "error"


class TestFiles:
    def test_are_made_once(self, tmp_path: Path) -> None:
        made = Made("weights.bin", "tests.fake_contestant:make", {})
        (tmp_path / ".weights.bin.left").touch()
        rows = run(tmp_path, {"a": PeerSystem(FAKE, file=made), "b": PeerSystem(FAKE, file=made)}, 2)
        assert {row.report.settings["file"] for row in rows if row.report is not None} == {"x"}
        assert not (tmp_path / ".weights.bin.left").exists(), "what a killed process left stays for ever"

    def test_that_cannot_be_made_are_a_row(self, tmp_path: Path) -> None:
        made = Made("weights.bin", "tests.fake_contestant:make", {"broken": True})
        (row,) = run(tmp_path, {"a": PeerSystem(FAKE, file=made)}, 1)
        assert row.status == "error"
        assert re.fullmatch(r"weights\.bin .*: exit code 1: OSError: no room", row.reason or "")


WAIT_S = 300
"""For what comes at once, on a machine however loaded."""


def test_a_process_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.test_peers import fake, run\n"
        "run(Path(sys.argv[1]), {'a': fake(how='hangs')}, 1)"
    )
    environment = {**os.environ, "PYTHONPATH": str(blocks.ROOT)}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=blocks.ROOT, env=environment) as parent:
        place, until = tmp_path / "pid", time.monotonic() + WAIT_S
        while not (place.is_file() and place.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
    assert _gone(int(place.read_text()))


def _gone(pid: int) -> bool:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_request_is_timed_from_its_start_and_between_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 10.6, 10.8, 11.1, 11.2])
    monkeypatch.setattr(child, "perf_counter", lambda: next(clock))

    def answer(prompt: Sequence[int], new_tokens: int, on_token: OnToken) -> None:
        for token in range(new_tokens):
            on_token(token)

    served = child.serve(Engine(answer, dict), (1,), 4)
    assert served.prefill_ms == pytest.approx(500)
    assert served.decode_ms == pytest.approx(200), "the median of 100, 200 and 300"
    assert served.generation_ms == pytest.approx(1200)
    assert served.tokens == (0, 1, 2, 3)


def row(contestant: str, block: int, decode_ms: float, **changes: Any) -> PeerRow:
    served = Served(prefill_ms=100, decode_ms=decode_ms, generation_ms=100 + 9 * decode_ms, tokens=(1,))
    report = PeerReport(served=(served,) * 3, settings={"threads": 2}, versions={"torch": "2"}, load_s=1, warm_up_s=1)
    fields = {"stream_gb_per_s": 40.0 + block, "status": "ok", "started": "now", "seconds": 1.0, "report": report}
    return PeerRow(contestant=contestant, block=block, order=0, **{**fields, **changes})


class TestTables:
    def test_ratios_are_paired_within_blocks(self) -> None:
        """The machine is twice as slow in every other block; the ratio knows nothing of it."""
        rows = [
            row(name, block, decode_ms * (1 + block % 2))
            for block in range(1, 6)
            for name, decode_ms in (("tda dense", 60.0), ("hf eager", 120.0))
        ]
        ratio = speedup(rows, "tda dense", "hf eager")
        assert ratio is not None
        assert (ratio.value, ratio.low, ratio.high, ratio.groups) == (2.0, 2.0, 2.0, 5)

    def test_a_block_that_only_one_was_in_gives_no_pair(self) -> None:
        rows = [row("tda dense", 1, 60), row("hf eager", 2, 120)]
        assert speedup(rows, "tda dense", "hf eager") is None

    def test_fewer_than_five_blocks_give_no_interval_and_no_verdict(self) -> None:
        rows = [row(name, block, 60) for block in range(1, 5) for name in ("tda dense", "hf eager")]
        ratio = speedup(rows, "tda dense", "hf eager")
        assert ratio is not None
        assert (ratio.value, ratio.low, ratio.high) == (1.0, None, None)
        assert GOALS[0].verdict(ratio) == "fewer than 5 blocks"

    @pytest.mark.parametrize(("decode_ms", "verdict"), [(100.0, "strive"), (120.0, "must"), (130.0, "missed")])
    def test_a_goal_has_two_bounds(self, decode_ms: float, verdict: str) -> None:
        times = {"tda dense": decode_ms, "hf eager": 220.0}
        rows = [row(name, block, ms) for block in range(1, 6) for name, ms in times.items()]
        assert GOALS[0].verdict(speedup(rows, "tda dense", "hf eager")) == verdict

    def test_a_row_a_contestant_with_its_conditions_or_what_went_wrong(self) -> None:
        names = ("tda dense", "llama.cpp bf16", "torchao int8", "hf eager")
        bad = row("torchao int8", 1, 1.0, status="error", reason="exit code 1: no torchao", report=None)
        rows = [bad, *(row(name, block, 50.0) for block in range(1, 6) for name in names[:2])]
        table = pd.DataFrame(contestant_rows(plan(*names), rows)).set_index("contestant")
        ours, failed, absent = (table.loc[name].to_dict() for name in ("tda dense", "torchao int8", "hf eager"))
        assert (ours["status"], ours["blocks"], ours["decode_ms"], ours["generation_ms"]) == ("ok", 5, 50, 550)
        ratio = [ours[f"over_llama_cpp_bf16{end}"] for end in ("", "_low", "_high")]
        assert (ratio, ours["stream_gb_per_s"]) == ([1, 1, 1], 43)
        assert json.loads(ours["versions"]) == {"torch": "2"}
        assert (ours["cpu"], ours["threads"], ours["commit"]) == (nights.MACHINE.cpu, 1, "c" * 40)
        assert (failed["status"], failed["reason"]) == ("error", "exit code 1: no torchao")
        assert pd.isna(failed["decode_ms"])
        assert absent["status"] == "not run"

        text = markdown(plan(*names), rows, table.reset_index())
        assert "| tda dense | 100 | 50 | 550 | 1 [1, 1] | 1 [1, 1] | 43 (41 to 45) | 5 |" in text
        assert "| torchao int8 | – | – | – | – | – | – | 0 |" in text
        assert "| tda dense | llama.cpp bf16 | 1 [1, 1] | 0.8 | 1 | strive |" in text
        assert "| tda dense | hf eager | – | 1.7 | 2.2 | not measured |" in text
        assert "- torchao int8: error: exit code 1: no torchao" in text


class TestCommand:
    def test_writes_both_tables(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(command, "SYSTEMS", {"tda dense": fake(), "hf eager": fake(), "other": fake()})
        monkeypatch.setattr(blocks, "bandwidth", lambda device: 40.0)
        words = f"--model shape:25m --prompt-tokens 5 --new-tokens 3 --blocks 1 --out {tmp_path / 'out'}"
        peers = ["--peer", "tda dense", "--peer", "hf eager"]
        monkeypatch.setattr(sys, "argv", ["peers", *words.split(), *peers, "--record", str(tmp_path / "peers")])
        command.main()
        table = pd.read_csv(tmp_path / "peers.csv")
        assert list(table.contestant) == ["tda dense", "hf eager"]
        assert list(table.status) == ["ok", "ok"]
        assert "| goal" in (tmp_path / "peers.md").read_text()

    def test_says_who_is_left_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        absent = PeerSystem(FAKE, package="no_such_package")
        monkeypatch.setattr(command, "SYSTEMS", {"tda dense": fake(), "absent": absent})
        words = f"--model shape:25m --prompt-tokens 5 --new-tokens 3 --blocks 1 --out {tmp_path / 'out'}"
        monkeypatch.setattr(sys, "argv", ["peers", *words.split(), "--record", str(tmp_path / "peers")])
        command.main()
        assert "absent is left out: no_such_package is not installed" in capsys.readouterr().out
        assert list(pd.read_csv(tmp_path / "peers.csv").contestant) == ["tda dense"]

    def test_a_device_that_is_not_here_is_a_sentence(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(sys, "argv", ["peers", "--model", "shape:25m", "--device", "cuda"])
        with pytest.raises(SystemExit, match="2"):
            command.main()
        assert "no device 'cuda'" in capsys.readouterr().err

    def test_takes_models_with_random_weights_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["peers", "--model", "ref:swiglu"])
        with pytest.raises(SystemExit, match="2"):
            command.main()


class TestContestants:
    def test_are_known_where_they_are_named(self) -> None:
        assert set(BASES) | {name for goal in GOALS for name in (goal.contestant, goal.against)} <= set(SYSTEMS)

    @pytest.mark.parametrize("name", SYSTEMS)
    def test_name_code_that_is_there(self, name: str) -> None:
        contestant = SYSTEMS[name]
        for call in [contestant.call, *([contestant.file.call] if contestant.file is not None else [])]:
            module, _, function = call.partition(":")
            found = importlib.util.find_spec(module, "experiments.peers")
            assert found is not None
            assert found.origin is not None
            assert f"\ndef {function}(" in Path(found.origin).read_text()

    def test_run_where_they_say(self) -> None:
        cpu, _ = on_device(SYSTEMS, "cpu")
        cuda, left_out = on_device({**SYSTEMS, "vllm": replace(SYSTEMS["vllm"], package="no_vllm")}, "cuda")
        assert set(SYSTEMS) - set(cpu) == {"vllm"}
        assert set(cuda) == {"hf eager", "hf compiled", "tda dense", "tda griffin .5"}
        assert left_out == ["vllm is left out: no_vllm is not installed"]
        assert list(on_device({"vllm": replace(SYSTEMS["vllm"], package="torch")}, "cuda")[0]) == ["vllm"]

    def test_compiled_replays_graphs_on_a_gpu(self) -> None:
        options = huggingface.compiled_options("cuda")
        assert options["cache_implementation"] == "static"
        assert options["compile_config"].mode == "reduce-overhead"
        assert not options["compile_config"]._compile_all_devices, "on a GPU transformers needs no flag to compile"
        assert huggingface.compiled_options("cpu")["compile_config"]._compile_all_devices

    def test_have_pinned_packages(self) -> None:
        extra = tomllib.loads((blocks.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["peers"]
        pinned = {line.split("==")[0] for line in (blocks.ROOT / "constraints.txt").read_text().splitlines()}
        assert {re.split("[><=]", wanted)[0] for wanted in extra} <= pinned
        assert {re.split("[><=]", wanted)[0] for wanted in extra} <= set(child.PACKAGES)

    def test_gathered_is_griffin_through_plain_linears(self) -> None:
        model, prompt = _trained()
        with tda.attach(model, tda.Griffin(sparsity=0.5), execution="masked"):
            expected = _tokens(huggingface.engine(model, JOB, compiled=False), prompt)
        with torch.no_grad():
            gathered.gather(model, 0.5)
        engine = huggingface.engine(model, JOB, compiled=False)
        assert _tokens(engine, prompt) == expected
        assert _tokens(engine, prompt[:30]) != _tokens(engine, prompt), "the second prompt chose nothing"
        assert _tokens(engine, prompt) == expected
        assert type(model.model.layers[0].mlp.down) is torch.nn.Linear
        assert model.model.layers[0].mlp.down.in_features == model.config.intermediate_size // 2

    def test_of_ours_run_with_their_thresholds(self, tmp_path: Path) -> None:
        job = Job(model="ref:swiglu", dtype="float32", prompt=tuple(range(60, 90)), new_tokens=4, threads=1)
        ours.calibrate(job, file=tmp_path / "tda.json", sparsity=0.5)
        with ours.serve(job, method="tda", sparsity=0.5, file=tmp_path / "tda.json") as engine:
            assert len(_tokens(engine, job.prompt)) == 12
            assert 0.2 < engine.settings()["achieved_sparsity"] < 0.8


def _trained() -> tuple[Any, tuple[int, ...]]:
    """The small trained model in float32, and a text that it goes on with."""
    model, tokenizer = tda.load_model("ref:swiglu")
    return model, tuple(tokenizer(TEXT).input_ids)


def _tokens(engine: Engine, prompt: Sequence[int], new_tokens: int = 12) -> tuple[int, ...]:
    return child.serve(engine, prompt, new_tokens).tokens


class TestWeights:
    def test_have_the_names_of_llama_cpp(self) -> None:
        model: Any = tda.load_model("ref:swiglu").model
        names = dict(llama_weights.tensors(model))
        assert len(names) == len(list(model.parameters())) == 3 + 9 * model.config.num_hidden_layers
        assert {"token_embd.weight", "output_norm.weight", "output.weight", "blk.3.attn_q.weight"} < set(names)
        assert torch.equal(names["blk.2.ffn_down.weight"], model.model.layers[2].mlp.down_proj.weight)

    @pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.q_norm.weight"])
    def test_that_a_llama_does_not_have_are_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match="no parameter of a Llama"):
            llama_weights.tensor_name(name)

    def test_are_laid_for_the_other_rotary_embedding(self) -> None:
        """Scores of queries and keys are the same whether halves or neighbours are turned together."""
        heads, d, D = 3, 8, 5
        query, key, x, y = (torch.randn(shape, dtype=torch.float64) for shape in [(heads * d, D)] * 2 + [(D,)] * 2)
        angles = 2.5 * 10.0 ** -torch.arange(d // 2, dtype=torch.float64)

        def halves(v: torch.Tensor) -> torch.Tensor:
            one, other = v.view(heads, d).split(d // 2, 1)
            return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], 1)

        def neighbours(v: torch.Tensor) -> torch.Tensor:
            one, other = v.view(heads, d // 2, 2).unbind(2)
            return torch.stack(
                [one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], 2
            )

        theirs = neighbours(llama_weights.interleaved(query, heads) @ x).view(heads, d) * (
            llama_weights.interleaved(key, heads) @ y
        ).view(heads, d)
        mine = halves(query @ x) * (key @ y).view(heads, d)
        assert torch.allclose(theirs.sum(1), mine.sum(1))


LOGPROBS = """
import json, sys
from pathlib import Path
from experiments.peers import llama_cpp
file, prompt, new_tokens = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
server = llama_cpp.server(file, len(prompt) + new_tokens, 1)
request = {"prompt": prompt, "max_tokens": new_tokens, "logprobs": 20, **llama_cpp.GREEDY}
steps = server.handle_completions(request)["choices"][0]["logprobs"]["content"]
found = [{one["id"]: one["logprob"] for one in step["top_logprobs"]} for step in steps]
Path(sys.argv[4]).write_text(json.dumps(found))
assert "torch" not in sys.modules
"""


class PlayedEngine:
    """vLLM's step loop as its documentation has it: each step gives all tokens so far; a long prompt takes two."""

    def __init__(self) -> None:
        self.request: tuple[str, dict[str, list[int]], SimpleNamespace] | None = None
        self.made: list[int] | None = None

    def add_request(self, number: str, prompt: dict[str, list[int]], params: SimpleNamespace) -> None:
        assert self.request is None
        self.request, self.made = (number, prompt, params), None

    def has_unfinished_requests(self) -> bool:
        return self.request is not None

    def step(self) -> list[SimpleNamespace]:
        assert self.request is not None
        number, prompt, params = self.request
        if self.made is None:
            self.made = []
            return []
        self.made.append(prompt["prompt_token_ids"][-1] + 1 + len(self.made))
        if len(self.made) == params.max_tokens:
            self.request = None
        return [SimpleNamespace(request_id=number, outputs=[SimpleNamespace(token_ids=list(self.made))])]


class TestVllm:
    def test_tells_each_token_once_as_it_comes(self) -> None:
        answers = vllm_engine.EngineAnswers(PlayedEngine(), SimpleNamespace)
        for _ in range(2):
            assert child.serve(Engine(answers, dict), (5, 6, 7), 4).tokens == (8, 9, 10, 11)

    def test_reads_the_very_weights_from_a_folder(self, tmp_path: Path) -> None:
        from transformers import AutoModelForCausalLM

        vllm_engine.make(JOB, file=tmp_path / "model")
        assert [path.name for path in tmp_path.iterdir()] == ["model"], "what it was written as stays"
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).state_dict()
        expected = tda.load_model(JOB.model, dtype=JOB.dtype).model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


class TestLlamaCpp:
    """llama.cpp on the file that we write does the work that we do."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        for package in ("xllamacpp", "gguf"):
            pytest.importorskip(package, reason=f"{package} is not installed; the extra `peers` brings it")

    def write(self, model: Any, kind: str, file: Path) -> None:
        from experiments.peers import gguf_file

        with torch.no_grad():
            gguf_file.write(model, kind, file)

    def logprobs(self, file: Path, prompt: Sequence[int], new_tokens: int) -> list[dict[int, float]]:
        """The twenty largest log probabilities of each step."""
        place = file.with_suffix(".json")
        command = [sys.executable, "-c", LOGPROBS, str(file), json.dumps(prompt), str(new_tokens), str(place)]
        environment = {**os.environ, "PYTHONPATH": str(blocks.ROOT), "OMP_NUM_THREADS": "1"}
        ended = finish(command, file.parent, environment, 60)
        assert ended.status == "ok", ended.reason
        return [{int(token): value for token, value in step.items()} for step in json.loads(place.read_text())]

    @pytest.mark.parametrize(("kind", "dtype"), [("f32", "float32"), ("bf16", "bfloat16")])
    def test_predicts_what_the_trained_model_predicts(self, tmp_path: Path, kind: str, dtype: str) -> None:
        """Its log probabilities are as near to exact ones as our own are in the same type, over a whole continuation.

        In float32 what remains is its cache of float16: 11 bits of every key and value.
        """
        model, tokenizer = tda.load_model("ref:swiglu", dtype=dtype)
        prompt = tokenizer(TEXT).input_ids
        self.write(model, kind, tmp_path / "model.gguf")
        steps = self.logprobs(tmp_path / "model.gguf", prompt, 24)
        chosen = [max(step, key=step.__getitem__) for step in steps]
        if kind == "f32":
            with tda.attach(model, tda.Dense(dense_kernel="own")):
                assert list(_tokens(huggingface.engine(model, JOB, compiled=False), prompt, 24)) == chosen
        ids = torch.tensor([[*prompt, *chosen[:-1]]])
        with torch.no_grad():
            own, exact = (
                one(ids).logits[0, len(prompt) - 1 :].float().log_softmax(-1)  # [24, V]
                for one in (model, copy.deepcopy(model).float())
            )
        likely = [(at, token) for at, step in enumerate(steps) for token, value in step.items() if value > -8]
        theirs = max(abs(steps[at][token] - exact[at, token].item()) for at, token in likely)
        ours = max(abs(own[at, token] - exact[at, token]).item() for at, token in likely)
        assert len(likely) > 24 * 3
        assert theirs < max(ours, 0.03)

    def test_predicts_what_a_shape_predicts(self, tmp_path: Path) -> None:
        """The very weights that are timed; their logits lie close together, so all of the first step is compared."""
        model: Any = tda.load_model("shape:25m", dtype="bfloat16").model
        prompt = list(range(1000, 1032))
        self.write(model, "bf16", tmp_path / "model.gguf")
        (step,) = self.logprobs(tmp_path / "model.gguf", prompt, 1)
        with torch.no_grad():
            expected = prefill(model, torch.tensor([prompt]))[0][0, -1].float().log_softmax(-1)  # [V]
        assert {token: expected[token].item() for token in step} == pytest.approx(step, abs=0.05)
        assert expected.std() > 0.3, "a wrong model could be as near"

    def test_serves_a_job_in_a_process_without_torch(self, tmp_path: Path) -> None:
        model, prompt = _trained()
        self.write(model, "q8_0", tmp_path / "model.gguf")
        job = Job(model="ref:swiglu", prompt=prompt, new_tokens=12, requests=2, threads=1)
        place = tmp_path / "report.json"
        order = ChildOrder(call=".llama_cpp:serve", job=job, file=tmp_path / "model.gguf", report=place)
        environment = {**os.environ, "PYTHONPATH": str(blocks.ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "experiments.peers.child", order.model_dump_json()]
        ended = finish(command, tmp_path, environment, 60)
        assert ended.status == "ok", ended.reason
        report = PeerReport.model_validate_json(place.read_bytes())
        expected = _tokens(huggingface.engine(model, JOB, compiled=False), prompt)
        assert [served.tokens for served in report.served] == [expected, expected]

    def test_refuses_a_process_with_torch(self, tmp_path: Path) -> None:
        from experiments.peers import llama_cpp

        with pytest.raises(RuntimeError, match="torch is loaded"), llama_cpp.serve(JOB, file=tmp_path / "model.gguf"):
            pass

    def test_gets_no_model_that_the_file_cannot_describe(self, tmp_path: Path) -> None:
        model = tda.load_model("ref:geglu").model
        with pytest.raises(ValueError, match="only Llamas"):
            self.write(model, "bf16", tmp_path / "model.gguf")
        assert not list(tmp_path.iterdir())
