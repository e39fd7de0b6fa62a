"""Edits and masks as files: look into them, apply them, take them back, join and compare them.

    python -m manu_jax.edit describe FILE…
    python -m manu_jax.edit apply FILE --model DIR --output DIR [--keep-removed SIDE]
    python -m manu_jax.edit undo FILE --model DIR --output DIR (--original DIR | --removed SIDE)
    python -m manu_jax.edit union FILE FILE… --output FILE
    python -m manu_jax.edit difference FILE FILE… --output FILE
    python -m manu_jax.edit diff FILE FILE
    python -m manu_jax.edit diff DIR DIR --output FILE

FILE: a `mask.safetensors` or `edit.safetensors` of a run, or what union and difference write. DIR:
a Hugging Face folder, or one with Orbax's arrays (tools/convert/from_hf.py); what is written has
the form of what was read. Both may be in a store (gs://, s3://). An edit knows the model that it
was made for, and no other takes it. `diff` of two folders writes the edit that leads from the first
model to the second.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import jax

from manu_jax.edits import files
from manu_jax.edits.edit import Edit
from manu_jax.edits.leafwise import save
from manu_jax.edits.removed import Removed
from manu_jax.fingerprint import weights_hash
from manu_jax.folder import check_replaceable, expand_path
from manu_jax.leaves import shapes
from manu_jax.models.loaded import Loaded, load, save_checkpoint, save_pretrained
from manu_jax.models.stored import DTYPES, is_converted
from manu_jax.run import exit_status
from manu_jax.types import ManuError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 done, 1 a named problem, 130 stopped."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: VERBS[options.verb](options))


def describe(options: argparse.Namespace) -> None:
    """Print what each file changes, and what it was made from."""
    for path in options.files:
        file = files.read(path)
        print(f"{path}: {file.edit.kind}, made for the model {file.model}")
        for line in file.edit.describe():
            print(f"  {line}")
        stands_apart = "stands apart in the weights: it can be found and removed again"
        print(f"  what it writes {stands_apart if file.edit.separable else 'does not stand apart'}")
        for key, value in sorted(file.made_from.items()):
            if key not in ("model", "versions"):
                print(f"  {key}: {value}")


def apply(options: argparse.Namespace) -> None:
    """Write the model with the edit; keep what the edit removes, where that is asked for."""
    files.check_apart(options.output, options.model)
    check_replaceable(options.output)
    if options.keep_removed:
        beside = [options.file, options.model, options.output]
        files.check_new(options.keep_removed, beside=beside, is_side=True)
    loaded = load(options.model, options.dtype)
    edit = files.read(options.file, loaded).edit
    edited = edit.apply(loaded)
    if options.keep_removed:
        Removed.of(loaded, edited).save(expand_path(options.keep_removed))
        print(f"{options.keep_removed}: what the edit removes")
    for line in edit.describe():
        print(line)
    _write(edited, options)


def undo(options: argparse.Namespace) -> None:
    """Write the model that the edit was applied to, bit for bit, or say why it can't be."""
    files.check_apart(options.output, *filter(None, [options.model, options.original]))
    check_replaceable(options.output)
    edited = load(options.model, options.dtype)
    if options.removed:
        file, removed = files.read(options.file), Removed.load(options.removed)
        if removed.original != file.model:
            raise ManuError(
                f"{options.removed} is of the model {removed.original}, and {options.file} of "
                f"{file.model}. Give the file that was kept when this edit was applied."
            )
        _write(removed.restore(edited), options)
        return
    original = load(options.original, options.dtype)
    edit = files.read(options.file, original).edit
    _check_edited(edit, edited, original, options=options)
    found = edit.undo(edited, original)
    if weights_hash(found.model) != weights_hash(original.model):
        raise ManuError(
            f"{options.model}: without {options.file} it is not {options.original} again: it was "
            "changed otherwise as well. Undo what was applied later first."
        )
    _write(found, options)


