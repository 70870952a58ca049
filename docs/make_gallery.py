"""Makes the pictures of gallery.md: the shipped English model, the shipped clips, the recipe.

python docs/make_gallery.py --work FOLDER
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from spes_hf import Explainer, SpesConfig
from spes_hf.demo import load_tiny_model, tiny_clips

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images" / "gallery"


def main() -> None:
    """Explain the clips, write when their words are spoken, run the recipe, keep its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for explanations, alignments and the report")
    work = parser.parse_args().work
    (work / "alignments").mkdir(parents=True, exist_ok=True)
    explainer = Explainer(*load_tiny_model("speech2text-en"), SpesConfig(), progress=False)
    speakers = ["id,gender"]
    for clip in tiny_clips():
        if not (work / "explained" / clip["id"]).exists():
            explainer(clip["path"], utterance_id=clip["id"]).save(work / "explained" / clip["id"])
        alignment = json.dumps({"words": clip["words"]})
        (work / "alignments" / f"{clip['id']}.json").write_text(alignment, encoding="utf-8")
        speakers.append(f"{clip['id']},{'F' if '+f' in clip['speaker'] else 'M'}")
    (work / "speakers.csv").write_text("\n".join(speakers) + "\n", encoding="utf-8")
    command = [sys.executable, str(ROOT / "recipes" / "analyze_explanations.py")]
    command += ["--explanations", "explained", "--alignments", "alignments", "--metadata", "speakers.csv"]
    command += [
        "--groups",
        "gender",
        "--words",
        "s-=sees,sells,says,six,sister,seven,seventy",
        "n-=needs,new,nina,know",
    ]
    command += ["--example", "tst-COMMON-0305", "--out", "report"]
    subprocess.run(command, cwd=work, check=True)
    IMAGES.mkdir(parents=True, exist_ok=True)
    for path in (work / "report" / "figures").glob("*.png"):
        shutil.copy(path, IMAGES / path.name)


if __name__ == "__main__":
    main()
