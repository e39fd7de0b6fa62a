"""Sections, and how they are filled: YAML, overrides, names of registries, one error for all.

A registry is a dict in the module that uses it, such as RECIPES in training/recipes.py. Those
modules import the config. So a section names the place of a registry (`registered`), and the module
is imported when a value is checked, not when the config itself is imported.
"""

import difflib
import importlib
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
import yaml

from manu_jax.folder import expand_path
from manu_jax.types import ManuError
from manu_jax.yaml12 import read_yaml_text

NULLS = ("", "null")  # what an override of a text field writes for None, where None is allowed
# The types of values, and what errors call them.
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


class Section(pydantic.BaseModel):
    """A frozen mapping of known keys; every other key is refused.

    A number is not made of text or of true and false, nor true and false of anything else.
    sections_by_key: keys that hold a mapping here which is read as a section later. text_key: the
    key whose value a bare text in place of the mapping is; "": a text is no such section.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=False, allow_inf_nan=False
    )
    sections_by_key: ClassVar[Mapping[str, type["Section"]]] = {}
    text_key: ClassVar[str] = ""

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _check_scalars(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        kinds = _leaf_kinds(_annotation(cls, str(info.field_name)))
        if kinds <= {*WORDS, type(None)}:
            for leaf in _leaves(value):
                is_other = str not in kinds if isinstance(leaf, str) else bool in kinds
                if isinstance(leaf, bool):
                    is_other = bool not in kinds
                if leaf is not None and is_other:
                    wanted = " or ".join(word for one, word in WORDS.items() if one in kinds)
                    raise ValueError(f"expected {wanted}, got {leaf!r}")
        return value


SomeSection = TypeVar("SomeSection", bound=Section)
Share = Annotated[float, pydantic.Field(gt=0, lt=1)]  # of neurons
Count = Annotated[int, pydantic.Field(ge=1)]
AttentionForm = Literal["auto", "reference"]  # kernels where there are some, or none
Remat = Literal["all", "dots", "none"]  # what a backward pass computes again to save memory


class SectionError(ValueError):
    """A section inside another one, whose kind is chosen by its values, does not fit its schema."""

    def __init__(self, kind: type[Section], error: pydantic.ValidationError):
        super().__init__("\n".join(_faults(kind, error)))
        self.kind, self.error = kind, error


def registered(place: str, what: str) -> pydantic.AfterValidator:
    """Return the check that a text is a key of the registry at `place` ("package.module.NAME").

    what: a name's meaning, for the error, which lists the known names and those that are near.
    """

    def check(name: str) -> str:
        known = registry(place)
        if name not in known:
            raise ValueError(unknown(what, name, known))
        return name

    return pydantic.AfterValidator(check)


def registry(place: str) -> Mapping[str, Any]:
    """Return the registry at `place` ("package.module.NAME"), as it is now."""
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(module), name)


def unknown(what: str, name: Any, known: Collection[str]) -> str:
    """Return the error about a name that is not known, with those that are."""
    listed = ", ".join(repr(one) for one in known)
    return f"unknown {what} {name!r}{near(str(name), known)} (known: {listed})"


def near(name: str, known: Collection[str]) -> str:
    """Return the end of an error about an unknown name: the names that are near, if any are."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def check_divides(name: str, whole: int, *, by: str, part: int) -> None:
    """Raise ValueError where `whole`, the value of `name`, is no multiple of `part`."""
    if whole % part:
        raise ValueError(f"{name} has to be a multiple of {by}; got {whole} and {part}")


def read_yaml(
    path: str | Path, overrides: Iterable[str] = (), *, kind: type[Section] = Section
) -> dict[str, Any]:
    """Return the mapping of a YAML file with overrides (`key.path=value`), or raise ManuError.

    kind: the section that the values are for. An override of one of its text fields is taken as it
    is written; any other is YAML.
    """
    path = expand_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ManuError(f"config {path}: {error.strerror}. Give an existing YAML file.") from error
    except UnicodeDecodeError as error:
        raise ManuError(f"config {path}: not UTF-8 text ({error}). Save it as UTF-8.") from error
    values = _parse(text, f"config {path}")
    if not isinstance(values, dict):
        raise ManuError(f"config {path}: expected a mapping of keys to values, got {values!r}.")
    for override in overrides:
        _set_override(values, override, kind)
    return values


def validate(kind: type[SomeSection], values: Mapping[str, Any], where: str) -> SomeSection:
    """Return the section of plain values; one ManuError lists every fault."""
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        faults = "\n".join(f"  {fault}" for fault in _faults(kind, error))
        raise ManuError(f"{where}:\n{faults}") from None


