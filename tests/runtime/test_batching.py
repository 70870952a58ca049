import copy
import gc
import itertools
import weakref

import pytest
import torch

from spes_hf import Deletion, Explainer, OutOfMemoryError, SpesConfig, SpesError, explain
from spes_hf.adapters import get_adapter
from spes_hf.runtime.batching import (
    Batch,
    FoundSizes,
    check_batch_size,
    enough_memory,
    found_sizes_of,
    starting_batch_size,
)

TEXT = "ask not"
# Twelve masks draw the sentence, the first five of them the tokens too.
GRADIENT = SpesConfig(num_spectrogram_masks=12, masks_per_token=5, num_token_masks=6, patches_per_second=(40.0,))
FORWARD = SpesConfig(estimator="perturbation", num_spectrogram_masks=12, num_token_masks=6, patches_per_second=(40.0,))


def run_out_of_memory():
    """Have torch ask for more than any machine has."""
    torch.empty(1 << 60, dtype=torch.uint8, device="cpu")


class Scarce:
    """A model that runs out of memory in the passes that a test names.

    Attributes:
        forward: Copies in every forward pass of the encoder, failed ones included.
        backward: Copies in every backward pass, likewise.
    """

    def __init__(self, small_whisper, forward_fails=lambda n, size: False, backward_fails=lambda n, size: False):
        self.model, self.processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
        self.forward_fails, self.backward_fails = forward_fails, backward_fails
        self.forward, self.backward = [], []
        self.encoder = self.model.get_encoder()
        self.plain = self.encoder.forward
        self.encoder.forward = self.run

    def run(self, *args, **kwargs):
        size = len(kwargs["input_features"])
        self.forward.append(size)
        if self.forward_fails(len(self.forward) - 1, size):
            run_out_of_memory()
        if kwargs["input_features"].requires_grad:
            kwargs["input_features"].register_hook(self.run_back)
        return self.plain(*args, **kwargs)

    def run_back(self, gradient):
        self.backward.append(len(gradient))
        if self.backward_fails(len(self.backward) - 1, len(gradient)):
            run_out_of_memory()

    def explain(self, audio, config, batch_size=4):
        return explain(
            self.model, self.processor, audio, config=config, text=TEXT, batch_size=batch_size, progress=False
        )


def cost(explanation):
    return tuple(explanation.provenance["cost"][f"{way}_passes"] for way in ("forward", "backward"))


