"""Several threads: one model explained by all of them, or a model each."""

import copy
import gc
import os
import pickle
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from settings import pyramid
from transformers.utils import logging

from spes_hf import Deletion, Explainer, explain
from spes_hf.adapters.hooks import forward_hook
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.runtime.locks import alone, float32_by_default, model_to_itself, random_numbers

FEW = {"num_spectrogram_masks": 6, "num_token_masks": 24}
SAMPLING = {"do_sample": True, "temperature": 3.0, "max_new_tokens": 6}


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that each use several would take turns on the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same(a, b):
    """Whether two explanations are, bit by bit."""
    maps = [(x.raw_audio, x.raw_token_scores.nan_to_num(-1)) for x in (a, b)]
    return a.text == b.text and all(torch.equal(x, y) for x, y in zip(*maps, strict=True))


def embedding(model):
    """The decoder's embedding, where tokens are perturbed."""
    return model.get_decoder().embed_tokens


@pytest.mark.parametrize(("name", "options"), [("speech2text-en", {}), ("seamless-en-de-es", {"tgt_lang": "deu"})])
def test_four_threads_with_one_model_find_what_one_finds(name, options):
    """Explainers and a metric at once: a hook of one would perturb the tokens of all."""
    model, processor = load_tiny_model(name)
    # Each pass lets the others run: without the lock, threads meet in every pass and not by chance.
    parts = (model.get_encoder(), embedding(model))
    letting = [part.register_forward_pre_hook(lambda *_: time.sleep(0.001)) for part in parts]
    paths = [clip["path"] for clip in tiny_clips()[:2]]
    explainers = [Explainer(model, processor, pyramid(**FEW), progress=False, batch_size=n) for n in (4, 24)]
    deletion = Deletion(model, processor, (0.0, 0.3, 1.0), against="prediction")
    expected = [explainers[0](path, **options) for path in paths]
    curves = [deletion(explanation)["deletion"] for explanation in expected]
    start = threading.Barrier(4)

    def work(thread):
        start.wait()
        if thread == 3:
            return all(deletion(expected[i % 2])["deletion"] == curves[i % 2] for i in range(4))
        return all(same(explainers[0](paths[i % 2], **options), expected[i % 2]) for i in range(thread, thread + 3))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4
    for hook in letting:
        hook.remove()
    assert not any(len(module._forward_hooks) for module in model.modules())


def test_two_models_in_two_threads_leave_the_process_as_it_was():
    """Each samples as if it were alone; random states, verbosity and default type are the user's afterwards."""
    models = [load_tiny_model("speech2text-en") for _ in range(2)]
    path = tiny_clips()[0]["path"]

    def texts(pair, first):
        explainers = [Explainer(*pair, pyramid(**FEW), progress=False, seed=seed) for seed in (first, first + 1)]
        return [e(path, generate_kwargs=SAMPLING).text for e in explainers for _ in range(2)]

    expected = [texts(pair, i) for i, pair in enumerate(models)]
    assert expected[0][:2] != expected[1][2:]  # they are drawn
    verbosity, before = logging.get_verbosity(), (torch.get_rng_state(), str(np.random.get_state()))
    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(texts, models, range(2)))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected
    assert torch.equal(torch.get_rng_state(), before[0]) and str(np.random.get_state()) == before[1]
    assert logging.get_verbosity() == verbosity


def test_random_numbers_of_runs_that_take_turns_are_their_own():
    def draw():
        with alone():
            return torch.rand(2).tolist(), np.random.rand()

    def in_turns(seed, turns):
        with random_numbers(seed, set()):
            for turn in turns:
                turn.wait(timeout=60)
                yield draw()

    def alternately(seed):
        return [*in_turns(seed, [threading.Barrier(1)] * 3)]

    expected = [alternately(seed) for seed in (0, 1)]
    state = torch.get_rng_state()
    shared = [threading.Barrier(2) for _ in range(3)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda seed: [*in_turns(seed, shared)], (0, 1))) == expected
    # NumPy's state is kept, not seeded, as it always was.
    assert [draws[0] for draws in expected[0]] != [draws[0] for draws in expected[1]]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_last_one_gives_the_default_type_back():
    torch.set_default_dtype(torch.float64)
    try:
        first, second = float32_by_default(), float32_by_default()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float32
        second.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_hook_concerns_neither_other_threads_nor_copies():
    module = torch.nn.Identity()
    with forward_hook(module, lambda output: output * 0), ThreadPoolExecutor(1) as pool:
        assert module(torch.ones(1)) == 0
        assert pool.submit(module, torch.ones(1)).result() == 1
        copied, pickled = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
        assert pool.submit(copied, torch.ones(1)).result() == 1
        assert copied(torch.ones(1)) == pickled(torch.ones(1)) == 1  # in this thread as well
    assert module(torch.ones(1)) == 1 and copied(torch.ones(1)) == 1


def held_elsewhere(model):
    """Start a thread that has the model to itself; return what ends it."""
    holds, end = threading.Event(), threading.Event()

    def hold():
        with model_to_itself(model), alone():
            holds.set()
            end.wait(60)

    threading.Thread(target=hold, daemon=True).start()
    assert holds.wait(60)
    return end


def test_an_explainer_is_pickled_and_copied_while_another_thread_runs_its_model():
    model, processor = load_tiny_model("speech2text-en")
    explainer = Explainer(model, processor, pyramid(**FEW), progress=False)
    end = held_elsewhere(model)
    copies = [pickle.loads(pickle.dumps(explainer)), copy.deepcopy(explainer)]
    end.set()
    path = tiny_clips()[0]["path"]
    assert all(same(other(path), explainer(path)) for other in copies)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_inherits_no_lock_that_is_held():
    model = torch.nn.Identity()
    end = held_elsewhere(model)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for ever
        with model_to_itself(model), alone():
            os._exit(7)
    _, status = os.waitpid(child, 0)
    end.set()
    assert os.waitstatus_to_exitcode(status) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_has_the_users_default_type():
    torch.set_default_dtype(torch.float64)
    try:
        with float32_by_default():
            child = os.fork()
            if child == 0:
                os._exit(7 if torch.get_default_dtype() == torch.float64 else 8)
            _, status = os.waitpid(child, 0)
            assert torch.get_default_dtype() == torch.float32
        assert os.waitstatus_to_exitcode(status) == 7
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_lock_keeps_no_model_alive():
    model, processor = load_tiny_model("speech2text-en")
    explain(model, processor, tiny_clips()[0]["path"], config=pyramid(**FEW), progress=False)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_thread_may_take_a_model_twice_and_others_wait():
    model, order = torch.nn.Identity(), []

    def other():
        with model_to_itself(model):
            order.append("other")

    with model_to_itself(model), model_to_itself(model):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.1)
        order.append("this")
    thread.join(60)
    assert order == ["this", "other"]