def _parse(text: str, where: str) -> Any:
    try:
        return read_yaml_text(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ManuError(f"{where}{place}: {problem}.") from None


def _set_override(values: dict[str, Any], override: str, kind: type[Section]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ManuError(f"override {override!r}: expected key.path=value, e.g. method.alpha=0.05.")
    *parents, last = key.split(".")
    sections = [kind]
    for parent in parents:
        child = values.setdefault(parent, {})
        sections = _sections_at(sections, parent)
        text_key = next((one.text_key for one in sections if one.text_key), "")
        if isinstance(child, str) and text_key:
            child = values[parent] = {text_key: child}
        if isinstance(child, list):
            raise ManuError(
                f"override {override!r}: {parent!r} is a list, which is given whole: "
                f"'{parent}=[...]'."
            )
        if not isinstance(child, dict):
            raise ManuError(f"override {override!r}: {parent!r} is {child!r}, which has no keys.")
        values = child
    having = [one for one in sections if last in one.model_fields]
    kinds = set().union(*(_scalar_kinds(_annotation(one, last)) for one in having))
    if str not in kinds or float in kinds:  # a number, or a word in its place
        values[last] = _parse(text, f"override {override!r}")
    else:
        values[last] = None if text in NULLS and type(None) in kinds else text


def _faults(
    kind: type[Section], error: pydantic.ValidationError, above: tuple[Any, ...] = ()
) -> Iterator[str]:
    """Yield a line for each fault: the key's path, what is wrong, and the names that are known."""
    faults = error.errors()
    everywhere = [tuple(fault["loc"]) for fault in faults]
    for fault in faults:
        cause = fault.get("ctx", {}).get("error")
        if isinstance(cause, SectionError):
            yield from _faults(cause.kind, cause.error, (*above, *fault["loc"]))
            continue
        here = tuple(fault["loc"])
        inside = any(place != here and place[: len(here)] == here for place in everywhere)
        if fault["type"] == "default_factory_not_called" or inside and fault["type"] == "too_short":
            continue  # it follows from another fault
        path = ".".join(str(part) for part in (*above, *fault["loc"]) if part != "[key]")
        if fault["type"] == "extra_forbidden":
            *parents, key = fault["loc"]
            known = _known_keys(kind, parents)
            hint = near(str(key), known) or f"; known: {', '.join(known)}"
            yield f"{path}: unknown key{hint}"
            continue
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "tuple_type":
            message = "expected a list"
        elif fault["type"] in ("model_type", "model_attributes_type"):
            known = _known_keys(kind, fault["loc"])
            message = "expected a mapping"
            message += f" with keys of {', '.join(known)}" if known else ""
        got = "" if fault["type"] in ("value_error", "missing") else f", got {fault['input']!r}"
        yield f"{path}: {message}{got}" if path else message


def _known_keys(kind: type[Section], location: Iterable[Any]) -> list[str]:
    sections = [kind]
    for part in location:
        sections = sections if isinstance(part, int) else _sections_at(sections, str(part))
    return [key for section in sections for key in section.model_fields]


def _sections_at(sections: Iterable[type[Section]], key: str) -> list[type[Section]]:
    """Return the sections that a key of these may hold."""
    found = {
        one
        for section in sections
        for one in (
            {section.sections_by_key[key]}
            if key in section.sections_by_key
            else _leaf_kinds(_annotation(section, key))
        )
        if issubclass(one, Section)
    }
    return sorted(found, key=lambda one: one.__name__)


def _annotation(kind: type[Section], key: str) -> Any:
    field = kind.model_fields.get(key)
    return None if field is None else field.annotation


def _scalar_kinds(annotation: Any) -> set[type]:
    """Return the types that a field takes; none where it may be a list or a mapping."""
    origin = typing.get_origin(annotation)
    if origin in (tuple, dict, list):
        return set()
    return _leaf_kinds(annotation)


def _leaf_kinds(annotation: Any) -> set[type]:
    """Return the types of a field's values, or of those in its lists and mappings."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return {type(value) for value in arguments}
    if origin is Annotated:
        return _leaf_kinds(arguments[0])
    if origin is dict:
        return _leaf_kinds(arguments[1])
    if origin in (tuple, list, typing.Union, types.UnionType):
        return set().union(*(_leaf_kinds(one) for one in arguments if one is not ...))
    return {annotation} if isinstance(annotation, type) else {object}


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _leaves(one)
    else:
        yield value
