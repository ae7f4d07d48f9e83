"""Every analysis of a model on another device, or laid over two: no tensors mixed, the same numbers."""

import contextlib

import pytest
import robust_figures
import torch
from robust_calls import CALLS
from robust_devices import SecondDevice, elsewhere, let_weights_be_read, on_card, split
from robust_numbers import check_near, check_same, numbers
from test_bad_input import REFUSED
from transformer_lens.model_bridge import TransformerBridge

import lens_linear as ll


def takes(kind):
    found = []
    for call in CALLS:
        # The function that krylov_basis is given here makes numbers of its own, on the processor.
        if call.name in REFUSED or call.name == "krylov_basis":
            continue
        if any(isinstance(value, kind) for value in call.good().values()):
            found.append(call)
    return found


MODELS = takes(TransformerBridge)
DEEP = [
    call
    for call in MODELS
    if all(len(v.blocks) > 1 for v in call.good().values() if isinstance(v, TransformerBridge))
]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    let_weights_be_read(monkeypatch)


def moved(value, move, *, tensors):
    if isinstance(value, TransformerBridge):
        return move(value)
    if not tensors:
        return value
    if isinstance(value, torch.Tensor):
        return move(value)
    if isinstance(value, list | tuple) and value and all(map(torch.is_tensor, value)):
        return type(value)(move(part) for part in value)
    return value


def check(call, move, *, tensors):
    want = numbers(call.function(**call.arguments()))
    with SecondDevice():
        arguments = {
            name: moved(value, move, tensors=tensors) for name, value in call.arguments().items()
        }
        answer = call.function(**arguments)
        got = numbers(answer)
        repr(answer)
        with contextlib.suppress(TypeError):  # frames that need an argument
            getattr(answer, "to_dataframe", list)()
    check_same(call.name, got, want, rel=1e-5)


@pytest.mark.parametrize("call", MODELS, ids=lambda call: call.name)
def test_a_model_on_another_device_gives_the_same_numbers(call):
    check(call, elsewhere, tensors=False)


@pytest.mark.parametrize("call", takes(torch.Tensor), ids=lambda call: call.name)
def test_tensors_on_another_device_give_the_same_numbers(call):
    check(call, elsewhere, tensors=True)


@pytest.mark.parametrize("call", DEEP, ids=lambda call: call.name)
def test_a_model_laid_over_two_devices_gives_the_same_numbers(call):
    check(call, split, tensors=False)


CARD = torch.cuda.is_available()
NO_CARD = pytest.mark.skipif(not CARD, reason="no CUDA device on this machine")
ON_CARD = [
    pytest.param(call, tensors, id=f"{call.name}-{'tensors' if tensors else 'model'}")
    for calls, tensors in ((MODELS, False), (takes(torch.Tensor), True))
    for call in calls
]


@pytest.mark.parametrize(
    ("call", "tensors"),
    ON_CARD if CARD else [pytest.param(None, None, marks=NO_CARD, id="no card")],
)
def test_a_cuda_device_gives_the_numbers_of_the_processor(call, tensors):
    """Kernels add in another order: looser than the stand-in, which adds as the processor does."""
    want = call.function(**call.arguments())
    arguments = {
        name: moved(value, on_card, tensors=tensors) for name, value in call.arguments().items()
    }
    answer = call.function(**arguments)
    repr(answer)
    with contextlib.suppress(TypeError):
        getattr(answer, "to_dataframe", list)()
    check_near(call.name, answer, want, share=1e-3)


PAGES = {
    "explorer": lambda model, folder: numbers(ll.explore(model)),
    "report": lambda model, folder: [
        len(ll.report(model, folder / "page.html").read_bytes()) > 1e6
    ],
}


@pytest.mark.whole
@pytest.mark.parametrize("place", [elsewhere, pytest.param(on_card, marks=NO_CARD)])
@pytest.mark.parametrize("name", PAGES)
def test_pages_of_a_model_on_another_device(name, place, tmp_path):
    """With a tokenizer, and attention alone: what a page recomputes is stored beside what was measured."""
    model = ll.load("attn-1l")
    with SecondDevice() if place is elsewhere else contextlib.nullcontext():
        found = PAGES[name](place(model), tmp_path)
    check_same(name, found, PAGES[name](model, tmp_path), rel=1e-5 if place is elsewhere else 1e-2)


@pytest.fixture
def forgetful():
    """Results are made anew in the test, and none of them is kept for other tests."""
    kept = [value for value in vars(robust_figures).values() if hasattr(value, "cache_clear")]
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


def test_figures_of_results_on_another_device(monkeypatch, forgetful):
    fresh = {
        name: getattr(robust_figures, name).__wrapped__() for name in ("gpt", "attention_only")
    }
    with SecondDevice():
        for name, model in fresh.items():
            on_device = elsewhere(model)
            monkeypatch.setattr(robust_figures, name, lambda m=on_device: m)
        for name in robust_figures.FIGURES:
            robust_figures.draw(name)


MISTAKES = {
    "two devices": lambda x: x + torch.ones(3),
    "a single number of the device": lambda x: torch.ones(3) * x.sum(),
    "a list of both": lambda x: torch.cat([x, torch.ones(3)]),
    "an index of the device": lambda x: torch.arange(9)[x.long()],
    "numpy": lambda x: x.numpy(),
    "a generator": lambda x: torch.randn(2, device=x.device, generator=torch.Generator()),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_second_device_refuses_what_a_gpu_refuses(mistake):
    with SecondDevice(), pytest.raises((RuntimeError, TypeError)):
        MISTAKES[mistake](elsewhere(torch.ones(3)))


def test_the_second_device_allows_what_a_gpu_allows():
    with SecondDevice():
        x = elsewhere(torch.arange(3.0))
        assert x[torch.tensor([2, 0])].tolist() == [2.0, 0.0]
        assert (x * torch.tensor(2.0)).cpu().tolist() == [0.0, 2.0, 4.0]
        assert float(x.sum()) == 3.0 and x.device.type != "cpu"
        assert ll.linalg.to_compute(x).device == x.device
