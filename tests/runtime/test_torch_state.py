"""What is switched on in torch around the call changes no bit of a result, and is as it was afterwards."""

from __future__ import annotations

import ast
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

import spes_hf
from spes_hf import (
    AttentionConfig,
    BubbleNoiseConfig,
    EnergyConfig,
    Explanation,
    FeatureWiseConfig,
    RandomConfig,
    SpesConfig,
    explain,
    functional,
)
from spes_hf.metrics import Deletion, Size, summarize

SHORT = {"max_new_tokens": 4}
FEW = {"num_spectrogram_masks": 4, "num_token_masks": 3}
METHODS = {
    "gradient": SpesConfig(**FEW, masks_per_token=2),
    "Eq. 3": SpesConfig(**FEW, estimator="perturbation"),
    "feature-wise": FeatureWiseConfig(**FEW),
    "bubble noise": BubbleNoiseConfig(**FEW),
    "random": RandomConfig(),
    "energy": EnergyConfig(),
    "attention": AttentionConfig(),
}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
        assert torch.get_default_device().type == device
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def without_gradients():
    torch.set_grad_enabled(False)
    try:
        yield
        assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


STATES = {
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "float16 by default": lambda: default_dtype(torch.float16),
    "meta by default": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "deterministic": deterministic,
    "gradients off": without_gradients,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


def tensors(found: Explanation) -> dict[str, torch.Tensor]:
    return {
        "raw_audio": found.raw_audio,
        "raw_token": found.raw_token,
        "audio_saliency": found.audio_saliency,
        "token_saliency": found.token_saliency,
        "sentence_saliency": found.sentence_saliency,
        "words": found.words().audio_saliency,
        "words' probabilities": found.words().token_probabilities,
        "sound_bits": found.sound_bits,
        "text_bits": found.text_bits,
        "evidence": found.evidence(),
        "centroids": found.time_centroids(),
        "probabilities": found.token_probabilities,
        "reliability": torch.stack([*found.reliability.tokens]),
        "sentence reliability": torch.tensor(found.reliability.sentence, dtype=torch.float64, device="cpu"),
        "times": found.times,
        "frequencies": found.frequencies,
        "features": found.features,
    }


def assert_same(found, expected):
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].device == value.device, name
        assert torch.equal(found[name].nan_to_num(9.0), value.nan_to_num(9.0)), name


def run(small_whisper, tone, name):
    return explain(*small_whisper, tone[:9_600], config=METHODS[name], generate_kwargs=SHORT, progress=False)


@pytest.fixture(scope="module")
def expected(small_whisper, tone):
    return {name: tensors(run(small_whisper, tone, name)) for name in METHODS}


@pytest.fixture(scope="module")
def explanation(small_whisper, tone):
    return run(small_whisper, tone, "gradient")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", METHODS)
def test_an_explanation_is_bit_equal_under_any_state(small_whisper, tone, expected, name, state):
    with STATES[state]():
        found = tensors(run(small_whisper, tone, name))
    assert_same(found, expected[name])


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("model", ["speech2text-en", "seamless-en-de-es"])
def test_other_families_are_bit_equal_under_any_state(model, state):
    from spes_hf.demo import load_tiny_model, tiny_clips

    loaded = load_tiny_model(model)
    options = {"tgt_lang": "deu"} if model.startswith("seamless") else {}
    few = SpesConfig(num_spectrogram_masks=1, masks_per_token=1, num_token_masks=1)
    audio = tiny_clips()[0]["path"]

    def found():
        return tensors(explain(*loaded, audio, config=few, generate_kwargs=SHORT, progress=False, **options))

    first = found()
    with STATES[state]():
        second = found()
    assert_same(second, first)


@pytest.mark.parametrize("state", STATES)
def test_metrics_are_equal_under_any_state(small_whisper, explanation, state):
    deletion = Deletion(*small_whisper, fractions=(0.0, 0.1, 1.0), generate_kwargs=SHORT)

    def rows():
        row = Size()(deletion({"explanation": explanation, "id": "a"}))
        scores = summarize([row], references=["and so my fellow Americans"])
        return row["deletion"], row["size"], [str(score) for score in scores.values()]

    expected = rows()
    with STATES[state]():
        assert rows() == expected