def same_maps(one, other):
    torch.testing.assert_close(one.raw_audio, other.raw_audio, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(one.raw_token, other.raw_token, atol=2e-5, rtol=1e-4, equal_nan=True)
    torch.testing.assert_close(one.reliability.tokens, other.reliability.tokens, atol=1e-2, rtol=0, equal_nan=True)
    if one.sentence_map is not None:
        torch.testing.assert_close(one.sentence_map.dense(0), other.sentence_map.dense(0), atol=1e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def undisturbed(small_whisper, tone):
    scarce = Scarce(small_whisper)
    found = {config.estimator: scarce.explain(tone, config) for config in (GRADIENT, FORWARD)}
    scarce = Scarce(small_whisper)
    scarce.explain(tone, GRADIENT)
    # Two clean passes (text, explanation); four masks of tokens; one of tokens, three of the sentence; four of these.
    assert scarce.forward == [1, 1, 1, 4, 1, 3, 4]
    return found


def test_cost_is_what_ran(undisturbed):
    tokens = len(undisturbed["gradient"])
    # The clean pass, two for the bits, twelve masks of sound, six of tokens; five masks a token, all of the sentence.
    assert cost(undisturbed["gradient"]) == (3 + 12 + 6, 5 * tokens + 12)
    assert cost(undisturbed["perturbation"]) == (3 + 12 + 6, 0)


@pytest.mark.parametrize("fails", [2, 3, 4, 5])
def test_every_mask_counts_once_wherever_a_forward_pass_fails(small_whisper, tone, undisturbed, fails):
    scarce = Scarce(small_whisper, forward_fails=lambda n, size: n == fails and size > 1)
    found = scarce.explain(tone, GRADIENT)
    same_maps(found, undisturbed["gradient"])
    # A pass that fails before it is through has not run.
    assert cost(found) == cost(undisturbed["gradient"])


@pytest.mark.parametrize("fails", [3, 4, 5])
def test_every_mask_counts_once_wherever_eq_3_runs_out_of_memory(small_whisper, tone, undisturbed, fails):
    scarce = Scarce(small_whisper, forward_fails=lambda n, size: n == fails)
    found = scarce.explain(tone, FORWARD)
    same_maps(found, undisturbed["perturbation"])
    assert cost(found) == cost(undisturbed["perturbation"])


def test_the_tokens_half_of_a_batch_is_kept_when_the_sentences_half_runs_out(small_whisper, tone, undisturbed):
    """The second batch is one mask of the tokens, which fits, and three of the sentence, which do not."""
    scarce = Scarce(small_whisper, forward_fails=lambda n, size: n == 5)
    found = scarce.explain(tone, GRADIENT)
    assert scarce.forward == [1, 1, 1, 4, 1, 3, 1, 1, 1, *[1] * 4]  # nothing of the one mask is run again
    same_maps(found, undisturbed["gradient"])
    assert cost(found) == cost(undisturbed["gradient"])


def test_passes_of_a_batch_that_failed_later_are_counted(small_whisper, tone, undisturbed):
    """Four copies run forwards, and backwards for two tokens; the third token's backward pass does not fit."""
    scarce = Scarce(small_whisper, backward_fails=lambda n, size: n == 2)
    found = scarce.explain(tone, GRADIENT)
    assert scarce.forward == [1, 1, 1, 4, 2, 2, 1, 1, 2, 2, 2]
    same_maps(found, undisturbed["gradient"])
    forward, backward = cost(undisturbed["gradient"])
    assert cost(found) == (forward + 4, backward + 2 * 4)
    assert cost(found)[0] == sum(scarce.forward[1:]) + 7  # passes without text reuse the encoder's output
    assert cost(found)[1] == sum(scarce.backward) - 4  # the one that failed


def test_the_size_that_fits_is_remembered_for_the_next_utterance(small_whisper, tone):
    scarce = Scarce(small_whisper, forward_fails=lambda n, size: size > 2)
    explainer = Explainer(scarce.model, scarce.processor, GRADIENT, batch_size=8, progress=False)
    first = explainer(tone, text=TEXT)
    assert [size for size in scarce.forward if size > 2] == [5]  # of eight rows, five are of the tokens
    scarce.forward.clear()
    second = explainer(tone, text=TEXT)
    assert max(scarce.forward) == 2
    same_maps(first, second)
    scarce.forward.clear()
    Explainer(scarce.model, scarce.processor, GRADIENT, batch_size=8, progress=False)(tone, text=TEXT)
    assert max(scarce.forward) == 5  # another explainer finds out for itself


@pytest.mark.parametrize("batch_size", [None, "auto"])
def test_a_found_size_is_remembered_for_later_calls_on_the_same_model(small_whisper, tone, batch_size):
    scarce = Scarce(small_whisper, forward_fails=lambda n, size: size > 2)
    first = scarce.explain(tone, GRADIENT, batch_size)
    assert max(scarce.forward) > 2
    scarce.forward.clear()
    second = scarce.explain(tone, GRADIENT, batch_size)
    assert max(scarce.forward) == 2
    same_maps(first, second)
    other = Scarce(small_whisper)
    other.explain(tone, GRADIENT, batch_size)
    assert max(other.forward) > 2  # a copy of the model has its own


def test_what_one_config_found_does_not_hold_for_another(small_whisper, tone):
    scarce = Scarce(small_whisper, forward_fails=lambda n, size: size > 2)
    scarce.explain(tone, GRADIENT, None)
    scarce.forward_fails = lambda n, size: False
    scarce.forward.clear()
    scarce.explain(tone, FORWARD, None)
    assert max(scarce.forward) > 2


def test_found_sizes_die_with_the_model(small_whisper):
    adapter = get_adapter(copy.deepcopy(small_whisper[0]), small_whisper[1])
    found = found_sizes_of(adapter, torch.float32)
    assert found_sizes_of(adapter, torch.float32) is found is not found_sizes_of(adapter, torch.bfloat16)
    gone = weakref.ref(found)
    del found, adapter
    gc.collect()
    assert gone() is None


def test_sizes_hold_for_shapes_that_are_as_large_and_for_no_others():
    found = FoundSizes()
    found.remember("sound", (100, 80), 6)
    assert found.fitting("sound", (100, 80), 64) == found.fitting("sound", (101, 80), 64) == 6
    assert found.fitting("sound", (99, 80), 64) == found.fitting("text", (100, 80), 64) == 64
    assert found.fitting("sound", (100, 80), 4) == 4
    found.remember("sound", (200, 80), 3)
    found.remember("sound", (300, 80), 3)
    assert [found.fitting("sound", (n, 80), 64) for n in (50, 150, 250, 350)] == [64, 6, 3, 3]
    found.remember("sound", (50, 80), 1)  # replaces all that it implies
    assert [found.fitting("sound", (n, 80), 64) for n in (49, 50, 150, 350)] == [64, 1, 1, 1]
    assert len(found._found["sound"]) == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA error: out of memory"), torch.OutOfMemoryError("x")]
)
def test_whatever_says_that_memory_ran_out_halves_the_batch(error):
    done = []

    def work(rows):
        if len(rows) > 3:
            raise error
        done.append(rows)

    batch = Batch(16, "x", (1,), FoundSizes())
    assert [*batch.over(range(7), work)] == done == [range(0, 3), range(3, 6), range(6, 7)]
    assert batch.size == 3


@pytest.mark.parametrize("error", [RuntimeError(5), RuntimeError("shapes do not match"), ValueError("out of memory")])
def test_other_errors_are_not_tried_again(error):
    def work(rows):
        calls.append(rows)
        raise error

    calls = []
    with pytest.raises(type(error)) as caught:
        list(Batch(4, "x", (1,), FoundSizes()).over(range(8), work))
    assert caught.value is error and len(calls) == 1
    with pytest.raises(type(error)) as caught, enough_memory("model"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("config", [GRADIENT, FORWARD])
def test_one_copy_that_does_not_fit_is_an_error_that_names_the_remedy(small_whisper, tone, config):
    scarce = Scarce(small_whisper, forward_fails=lambda n, size: n > 1)
    before = copy.deepcopy(scarce.model.state_dict())
    learning = [weight.requires_grad for weight in scarce.model.parameters()]
    scarce.model.train()
    with pytest.raises(OutOfMemoryError, match="not even one copy at a time") as caught:
        scarce.explain(tone, config)
    assert scarce.forward[-1] == 1
    for remedy in ("shorter clip", 'autocast="bfloat16"', 'estimator="perturbation"', "1.2 s"):
        assert remedy in str(caught.value)
    assert "can't allocate memory" in str(caught.value.__cause__)
    assert isinstance(caught.value, (SpesError, RuntimeError, MemoryError))
    assert scarce.model.training and all(module.training for module in scarce.model.modules())
    assert [weight.requires_grad for weight in scarce.model.parameters()] == learning
    torch.testing.assert_close(scarce.model.state_dict(), before, rtol=0, atol=0)


def test_generation_that_does_not_fit_is_an_error_that_names_the_remedy(small_whisper, tone):
    scarce = Scarce(small_whisper, forward_fails=lambda n, size: True)
    with pytest.raises(OutOfMemoryError, match="shorter clip"):
        explain(scarce.model, scarce.processor, tone, config=FORWARD, progress=False)


def test_beam_search_counts_its_beams(small_whisper, undisturbed):
    """The tone is in a window of 200 frames of 80 bins: 62 copies on a CPU, 7 of 8 beams each."""
    sizes = []
    handle = small_whisper[0].get_encoder().register_forward_hook(lambda _, args, output: sizes.append(len(output[0])))
    settings = {"max_new_tokens": 2, "num_beams": 8}
    fractions = [step / 10 for step in range(11)]
    for batch_size, batches in ((None, [7, 4]), (4, [4, 4, 3])):
        sizes.clear()
        deletion = Deletion(*small_whisper, fractions, generate_kwargs=settings, batch_size=batch_size)
        deletion(undisturbed["perturbation"])
        assert sizes == [1, 1, *batches]  # the start tokens and the clean text come first
    handle.remove()


@pytest.mark.parametrize("batch_size", [None, 8])
def test_deletion_halves_its_batch_and_measures_the_same(small_whisper, undisturbed, monkeypatch, batch_size):
    model, processor = copy.deepcopy(small_whisper[0]), small_whisper[1]
    explanation = undisturbed["perturbation"]
    settings = dict(fractions=(0, 0.2, 0.4, 0.6, 0.8, 1), generate_kwargs={"max_new_tokens": 3}, batch_size=batch_size)
    expected = Deletion(model, processor, **settings)(explanation)["deletion"]
    forward, sizes = model.forward, []

    def small_memory(*args, **kwargs):
        if kwargs.get("decoder_input_ids") is not None:  # of generate(), and of the pass for the probabilities
            sizes.append(len(kwargs["decoder_input_ids"]))
            if sizes[-1] > 3:
                run_out_of_memory()
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", small_memory)
    deletion = Deletion(model, processor, **settings)
    for first in (True, False):
        sizes.clear()
        found = deletion(explanation)["deletion"]
        assert found["texts"] == expected["texts"]
        assert found["token_probability"] == pytest.approx(expected["token_probability"], abs=1e-6)
        assert max(sizes) == (6 if first else 3)


# How many are tried at first -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "logits", "values", "size"),
    [
        ("cpu", (20, 50_000), 80 * 200, 62),
        ("cpu", (20, 50_000), 80 * 20, 64),
        ("cpu", (20, 50_000), 80 * 3000, 4),
        ("meta", (20, 50_000), 80 * 3000, 268),  # 2^28 / 1,000,000 logits
        ("meta", (2, 1_000), 80 * 3000, 279),  # 2^26 / 240,000 features
        ("meta", (2, 100), 80 * 200, 512),
        ("meta", (400, 250_000), 80 * 3000, 8),
    ],
)
def test_first_batch_size(device, logits, values, size):
    """Any device but a CPU counts as an accelerator, whose batches are large."""
    reference = torch.empty(logits, device=device)
    inputs = {"input_features": torch.empty(1, values, device=device), "attention_mask": torch.empty(1, 7)}
    assert starting_batch_size(reference.numel(), reference.device, inputs) == size
    assert starting_batch_size(reference.numel(), reference.device, inputs, backward=True) == max(1, size // 4)


def test_backward_passes_start_with_a_quarter_of_the_batch(small_whisper, tone):
    """The tone is in a window of 200 frames of 80 bins: 62 copies on a CPU, 15 where backward passes follow."""
    many = dict(num_spectrogram_masks=70, num_token_masks=1, patches_per_second=(40.0,))
    scarce = Scarce(small_whisper)
    scarce.explain(tone, SpesConfig(estimator="perturbation", **many), batch_size=None)
    assert scarce.forward == [1, 1, 1, 62, 8]
    scarce.forward.clear()
    scarce.explain(tone, SpesConfig(masks_per_token=1, **many), batch_size=None)
    assert scarce.forward == [1, 1, 1, 1, 14, 15, 15, 15, 10]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_batches_cover_all_rows_in_order(size):
    done = [*Batch(size, "x", (1,), FoundSizes()).over(range(3, 17), lambda rows: None)]
    assert [*itertools.chain(*done)] == [*range(3, 17)]
    assert max(map(len, done)) == min(size, 14)


def test_batch_sizes_that_are_allowed():
    assert [check_batch_size(size) for size in (None, "auto", 3)] == [None, None, 3]
    for wrong in (0, -1, 1.5, True, "Auto", "8"):
        with pytest.raises(SpesError, match=f"batch_size is {wrong!r}.*'auto'|batch_size is {wrong!r}.*\"auto\""):
            check_batch_size(wrong)
