"""Tokens: what they rest on, which positions matter, which one further back; with planted scores."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis as scipy_kurtosis

from spes_hf import EnergyConfig, explain
from spes_hf.analysis import intermediate_tokens, modality_balance, plot_overview, positional, scatter
from spes_hf.analysis.intermediate import tops
from spes_hf.analysis.modality import top_share
from spes_hf.analysis.scattering import kurtosis
from spes_hf.errors import ConfigError


@pytest.fixture(scope="module")
def noise(blank):
    generator = torch.Generator().manual_seed(0)
    return {n: torch.rand(len(e), *e.features.shape, generator=generator) for n, e in blank.items()}


def scores(explanation, latest=0.0, start=0.0, between=0.0):
    """Raw token scores by position, (K, J), with a little noise."""
    prefix, (rows, columns) = explanation.prefix_length, explanation.raw_token_scores.shape
    found = torch.full((rows, columns), float(between))
    found[:, 0] = start
    for k in range(1, min(rows, columns - prefix + 1)):
        found[k, prefix + k - 1] = latest
    return found + 0.01 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(rows))


class TestPositional:
    @pytest.mark.parametrize(
        ("planted", "order"),
        [
            ({"latest": 3, "start": 2, "between": 1}, ("latest", "start", "intermediate")),
            ({"latest": 1, "start": 2, "between": 3}, ("intermediate", "start", "latest")),
        ],
    )
    def test_order(self, blank, plant, noise, planted, order):
        found = positional([plant(e, noise[n], scores(e, **planted)) for n, e in blank.items()])
        assert found.order == order and found.as_in_the_paper == (order[0] == "latest")
        assert set(found.tests) == {(order[0], order[1]), (order[0], order[2]), (order[1], order[2])}
        for test in (*found.tests.values(), *found.paired_tests.values()):
            assert test.difference > 0 and test.p_value < 0.01

    def test_counts_by_hand(self, blank, plant, noise):
        """Of K tokens, K − 1 have a latest and a start token; token k has k − 1 between."""
        (name, explanation), *_ = blank.items()
        found = positional([plant(explanation, noise[name], scores(explanation, 1, 1, 1))])
        tokens = len(explanation)
        assert explanation.prefix_length == 1 and found.n == tokens - 1
        assert len(found.values["latest"]) == len(found.values["start"]) == tokens - 1
        assert len(found.values["intermediate"]) == (tokens - 1) * (tokens - 2) / 2
        assert "prompt" not in found.values
        saliency = plant(explanation, noise[name], scores(explanation, 1, 1, 1)).token_saliency
        assert found.values["latest"][2] == pytest.approx(float(saliency[3, 3]))

    def test_prompt_tokens_are_neither(self, blank, plant, noise):
        (name, explanation), *_ = blank.items()
        # As if the model had been given its first token, too.
        given = replace(
            explanation,
            prefix_length=2,
            pieces=explanation.pieces[1:],
            token_id_list=explanation.token_id_list[1:],
            special=explanation.special[1:],
            probabilities=explanation.probabilities[1:],
            raw_token_scores=explanation.raw_token_scores[1:],
            text_impact=explanation.text_impact[1:],
        )
        found = positional([plant(given, noise[name][1:], scores(given, 3, 2, 1))])
        assert len(found.values["prompt"]) == len(found.values["start"]) and found.n == len(given) - 1

    def test_one_token_is_too_few(self, blank, plant, noise):
        (name, explanation), *_ = blank.items()
        short = replace(
            explanation,
            pieces=explanation.pieces[:1],
            token_id_list=explanation.token_id_list[:1],
            special=explanation.special[:1],
            probabilities=explanation.probabilities[:1],
            context_pieces=explanation.context_pieces[:1],
            raw_token_scores=explanation.raw_token_scores[:1, :1],
            text_impact=explanation.text_impact[:1],
        )
        found = positional([plant(short, noise[name][:1])])
        assert found.n == 0 and found.order == () and not found.as_in_the_paper
        assert all(test.too_few for test in found.tests.values()) and len(found.tests) == 3
        data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert data["positions"]["latest"]["note"] == "too few: a group of 0"
        assert "too few" in found.plot()[1].texts[0].get_text()
        assert "none" in str(found)

    def test_result(self, blank, plant, noise):
        found = positional([plant(e, noise[n], scores(e, 3, 2, 1)) for n, e in blank.items()])
        data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        for name in ("latest", "start", "intermediate"):
            assert sum(data["positions"][name]["histogram"]) == data["positions"][name]["n"]
        assert data["as_in_the_paper"] and data["tests"]["latest / start"]["p_value"] < 0.01
        legend = [t.get_text() for t in found.plot()[1].get_legend().get_texts()]
        assert [entry.split(":")[0] for entry in legend] == ["latest", "start", "intermediate"]


@pytest.mark.parametrize("stored_before", [False, True])
def test_a_prompt_comes_before_the_start_token(small_whisper, tone, plant, stored_before):
    prompt = small_whisper[1].tokenizer.get_prompt_ids("ask not what")
    settings = {"generate_kwargs": {"prompt_ids": prompt, "max_new_tokens": 6}, "progress": False}
    explanation = explain(*small_whisper, tone, config=EnergyConfig(), **settings)
    start, prefix = len(prompt), len(prompt) + 2
    assert explanation.context_tokens[start] == "<|startoftranscript|>" and explanation.prefix_length == prefix
    token = torch.zeros_like(explanation.raw_token_scores)
    token[:, start], token[:, 0] = 5, -5
    planted = plant(explanation, torch.rand(len(token), *explanation.features.shape), token)
    if stored_before:
        output = {name: v for name, v in explanation.provenance["output"].items() if name != "start"}
        planted = replace(planted, provenance={**explanation.provenance, "output": output})
    found = positional([planted])
    assert (found.values["start"] > 0.9).all() and len(found.values["start"]) == found.n == len(token) - 1
    assert len(found.values["prompt"]) == found.n * (prefix - 1) and (found.values["prompt"] < 0.9).all()
    assert (found.values["prompt"].reshape(found.n, -1)[:, 0] < 0.1).all()


class TestIntermediate:
    def test_planted(self, blank, plant, noise):
        """The full stop of every utterance is explained by its first word, all else by the latest token."""
        planted = []
        for name, explanation in blank.items():
            token = scores(explanation, latest=2)
            token[-2, explanation.prefix_length] = 5
            planted.append(plant(explanation, noise[name], token))
        found = intermediate_tokens(planted, min_count=2)
        stop = found.of(".")
        assert stop.share == 1 and stop.n == stop.hits == len(planted)
        assert sum(count for _, count in stop.by) == len(planted) and stop.by[0][0] == "Tom"
        assert found.of("</s>").hits == 0
        assert [row["token"] for row in found.table()] == ["."]
        assert found.table()[0]["by"][0] == list(stop.by[0]) and found.table()[0]["percent"] == 100
        assert found.of("never") is None and "'.': 100.0 %" in str(found)
        assert "Tom [" in found.plot()[1].texts[0].get_text()
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["table"][0]["token"] == "."

    def test_start_latest_and_ties_are_none(self, blank, plant, noise):
        (name, explanation), *_ = blank.items()
        for planted in (scores(explanation, latest=2), scores(explanation, start=2), torch.zeros(())):
            assert tops(plant(explanation, noise[name], planted)) == [None] * len(explanation)
        token = scores(explanation)
        token[4, 2] = 5.0
        assert tops(plant(explanation, noise[name], token))[4] == 1

    def test_too_few(self, blank):
        found = intermediate_tokens(blank.values(), min_count=100)
        assert found.note.startswith("too few") and found.types == () and found.rare > 5
        assert "too few" in found.plot()[1].texts[0].get_text() and "too few" in str(found)
        with pytest.raises(ConfigError, match="min_count is 0"):
            intermediate_tokens(blank.values(), min_count=0)

    def test_none_in_a_quarter(self, blank, plant, noise):
        found = intermediate_tokens([plant(e, noise[n], scores(e, latest=2)) for n, e in blank.items()], min_count=2)
        assert found.table() == [] and "no token type" in found.plot()[1].texts[0].get_text()


class TestScatter:
    @pytest.mark.parametrize("scale", [1.0, 1e-6, 1e5])
    def test_kurtosis_as_scipy(self, scale):
        values = torch.rand(30, 40, generator=torch.Generator().manual_seed(0)) ** 5
        expected = scipy_kurtosis(values.double().numpy(), axis=None)
        assert kurtosis(scale * values + scale) == pytest.approx(expected, rel=1e-4)

    def test_kurtosis_by_hand(self):
        """One of four: mean 1/4, fourth moment 21/256, variance 3/16."""
        assert kurtosis(torch.tensor([1.0, 0, 0, 0])) == pytest.approx(21 / 256 / (3 / 16) ** 2 - 3)
        assert np.isnan(kurtosis(torch.full((3, 3), 7.0)))

    def test_planted(self, blank, plant, noise):
        """Maps of full stops are scattered, all others have one sharp spot."""
        planted = []
        for name, explanation in blank.items():
            audio = noise[name].clone()
            for k, piece in enumerate(explanation.pieces):
                if piece.strip() != ".":
                    audio[k, 10:13, 20:23] += 30
            planted.append(plant(explanation, audio, scores(explanation, 1)))
        found = scatter(planted, min_count=2)
        assert found.bottom(1)[0].token == "." and found.bottom(1)[0].kurtosis == pytest.approx(-1.2, abs=0.1)
        assert found.top(1)[0].kurtosis > 100 and found.top(2)[0].kurtosis >= found.top(2)[1].kurtosis
        assert found.n == sum(map(len, planted)) and found.constant == 0 and len(found.occurrences) == found.n
        figure, ax = found.plot(1)
        assert ax.get_yticklabels()[-1].get_text() == f". ({len(planted)}×)".replace(". (", ".  (")
        assert "'.'" in str(found)

    def test_correlation_with_sound(self, blank, plant, noise):
        """The more the sound told of a token, the sharper its map, as planted."""
        planted = []
        for name, explanation in blank.items():
            audio, bits = noise[name].clone(), torch.zeros(len(explanation))
            for k in range(len(explanation)):
                audio[k, 0, 0] += 2.0 * (len(explanation) - k)
                bits[k] = len(explanation) - k
            found = plant(explanation, audio)
            planted.append(replace(found, token_sound_bits=bits))
        one = scatter(planted[:1], min_count=1)
        assert one.against_sound_bits.n == (len(planted[0]),)
        assert one.against_sound_bits.statistic == pytest.approx(1)
        assert scatter(planted, min_count=1).against_sound_bits.statistic > 0.8

    def test_constant_maps_and_too_few(self, blank, plant, noise):
        (name, explanation), *_ = blank.items()
        found = scatter([plant(explanation, noise[name] * 0)], min_count=1)
        assert found.constant == len(explanation) and found.n == 0 and found.types == ()
        assert found.note.startswith("too few") and "too few" in found.plot()[1].texts[0].get_text()
        assert found.against_sound_bits.too_few
        json.dumps(found.to_dict(), allow_nan=False)
        with pytest.raises(ConfigError, match="min_count is True"):
            scatter(blank.values(), min_count=True)


class TestModality:
    def test_planted(self, blank, plant, noise):
        """The end of the sentence was guessed, all else heard; the words of one utterance, less."""
        planted = []
        least = min(blank, key=lambda name: len(blank[name]))
        for name, explanation in blank.items():
            bits = torch.full((len(explanation),), 2.0 if name == least else 8.0)
            bits[-1] = 0.25
            planted.append(replace(plant(explanation, noise[name]), token_sound_bits=bits))
        found = modality_balance(planted)
        assert {t.token for t in found.tokens[: len(planted)]} == {"</s>"}
        assert found.tokens[0].sound_bits == 0.25 and found.tokens[-1].sound_bits == 8
        assert found.types[0].token == "</s>" and found.types[0].n == len(planted)
        assert next(iter(found.utterances)) == least
        assert found.utterances[least] == pytest.approx(planted[[*blank].index(least)].bits_per_token)
        json.dumps(found.to_dict(), allow_nan=False)
        assert found.plot(2)[1].get_yticklabels()[0].get_text().startswith("</s>") and "</s>" in str(found)

    def test_bits_that_are_not_known(self, blank, plant, noise):
        (name, explanation), *_ = blank.items()
        unknown = replace(plant(explanation, noise[name]), token_sound_bits=torch.full((len(explanation),), torch.nan))
        found = modality_balance([unknown])
        assert all(np.isnan(t.sound_bits) for t in found.tokens)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["tokens"][0]["sound_bits"] is None
        assert modality_balance([unknown], min_count=99).note.startswith("too few")

    def test_top_share(self, blank, plant, noise):
        (name, explanation), *_ = blank.items()
        found = plant(explanation, noise[name], scores(explanation, start=5, latest=3))
        share = top_share(found)
        assert share[0] == 0 and share.shape == (len(explanation),)
        k, prefix = 4, explanation.prefix_length
        text = float(found.token_saliency[k, prefix : prefix + k].max())
        assert float(share[k]) == pytest.approx(text / (text + float(found.audio_saliency[k].max())))


def test_overview(blank):
    explanation = next(iter(blank.values()))
    figure, axes = plot_overview(explanation)
    assert [ax.get_ylabel() for ax in axes] == [t.strip() for t in explanation.tokens]
    assert "(s)" in axes[-1].get_xlabel() and "Hz" in axes[0].get_yticklabels()[0].get_text()
    assert len(plot_overview(explanation.words(), longest=3)[1]) == 3
    with pytest.raises(ConfigError, match="longest is 0"):
        plot_overview(explanation, 0)


def test_names_are_drawn_as_they_stand(blank, plant, noise):
    """ "$" is no formula in a label."""
    (name, explanation), *_ = blank.items()
    odd = replace(explanation, pieces=(" $x_1$", *explanation.pieces[1:]))
    found = modality_balance([plant(odd, noise[name])])
    figure, ax = found.plot()
    label = next(t for t in ax.get_yticklabels() if "$x_1$" in t.get_text())
    assert not label.get_parse_math()
    figure.savefig("/dev/null", format="png")
