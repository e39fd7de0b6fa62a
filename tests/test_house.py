"""Rules of the house that a reader would otherwise check: lengths, types, numbers of parameters."""

import ast
import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path

import manu_jax
from manu_jax.models.families.family import Family

PACKAGE = Path(manu_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_LINES_OF_STAGES = 400, 300
MOST_POSITIONAL = 3
# Called by position, and only so: the hooks of a family, one of which several families share.
HOOKS = {field.name for field in dataclasses.fields(Family)} | {"repeated_token"}
# The public face names its four statistics by their order.
FACE = {"contrast"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions(tree: ast.Module) -> Iterator[tuple[str, Function, bool]]:
    """Yield (dotted name, function, whether a method with self or cls) of a module and its classes.

    Functions inside functions are left out: what surrounds them says what they take.
    """
    for node in tree.body:
        if isinstance(node, Function):
            yield node.name, node, False
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, Function):
                    is_static = any(
                        isinstance(decorator, ast.Name) and decorator.id == "staticmethod"
                        for decorator in inner.decorator_list
                    )
                    yield f"{node.name}.{inner.name}", inner, not is_static


def positional(function: Function, is_method: bool) -> list[ast.arg]:
    """Return the parameters that a caller may give by position, without self and cls."""
    return [*function.args.posonlyargs, *function.args.args][is_method:]


def untyped(source: str) -> list[str]:
    """Return what lacks an annotation: "line name: parameters, return"."""
    found = []
    for name, function, is_method in functions(ast.parse(source)):
        arguments = [*positional(function, is_method), *function.args.kwonlyargs]
        arguments += [x for x in (function.args.vararg, function.args.kwarg) if x]
        missing = [argument.arg for argument in arguments if argument.annotation is None]
        if function.returns is None and not name.endswith((".__init__", ".__post_init__")):
            missing.append("return")
        if missing:
            found.append(f"{function.lineno} {name}: {', '.join(missing)}")
    return found


def with_many_parameters(source: str, hooks: Collection[str] = ()) -> list[str]:
    """Return the public functions with more than three positional parameters: "line name: number".

    Private functions are left out, methods with two underscores among them, and those in `hooks`.
    """
    found = []
    for name, function, is_method in functions(ast.parse(source)):
        count = len(positional(function, is_method))
        is_private = any(part.startswith("_") for part in name.split("."))
        if count > MOST_POSITIONAL and not is_private and name not in hooks:
            found.append(f"{function.lineno} {name}: {count}")
    return found


SAMPLE = """
def typed(a: int, *, b: int) -> int:
    def inside(a, b, c, d): ...

def _bare(a, /, b: int, *c, d, **e): ...

class K:
    def __init__(self, a: int, b: int, c: int, d: int): ...

    @staticmethod
    def whole(a: int, b: int, c: int, d: int) -> None: ...

    def three(self, a: int, b: int, c: int, *, d: int) -> None: ...

    @classmethod
    def four(cls, a: int, b: int, c: int, d: int = 0): ...

    def _own(self, a: int, b: int, c: int, d: int) -> None: ...

class _K:
    def whole(self, a: int, b: int, c: int, d: int) -> None: ...

def replacements(a: int, b: int, c: int, d: int) -> None: ...
"""


def test_the_walk_sees_functions_of_every_kind():
    assert untyped(SAMPLE) == ["5 _bare: a, d, c, e, return", "16 K.four: return"]
    found = ["11 K.whole: 4", "16 K.four: 4"]
    assert with_many_parameters(SAMPLE) == [*found, "23 replacements: 4"]
    assert with_many_parameters(SAMPLE, HOOKS) == found


def faults(path: Path, found: list[str]) -> list[str]:
    """Return what was found in a file of the package: "file:line name: …"."""
    return [f"{name_of(path)}:{fault}" for fault in found]


def test_no_file_is_long():
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
    assert lengths["stages.py"] < MOST_LINES_OF_STAGES


def test_every_parameter_and_result_has_a_type():
    assert [fault for path in FILES for fault in faults(path, untyped(path.read_text()))] == []


def test_a_public_function_takes_at_most_three_positional_parameters():
    """Not in nn/, whose functions take arrays by position, and no hook of a family."""
    found = []
    for path in FILES:
        if path.parent.name != "nn":
            is_family = path.parent.name in ("families", "inputs")
            hooks = FACE | HOOKS if is_family else FACE
            found += faults(path, with_many_parameters(path.read_text(), hooks))
    assert found == []
