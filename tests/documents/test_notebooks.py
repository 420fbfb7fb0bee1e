"""The notebooks run from top to bottom without a warning; what they are committed with is such a run.

``python tests/documents/test_notebooks.py`` runs them all and saves their outputs. The notebooks' own asserts
hold the facts that their text claims.
"""

import ast
import os
import re
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib.font_manager")  # writes its cache; in a kernel it would report that on stderr
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = (
    "01_l1_vs_l2",
    "02_training_loop",
    "03_gpu_fits",
    "04_ablation",
    "05_every_trainer",
    "06_train_to_a_target",
)
NOTEBOOKS = [FOLDER / f"{name}.ipynb" for name in NAMES]
# Bases of the classes that they define: the penalty of one's own, nothing else.
CLASSES = {
    "01_l1_vs_l2": [],
    "02_training_loop": ["Separable"],
    "03_gpu_fits": [],
    "04_ablation": [],
    "05_every_trainer": [],
    "06_train_to_a_target": [],
}
LONGEST_CELL = 25
PUBLIC = ("torchreg", "torchreg.ablation", "torchreg.linear", "torchreg.plots")
# Runs in the kernel before the first cell: a warning is an error, but in the kernel's own threads.
STARTUP = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", module=r"(IPython|ipykernel|jupyter_client|tornado|traitlets|zmq)(\\.|$)")
"""
TRACES = re.compile(r"0x[0-9a-f]{6,}|/(home|root|tmp|work|Users)/|\d+(\.\d+)? ?(s|ms|seconds)\b")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class ThisInterpreter(AsyncKernelManager):
    """Whatever kernels a machine has installed, the one that runs is of this interpreter."""

    @property
    def kernel_spec(self):
        return KernelSpec(**get_kernel_dict())


def run(path: Path, folder: Path):
    """The notebook with the outputs of a fresh kernel that works in an empty folder."""
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text(STARTUP)
    (folder / "work").mkdir()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_manager_class=ThisInterpreter,
        timeout=300,
        record_timing=False,
        resources={"metadata": {"path": str(folder / "work")}},
    )
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / "ipython"), "MPLBACKEND": "inline"})
    assert list((folder / "work").iterdir()) == [], f"{path.name} leaves files behind"
    return notebook


def save(path: Path) -> None:
    """Run a notebook and save its outputs, without what differs from machine to machine."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = run(path, Path(folder))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    nbformat.write(notebook, path)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(output) -> str:
    return output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "")


def check_outputs(notebook) -> None:
    """Every cell ran once, in order; pictures are there; nothing failed or warned."""
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds
        assert "stderr" not in [output.get("name") for output in cell.outputs], [text(o) for o in cell.outputs]
        pictures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
        assert pictures == cell.source.count("plt.show()")
        assert ("stream" in kinds) == ("print(" in cell.source)


@pytest.mark.slow
@each_notebook
def test_runs_from_top_to_bottom(path, tmp_path):
    check_outputs(run(path, tmp_path))


@each_notebook
def test_is_committed_with_the_outputs_of_a_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    check_outputs(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert cell.metadata == {}
        for output in cell.get("outputs", []):
            assert TRACES.search(text(output)) is None, text(output)


@each_notebook
def test_tells_a_story_and_holds_no_library_code(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    assert max(len(cell.source.splitlines()) for cell in code(notebook)) <= LONGEST_CELL
    bases, asserts = [], 0
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            asserts += isinstance(node, ast.Assert)
            if isinstance(node, ast.ClassDef):
                bases += [base.id for base in node.bases]
            if isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] != "torchreg" or node.module in PUBLIC
    assert bases == CLASSES[path.stem]
    assert asserts >= 10


def test_every_notebook_is_tested():
    assert sorted(FOLDER.glob("*.ipynb")) == NOTEBOOKS


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        save(notebook)
