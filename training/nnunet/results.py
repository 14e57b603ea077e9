"""What nnU-Net leaves behind: plans, dataset and checkpoints, in a folder or a zip file."""

from __future__ import annotations

import json
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from inference.errors import ModelError, last_line

_FILES = ("plans.json", "dataset.json")


@dataclass(frozen=True)
class Results:
    """A trained model, as nnU-Net's trainer wrote it.

    Attributes:
        name: of its folder, ``TRAINER__PLANS__CONFIGURATION``, or of what was given.
        plans: content of ``plans.json``.
        dataset: content of ``dataset.json``.
        checkpoints: name of each chosen fold ("0", ..., or "all") to its checkpoint file.
    """

    name: str
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]
    checkpoints: Mapping[str, Path]


@contextmanager
def open_results(
    path: Path,
    folds: Sequence[str] = (),
    configuration: str | None = None,
    checkpoint: str = "checkpoint_final.pth",
) -> Iterator[Results]:
    """Find a trained model and its checkpoints.

    Args:
        path: the folder with ``plans.json``, ``dataset.json`` and ``fold_X``, a folder above it,
            or the zip file that ``nnUNetv2_export_model_to_zip`` writes.
        folds: those wanted; empty for all that are numbered, or else "all". "all" is nnU-Net's
            training on everything; where that is not there, all that are numbered.
        configuration: which model is meant where there are several: its configuration or its
            folder's name.
        checkpoint: the checkpoints' file name.

    Yields:
        The model. Its files are there until the context is left.

    Raises:
        ModelError: there is no such model, several, or one that lacks a fold.
    """
    if path.is_dir():
        top = path.resolve()
        files = {
            PurePosixPath(found.relative_to(top).as_posix()): found
            for found in _files_below(top)
            if found.name in _FILES
            or (found.name == checkpoint and found.parent.name.startswith("fold_"))
        }
        files = _without_second_names(files)
        folder = _choose(path, list(files), configuration)
        yield _read(path, folder, files, folds, checkpoint)
    elif not path.exists():
        raise ModelError(f"{path}: no such folder or file")
    elif not zipfile.is_zipfile(path):
        raise ModelError(f"{path}: neither a folder nor a zip file")
    else:
        with tempfile.TemporaryDirectory() as made:
            try:
                with zipfile.ZipFile(path) as archive:
                    names = {PurePosixPath(name): name for name in archive.namelist()}
                    folder = _choose(path, list(names), configuration)
                    chosen = _folds(folder, names, folds, checkpoint)
                    wanted = [folder / name for name in _FILES]
                    wanted += [folder / f"fold_{fold}" / checkpoint for fold in chosen]
                    files = {
                        name: Path(archive.extract(names[name], made))
                        for name in wanted
                        if name in names
                    }
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ModelError(f"{path}: damaged ({error})") from None
            except RuntimeError as error:  # encrypted, or compressed in a rare way
                raise ModelError(f"{path}: cannot be unpacked ({error})") from None
            yield _read(path, folder, files, folds, checkpoint)


def _files_below(path: Path) -> Iterator[Path]:
    """All files below a folder, through links too: results often lie on another disk.

    Args:
        path: the folder itself, no link to it.
    """
    for folder, folders, names in os.walk(path, followlinks=True):
        where = Path(folder)
        above = {parent.resolve() for parent in (where, *where.parents)}
        folders[:] = [n for n in folders if (where / n).resolve() not in above]  # no circles
        yield from (where / name for name in names)


def _without_second_names(files: Mapping[PurePosixPath, Path]) -> dict[PurePosixPath, Path]:
    """A model that links give several names has its folder's own."""
    models = {name.parent: files[name].parent for name in files if name.name == _FILES[0]}
    named: dict[Path, PurePosixPath] = {}
    for name, folder in sorted(models.items(), key=lambda item: item[1].is_symlink()):
        named.setdefault(folder.resolve(), name)
    others = set(models) - set(named.values())
    return {name: file for name, file in files.items() if not others & {*name.parents}}