@pytest.mark.parametrize("state", STATES)
def test_stored_explanations_are_read_and_drawn_under_any_state(explanation, tmp_path, state):
    with STATES[state]():
        loaded = Explanation.load(explanation.save(tmp_path / "saved"))
        rows = Explanation.from_row(explanation.to_row())
        figures = [explanation.plot()[0], explanation.plot_tokens()[0]]
        explanation.to_html(tmp_path / "page.html")
        found = tensors(loaded), tensors(rows)
    for tensor in found:
        assert_same(tensor, tensors(explanation))
    assert len(figures) == 2


@pytest.mark.parametrize("state", STATES)
def test_the_paper_on_one_page_is_bit_equal_under_any_state(state):
    generator = torch.Generator().manual_seed(0)
    clean, moved = torch.randn(3, 50, generator=generator), torch.randn(7, 3, 50, generator=generator)
    keep = (torch.rand(7, 12, generator=generator) > 0.5).float()
    maps, text = torch.rand(3, 4, 3, generator=generator), torch.rand(3, 4, generator=generator)
    ids, valid = torch.arange(3), torch.ones(3, 4, dtype=torch.bool)

    def numbers():
        impact = functional.kl_divergence(clean, moved)
        scaled = functional.paired_min_max(*functional.standardize(maps, text, valid), valid)
        return {
            "kl": impact,
            "probability": functional.probability_difference(clean, moved, ids),
            "saliency": functional.saliency(keep, impact),
            "audio": scaled[0],
            "token": scaled[1],
            "masks": functional.deletion_masks(maps[0], [0.0, 0.3, 1.0]).float(),
            "size": functional.size_curve(scaled[0], [0.0, 0.5]),
            "area": torch.full((1,), functional.area_under_curve([1, 2], [0, 1]), dtype=torch.float64, device="cpu"),
        }

    expected = numbers()
    with STATES[state]():
        found = numbers()
    assert_same(found, expected)


# Functions of torch that make tensors, with the arguments that say what kind, where the default would.
FACTORIES = {
    *("zeros", "ones", "empty", "full", "tensor", "scalar_tensor", "arange", "linspace", "logspace", "eye"),
    *("rand", "randn", "randint", "randperm", "normal", "as_tensor", "asarray", "hann_window", "hamming_window"),
    *("bartlett_window", "blackman_window", "kaiser_window", "tril_indices", "triu_indices", "empty_strided"),
}
WITHOUT = {"Tensor", "FloatTensor", "DoubleTensor", "LongTensor"}  # take the defaults, whatever is said


def unsaid(source: str) -> list[str]:
    """Return the calls in a source that leave a tensor's dtype or device to the user's defaults."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = node.func.value
        if not (isinstance(owner, ast.Name) and owner.id == "torch"):
            continue
        said = {keyword.arg for keyword in node.keywords}
        if node.func.attr in WITHOUT or (node.func.attr in FACTORIES and not {"dtype", "device"} <= said):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_the_search_for_unsaid_kinds_finds_them():
    assert unsaid("torch.zeros(3)") and unsaid("torch.arange(3, dtype=torch.int64)") and unsaid("torch.Tensor([1])")
    assert not unsaid('torch.zeros(3, dtype=torch.float32, device="cpu")')


def test_every_tensor_that_the_package_makes_has_a_dtype_and_a_device():
    folder = Path(spes_hf.__file__).parent
    found = {str(path.relative_to(folder)): unsaid(path.read_text("utf-8")) for path in folder.rglob("*.py")}
    assert len(found) > 60
    assert {name: calls for name, calls in found.items() if calls} == {}
    sources = "".join(path.read_text("utf-8") for path in folder.rglob("*.py"))
    assert "from torch import zeros" not in sources


def test_states_are_as_they_were_after_an_error(small_whisper):
    from spes_hf import AudioError

    with ExitStack() as stack:
        for state in ("float64 by default", "meta by default", "gradients off"):
            stack.enter_context(STATES[state]())  # each of them checks itself
        with pytest.raises(AudioError):
            explain(*small_whisper, [0.0] * 10, sampling_rate=16_000, progress=False)
