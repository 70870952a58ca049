import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spes_hf import functional
from spes_hf.errors import ConfigError
from spes_hf.scoring.impact import ContrastiveImpact, KLImpact, ProbabilityImpact, make_impact


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        shares = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in shares:  # no views
                self.numel = max(self.numel, tensor.numel())
        return out


def pair(scale=1.0, shift=0.0, batch=70, tokens=3, vocabulary=211, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(tokens, vocabulary, generator=generator) * scale + shift
    perturbed = torch.randn(batch, tokens, vocabulary, generator=generator) * scale + shift
    return reference, perturbed


@pytest.mark.parametrize("batch", [1, 5, 64, 65, 130])
def test_fused_kl_equals_the_formula(batch):
    reference, perturbed = pair(batch=batch)
    actual = KLImpact(reference, torch.zeros(3, dtype=torch.long))(perturbed)
    assert actual.shape == (batch, 3)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, functional.kl_divergence(reference, perturbed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(5, 0), (100, 0), (1e4, 0), (5, 30), (5, -100)])
def test_fused_kl_equals_the_formula_for_extreme_logits(scale, shift):
    reference, perturbed = pair(scale, shift)
    actual = KLImpact(reference, torch.zeros(3, dtype=torch.long))(perturbed)
    expected = functional.kl_divergence(reference.double(), perturbed.double())
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fused_kl_of_half_precision_logits(dtype):
    reference, perturbed = (t.to(dtype) for t in pair(5))
    actual = KLImpact(reference, torch.zeros(3, dtype=torch.long))(perturbed)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, functional.kl_divergence(reference, perturbed), rtol=1e-5, atol=1e-5)


def test_fused_kl_where_probabilities_underflow():
    # As by hand: 10000 nats, and ln 2 where only p underflows.
    impact = KLImpact(torch.tensor([[1e4, 0.0]]), torch.tensor([0]))
    actual = impact(torch.tensor([[[0.0, 1e4]], [[0.0, 0.0]], [[1e4, 0.0]]]))
    torch.testing.assert_close(actual[:, 0], torch.tensor([1e4, math.log(2), 0.0]), rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("shift", [0.0, 20.0])
def test_fused_kl_of_equal_logits_is_zero_and_never_negative(shift):
    reference, _ = pair(5, shift, vocabulary=5_000)
    actual = KLImpact(reference, torch.zeros(3, dtype=torch.long))(reference.expand(6, -1, -1))
    assert (actual >= 0).all()
    assert actual.max() < 1e-5


def test_fused_kl_keeps_the_digits_of_a_small_divergence():
    # Logits around 20 that move by 0.001: divergences around 5e-7, far below the rounding of the logits' log-sum-exp.
    reference, noise = pair(vocabulary=20_000)
    perturbed = reference * 3 + 20 + 1e-3 * noise
    reference = reference * 3 + 20
    actual = KLImpact(reference, torch.zeros(3, dtype=torch.long))(perturbed)
    p, q = reference.double().log_softmax(-1), perturbed.double().log_softmax(-1)
    torch.testing.assert_close(actual.double(), (p.exp() * (p - q)).sum(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 20.0, -100.0])
@pytest.mark.parametrize("moved", [0.0, 1e-4, 1e-2, 1.0])
def test_fused_kl_of_a_large_vocabulary_is_right_to_a_millionth(offset, moved):
    reference, noise = pair(batch=8, vocabulary=51_864)
    reference = reference * 3 + offset
    perturbed = reference + moved * noise
    actual = KLImpact(reference, torch.zeros(3, dtype=torch.long))(perturbed)
    p, q = reference.double().log_softmax(-1), perturbed.double().log_softmax(-1)
    torch.testing.assert_close(actual.double(), (p.exp() * (p - q)).sum(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("batch", "tokens", "vocabulary"), [(1, 1, 7), (33, 60, 1_000), (3, 2, 200_000)])
def test_fused_kl_in_blocks_of_any_shape(batch, tokens, vocabulary):
    reference, perturbed = pair(3, batch=batch, tokens=tokens, vocabulary=vocabulary)
    actual = KLImpact(reference, torch.zeros(tokens, dtype=torch.long))(perturbed)
    p, q = reference.double().log_softmax(-1), perturbed.double().log_softmax(-1)
    torch.testing.assert_close(actual.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_gradient_of_fused_kl_is_that_of_the_formula(scale):
    """q − p; also where the perturbed logits are shifted to keep their exponentials finite."""
    reference, perturbed = pair(scale, batch=5)
    perturbed.requires_grad_()
    KLImpact(reference, torch.zeros(3, dtype=torch.long))(perturbed).sum().backward()
    expected = perturbed.detach().softmax(-1) - reference.softmax(-1)
    torch.testing.assert_close(perturbed.grad, expected, rtol=0, atol=1e-6)


def test_fused_kl_makes_nothing_of_the_size_of_the_logits():
    reference, perturbed = pair(batch=256, tokens=4, vocabulary=1_000)
    impact = KLImpact(reference, torch.zeros(4, dtype=torch.long))
    for logits in (perturbed, perturbed.half()):
        with LargestTensor() as fused:
            impact(logits)
        assert fused.numel <= logits.numel() // 8
    with LargestTensor() as plain:  # the measurement itself works
        functional.kl_divergence(reference, perturbed)
    assert plain.numel == perturbed.numel()


def test_probability_is_the_functional_one():
    reference, perturbed = pair()
    ids = torch.tensor([3, 0, 210])
    actual = ProbabilityImpact(reference, ids)(perturbed)
    torch.testing.assert_close(actual, functional.probability_difference(reference, perturbed, ids), atol=1e-6, rtol=0)


def test_contrast_by_hand():
    # Explained entry 0; likeliest other one of the clean run: entry 2. Clean margin 3 − 2 = 1.
    # Perturbed: 1 − 5 = −4, a fall of 5; 9 − 0 = 9, a rise of 8. Entry 1 does not count.
    impact = ContrastiveImpact(torch.tensor([[3.0, 0.0, 2.0]]), torch.tensor([0]))
    assert impact(torch.tensor([[[1.0, 50.0, 5.0]], [[9.0, -50.0, 0.0]]])).tolist() == [[5.0], [-8.0]]


def test_contrast_takes_the_favourite_as_foil_where_the_explained_token_was_not_the_likeliest():
    # Explained entry 1, which the model did not favour: the foil is entry 0; margin 1 − 4 = −3; then 2 − 2 = 0.
    impact = ContrastiveImpact(torch.tensor([[4.0, 1.0, 0.0]]), torch.tensor([1]))
    assert impact(torch.tensor([[[2.0, 2.0, 9.0]]])).tolist() == [[-3.0]]


@pytest.mark.parametrize("name", ["kl", "probability", "contrastive"])
def test_every_impact_is_float32_zero_without_perturbation_and_leaves_the_logits_alone(name):
    reference, perturbed = (t.half() for t in pair(3))
    impact = make_impact(name, reference, torch.tensor([1, 2, 3]))
    before = perturbed.clone()
    actual = impact(perturbed)
    assert actual.dtype == torch.float32
    assert actual.shape == (70, 3)
    assert torch.equal(perturbed, before)
    torch.testing.assert_close(impact(reference[None]), torch.zeros(1, 3), rtol=0, atol=1e-5)


def test_unknown_impact():
    with pytest.raises(ConfigError, match="'wer'.*kl, log-probability, probability, contrastive"):
        make_impact("wer", torch.zeros(1, 2), torch.tensor([0]))
