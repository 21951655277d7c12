"""Ctrl-C while a model is changed, or put back, comes in when that is done."""

import importlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
from model_state import same, state

import tda
from tda.engine.overrides import Overrides
from tda.interrupts import held_back


@pytest.fixture(autouse=True)
def _handled() -> Iterator[None]:
    """A process that a shell has put in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_it_comes_in_afterwards() -> None:
    steps = []

    def work() -> None:
        with held_back():
            interrupt()
            steps.append("done")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["done"]
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_nothing_is_held_back_in_other_threads() -> None:
    found = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with held_back():
            found.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def test_every_step_is_undone() -> None:
    overrides, undone = Overrides(), []
    for number in range(3):
        overrides.later(lambda number=number: undone.append(number))  # type: ignore[misc]
        overrides.later(interrupt)
    with pytest.raises(KeyboardInterrupt):
        overrides.undo()
    assert undone == [2, 1, 0]


@pytest.mark.parametrize(
    "place", ["quantize.empty_on_huge_pages", "attach.NewHooks", "attach.register_module_parameter_registration_hook"]
)
@pytest.mark.parametrize("method", [tda.Griffin(quantization="int8"), tda.Griffin()], ids=["int8", "as it is"])
def test_a_model_is_whole_after_ctrl_c_in_attach(method: Any, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.build("llama")
    before, (home, name) = state(model), place.split(".")
    module = importlib.import_module(f"tda.engine.{home}")
    own = getattr(module, name)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        interrupt()
        return found

    monkeypatch.setattr(module, name, interrupted)
    if method.quantization is not None or home != "quantize":
        with pytest.raises(KeyboardInterrupt), tda.attach(model, method):
            pass
    monkeypatch.undo()
    same(before, state(model))
    with tda.attach(model, method):
        pass
    same(before, state(model))
