"""Packs an image for submission and proves that the packed one works.

The organisers load a team's archive and run the image that is called like the archive's file, in
lower case, with the tag ``latest``. So that is what the image is tagged as before it is saved.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import SimpleITK as sitk
from tqdm import tqdm

from evaluation.challenge import MEMORY
from evaluation.container import Container, docker, image_of
from evaluation.usage import Usage, run_folders
from inference.console import say
from inference.errors import CaseError, UsageError
from inference.file_names import ENDINGS, ending, label_name
from inference.paths import is_file, is_there
from inference.phantom import make_phantom
from inference.read.file import read
from inference.write.files import appearing, make_folder, write_image

_SUFFIX = ".tar.gz"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Package:
    """A packed image.

    Attributes:
        path: the archive.
        tag: the image's name inside it.
        size: bytes.
        sha256: its checksum.
        usage: how the image loaded from it did on one case.
    """

    path: Path
    tag: str
    size: int
    sha256: str
    usage: Usage


def package(
    image: str,
    out: Path,
    case: Path | None = None,
    memory: str = MEMORY,
    arguments: Sequence[str] = (),
    quiet: bool = False,
) -> Package:
    """Save an image, load the archive under another tag, and run a case with that.

    Args:
        image: the image's name.
        out: the archive, ``NAME.tar.gz``.
        case: a CT in a file (of `inference.file_names.ENDINGS`) to run; by default a small phantom.
        memory: Docker's memory limit for that.
        arguments: more words for ``docker container run``.
        quiet: show no progress bar.

    Raises:
        UsageError: no such image, no Docker, ``case`` is no CT's file, or the archive's name
            cannot be an image's.
        CaseError: ``case`` cannot be read; the loaded image is another one, or fails on it.
    """
    tag = tag_for(out)
    if case is not None and not is_file(case):
        raise UsageError(f"{case}: is no file" if is_there(case) else f"{case}: no such file")
    if case is not None and ending(case) is None:
        raise UsageError(f"{case}: not a CT by its ending ({', '.join(ENDINGS)})")
    try:
        ct = read(case).image if case else make_phantom((60, 128, 128), (5.0, 3.0, 3.0))[0]
    except CaseError as error:
        raise CaseError(f"{case}: {error}") from None
    if out.is_dir():
        raise UsageError(f"{out}: is a folder")
    source = image_of(image)
    make_folder(out.parent)
    try:
        before = image_of(tag)["Id"]
    except UsageError:
        before = None
    docker("image", "tag", image, tag)
    try:
        # It appears under its name when it has been tried.
        with appearing(out) as archive:
            digest = _save(tag, archive, int(source["Size"]), quiet)
            usage = _check(archive, out.name, source["Id"], ct, memory, arguments)
        if before not in (None, source["Id"]):
            say(f"note: {tag} was another image, {before}; it is {image} now", error=True)
        return Package(out, tag, out.stat().st_size, digest, usage)
    except BaseException as error:
        with suppress(UsageError):
            if before is not None:
                docker("image", "tag", before, tag)
            elif source.get("RepoTags"):  # else the tag is all that keeps the image
                docker("image", "rm", tag)
        if isinstance(error, OSError):
            raise UsageError(f"{out}: {error.strerror or error}") from None
        raise


def tag_for(out: Path) -> str:
    """The name under which the organisers look for the image of an archive.

    Raises:
        UsageError: the file's name does not end in ``.tar.gz``, has other dots, or cannot be an
            image's.
    """
    name = out.name.removesuffix(_SUFFIX).lower()
    if not out.name.endswith(_SUFFIX):
        raise UsageError(f"{out}: the archive's name must end in {_SUFFIX}")
    if "." in name:
        raise UsageError(
            f"{out}: the organisers take what is before its first dot for the image's name; "
            f"leave the dots before {_SUFFIX} out"
        )
    if not re.fullmatch(r"[a-z0-9]+(?:(?:_{1,2}|-+)[a-z0-9]+)*", name):
        raise UsageError(f"{out}: {name!r} cannot be an image's name")
    return f"{name}:latest"


def _save(tag: str, out: Path, size: int, quiet: bool) -> str:
    """Write the compressed archive; return its checksum."""
    digest = hashlib.sha256()
    with (
        subprocess.Popen(
            ["docker", "image", "save", tag], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as saving,
        out.open("wb") as file,
        # No name and no time inside: the same image gives the same archive.
        gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
        tqdm(total=size, unit="B", unit_scale=True, desc="saving", disable=quiet or None) as bar,
    ):
        assert saving.stdout is not None and saving.stderr is not None
        while chunk := saving.stdout.read(_CHUNK):
            packed.write(chunk)
            bar.update(len(chunk))
        reason = saving.stderr.read().decode(errors="replace").strip()
        if saving.wait():
            raise UsageError(f"docker image save {tag}: {reason}")
    with out.open("rb") as written:
        while chunk := written.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check(
    archive: Path,
    name: str,
    wanted: str,
    ct: sitk.Image,
    memory: str,
    arguments: Sequence[str],
) -> Usage:
    """Load an archive (that will have a name) and run a case with its image."""
    tag = f"abdoseg-check-{uuid.uuid4().hex[:12]}:loaded"
    try:
        load_as(archive, tag)
    except CaseError as error:
        raise CaseError(str(error).replace(archive.name, name)) from None
    try:
        loaded = image_of(tag)["Id"]
        if loaded != wanted:
            raise CaseError(f"{name}: holds the image {loaded}, not {wanted}")
        with run_folders(archive.parent) as (inputs, outputs):
            log = outputs.with_name("log.txt")
            given = inputs / "case_0000.nii.gz"
            write_image(ct, given)
            usage = Container(tag, memory, arguments=arguments)(inputs, outputs, log)
            if usage.exit_code or not (outputs / label_name(given.name)).is_file():
                said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                reason = f"exit code {usage.exit_code}" if usage.exit_code else "no labels"
                raise CaseError(
                    f"{name}: the loaded image failed on the case ({reason}"
                    + (f"; it said: {said[-1]})" if said else ")")
                )
        return usage
    finally:
        with suppress(UsageError):  # would hide what was wrong
            docker("image", "rm", tag)


def load_as(archive: Path, tag: str) -> None:
    """``docker load``, but under a name of our own, so that no image of that name is replaced.

    Args:
        archive: what ``docker save`` wrote, compressed.
        tag: the name to load it under.

    Raises:
        UsageError: Docker cannot load it.
        CaseError: the archive is damaged.
    """
    try:
        with (
            _loading() as pipe,
            tarfile.open(archive, "r:gz") as source,
            tarfile.open(fileobj=pipe, mode="w|") as target,
        ):
            for member in source:
                if member.name == "repositories":  # the old form of the names
                    continue
                content: IO[bytes] | None = source.extractfile(member)
                if content is not None and member.name in ("manifest.json", "index.json"):
                    renamed = json.dumps(_renamed(json.load(content), tag)).encode()
                    member.size = len(renamed)
                    content = io.BytesIO(renamed)
                target.addfile(member, content)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, ValueError) as error:
        raise CaseError(f"{archive}: damaged ({error})") from None


def _renamed(content: Any, tag: str) -> Any:
    """A manifest (a list) or an OCI index (a dict) with another image name."""
    if isinstance(content, list):
        return [{**entry, "RepoTags": [tag]} for entry in content]
    for entry in content.get("manifests", []):
        annotations = entry.setdefault("annotations", {})
        annotations["io.containerd.image.name"] = f"docker.io/library/{tag}"
        annotations["org.opencontainers.image.ref.name"] = tag.rsplit(":", 1)[1]
    return content


@contextmanager
def _loading() -> Iterator[IO[bytes]]:
    """The standard input of ``docker image load``."""
    try:
        process = subprocess.Popen(
            ["docker", "image", "load", "--quiet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
    except OSError as error:
        raise UsageError(f"docker cannot be run ({error.strerror})") from None
    assert process.stdin is not None and process.stderr is not None
    broken = False
    try:
        yield process.stdin
    except BrokenPipeError:  # docker gave up first: its own words are the reason
        broken = True
    finally:
        try:
            process.stdin.close()
        except BrokenPipeError:
            broken = True
        reason = process.stderr.read().decode(errors="replace").strip()
        process.stderr.close()
        failed = process.wait() != 0
    if failed or broken:
        raise UsageError(f"docker image load: {reason}")