def _choose(path: Path, names: list[PurePosixPath], configuration: str | None) -> PurePosixPath:
    """The folder, relative to ``path``, of the one model that is meant."""
    folders = sorted({name.parent for name in names if name.name == "plans.json"})
    # Beside nnU-Net's preprocessed data there are plans without any training.
    folders = [f for f in folders if any(f in n.parents and n.suffix == ".pth" for n in names)]
    if not folders:
        raise ModelError(
            f"{path}: no trained model here (plans.json and fold_X/checkpoint_final.pth, or what"
            " --checkpoint-name says)"
        )
    named = {folder: _name(path, folder) for folder in folders}
    if configuration is not None:
        folders = [
            f for f in folders if configuration in (str(f), named[f], named[f].split("__")[-1])
        ]
    # Models of two data sets may have the same name: then their folders tell them apart.
    alike = len(set(named.values())) < len(named)
    if not folders:
        there = ", ".join(map(str, named) if alike else named.values())
        raise ModelError(f"{path}: no model {configuration!r} here, only {there}")
    if len(folders) > 1:
        there = ", ".join(str(f) if alike else named[f] for f in folders)
        raise ModelError(f"{path}: several models; choose with --configuration: {there}")
    return folders[0]


def _name(path: Path, folder: PurePosixPath) -> str:
    """Of a model's folder; where that is all that was given, of this folder or zip file."""
    given = path.resolve() if path.name in ("", "..") else path  # a link keeps its own name
    return folder.name or (given.name if given.is_dir() else given.stem)


def _folds(
    folder: PurePosixPath,
    names: Mapping[PurePosixPath, Any],
    wanted: Sequence[str],
    checkpoint: str,
) -> list[str]:
    there = {
        name.parent.name.removeprefix("fold_")
        for name in names
        if name.name == checkpoint and name.parent.parent == folder
    }
    numbered = sorted(fold for fold in there if fold.isdecimal())
    if list(wanted) == ["all"] and "all" not in there:
        return numbered or ["all"]  # which is then said to be missing
    return list(wanted) or numbered or sorted(there)


def _read(
    path: Path,
    folder: PurePosixPath,
    files: Mapping[PurePosixPath, Path],
    folds: Sequence[str],
    checkpoint: str,
) -> Results:
    contents = []
    for name in _FILES:
        if folder / name not in files:
            raise ModelError(f"{path}: {folder / name} is missing")
        try:
            content = json.loads(files[folder / name].read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{path}: {folder / name} is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise ModelError(f"{path}: {folder / name} holds no JSON object")
        contents.append(content)
    checkpoints = {}
    for fold in _folds(folder, files, folds, checkpoint):
        file = folder / f"fold_{fold}" / checkpoint
        if file not in files:
            raise ModelError(f"{path}: {file} is missing")
        checkpoints[fold] = files[file]
    if not checkpoints:
        raise ModelError(f"{path}: no fold has a {checkpoint}")
    return Results(_name(path, folder), contents[0], contents[1], checkpoints)


def required(content: Mapping[str, Any], key: str, file: str = "plans.json") -> Any:
    """What ``plans.json`` or ``dataset.json`` must have under a key.

    Args:
        content: the file's content, or an object in it.
        key: the key.
        file: the file's name, for the message.

    Raises:
        ModelError: the key is missing.
    """
    if key not in content:
        raise ModelError(f"{file}: {key!r} is missing")
    return content[key]


@contextmanager
def written_by_nnunet(what: str) -> Iterator[None]:
    """Say of what cannot be understood that nnU-Net does not write it so, in one line.

    Args:
        what: the file, or what in it is looked at.

    Raises:
        ModelError: a value was of another type, length or range than could be used.
    """
    try:
        yield
    except (
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        AssertionError,
    ) as error:
        reason = f"{type(error).__name__}: {last_line(error)}"
        raise ModelError(f"{what}: not as nnU-Net writes it ({reason})") from None


def configuration_of(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration of the plans, with all that it inherits from others.

    Raises:
        ModelError: it does not exist, or inherits from itself.
    """
    configurations = required(plans, "configurations")
    chain: list[Mapping[str, Any]] = []
    seen: list[str] = []
    wanted: str | None = name
    while wanted is not None:
        if wanted in seen:
            raise ModelError(f"plans: configuration {wanted!r} inherits from itself")
        if wanted not in configurations:
            there = ", ".join(configurations)
            raise ModelError(f"plans: no configuration {wanted!r}, only {there}")
        seen.append(wanted)
        if not isinstance(configurations[wanted], Mapping):
            raise ModelError(f"plans: configuration {wanted!r} has no names and values")
        chain.append(configurations[wanted])
        wanted = chain[-1].get("inherits_from")
    merged: dict[str, Any] = {}
    for part in reversed(chain):
        merged.update(deepcopy(dict(part)))
    return merged


def configuration_in_name(name: str) -> str | None:
    """The configuration that nnU-Net wrote into a folder's name."""
    match = re.fullmatch(r".+__.+__(.+)", name)
    return match[1] if match else None
