"""Cases of `fuzz.py`: files of every kind that the package reads, and how they are damaged."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from spes_hf import Explanation
from spes_hf.analysis.alignments import read_alignment
from spes_hf.audio.load import load_audio
from spes_hf.corpora.mustc import read_segments
from spes_hf.explanation import PatchMap, Reliability
from spes_hf.explanation.packing import KEY, pack, unpack
from spes_hf.explanation.storage import DESCRIPTION, _checksum
from spes_hf.jobs import job, shards
from spes_hf.viz import notebook_html, report

DEEP = 3_000
NUMBERS = (0, 1, -1, 7, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
NASTY: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 3, 10**9, 10**30, 10**400, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", "\0", "</script>", "1e9", "../x", [], [[]], [None], [0, 1, 10**9], {}, {"a": 1}),
)


def sample() -> Explanation:
    """Return a small explanation."""
    tokens, prefix, frames, bins, patches = 6, 2, 12, 8, 9
    generator = torch.Generator().manual_seed(0)
    pieces = (" So", " it", " be", "gan", ".", "<|end|>")
    scores = torch.rand(tokens, prefix + tokens - 1, generator=generator)
    later = torch.arange(prefix + tokens - 1)[None] >= prefix + torch.arange(tokens)[:, None]
    counts = torch.randint(1, 9, (patches,), generator=generator).float()
    labels = torch.randint(patches, (2, frames, bins), generator=generator, dtype=torch.int32)
    return Explanation(
        text="So it began.",
        pieces=pieces,
        token_id_list=tuple(range(5, 5 + tokens)),
        context_pieces=("<|start|>", "<|en|>", *pieces[:-1]),
        special=(False,) * 5 + (True,),
        prefix_length=prefix,
        probabilities=torch.rand(tokens, generator=generator),
        features=torch.randn(frames, bins, generator=generator),
        times=torch.arange(frames) / 100,
        frequencies=torch.linspace(100, 7_000, bins),
        audio_map=PatchMap(
            labels, tuple(torch.rand(tokens, patches, generator=generator) for _ in range(2)), (counts, counts.clone())
        ),
        token_sound_bits=torch.randn(tokens, generator=generator),
        token_text_bits=torch.randn(tokens, generator=generator),
        raw_token_scores=scores.masked_fill(later, torch.nan),
        text_impact=torch.rand(tokens, generator=generator),
        sound_impact=torch.rand(tokens, generator=generator),
        token_reliability=Reliability(torch.rand(tokens, generator=generator), 0.5),
        waveform=torch.sin(torch.arange(2_000) / 9),
        sampling_rate=16_000,
        provenance={
            "config": {"method": "spes", "num_spectrogram_masks": 8},
            "model": {"name": "x/y", "dtype": "float32"},
            "audio": {"source": "file a.wav", "notes": ["mixed down"]},
            "output": {"given": False, "prefix": ["<|start|>"], "generate_kwargs": {}},
            "cost": {"forward_passes": 9, "backward_passes": 3, "seconds": 0.5},
        },
        sentence_map=PatchMap(labels[:1].flip(1), (torch.rand(1, patches, generator=generator),), (counts + 1,)),
    )


# How things are damaged ----------------------------------------------------------------------------------------------


def damaged(raw: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """Return bytes with one to four faults; ``head`` keeps most of them among the first bytes."""
    content = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        size = len(content)
        end = min(size, head) if head and rng.random() < 0.7 else size
        at = rng.randrange(max(1, end))
        kind = rng.randrange(7)
        if kind == 0 and size:
            content[min(at, size - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at : at + 1] = bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))])
        elif kind == 2:
            del content[at : at + rng.choice((1, 4, 64, 1024))]
        elif kind == 3:
            content[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
        elif kind == 4:
            content[at:at] = content[at : at + rng.choice((1, 16, 256))]
        elif kind == 5:
            del content[at:]
        else:
            number = rng.choice(NUMBERS)
            content[at : at + 8] = struct.pack("<Q", number % 2**64)[: rng.choice((2, 4, 8))]
    return bytes(content)


def changed(value: Any, rng: random.Random) -> Any:
    """Return JSON data with one entry, somewhere, that is nasty, gone, or there twice."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        return _nasty(rng)
    holder, key = rng.choice(places)
    what = rng.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = _nasty(rng)
    return value


