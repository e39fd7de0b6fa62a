"""YAML 1.2 (its core schema), read strictly, and written so that it reads back to the same values.

PyYAML reads YAML 1.1, where `010` is 8, `1:30` is 90 and `yes` is true. Here `010` is 10, and the
other two are text. A key given twice is an error: PyYAML keeps the last one and says nothing. `<<`
merges mappings, as in YAML 1.1.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
WORDS = {"true": True, "false": False}
FORMS = (  # (type, its whole text, the characters it may begin with), tried in this order
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
)
PATTERNS = {name: re.compile(rf"(?:{form})\Z") for name, form, _ in FORMS}
LINE_ENDS = "\x85\u2028\u2029"  # YAML 1.1 ends a line at each of them
MOST_VALUES = 100_000  # of a document, what its aliases repeat counted each time


def read_yaml_text(text: str) -> Any:
    """Return the values of a YAML document; yaml.YAMLError says what is wrong, and where."""
    try:
        values = yaml.load(text, _Loader)
    except (RecursionError, ValueError, OverflowError) as error:
        raise yaml.YAMLError(f"it is not YAML ({error})") from error
    _check_size(values)
    return values


def yaml_text(values: Any) -> str:
    """Return plain values as YAML, the keys in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """Reads the types of FORMS, text, lists and mappings; nothing else, and no key twice."""

    yaml_implicit_resolvers = {}
    yaml_constructors = {
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag in {f"{TAG}{name}" for name in ("null", "str", "seq", "map")}
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == f"{TAG}merge":  # `<<: *name`, whose keys may be replaced
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                raise yaml.MarkedYAMLError(
                    problem=f"expected a word as the key, got {key!r}",
                    problem_mark=key_node.start_mark,
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that either version of YAML would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the node of a text; one with line ends of Unicode is written with escapes."""
        style = '"' if set(text) & set(LINE_ENDS) else None
        return self.represent_scalar(f"{TAG}str", text, style)


def _constructor(name: str, convert: Callable[[str], Any]) -> Callable[[Any, Any], Any]:
    """Return what makes a value of a scalar that is tagged as this type, or `!!type` by hand."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:
        text = str(loader.construct_scalar(node))
        if not PATTERNS[name].match(text):
            raise yaml.MarkedYAMLError(
                problem=f"{text!r} is no {name}", problem_mark=node.start_mark
            )
        return convert(text)

    return construct


def _int(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _check_size(values: Any) -> None:
    """Refuse aliases that hold themselves, or that repeat each other without end."""
    waiting, count = [values], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        if count > MOST_VALUES:
            raise yaml.YAMLError(
                f"it holds more than {MOST_VALUES:,} values; an alias may hold itself"
            )


for _name, _, _first in FORMS:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"{TAG}{_name}", PATTERNS[_name], list(_first))
_Dumper.add_representer(str, _Dumper.represent_text)
_Loader.add_constructor(f"{TAG}bool", _constructor("bool", lambda text: WORDS[text.lower()]))
_Loader.add_constructor(f"{TAG}int", _constructor("int", _int))
_Loader.add_constructor(f"{TAG}float", _constructor("float", _float))
