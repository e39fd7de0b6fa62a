"""Imports go one way, heavy libraries stay in their rooms, and `import manu_jax` is light."""

import ast
import importlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import manu_jax

ROOT = Path(manu_jax.__file__).parent.parent
PACKAGE = ROOT / "manu_jax"

# A file imports from its own room and from lines above its own; those of one line are siblings.
# `selection` is arrays alone, and stands above `importance`, whose rounds select.
LINES = (
    ("types", "leaves", "yaml12", "amounts"),
    ("stores",),
    ("staged",),
    ("folder", "progress", "faults"),
    ("owner",),
    ("config",),
    ("arrays", "parallel"),
    ("pieces",),
    ("checkpoint", "fingerprint", "hub"),
    ("data", "models", "selection"),
    ("edits",),
    ("importance",),
    ("absent", "place"),
    ("context",),
    ("training",),
    ("evaluation",),  # the audit trains
    ("parts",),
    ("report", "keys", "preflight"),
    ("stages",),
    ("planning",),
    ("run",),
    ("compare", "check", "requests"),
    ("edit", "ledger"),
)
# The same inside models/, whose rooms are folders.
MODEL_LINES = (
    ("inputs", "hf"),
    ("nn",),
    ("families", "given_decoder"),
    ("stored",),
    ("loaded",),
    ("created",),
)
LINE_OF = {room: number for number, rooms in enumerate(LINES) for room in rooms}
MODEL_LINE_OF = {room: number for number, rooms in enumerate(MODEL_LINES) for room in rooms}

# Library → where it may be imported, and whether only inside functions there.
HOMES = {
    # training/tokenizer.py makes the processor of a model that is trained from nothing.
    "transformers": (
        ("manu_jax/data/", "manu_jax/models/", "manu_jax/training/tokenizer.py", "tools/"),
        True,
    ),
    "datasets": (("manu_jax/data/", "manu_jax/models/", "tools/"), True),
    "huggingface_hub": (("manu_jax/hub.py",), True),
    "torch": ((), True),
    "orbax": (("manu_jax/checkpoint.py",), True),
    "upath": (("manu_jax/stores.py",), True),
}
# Strings, words and pictures in, numbers out: these never touch a device.
WITHOUT_JAX = ("evaluation/metrics.py", "selection.py", "folder.py", "faults.py", "yaml12.py")
WITHOUT_JAX += ("stores.py", "staged.py")
WITHOUT_JAX += tuple(f"config/{file.name}" for file in sorted((PACKAGE / "config").glob("*.py")))
PACKAGE_FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield (module, line, whether inside a function) of every import that runs."""
    stack = [(ast.parse(path.read_text(encoding="utf-8")), False)]
    while stack:
        node, inside = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((f"{module}.{alias.name}", node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        stack.extend((child, inside) for child in ast.iter_child_nodes(node))


def test_the_walk_sees_imports_of_every_kind(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        "import a.b\nfrom c import d\nfrom . import e\n"
        "if TYPE_CHECKING:\n    import hidden\n"
        "class K:\n    def f(self):\n        import g\n"
    )
    assert set(imports(path)) == {
        ("a.b", 1, False),
        ("c.d", 2, False),
        ("..e", 3, False),
        ("g", 8, True),
    }


def test_every_room_has_a_line():
    rooms = {room_of(path) for path in PACKAGE_FILES} - {"__init__"}
    assert rooms <= set(LINE_OF)


def test_imports_go_one_way():
    assert not [fault for path in PACKAGE_FILES for fault in against_the_order(path)]


def against_the_order(path: Path) -> Iterator[str]:
    for module, line, _ in imports(path):
        first, *rest = module.split(".")
        where = f"{name_of(path)}:{line} imports {module}"
        if first in ("", "tools", "benchmarks", "tests"):
            yield f"{where}: relative, or from outside the package"
        elif first == "manu_jax" and room_of(path) != "__init__":
            room, own = rest[0], room_of(path)
            if room not in LINE_OF or (room != own and LINE_OF[room] >= LINE_OF[own]):
                yield f"{where}: {room} does not stand above {own}"
            elif room == own == "models":
                inner, own_inner = rest[1], path.relative_to(PACKAGE / "models").parts[0]
                own_inner = own_inner.removesuffix(".py")
                if inner != own_inner and MODEL_LINE_OF[inner] >= MODEL_LINE_OF[own_inner]:
                    yield f"{where}: models/{inner} does not stand above {own_inner}"


def test_heavy_libraries_stay_in_their_rooms():
    faults = []
    for path in [*PACKAGE_FILES, *sorted((ROOT / "tools").rglob("*.py"))]:
        for module, line, inside in imports(path):
            rooms, only_inside = HOMES.get(module.split(".")[0], (None, False))
            if rooms is None:
                continue
            if not name_of(path).startswith(rooms or ("nowhere",)) or (only_inside and not inside):
                faults.append(f"{name_of(path)}:{line} imports {module}")
    assert not faults


def test_nnx_declares_modules_and_does_nothing_else():
    """Its functions alone differ in graph mode and tree mode: what runs is the same in both."""
    faults = []
    for path in PACKAGE_FILES:
        faults += [
            f"{name_of(path)}:{line} imports {module}"
            for module, line, _ in imports(path)
            if module.split(".")[0] == "flax" and module != "flax.nnx"
        ]
        faults += [
            f"{name_of(path)}:{node.lineno} takes nnx.{node.attr}"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("nnx", "flax.nnx")
            if node.attr not in ("Module", "Param")
        ]
    assert not faults


@pytest.mark.parametrize("file", WITHOUT_JAX)
def test_host_code_does_not_import_jax(file):
    assert not [m for m, *_ in imports(PACKAGE / file) if m.split(".")[0] in ("jax", "flax")]


def test_importing_the_package_loads_no_jax_and_no_other_library():
    code = (
        "import sys, manu_jax; dir(manu_jax); "
        "print(sorted(m for m in ('jax', 'numpy', 'flax', 'orbax', 'transformers', 'torch', "
        "'matplotlib', 'pydantic') if m in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr


def test_a_config_without_a_tiny_model_loads_no_family():
    code = (
        "import sys; from manu_jax.config import RunConfig; RunConfig(model={'path': 'a/folder'}); "
        "print([m for m in ('flax', 'manu_jax.models.families.registry') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (found.returncode, found.stdout.strip()) == (0, "[]"), found.stderr


def test_importing_the_package_takes_less_than_three_tenths_of_a_second():
    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        return time.perf_counter() - start

    # Against a bare interpreter started at the same time, so that a loaded machine cancels out.
    extra = [seconds("import manu_jax") - seconds("pass") for _ in range(5)]
    assert statistics.median(extra) < 0.3


def test_public_names_come_from_where_the_package_says():
    assert set(manu_jax.__all__) == set(manu_jax.HOMES) == set(dir(manu_jax))
    for name, home in manu_jax.HOMES.items():
        assert getattr(manu_jax, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="no attribute 'unlearn'"):
        manu_jax.unlearn  # noqa: B018
