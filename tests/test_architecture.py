"""The shape of the code: imports point one way, plug-ins are strangers, everything public is explained."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for folder in ("clsim", "strategies", "scenarios") for path in sorted((ROOT / folder).rglob("*.py"))]

# from the top down; a module imports from floors below its own, or its own where that makes no circle
FLOORS = [
    {"__main__", "__init__"},
    {"cli"},
    {"arguments"},
    {"tuning"},
    {"pretrain", "runner", "engines", "avalanche", "known", "reevaluation", "doctor", "inspect_runs"},
    {"shared", "prediction", "summary", "unused"},
    {"given_images", "pruning"},
    {"recorders", "snapshot"},
    {"loop", "compare", "results", "notebooks"},
    {"evaluation"},
    {"learner", "tools"},
    {"config", "listing"},
    {"search"},
    {"unknown_fields", "named_parts", "options", "grids"},
    {"bases", "families"},
    {"strategy", "field_values", "values", "plugins", "plugin_paths"},
    {"plugin_source", "field_reads", "written"},
    {"parts"},
    {"backbones"},
    {"data"},
    {"hardware", "checksums", "rundir", "checked", "hub", "parallel", "completion"},
    {"events", "metrics", "checkpoint", "rng", "provenance", "outputs"},
    {"errors", "sealed", "version", "openmp", "terminal", "reads"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

# explained where the base class has them
INHERITED = {
    "feature_views",
    "expanded",
    *("tune", "texts", "adapt"),
    *("forward", "build", "begin", "epochs_for", "rows_for", "reads", "parts", "experiences", "loss", "fit", "caveats"),
    "unused",
    *("learning_rate", "learning_rate_at", "configure_optimizer", "parameter_groups", "needs_boundaries"),
    *("state", "load", "stored_bytes", "variant"),
    *("last_norm", "grid", "first_position", "about", "embed", "pool"),  # of towers
    *("for_pass", "patches", "enter", "keys_values", "branch", "linear", "norm"),  # of what tunes them
    *("share", "prepare", "computing", "whole", "collected", "average_gradients", "portion", "everyone"),  # of a World
    *("told", "wait", "require_same"),
    *("tests_ahead", "tested_after", "competing", "counts_confusion", "measures"),  # of protocols
}


def module_of(path):
    """The part of clsim that a file belongs to."""
    parts = path.relative_to(ROOT / "clsim").parts
    return parts[0].removesuffix(".py")


def imports(path, late=True):
    """Modules named in import statements; those under TYPE_CHECKING are not counted."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = ast.walk(tree) if late else tree.body
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative imports hide what is imported"
            for alias in node.names:
                submodule = ROOT.joinpath(*node.module.split("."), f"{alias.name}.py").exists()
                yield f"{node.module}.{alias.name}" if submodule or node.module == "clsim" else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "clsim")], ids=lambda p: p.stem)
def test_imports_point_down(path):
    own = module_of(path)
    for name in imports(
        path, late=own not in ("results", "notebooks")
    ):  # predict() and plot() reach up when they are called
        if name.startswith("clsim."):
            target = name.split(".")[1]
            assert FLOOR[target] >= FLOOR[own], f"{own} imports {target}, which is on a higher floor"


def test_no_circles():
    graph = {}
    for path in (ROOT / "clsim").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = set(imports(path, late=False))
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle
    assert order.index("clsim.errors") < order.index("clsim.data.streams") < order.index("clsim.runner")


def test_the_leaves():
    for leaf in (
        "events",
        "outputs",
        "rng",
        "checkpoint",
        "metrics",
        "provenance",
        "rundir",
        "hardware",
        "errors",
        "sealed",
        "openmp",
    ):
        found = {name for name in imports(ROOT / "clsim" / f"{leaf}.py") if name.startswith("clsim")}
        allowed = {"clsim.errors"} if leaf in ("metrics", "checkpoint", "provenance", "rundir", "hardware") else set()
        allowed |= {"clsim.sealed"} if leaf == "checkpoint" else set()
        assert found <= allowed, leaf


def test_protocols_decide_and_nobody_compares_their_names():
    compared = []
    for path in FILES:
        if path.parent.name == "scenarios" or path.name == "domains.py":
            continue  # there it is the protocol that a scenario's field asks for
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [ast.unparse(side) for side in (node.left, *node.comparators)]
                compared += [f"{path.name}:{node.lineno}" for side in sides if side.split(".")[-1] == "protocol"]
    assert not compared


def test_clsim_names_no_plug_in():
    names = {path.stem for folder in ("strategies", "scenarios") for path in (ROOT / folder).glob("[!_]*.py")}
    defaults = {"options.py": {"split_digits", "l2p"}, "compare.py": {"source_only"}}
    for path in (ROOT / "clsim").rglob("*.py"):
        assert not [n for n in imports(path) if n.startswith(("clsim.strategies.", "clsim.scenarios."))], path
        texts = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        # these are also words for a part (--with er:500), a directory, and what a transformer is made of
        assert not (texts & names) - defaults.get(path.name, set()) - {"er", "folder", "mlp", "bias"}, path


def test_light_modules_leave_torch_alone():
    code = (
        "import sys, clsim, clsim.cli, clsim.plugins, clsim.config, clsim.listing, clsim.compare, clsim.events,"
        "clsim.inspect_runs;"
        "sys.exit(bool({'torch', 'timm', 'avalanche'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_everything_public_is_explained_and_nothing_is_long(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or path.name == "version.py", f"{path.name} has no docstring"
    longest = 400 if path.is_relative_to(ROOT / "clsim") else 150  # a plug-in is one idea
    assert len(path.read_text().splitlines()) <= longest, f"{path.name} is too long"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 50, f"{path.name}: {node.name} is too long"
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"]
    methods = [node for each in public if isinstance(each, ast.ClassDef) for node in each.body]
    for node in public + [node for node in methods if isinstance(node, ast.FunctionDef) and node.name not in INHERITED]:
        if any(ast.unparse(decorator).endswith(".setter") for decorator in node.decorator_list):
            continue  # its property is explained
        private = node.name.startswith(("_", "before_", "after_"))
        assert private or ast.get_docstring(node), f"{path.name}: {node.name} says nothing"
