"""Keys and values of a real model, bf16, as prefill sends them: made once, kept under ``build/bench``.

``python -m bench.transforms.kv PATH`` makes them; it needs torch and the weights, which those that send them do not.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.sides import ROOT, SubjectFailed

FILE = ROOT / "build" / "bench" / "kv-smollm2.npy"
TEXTS = ("docs/SEMANTICS.md", "docs/ARCHITECTURE.md")
TOKENS = 768
MAKE_S = 300.0


def load() -> np.ndarray:
    """Return bits of bf16, ``uint16[layers, 2, tokens, heads, dim]``: K, then V of every layer.

    Raises
    ------
    SubjectFailed
        The model is not installed, or takes longer than `MAKE_S`.
    """
    if not FILE.exists():
        command = [sys.executable, "-m", "bench.transforms.kv", str(FILE)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=MAKE_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise SubjectFailed(f"KV of the model was not there after {MAKE_S:g} s") from error
        if done.returncode:
            raise SubjectFailed(f"there is no KV of the model: {done.stderr.strip()[-500:]}")
    return np.load(FILE, mmap_mode="r")


def make(path: Path) -> None:
    """Run the model over texts of this repository and write what it cached."""
    import torch
    from fabric_modules.model import load_model, load_tokenizer, prepare_model

    files = prepare_model("smollm2")
    tokenizer, model = load_tokenizer(files), load_model(files, threads=2)
    text = "\n".join((ROOT / name).read_text() for name in TEXTS)
    ids = list(tokenizer.tokenizer.encode(text, add_special_tokens=False).ids)[:TOKENS]
    with torch.inference_mode():
        cache = model(torch.tensor([ids]), use_cache=True).past_key_values
    layers = [
        torch.stack([t[0].transpose(0, 1).to(torch.bfloat16) for t in (layer.keys, layer.values)])
        for layer in cache.layers
    ]
    bits = torch.stack(layers).contiguous().view(torch.int16).numpy().view(np.uint16)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new.npy")
    np.save(draft, bits)
    draft.rename(path)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