def union(options: argparse.Namespace) -> None:
    """Write the edit that does what all of the files do."""
    files.check_new(options.output, beside=options.files)
    found = [files.read(path) for path in options.files]
    _write_joined(files.union(found), found, options)


def difference(options: argparse.Namespace) -> None:
    """Write the mask of what the first file removes and none of the others does."""
    files.check_new(options.output, beside=options.files)
    found = [files.read(path) for path in options.files]
    _write_joined(files.difference(found[0], found[1:]), found, options)


def diff(options: argparse.Namespace) -> None:
    """Print what two edits share; or write the edit that leads from one model to another."""
    first, second = options.files
    are_folders = [expand_path(path).is_dir() for path in options.files]
    if not any(are_folders):
        for line in files.compared(files.read(first), files.read(second)):
            print(line)
        return
    if not all(are_folders) or not options.output:
        raise ManuError(
            "diff: give two edits, which are compared; or two folders of models and --output FILE, "
            "the edit that leads from the first to the second."
        )
    files.check_new(options.output, beside=options.files)
    original = load(first, options.dtype)
    edit = files.between(original, load(second, options.dtype))
    save(edit, expand_path(options.output), loaded=original, made_from={"name": "diff"})
    for line in edit.describe():
        print(line)
    print(f"{options.output}: written")


VERBS: dict[str, Callable[[argparse.Namespace], None]] = {
    "describe": describe,
    "apply": apply,
    "undo": undo,
    "union": union,
    "difference": difference,
    "diff": diff,
}


def _check_edited(
    edit: Edit, edited: Loaded, original: Loaded, *, options: argparse.Namespace
) -> None:
    """Raise ManuError where a model has other shapes than the edit gives to the original."""
    wanted = jax.eval_shape(edit.edited, original.model)
    if shapes(wanted) != shapes(edited.model):
        raise ManuError(
            f"{options.model}: its weights have other shapes than {options.file} gives to "
            f"{options.original}. Give the model that the edit was applied to."
        )


def _write(loaded: Loaded, options: argparse.Namespace) -> None:
    """Write a model in the form of the folder that was read."""
    save = save_checkpoint if is_converted(expand_path(options.model)) else save_pretrained
    save(loaded, options.output)
    print(f"{options.output}: written, the model {weights_hash(loaded.model)}")


def _write_joined(edit: Edit, found: Sequence[files.EditFile], options: argparse.Namespace) -> None:
    files.save_joined(expand_path(options.output), edit, options.verb, files=found)
    for line in edit.describe():
        print(line)
    print(f"{options.output}: written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m manu_jax.edit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=(VERBS[name].__doc__ or "").splitlines()[0])

    verb("describe").add_argument("files", nargs="+", metavar="FILE")
    for name in ("apply", "undo"):
        one = verb(name)
        one.add_argument("file", metavar="FILE", help="the edit")
        one.add_argument("--model", required=True, metavar="DIR", help="the model to change")
        one.add_argument("--output", required=True, metavar="DIR", help="the folder to make")
        _add_dtype(one)
        if name == "apply":
            kept = "also write what the edit removes, to undo it without the original"
            one.add_argument("--keep-removed", metavar="SIDE", help=kept)
        else:
            source = one.add_mutually_exclusive_group(required=True)
            source.add_argument("--original", metavar="DIR", help="the model before the edit")
            source.add_argument("--removed", metavar="SIDE", help="what --keep-removed wrote")
    for name in ("union", "difference"):
        one = verb(name)
        one.add_argument("files", nargs="+", metavar="FILE")
        one.add_argument("--output", required=True, metavar="FILE", help="the file to make")
    one = verb("diff")
    one.add_argument("files", nargs=2, metavar="FILE")
    one.add_argument("--output", metavar="FILE", help="of two models: the edit to make")
    _add_dtype(one)
    return parser


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", choices=DTYPES, help="as the run's model.dtype was (default: as on disk)"
    )


if __name__ == "__main__":
    sys.exit(main())