def _nasty(rng: random.Random) -> Any:
    if rng.random() < 0.05:
        value: Any = 0
        for _ in range(DEEP):
            value = [value]
        return value
    return copy.deepcopy(rng.choice(NASTY))


def _places(value: Any) -> Any:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(entries):
        yield value, key
        yield from _places(entry)


def _json(value: Any) -> bytes:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20 * DEEP)
    try:
        return json.dumps(value).encode()
    finally:
        sys.setrecursionlimit(limit)


def odd_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """Return tensors of which one is missing, of another shape or type, or holds what it must not."""
    tensors = dict(tensors)
    name = rng.choice(sorted(tensors))
    tensor, what = tensors.pop(name), rng.randrange(7)
    if what == 1:
        tensors[name] = tensor.flatten()
    elif what == 2:
        tensors[name] = tensor[: len(tensor) // 2].contiguous()
    elif what == 3:
        tensors[name] = tensor.to(rng.choice((torch.int64, torch.float16, torch.bfloat16, torch.bool, torch.uint8)))
    elif what == 4:
        tensors[name] = torch.zeros(rng.choice(((0,), (), (0, 10**9), (3, 0), (1, 1, 1, 1))))
    elif what == 5:
        tensors[name] = torch.full_like(tensor, rng.choice((0, 1, 99)))
    elif what == 6:
        odd = tensor.clone()
        values = (torch.nan, torch.inf, -1e30) if odd.is_floating_point() else (0, 1)
        odd.view(-1)[rng.randrange(odd.numel())] = rng.choice(values)
        if odd.dtype == torch.int32:
            odd.view(-1)[rng.randrange(odd.numel())] = rng.choice((-1, 9, 2**31 - 1, -(2**31)))
        tensors[name] = odd
    return tensors


# What is read --------------------------------------------------------------------------------------------------------


def use(explanation: Explanation, rng: random.Random) -> None:
    """Do with an explanation what people do."""
    for ex in (explanation, explanation.words()):
        _ = ex.text, ex.tokens, ex.token_ids, ex.token_probabilities, ex.context_tokens, ex.raw_audio, ex.raw_token
        _ = ex.audio_saliency, ex.token_saliency, ex.sentence_saliency, ex.sound_bits, ex.evidence(), repr(ex)
        report.page(ex)
    if rng.random() < 0.1:
        notebook_html(explanation)
    explanation.time_centroids()
    pack(explanation)


def case_folder(rng: random.Random, folder: Path) -> None:
    """A saved explanation: bytes of a file, or values and tensors with the checksums of what they have become."""
    path = sample().save(folder / "clip")
    description = json.loads((path / DESCRIPTION).read_bytes())
    file = path / description["tensors"]
    what = rng.randrange(4)
    if what == 0:
        (path / DESCRIPTION).write_bytes(damaged((path / DESCRIPTION).read_bytes(), rng))
    elif what == 1:
        tensors = file.read_bytes()
        tensors = damaged(tensors, rng, head=900)
        file.write_bytes(tensors)
        description["tensors_sha256"] = hashlib.sha256(tensors).hexdigest()
        _describe(path, description)
    elif what == 2:
        _describe(path, changed(description, rng))
    else:
        tensors = save_tensors(odd_tensors(load_tensors(file.read_bytes()), rng))
        file.write_bytes(tensors)
        description["tensors_sha256"] = hashlib.sha256(tensors).hexdigest()
        _describe(path, description)
    use(Explanation.load(path), rng)


def _describe(path: Path, description: Any) -> None:
    """Write a description with a checksum that is right."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20 * DEEP)
    try:
        if isinstance(description, dict):
            description.pop("sha256", None)
            description["sha256"] = _checksum(description)
    finally:
        sys.setrecursionlimit(limit)
    (path / DESCRIPTION).write_bytes(_json(description))


def case_row(rng: random.Random, folder: Path) -> None:
    """The bytes of a row."""
    packed = pack(sample())
    what = rng.randrange(3)
    if what == 0:
        packed = damaged(packed, rng, head=3_000)
    else:
        length = int.from_bytes(packed[:8], "little")
        header = json.loads(json.loads(packed[8 : 8 + length])["__metadata__"][KEY])
        tensors = load_tensors(packed)
        if what == 1:
            header = changed(header, rng)
        else:
            tensors = odd_tensors(tensors, rng)
        packed = save_tensors(tensors, metadata={KEY: _json(header).decode()})
    use(unpack(packed), rng)


def case_shard(rng: random.Random, folder: Path) -> None:
    """Finished rows of a job."""
    count = rng.choice((1, 3, 40))
    columns: dict[str, Any] = {
        "row_index": list(range(count)),
        "id": [f"talk_{i}" for i in range(count)],
        "error": [None if i % 3 else "AudioError: ä" for i in range(count)],
        "reached_length_limit": [i % 2 == 0 for i in range(count)],
        "explanation": [bytes(50)] * count,
    }
    if rng.random() < 0.3:
        name = rng.choice(sorted(columns))
        columns.pop(name)
        if rng.random() < 0.7:
            columns[name] = [rng.choice((None, 1.5, 2**40))] * count
    if rng.random() < 0.05:
        columns = {"row_index": np.zeros(10**6, dtype=np.int64), "error": pa.nulls(10**6, pa.string())}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression=rng.choice(("zstd", "none")))
    raw = buffer.getvalue()
    raw = damaged(raw, rng, head=len(raw)) if rng.random() < 0.8 else raw
    (folder / shards.FOLDER).mkdir()
    (folder / shards.FOLDER / f"00000-abc-{count}.parquet").write_bytes(raw)
    shards.read_finished(folder, "id")
    shards.drop_repeated(folder)


def case_manifest(rng: random.Random, folder: Path) -> None:
    """What a job says of itself."""
    identity = {"format": job.FORMAT, "rows": 7, "transforms": [{"model": {"weights": "ab"}, "config": {"p": 0.5}}]}
    raw = damaged(_json(identity), rng) if rng.random() < 0.5 else _json(changed(identity, rng))
    (folder / shards.FOLDER).mkdir()
    (folder / job.MANIFEST).write_bytes(raw)
    job.claim_folder(folder, identity)


def case_alignment(rng: random.Random, folder: Path) -> None:
    """Words and their times, in JSON."""
    phones = [{"phone": "S", "start": 0.2, "end": 0.3}, {"phone": "ow_E", "duration": 0.1}]
    words = {
        "words": [{"word": "so", "start": 0.2, "end": 0.4, "phones": phones}, {"word": "it", "start": 1, "end": 2}]
    }
    (folder / "a.json").write_bytes(damaged(_json(words), rng) if rng.random() < 0.4 else _json(changed(words, rng)))
    read_alignment(folder / "a.json")


TEXTGRID = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 2
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 1.25
            text = "so ""said"" he"
        intervals [2]:
            xmin = 1.25
            xmax = 2
            text = "größer"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 2
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2
            text = "s"
"""


def case_textgrid(rng: random.Random, folder: Path) -> None:
    """Words and their times, from Praat."""
    encoding = rng.choice(("utf-8", "utf-16"))
    text = TEXTGRID
    if rng.random() < 0.5:
        old, new = (
            rng.choice((" 2\n", " 0\n", '"', "1.25", "<exists>")),
            rng.choice(("1e999", "-3", "9" * 400, '"', "x")),
        )
        text = text.replace(old, new, rng.choice((1, 2, -1)))
    (folder / "a.TextGrid").write_bytes(damaged(text.encode(encoding), rng))
    read_alignment(folder / "a.TextGrid")


def case_segments(rng: random.Random, folder: Path) -> None:
    """The segment file of a corpus."""
    lines = "".join(f"- {{duration: 1.5, offset: {i}.25, speaker_id: spk.1, wav: ted_{i}.wav}}\n" for i in range(4))
    (folder / "a.yaml").write_bytes(damaged(lines.encode(), rng))
    read_segments(folder / "a.yaml")


AUDIO = (
    *(("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT", "ULAW")),
    *(("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("AIFF", "PCM_16")),
)


def case_audio(rng: random.Random, folder: Path) -> None:
    """A recording, damaged in its header above all."""
    samples = np.sin(np.arange(4_000) / 7)[:, None] * np.ones((1, rng.choice((1, 2))))
    kind, subtype = rng.choice(AUDIO)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples / 2, 16_000, format=kind, subtype=subtype)
    content = damaged(buffer.getvalue(), rng, head=120)
    if rng.random() < 0.5:
        load_audio(content, 16_000)
    else:
        (folder / f"a.{kind.lower()}").write_bytes(content)
        load_audio(folder / f"a.{kind.lower()}", 16_000)


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    name.removeprefix("case_"): value for name, value in list(globals().items()) if name.startswith("case_")
}
