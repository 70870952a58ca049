"""Long utterances of a job that all processes explain together."""

from __future__ import annotations

import os
import signal

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from settings import pyramid
from together import run_together

from spes_hf import Deletion, Explanation, explain_dataset
from spes_hf.demo import load_tiny_model, tiny_clips
from spes_hf.errors import ConfigError, RankError
from spes_hf.jobs.run import load_explained
from spes_hf.jobs.schedule import Work, divide_work, split_by_cost
from spes_hf.jobs.shards import INDEX, shard_files

FEW = pyramid(num_spectrogram_masks=6, num_token_masks=4)
ENDS = (0.0, 1.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Tables of `datasets` go to a folder of their own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def tiny():
    return load_tiny_model("speech2text-en")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A clip that is four times as long as the others, in the middle."""
    folder = tmp_path_factory.mktemp("long")
    clips = [clip["path"] for clip in tiny_clips()[:4]]
    sounds = [soundfile.read(path, dtype="float32") for path in clips]
    soundfile.write(folder / "long.wav", np.concatenate([sound for sound, _ in sounds]), sounds[0][1])
    paths = [clips[0], str(folder / "long.wav"), clips[0]]
    return datasets.Dataset.from_dict({"id": ["a", "long", "b"], "audio": paths})


def job(accelerator, tiny, corpus, out):
    """Run a job in a process that was launched together with others."""
    metrics = [Deletion(*tiny, ENDS, against="prediction")]
    return explain_dataset(*tiny, corpus, out, FEW, metrics=metrics, flush_seconds=0, progress=False)


def assert_complete(ended):
    """The first process, which waits for the others, reports a job without failures."""
    for each in ended:
        if each.error is not None:
            raise each.error
    assert ended[0].value.complete and not ended[0].value.failures


def ranks_of(out):
    """The process that wrote each row."""
    return {i: int(path.name[:5]) for path in shard_files(out) for i in pq.read_table(path)[INDEX].to_pylist()}


def test_a_long_utterance_is_shared_and_rows_are_those_of_one_process(tiny, corpus, tmp_path):
    assert_complete(run_together(2, job, tiny, corpus, tmp_path / "two", folder=tmp_path))
    explain_dataset(*tiny, corpus, tmp_path / "one", FEW, metrics=[Deletion(*tiny, ENDS, against="prediction")])
    rows, expected = load_explained(tmp_path / "two"), load_explained(tmp_path / "one")
    assert len(rows) == 3 and set(ranks_of(tmp_path / "two").values()) == {0, 1}
    for row, other in zip(rows, expected, strict=True):
        assert row["prediction"] == other["prediction"] and row["deletion"] == other["deletion"]
        one, two = (Explanation.from_row(each) for each in (other, row))
        assert one.provenance["cost"] == two.provenance["cost"]
        np.testing.assert_allclose(two.raw_audio, one.raw_audio, rtol=0, atol=1e-5 * float(one.raw_audio.abs().max()))


def test_the_passes_of_a_shared_utterance_are_divided(tiny, corpus, tmp_path):
    def work(accelerator):
        from spes_hf.engine import Explainer

        shared = []
        found = Explainer._find

        def look(self, *arguments, **keywords):
            shared.append(self.ranks.count)
            return found(self, *arguments, **keywords)

        Explainer._find = look
        job(accelerator, tiny, corpus, tmp_path / "out")
        return shared

    counts = [each.value for each in run_together(2, work, folder=tmp_path)]
    assert sorted(counts) == [[2, 1], [2, 1]]


def test_an_utterance_that_one_process_cannot_read_is_a_row_with_the_reason(tiny, corpus, tmp_path):
    def work(accelerator):
        if accelerator.process_index == 1:
            from spes_hf.corpora import audio_transform

            load = audio_transform.load_audio

            def fail(audio, *arguments):
                if "long" in str(audio):
                    raise OSError("the disk is away")
                return load(audio, *arguments)

            audio_transform.load_audio = fail
        return job(accelerator, tiny, corpus, tmp_path / "out")

    first, second = run_together(2, work, folder=tmp_path)
    assert first.error is None and second.error is None and first.value.complete
    ((index, name, error),) = first.value.failures
    assert (index, name) == (1, "long") and "process 1: OSError: the disk is away" in error


def test_a_job_that_one_process_was_told_otherwise_ends_in_all(tiny, corpus, tmp_path):
    def work(accelerator):
        return explain_dataset(*tiny, corpus, tmp_path / "out", FEW, seed=accelerator.process_index, progress=False)

    for each in run_together(3, work, folder=tmp_path):
        assert isinstance(each.error, RankError)
        assert "model, settings or dataset of process 1, 2 differs from that of process 0; pass" in str(each.error)
    assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize("index", [0, 1])
def test_a_job_that_one_process_cannot_start_ends_in_all(tiny, corpus, tmp_path, index):
    def work(accelerator):
        ours = corpus.rename_column("audio", "sound") if accelerator.process_index == index else corpus
        return explain_dataset(*tiny, ours, tmp_path / "out", FEW, progress=False)

    ended = run_together(2, work, folder=tmp_path)
    assert isinstance(ended[index].error, ConfigError) and "no column 'audio'" in str(ended[index].error)
    assert isinstance(ended[1 - index].error, RankError)
    assert f"process {index}: ConfigError: dataset has no column 'audio'" in str(ended[1 - index].error)


def test_a_job_whose_folder_is_another_jobs_ends_in_all(tiny, corpus, tmp_path):
    explain_dataset(*tiny, corpus, tmp_path / "out", FEW, seed=7, progress=False)

    def work(accelerator):
        return explain_dataset(*tiny, corpus, tmp_path / "out", FEW, progress=False)

    first, second = run_together(2, work, folder=tmp_path)
    assert isinstance(first.error, ConfigError)
    assert isinstance(second.error, RankError) and "process 0: ConfigError: " in str(second.error)


def test_a_job_whose_process_is_killed_ends_and_goes_on(tiny, corpus, tmp_path):
    def work(accelerator):
        if accelerator.process_index == 1:
            tiny[0].model.encoder.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        return job(accelerator, tiny, corpus, tmp_path / "out")

    first, second = run_together(2, work, folder=tmp_path)
    assert second.exitcode == -signal.SIGKILL
    assert isinstance(first.error, RankError) and first.error.lost
    assert_complete(run_together(2, job, tiny, corpus, tmp_path / "out", folder=tmp_path))


# Who does what --------------------------------------------------------------------------------------------------------


def test_work_that_divides_well_is_not_shared():
    costs = [1.0] * 100
    assert divide_work(costs, range(100), 4) == Work([], split_by_cost(costs, range(100), 4))
    assert divide_work(costs, [], 4) == Work([], [[], [], [], []])
    assert divide_work([5.0], [0], 1) == Work([], [[0]])


@pytest.mark.parametrize("parts", [3, 8])
def test_what_would_keep_one_process_busy_is_shared(parts):
    costs = [1.0, 50.0, 1.0, 40.0, 1.0]
    work = divide_work(costs, range(5), parts)
    assert work.shared == [1, 3]
    assert sorted([*work.shared, *(i for own in work.own for i in own)]) == list(range(5))


def test_fewer_rows_than_processes_are_shared():
    assert divide_work([3.0, 2.0], [0, 1], 8) == Work([0, 1], [[] for _ in range(8)])
