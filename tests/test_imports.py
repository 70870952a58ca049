"""The import graph of the package: one way, no circles, and no import hidden in a function without a reason."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import spes_hf

ROOT = Path(spes_hf.__file__).parent

# From the bottom up. A part imports from its own rank or lower ones.
ORDER = (
    ("bits", "errors", "names", "functional", "finite", "text", "checks", "files", "plain", "differences"),
    ("audio", "runtime"),
    ("adapters", "masking"),
    ("scoring",),
    ("explanation",),
    ("viz",),
    ("methods",),
    ("provenance",),
    ("plans", "recording_folder"),
    ("recordings",),
    ("explainer", "hearing"),
    ("engine",),
    ("comparing", "diagnosing"),
    ("rows",),
    ("metrics",),
    ("analysis",),
    ("corpora",),
    ("jobs",),
    ("ctranslate2",),
    ("demo",),
    ("summaries",),
    ("capacity", "evaluating"),
    ("commands",),
    ("app",),
    ("cli",),
    ("job_options",),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}

# Imports of the package's own modules within functions: importer, imported, and why.
LAZY = {
    ("explanation.result", "explanation.storage"): "facade: save() and load()",
    ("explanation.result", "explanation.packing"): "facade: to_row() and from_row()",
    ("explanation.result", "viz"): "facade: plot() and to_html()",
    ("explanation.listening", "viz"): "facade: what a notebook shows",
    ("explanation.recording", "viz.recording_figure"): "facade: plot()",
    ("explanation.recording", "viz.recording_page"): "facade: to_html()",
    ("viz", "viz.figures"): "matplotlib",
    ("viz", "viz.notebook"): "matplotlib",
    ("viz", "viz.report"): "Pillow and soundfile, for pages alone",
    ("explanation.diagnosis", "viz"): "facade: to_html()",
    ("viz", "viz.diagnosis_page"): "Pillow and soundfile, for pages alone",
    ("viz", "viz.overview"): "matplotlib",
    ("viz", "viz.comparison_figure"): "matplotlib",
    ("viz", "viz.comparison_page"): "Pillow and soundfile, for pages alone",
    ("explanation.comparison", "viz"): "facade: plot() and to_html()",
    ("commands.comparing", "comparing"): "help must not wait for torch",
    ("commands.comparing", "viz.scale"): "help must not wait for torch",
    ("analysis.causes", "viz.causes"): "matplotlib",
    ("analysis.drawing", "viz.figures"): "matplotlib",
    ("analysis.drawing", "viz.fonts"): "matplotlib",
    ("analysis.overview", "viz.figures"): "matplotlib",
    ("metrics.score", "viz.fonts"): "matplotlib",
    ("job_options", "corpora.mustc"): "help must not wait for torch",
    ("job_options", "corpora.sources"): "help must not wait for torch",
    ("commands.options", "adapters"): "help must not wait for torch",
    ("commands.options", "adapters.loading"): "help must not wait for torch",
    ("commands.options", "demo"): "help must not wait for torch",
    ("commands.options", "methods"): "help must not wait for torch",
    ("commands.options", "methods.presets"): "help must not wait for torch",
    ("commands.placing", "runtime.workers"): "help must not wait for torch",
    ("commands.explaining", "demo"): "help must not wait for torch",
    ("commands.explaining", "engine"): "help must not wait for torch",
    ("commands.explaining", "metrics"): "help must not wait for torch",
    ("commands.diagnosing", "diagnosing"): "help must not wait for torch",
    ("commands.diagnosing", "viz.scale"): "help must not wait for torch",
    ("commands.checking", "hearing"): "help must not wait for torch",
    ("commands.checking", "viz.scale"): "help must not wait for torch",
    ("commands.evaluating", "evaluating"): "help must not wait for torch",
    ("commands.evaluating", "metrics"): "help must not wait for torch",
    ("commands.evaluating", "metrics.quality"): "help must not wait for torch",
    ("commands.planning", "adapters"): "help must not wait for torch",
    ("commands.planning", "capacity.measured"): "help must not wait for torch",
    ("commands.planning", "capacity.operations"): "help must not wait for torch",
    ("commands.planning", "capacity.passes"): "help must not wait for torch",
    ("commands.planning", "capacity.plan"): "help must not wait for torch",
    ("commands.serving", "app.server"): "the extra app: Gradio",
    ("commands.serving", "app.job"): "the app is above the commands",
    ("app.worker", "app.work"): "the page does not wait for torch; the process that computes does",
    ("summaries", "explanation"): "help must not wait for torch",
    ("summaries", "explanation.recording"): "help must not wait for torch",
    ("summaries", "explanation.recording_plan"): "help must not wait for torch",
    ("summaries", "viz.scale"): "help must not wait for torch",
    ("explanation.recording", "explanation.recording_rows"): "facade: to_row() and from_row()",
}

# Other packages that may be imported within functions.
LAZY_PACKAGES = {
    "accelerate": "heavy",
    "captum": "the extra captum",
    "datasets": "heavy",
    "fsspec": "only for addresses",
    "imageio_ffmpeg": "the extra codecs",
    "jiwer": "heavy",
    "matplotlib": "heavy",
    "pocketsphinx": "the extra align",
    "psutil": "may be missing",
    "sacrebleu": "heavy",
    "scipy": "heavy",
    "skimage": "heavy",
    "torch": "heavy: the command line",
    "torchcodec": "the extra codecs",
    "transformers": "heavy",
}


class Import(NamedTuple):
    """An import of a module of the package by another."""

    importer: str
    imported: str
    within_function: bool


def modules() -> dict[str, Path]:
    """Return every module by its name without the package's: "adapters.base"; a package is its ``__init__``."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports() -> Iterator[Import]:
    """Yield every import between modules, those for type checkers included; the lazy front door is left out."""
    for name, path in MODULES.items():
        if name:
            yield from within(ast.parse(path.read_text(encoding="utf-8")), name, False)


