"""design.md section 3: who may import whom, and how long a module or a function may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import torchreg

ROOT = Path(torchreg.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
STDLIB = sys.stdlib_module_names
PANDAS = ("torchreg.cli.fit.data", "torchreg.ablation.results.table")
WINGS = ("training", "linear", "ablation")
KNOWN_CHILDREN = {"torchreg.penalties.base": {"torchreg.penalties.sum"}}  # `Penalty.__add__` makes a `Sum`


def name_of(path: Path) -> str:
    parts = ("torchreg", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in FILES}
ROOMS_OF_FLOOR_ONE = ("torchreg.functional.", "torchreg.selection.", "torchreg.text_table.", "torchreg.release.")
FLOOR_ONE = {name for name in NAMES if f"{name}.".startswith(ROOMS_OF_FLOOR_ONE)}


def imports(path: Path) -> set[str]:
    """Modules that a file imports: at the top, in functions, and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {w if w in NAMES else node.module for w in whole}
    return found - KNOWN_CHILDREN.get(name_of(path), set())


def own(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] == "torchreg"}


def floor(name: str) -> int:
    if name in FLOOR_ONE:
        return 1
    room = (*name.split("."), "")[1]
    return {"penalties": 2, "training": 3, "linear": 3, "ablation": 3, "plots": 4, "report": 5}.get(room, 6)


each_file = pytest.mark.parametrize("path", FILES, ids=name_of)


def test_no_circular_imports():
    graph = {name_of(p): own(p) for p in FILES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@each_file
def test_imports_point_down(path):
    name, mine = name_of(path), own(path)
    if name in FLOOR_ONE:
        assert {m.split(".")[0] for m in imports(path)} - STDLIB <= {"torch", "torchreg"}
    assert [m for m in mine if floor(m) > floor(name)] == []
    for wing in WINGS:
        if name.startswith(f"torchreg.{wing}"):
            assert [m for m in mine for w in WINGS if w != wing and m.startswith(f"torchreg.{w}")] == []
    if name not in {"torchreg", "torchreg.cli.demo.run", "torchreg.cli.main", "torchreg.__main__"}:
        assert "torchreg" not in mine, "the package's front door is for users"


@each_file
def test_other_libraries_stay_where_they_belong(path):
    name, used = name_of(path), {m.split(".")[0] for m in imports(path)}
    if not name.startswith("torchreg.linear.estimators") and name != "torchreg.cli.demo.data":
        assert "sklearn" not in used
    if not name.startswith("torchreg.plots"):
        assert "matplotlib" not in used
    if name not in PANDAS:
        assert "pandas" not in used
    if not name.startswith("torchreg.linear.estimators") and name != "torchreg.linear.designs.scipy_rows":
        assert "scipy" not in used
    if name != "torchreg.ablation.executors.ray":
        assert "ray" not in used
    if name != "torchreg.ablation.optuna_search":
        assert "optuna" not in used
    for trainer in ("lightning", "accelerate", "transformers"):
        if name != f"torchreg.integrations.{trainer}":
            assert trainer not in used
    known = STDLIB | {"scipy", "torch", "torchreg", "numpy", "tqdm", "sklearn", "matplotlib"}
    assert used <= known | {"pandas", "ray", "optuna", "lightning", "accelerate", "transformers"}


def test_importing_torchreg_loads_no_optional_library():
    optional = ("sklearn", "matplotlib", "pandas", "ray", "optuna", "lightning", "accelerate", "transformers")
    code = f"import sys, torchreg.ablation; print([m for m in {optional} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@each_file
def test_a_module_has_under_300_lines(path):
    assert len(path.read_text().splitlines()) < 300


@each_file
def test_a_function_has_under_40_lines_of_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = (body[-1].end_lineno - body[0].lineno + 1) if body else 0
            assert length < 40, f"{name_of(path)}.{node.name} has {length} lines"
