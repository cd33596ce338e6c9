"""`wsejax ckpt quantise`: a checkpoint's matrices in int8, and what that has done to them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from wsejax.inference import Bytes, FromFile, encoded
from wsejax.report import Sheet

from .checkpoints import open_checkpoint, progress
from .output import Output, with_unit
from .programs import model_file


@dataclasses.dataclass(frozen=True)
class Quantise:
    """Write a checkpoint with its matrices in int8, each output with a scale of its own, and say how far off each matrix is. The layout is
    that of the compressed-tensors library (int-quantized); what reads checkpoints here reads it back."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Checkpoint of any format, or a run's folder."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """New folder to write."""
    group: int | None = None
    """Inputs that share a scale; left out: all of an output. Fewer are closer, and take more bytes for scales."""
    tables: bool = False
    """Also the token table, with a scale for each token."""
    keep: str | None = None
    """Matrices that stay as they are: a regular expression of whole paths, such as "head/kernel|.*/router/kernel"."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Say what becomes of the logits of this text, as long as the model reads it at once: of decoders."""
    model: str = ""
    """The model as family:preset, such as llama:tiny, where the checkpoint does not say."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> Output:
        int8, files, mup = (model_file(name) for name in ("int8", "hf_files", "mup"))
        files.check_writable(self.out, False)
        found = open_checkpoint(self.source, self.model)
        with progress("reading") as report:
            params = found.load(report=report)
        if getattr(found.config, "mup_base_width", None) is not None:
            config, params = mup.folded(found.family, found.config, params)
            found = dataclasses.replace(found, config=config)
        tokens = None if self.text is None else self._tokens(found.family, found.config)
        coded = int8.quantised(found.family, found.config, params, group=self.group, tables=self.tables, keep=self.keep)
        rows = sorted(int8.errors(params, coded), key=lambda row: row.sqnr_db)
        change = None if tokens is None else int8.change(found.family, found.config, params, coded, tokens)
        int8.save(self.out, found.family, found.config, coded)
        before, after = (sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (params, coded))
        data = {
            "in": str(self.source), "out": str(self.out), "family": found.family.name, "bytes_before": before, "bytes_after": after,
            "tensors": [dataclasses.asdict(row) for row in rows], "change": change,
        }  # fmt: skip
        cells = [
            (row.path, "x".join(map(str, row.shape)), f"{row.max_abs:.3g}", f"{row.rms:.3g}", f"{row.of_bound:.3f}", _decibels(row.sqnr_db),
             with_unit(row.bytes_before, "B"), with_unit(row.bytes_after, "B"))
            for row in rows
        ]  # fmt: skip
        names = ("matrix", "shape", "max error", "RMS error", "of scale / 2", "SQNR dB", "before", "after")
        lines = [f"{self.out}: {found.family.name}, {with_unit(before, 'B', 4)} became {with_unit(after, 'B', 4)}"]
        if change is not None:
            lines += [
                f"logits: {change['max_abs']:.3g} off at most, {change['rms']:.3g} RMS, of {change['logits_rms']:.3g} RMS; "
                f"loss {change['loss_before']:.4f} became {change['loss_after']:.4f} nats a token"
            ]
        return Output(data, [Sheet(names, cells, left=(0, 1), fold={"matrix": 20, "shape": 10}), *lines])

    def _tokens(self, family: Any, config: Any) -> np.ndarray:
        assert self.text is not None
        if family.kind != "decoder":
            raise ValueError(f"--text {self.text}: {family.name} does not go on from text; leave --text out")
        own = self.source / "tokenizer.json"
        texts = [self.text.read_text(encoding="utf-8")]
        tokens = encoded(FromFile(own) if own.is_file() else Bytes(), texts, config.vocab_size)[0][: config.context]
        if len(tokens) < 2:
            raise ValueError(f"--text {self.text}: has {len(tokens)} tokens, and the loss of the next one needs two; give more text")
        return np.array([tokens], np.int32)


def _decibels(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "exact"