def within(node: ast.AST, name: str, function: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and child.level:
            raise AssertionError(f"{name}, line {child.lineno}: a relative import; name the module in full")
        if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] == "spes_hf":
            for alias in child.names:
                target = known(f"{child.module}.{alias.name}")
                if target:
                    yield Import(name, target, function)
                elif alias.name != "__version__":
                    raise AssertionError(f"{name} imports {alias.name} through the front door; name its module")
        elif isinstance(child, ast.Import):
            for alias in child.names:
                if alias.name.startswith("spes_hf."):
                    yield Import(name, known(alias.name), function)
        yield from within(child, name, function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))


def known(name: str) -> str:
    """Return the module that a dotted name is, or is in."""
    name = name.removeprefix("spes_hf.")
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


EDGES = sorted(set(imports()))


def part(module: str) -> str:
    return module.split(".")[0]


def test_every_part_has_a_place_in_the_order():
    assert {part(name) for name in MODULES if name} == set(RANK)


def test_imports_go_one_way():
    against = [
        (e.importer, e.imported)
        for e in EDGES
        if not e.within_function and RANK[part(e.imported)] > RANK[part(e.importer)]
    ]
    assert against == []


def test_only_imports_with_a_reason_are_within_functions():
    lazy = {(e.importer, e.imported) for e in EDGES if e.within_function}
    assert lazy == set(LAZY)


def test_only_heavy_and_optional_packages_are_imported_within_functions():
    def packages(node: ast.AST, function: bool = False) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if function and isinstance(child, ast.ImportFrom):
                yield child.module.split(".")[0]
            elif function and isinstance(child, ast.Import):
                yield from (alias.name.split(".")[0] for alias in child.names)
            yield from packages(child, function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)))

    found = {name for path in MODULES.values() for name in packages(ast.parse(path.read_text(encoding="utf-8")))}
    assert found - {"spes_hf"} == set(LAZY_PACKAGES)


@pytest.mark.parametrize("of", ["modules", "parts"])
def test_nothing_imports_itself_in_a_circle(of):
    graph: dict[str, set[str]] = {}
    for edge in EDGES:
        if edge.within_function:
            continue
        one, other = (edge.importer, edge.imported) if of == "modules" else (part(edge.importer), part(edge.imported))
        if one != other:
            graph.setdefault(one, set()).add(other)
    assert circle(graph) == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes of a circle, if there is one."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for following in sorted(graph.get(node, ())):
            if found := visit(following, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
