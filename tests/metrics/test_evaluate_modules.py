import evaluate
import pytest

from spes_hf import ConfigError
from spes_hf.metrics import evaluate_module, wer


@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_curves(name, tmp_path):
    module = evaluate.load(evaluate_module(name), cache_dir=str(tmp_path))
    texts, references = [["a b", "a x", ""], ["c", "c", ""]], ["a b", "c"]
    found = module.compute(predictions=texts, references=references, fractions=[0, 0.5, 1])
    curve = [wer([row[s] for row in texts], references) for s in range(3)]
    assert found["curve"] == curve
    assert curve == pytest.approx([0, 100 / 3, 100])
    assert found[name] == pytest.approx((0 + 200 / 3 + 100) / 4)
    assert "wer|cap:100" in found["signature"]


@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_metrics_for_scripts_without_spaces(name, tmp_path):
    module = evaluate.load(evaluate_module(name), cache_dir=str(tmp_path))
    given = dict(predictions=[["今天天气很好", "今天", ""]], references=["今天天气很好"], fractions=[0, 0.5, 1])
    found = module.compute(**given, metric="cer")
    assert found["curve"] == pytest.approx([0, 100 * 4 / 6, 100]) and "cer|cap:100" in found["signature"]
    assert "tok:zh" in module.compute(**given, metric="bleu:zh")["signature"]
    with pytest.warns(UserWarning, match="the references are in Chinese or Japanese"):
        module.compute(**given)


def test_size(tmp_path):
    module = evaluate.load(evaluate_module("size"), cache_dir=str(tmp_path))
    found = module.compute(predictions=[[0.0, 0.35, 1.0, 1.0], [0.0]])
    assert found["curve"] == [100.0] + [37.5] * 7 + [25.0] * 13
    assert found["size"] == pytest.approx(0.05 * (68.75 + 6 * 37.5 + 31.25 + 12 * 25))


def test_unknown_name():
    with pytest.raises(ConfigError, match="name is 'wer'; allowed: deletion, insertion, size"):
        evaluate_module("wer")
