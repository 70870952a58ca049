"""Logits that are no distribution end in an error, suppressed tokens in no difference, half precision in a warning."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch

from spes_hf import EnergyConfig, Explainer, SpesConfig, explain, functional
from spes_hf.cli import main
from spes_hf.corpora.transforms import Explain
from spes_hf.errors import NumericsError
from spes_hf.metrics import Deletion
from spes_hf.scoring.impact import KLImpact, make_impact

NAN, INF = math.nan, math.inf
IMPACTS = ("kl", "probability", "contrastive")
SHORT = {"max_new_tokens": 4}
FEW = {"num_spectrogram_masks": 4, "num_token_masks": 3}
CONFIGS = {
    "gradient": SpesConfig(**FEW, masks_per_token=2),
    "Eq. 3": SpesConfig(**FEW, estimator="perturbation"),
}


def logits(seed=0, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


def suppressed(values, *entries):
    values = values.clone()
    values[..., list(entries)] = -INF
    return values


# Suppressed tokens ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMPACTS)
def test_suppressed_tokens_do_not_matter(name):
    """In the clean logits, in the perturbed ones, in both: as if the entries had next to no probability anyway."""
    clean, moved, ids = logits(0, 3, 50), logits(1, 4, 3, 50), torch.tensor([1, 2, 3])
    clean[:, 40:] -= 60
    moved[:, :, 40:] -= 60
    expected = make_impact(name, clean, ids)(moved)
    for first in (clean, suppressed(clean, 40, 45, 49)):
        for second in (moved, suppressed(moved, 40, 45, 49)):
            found = make_impact(name, first, ids)(second)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
            if name == "kl":
                torch.testing.assert_close(functional.kl_divergence(first, second), expected, rtol=0, atol=1e-5)
            if name == "probability":
                by_formula = functional.probability_difference(first, second, ids)
                torch.testing.assert_close(by_formula, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", IMPACTS)
@pytest.mark.parametrize("where", ["clean", "perturbed", "both"])
def test_suppressed_tokens_leave_gradients_finite(name, where):
    clean, moved, ids = logits(0, 3, 50), logits(1, 4, 3, 50), torch.tensor([1, 2, 3])
    clean = clean if where == "perturbed" else suppressed(clean, 40, 49)
    moved = (moved if where == "clean" else suppressed(moved, 40, 49)).requires_grad_()
    make_impact(name, clean, ids)(moved).sum().backward()
    assert moved.grad.isfinite().all() and moved.grad.any()
    if where != "clean":
        assert not moved.grad[..., [40, 49]].any()
    if name == "kl" and where == "both":
        expected = moved.detach().softmax(-1) - clean.softmax(-1)
        torch.testing.assert_close(moved.grad, expected, rtol=0, atol=1e-6)


def test_gradients_of_the_formula_are_finite_on_both_sides():
    clean, moved = suppressed(logits(0, 3, 50), 7).requires_grad_(), suppressed(logits(1, 3, 50), 7, 8).requires_grad_()
    functional.kl_divergence(clean, moved).sum().backward()
    assert clean.grad.isfinite().all() and moved.grad.isfinite().all()


def test_an_explained_token_that_is_suppressed_under_a_mask_has_lost_its_probability():
    clean, moved, ids = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[[-INF, 0.0, 0.0]]]), torch.tensor([0])
    p = clean.softmax(-1)[0, 0]
    assert make_impact("probability", clean, ids)(moved) == pytest.approx(float(p))
    assert 90 < float(make_impact("kl", clean, ids)(moved)) < 110
    assert float(make_impact("contrastive", clean, ids)(moved)) == pytest.approx(105.0)


def test_a_model_with_suppressed_logits_is_explained_as_without(small_whisper, tone):
    """The real thing: a head that never writes some tokens, by -inf, against one that hardly does, by -80."""
    found = {}
    for value in (-80.0, -INF):
        model = copy.deepcopy(small_whisper[0])
        never = torch.zeros(model.config.vocab_size)
        never[1000:2000] = value
        model.proj_out.register_forward_hook(lambda module, args, output, never=never: output + never)
        found[value] = explain(model, small_whisper[1], tone, config=CONFIGS["gradient"], text="so my", progress=False)
    for name in ("raw_audio", "raw_token", "token_probabilities"):
        first, second = (getattr(found[value], name).nan_to_num() for value in found)
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


# What is no distribution ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMPACTS)
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("entry", [1, 30], ids=["the token's own", "another"])
def test_logits_that_are_no_distribution_are_refused(name, value, entry):
    clean, moved, ids = logits(0, 3, 50), logits(1, 4, 3, 50), torch.tensor([1, 2, 3])
    broken = clean.clone()
    broken[0, entry] = value
    with pytest.raises(NumericsError, match="clean logits of the model are NaN or infinite; it computes in float32"):
        make_impact(name, broken, ids)
    under_one_mask = moved.clone()
    under_one_mask[2, 0, entry] = value
    impact = make_impact(name, clean, ids, torch.float16)
    with pytest.raises(
        NumericsError, match="logits under masks .* float16, whose largest number is 65,504; load .*float32"
    ):
        impact(under_one_mask)


@pytest.mark.parametrize("name", IMPACTS)
def test_logits_of_nothing_but_minus_infinity_are_refused(name):
    clean, moved, ids = logits(0, 3, 50), logits(1, 4, 3, 50), torch.tensor([1, 2, 3])
    with pytest.raises(NumericsError, match="clean logits"):
        make_impact(name, suppressed(clean, *range(50)), ids)
    with pytest.raises(NumericsError, match="under masks"):
        make_impact(name, clean, ids)(suppressed(moved, *range(50)))


def test_what_is_not_finite_stays_so_in_the_formulas():
    """And does not become a map of zeros."""
    clean = logits(0, 3, 50)
    for value in (NAN, INF):
        broken = clean.clone()
        broken[1, 4] = value
        assert functional.kl_divergence(clean, broken).isnan().tolist() == [False, True, False]
        assert functional.kl_divergence(broken, clean).isnan().tolist() == [False, True, False]
    maps, text, valid = torch.rand(2, 4, 3), torch.rand(2, 5), torch.ones(2, 5, dtype=torch.bool)
    maps[0, 1, 1] = NAN
    audio, _ = functional.paired_min_max(*functional.standardize(maps, text, valid), valid)
    assert audio[0].isnan().all() and audio[1].isfinite().all()
    assert functional.ratio(torch.tensor([1.0, NAN, 1.0]), torch.tensor([0.0, 1.0, NAN])).isnan().tolist() == [
        False,
        True,
        True,
    ]


def broken_head(model, spoil):
    """Return a copy of a model whose logits are spoiled."""
    model = copy.deepcopy(model)
    model.proj_out.register_forward_hook(lambda module, args, output: spoil(output))
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_nan_logits_end_an_explanation(small_whisper, tone, config):
    model = broken_head(small_whisper[0], lambda output: output * NAN)
    with pytest.raises(NumericsError, match="clean logits of the model are NaN"):
        explain(model, small_whisper[1], tone, config=CONFIGS[config], text="so", progress=False)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("value", [NAN, INF])
def test_nan_logits_under_some_masks_end_an_explanation(small_whisper, tone, config, value):
    calls = []

    def later(output):
        calls.append(len(output))
        return output if len(calls) < 7 else output.index_fill(-1, torch.tensor([7]), value)

    model = broken_head(small_whisper[0], later)
    with pytest.raises(NumericsError, match="logits under masks"):
        explain(model, small_whisper[1], tone, config=CONFIGS[config], text="so", batch_size=1, progress=False)
    assert len(calls) >= 7  # the clean pass, those of the bits, and some under masks


@pytest.mark.parametrize("estimator", ["gradient", "perturbation"])
@pytest.mark.parametrize("impact", [*IMPACTS, "log-probability"])
def test_nan_that_no_check_of_a_pass_saw_ends_an_explanation(small_whisper, tone, monkeypatch, impact, estimator):
    """As on an accelerator, where only some passes are checked."""
    for module in ("impact", "gradient"):
        monkeypatch.setattr(f"spes_hf.scoring.{module}.is_checked", lambda calls, device: False)
    calls = []  # 1: clean, 2 and 3: the bits, then masks of sound

    def later(output):
        calls.append(len(output))
        return (
            output
            if len(calls) != 6
            else output.index_fill(-1, torch.tensor([7], dtype=torch.int64, device="cpu"), NAN)
        )

    model, config = broken_head(small_whisper[0], later), SpesConfig(**FEW, impact=impact, estimator=estimator)
    with pytest.raises(NumericsError, match="NaN or infinite"):
        explain(model, small_whisper[1], tone, config=config, text="so", batch_size=1, progress=False)


class NanBackwards(torch.autograd.Function):
    """Changes nothing forwards, and makes NaN of gradients."""

    @staticmethod
    def forward(context, values):
        return values.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * NAN


def test_nan_gradients_end_an_explanation(small_whisper, tone):
    model = broken_head(small_whisper[0], NanBackwards.apply)
    with pytest.raises(NumericsError, match="gradients of the impacts of the model are NaN"):
        explain(model, small_whisper[1], tone, config=CONFIGS["gradient"], text="so", progress=False)
    explain(model, small_whisper[1], tone, config=CONFIGS["Eq. 3"], text="so", progress=False)


def test_an_overflow_of_float16_names_the_type_and_the_remedy(small_whisper, tone):
    model = copy.deepcopy(small_whisper[0])
    model.proj_out.weight.data.clamp_(-1, 1)  # the head is tied: only what the decoder ends with is made large
    model.model.decoder.layer_norm.weight.data.mul_(1e6)
    half = model.half()
    with warnings.catch_warnings(), pytest.raises(NumericsError, match="computes in float16.*dtype=torch.float32"):
        warnings.simplefilter("ignore")
        explain(half, small_whisper[1], tone, config=CONFIGS["Eq. 3"], text="so", progress=False)


@pytest.mark.parametrize("value", [NAN, INF])
def test_the_probabilities_of_a_metric_are_refused_too(small_whisper, tone, value):
    model = copy.deepcopy(small_whisper[0])
    found = explain(model, small_whisper[1], tone, config=EnergyConfig(), generate_kwargs=SHORT, progress=False)
    deletion = Deletion(model, small_whisper[1], fractions=(0.0, 1.0))
    seven = torch.tensor([7])
    # Generation, token by token, is as it was: what is teacher-forced is not.
    model.proj_out.register_forward_hook(
        lambda module, args, output: output if output.shape[1] < 3 else output.index_fill(-1, seven, value)
    )
    with pytest.raises(NumericsError, match="logits for a share of the features"):
        deletion({"explanation": found})


# The branch of the KL divergence that keeps its exponentials in range -------------------------------------------------


@pytest.mark.parametrize("shift", [-1_000.0, -150.0, 150.0, 1_000.0])
def test_fused_kl_where_the_perturbed_logits_lie_elsewhere_altogether(shift):
    """A shift of all logits changes no distribution; exp of 150 or -150 is outside float32."""
    clean, moved = logits(0, 3, 200), logits(1, 5, 3, 200)
    expected = functional.kl_divergence(clean.double(), moved.double())
    moved = (moved + shift).requires_grad_()
    found = KLImpact(clean, torch.tensor([0, 1, 2]))(moved)
    torch.testing.assert_close(found.detach(), expected.float(), rtol=0, atol=1e-3)
    found.sum().backward()
    torch.testing.assert_close(moved.grad, moved.detach().softmax(-1) - clean.softmax(-1), rtol=0, atol=1e-4)


def test_fused_kl_keeps_digits_that_the_highest_logit_would_cost():
    """Near the clean logits the normaliser is subtracted, not the highest: what is summed is near 1, its log near 0."""
    clean = torch.zeros(1, 50_000)
    moved = (1e-4 * logits(1, 40, 1, 50_000)).float()
    p, q = clean.double().log_softmax(-1), moved.double().log_softmax(-1)
    error = KLImpact(clean, torch.tensor([0]))(moved).double() - (p.exp() * (p - q)).sum(-1)
    assert error.abs().max() < 3e-7


# Half precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["kl", "probability"])
def test_near_certain_tokens_keep_their_gradients_in_half_precision(name, dtype):
    """q − p, and p_y · (1 − p_y): differences of numbers that are equal but for digits which half precision lacks."""
    clean = logits(0, 3, 50)
    clean[:, 7] = 14.0  # likelier than 0.999
    moved = (clean + 0.3 * logits(1, 4, 3, 50)).to(dtype)
    ids = torch.full((3,), 7)
    exact = moved.double().requires_grad_()
    q, p = exact.log_softmax(-1), clean.to(dtype).double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum()
    (kl if name == "kl" else -q[..., 7].exp().sum()).backward()
    moved.requires_grad_()
    make_impact(name, clean.to(dtype), ids)(moved).sum().backward()
    step = 2**-8 if dtype == torch.bfloat16 else 2**-11
    torch.testing.assert_close(moved.grad.double(), exact.grad, rtol=2 * step, atol=1e-6)


ENTRIES = {
    "explain": lambda m, p, tone: explain(m, p, tone, config=EnergyConfig(), generate_kwargs=SHORT, progress=False),
    "Explainer": lambda m, p, tone: Explainer(m, p),
    "Explain": lambda m, p, tone: Explain(m, p),
    "Deletion": lambda m, p, tone: Deletion(m, p),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_float16_on_a_cpu_warns_once_for_each_model(small_whisper, tone, name):
    half = copy.deepcopy(small_whisper[0]).half()
    with pytest.warns(UserWarning, match=r"float16 on a CPU.*model.float\(\)") as caught:
        ENTRIES[name](half, small_whisper[1], tone)
    assert sum("float16" in str(warning.message) for warning in caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for entry in ENTRIES.values():
            entry(half, small_whisper[1], tone)


def test_float16_on_a_cpu_warns_in_a_job_and_on_the_command_line(small_whisper, tone, tmp_path):
    import soundfile
    from datasets import Dataset

    from spes_hf.jobs.run import explain_dataset

    half = copy.deepcopy(small_whisper[0]).half()
    soundfile.write(tmp_path / "tone.wav", tone, 16_000)
    rows = Dataset.from_list([{"id": "a", "audio": str(tmp_path / "tone.wav")}])
    with pytest.warns(UserWarning, match="float16 on a CPU"):
        explain_dataset(half, small_whisper[1], rows, tmp_path / "out", EnergyConfig(), generate_kwargs=SHORT)
    arguments = ["--model", "speech2text-en", "--dtype", "float16", "--num-masks", "1", "--num-token-masks", "1"]
    from spes_hf.demo import tiny_clips

    clip = str(tiny_clips()[0]["path"])
    with pytest.warns(UserWarning, match="float16 on a CPU"):
        assert main(["explain", clip, *arguments, "--preset", "fast", "--out", str(tmp_path / "page")]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_do_not_warn(small_whisper, dtype):
    model = copy.deepcopy(small_whisper[0]).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Explainer(model, small_whisper[1])
