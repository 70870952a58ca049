import ast
import importlib
import importlib.resources
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import spes_hf

HEAVY = ("torch", "transformers", "matplotlib", "datasets", "skimage", "accelerate", "evaluate", "jiwer", "sacrebleu")
ROOT = Path(spes_hf.__file__).parents[1]


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_light():
    loaded = json.loads(run("import spes_hf, sys, json; print(json.dumps(sorted(sys.modules)))"))
    assert not [name for name in HEAVY if name in loaded]
    assert not [name for name in loaded if name.startswith("spes_hf.")]


def test_errors_and_the_parser_of_the_command_line_need_no_torch():
    code = "from spes_hf import AudioError, cli; import sys; cli.build_parser(); print('torch' in sys.modules)"
    assert run(code).strip() == "False"


def test_explaining_needs_no_matplotlib_before_it_plots():
    code = """
import sys
import textwrap
from spes_hf import Explainer, Explanation, explain, get_adapter
assert callable(explain) and type(explain).__name__ == "function", explain
print([name for name in ("matplotlib", "datasets", "evaluate", "jiwer", "sacrebleu") if name in sys.modules])
"""
    assert run(code).strip() == "[]"


def test_importing_changes_no_global_state():
    code = """
import random, sys, warnings, logging
import numpy, torch
state = random.getstate(), torch.random.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled()
numbers, filters, level = str(numpy.random.get_state()), list(warnings.filters), logging.getLogger().level
import spes_hf.engine
assert state == (
    random.getstate(), torch.random.get_rng_state().tolist(), torch.get_default_dtype(), torch.is_grad_enabled()
)
assert numbers == str(numpy.random.get_state()) and level == logging.getLogger().level
"""
    run(code)


def test_every_public_name_resolves():
    assert len(set(spes_hf.__all__)) == len(spes_hf.__all__)
    for name in spes_hf.__all__:
        value = getattr(spes_hf, name)
        assert value is getattr(spes_hf, name)
        if name != "__version__":
            assert value.__name__ == {"GradientConfig": "CaptumConfig"}.get(name, name)  # the former name
            assert value.__doc__
    assert set(spes_hf.__all__) <= set(dir(spes_hf))


def test_no_public_name_is_a_module_of_the_package():
    # `import spes_hf.x` sets the attribute x of the package, whatever stood there.
    for name in spes_hf.__all__:
        assert importlib.util.find_spec(f"spes_hf.{name}") is None, name


def test_star_import():
    names = {}
    exec("from spes_hf import *", names)
    assert set(spes_hf.__all__) <= names.keys()


def test_type_checkers_see_the_same_names():
    block = Path(spes_hf.__file__).read_text(encoding="utf-8").split("if TYPE_CHECKING:")[1].split("\n\n")[0]
    lines = ast.walk(ast.parse(textwrap.dedent(block)))
    imported = {name.name for line in lines if isinstance(line, ast.ImportFrom) for name in line.names}
    assert imported == set(spes_hf.__all__) - {"__version__"}


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'spes_hf' has no attribute 'nonsense'"):
        _ = spes_hf.nonsense
    with pytest.raises(ImportError):
        from spes_hf import nonsense  # noqa: F401


def test_types_are_shipped():
    assert importlib.resources.files("spes_hf").joinpath("py.typed").is_file()


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", spes_hf.__version__)
    project = ROOT / "pyproject.toml"
    if project.is_file():
        assert f'version = "{spes_hf.__version__}"' in project.read_text(encoding="utf-8")


def test_errors_are_value_errors_of_one_family():
    for name in ("AudioError", "ConfigError", "ExplanationFormatError", "UnsupportedModelError"):
        error = getattr(spes_hf, name)
        assert issubclass(error, spes_hf.SpesError)
        assert issubclass(error, ValueError)
