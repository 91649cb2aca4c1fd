"""Serves exported files with ONNX Runtime: a thin, typed layer that uses the provider it was told to, or fails.

A batch of any size goes to the smallest bucket that holds it (:mod:`afm_fx.runtime.bucket`); one larger than all
buckets is cut into pieces. A file with a free batch size and no buckets takes every batch as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from afm_fx.errors import AfmFxError, BatchError, ProviderError, UserError, short_reason
from afm_fx.program import Inputs
from afm_fx.runtime.artifact import Artifact, FileValue, artifacts_at, check_batch_sizes
from afm_fx.runtime.bucket import Bucket
from afm_fx.runtime.file_inputs import batch_rows, bind_batch, file_examples, random_file_inputs
from afm_fx.runtime.onnx_runtime import KINDS, Provider, import_runtime, open_session, provider_of

WARM_UP_ROWS = 2
"""Rows of the batches that warm a file without buckets up."""

WARM_UP_CALLS = 3
"""Calls that warm a bucket up; CUDA graphs need 3."""


class Session:
    """An exported model, loaded and warm.

    One thread or many may call :meth:`run`; calls of one bucket wait for each other. Weights that lie in a file of
    their own are mapped by the operating system and not copied, by all bucket files the same ones.

    Attributes:
        path: what was opened.
        provider: where it runs.
        inputs: what the files take, in order.
        outputs: what they give, in order.
        batch_sizes: the buckets in ascending order; empty where every batch runs as it is.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        provider: str | Provider = Provider.CPU,
        *,
        buckets: Sequence[int] | None = None,
        threads: int = 1,
        cuda_graph: bool = False,
        device_id: int = 0,
        provider_options: Mapping[str, str] | None = None,
    ) -> None:
        """Opens and warms up everything, so that the first batch is as fast as any.

        Args:
            path: an ONNX file, or the name that :func:`afm_fx.export_onnx_buckets` was given: then all its bucket files
                are opened. Where a file and bucket files of one name are there, the name without ".onnx" stands for the
                buckets.
            provider: "cpu", "cuda", "tensorrt" or "openvino".
            buckets: batch sizes for a file whose batch size is free: batches are padded to these, in memory that is
                bound once.
            threads: threads within an operator, on the CPU.
            cuda_graph: record the launches of every bucket as a CUDA graph and replay them; "cuda" and "tensorrt" only,
                and only with buckets.
            provider_options: further options of the provider, as ONNX Runtime spells them.

        Raises:
            FileFormatError: there are no such files, or they are damaged.
            UnsafeFileError: a file names weights outside its folder.
            MissingPackageError: ONNX Runtime is not installed.
            ProviderError: the provider is not there, cannot do what was asked, or does not run all of the model.
            UserError: impossible buckets, or settings that do not belong together.
        """
        self.path = Path(path)
        self.provider = provider_of(provider)
        files = artifacts_at(self.path)
        self._file = files[0]
        self.inputs: tuple[FileValue, ...] = self._file.inputs
        self.outputs: tuple[FileValue, ...] = self._file.outputs
        self.batch_sizes: tuple[int, ...] = _bucket_sizes(files, buckets)
        _check_graphs(self.provider, self.batch_sizes, cuda_graph=cuda_graph)
        kind, runtime = KINDS[self.provider], import_runtime()
        device = torch.device(kind.device, 0 if kind.device == "cpu" else device_id)
        options = dict(provider_options or {})
        if device.type != "cpu":
            options.setdefault("device_id", str(device_id))
        if cuda_graph and kind.graph_option is not None:
            options[kind.graph_option] = "1"
        sessions = [open_session(file, self.provider, threads, provider_options=options) for file in files]
        self._session = sessions[0]
        self._names = [value.name for value in self.inputs]
        self._buckets: tuple[Bucket, ...] = ()
        try:
            if not self.batch_sizes:
                feed = random_batch(self._file, WARM_UP_ROWS)
                for _ in range(WARM_UP_CALLS):
                    self._session.run(None, feed)
            for place, rows in enumerate(self.batch_sizes):
                which = place if len(files) > 1 else 0
                example = random_batch(files[which], rows)
                graph = place + 1 if cuda_graph else None
                bucket = Bucket(
                    runtime, sessions[which], files[which], example, rows=rows, device=device, graph_id=graph
                )
                tensors = [torch.from_numpy(example[name]) for name in self._names]
                for _ in range(WARM_UP_CALLS):
                    bucket.run(tensors, rows)
                self._buckets = (*self._buckets, bucket)
        except AfmFxError:
            raise
        except Exception as error:  # ONNX Runtime's errors derive from nothing common
            raise self._failed(error) from error

    def run(self, batch: Inputs) -> Tensor | dict[str, Tensor]:
        """Runs one batch.

        Args:
            batch: a dict of exactly the file's inputs, or tensors in their order; for a file with typed inputs also a
                batch of the original's. Any number of rows from 1 on.

        Returns:
            The output where there is one, else outputs by name, a row per row of the batch; on the host, or on the GPU
            where the inputs are there and the session has buckets.

        Raises:
            BatchError: a name, shape or number format does not fit, there are no rows, an id is outside its table
                (where the file checks ids), or the batch must be cut and an output has no batch axis.
        """
        tensors, rows = self._bind(batch)
        try:
            results = self._run_buckets(tensors, rows) if self._buckets else self._run_free(tensors)
        except AfmFxError:
            raise
        except Exception as error:  # ONNX Runtime's errors derive from nothing common
            raise self._failed(error) from error
        if len(results) == 1:
            return results[0]
        return dict(zip((each.name for each in self.outputs), results, strict=True))

    def __repr__(self) -> str:
        """What is served, where."""
        sizes = f", batch sizes {', '.join(map(str, self.batch_sizes))}" if self.batch_sizes else ""
        return f"Session('{self.path}', '{self.provider}'{sizes})"

    def _bind(self, batch: Inputs) -> tuple[list[Tensor], int]:
        """The tensors in the file's order, and the batch's rows."""
        try:
            self._check_names(batch)
            tensors = bind_batch(batch, self.inputs, self._file.mapping, any_rows=True)
            return tensors, batch_rows(self.inputs, tensors)
        except BatchError as error:
            raise BatchError(f"'{self.path.name}' {error}") from error

    def _check_names(self, batch: Inputs) -> None:
        """A dict is bound by name: one with other names is a mistake, not a list of inputs."""
        if not isinstance(batch, dict) or batch.keys() == set(self._names):
            return
        mapping = self._file.mapping
        originals = [] if mapping is None else [value.name for value in mapping.originals]
        if batch.keys() == set(originals) or not all(isinstance(value, Tensor) for value in batch.values()):
            return
        missing = [name for name in self._names if name not in batch]
        extra = [name for name in batch if name not in self._names]
        more = f", or the original's {originals}" if originals else ""
        raise BatchError(f"takes inputs {self._names}{more}: missing {missing}, unexpected {extra}")

    def _run_free(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        feed = {name: tensor.numpy(force=True) for name, tensor in zip(self._names, tensors, strict=True)}
        return [torch.from_numpy(result) for result in self._session.run(None, feed)]

    def _run_buckets(self, tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
        if rows <= self.batch_sizes[-1]:
            return self._smallest(rows).run(tensors, rows)
        whole = [value.name for value in self.outputs if not value.batched]
        if whole:
            raise BatchError(
                f"'{self.path.name}' cannot run {rows} rows in pieces of {self.batch_sizes[-1]}: output '{whole[0]}' "
                "has no batch axis. Add a larger bucket"
            )
        pieces = [
            self._smallest(end - start).run(
                [
                    tensor[start:end] if value.batched else tensor
                    for value, tensor in zip(self.inputs, tensors, strict=True)
                ],
                end - start,
            )
            for start, end in cuts(rows, self.batch_sizes[-1])
        ]
        return [torch.cat(parts) for parts in zip(*pieces, strict=True)]

    def _smallest(self, rows: int) -> Bucket:
        return next(bucket for bucket in self._buckets if bucket.rows >= rows)

    def _failed(self, error: Exception) -> UserError:
        """What failed in a run, in the caller's terms: on the CPU mostly an id that the file refuses."""
        reason = short_reason(error)
        if self.provider is Provider.CPU:
            return BatchError(f"ONNX Runtime fails on a batch of '{self.path.name}': {reason}")
        return ProviderError(f"provider '{self.provider}' fails on '{self.path.name}': {reason}")


def cuts(rows: int, largest: int) -> Iterator[tuple[int, int]]:
    """Where a batch is cut into pieces of at most ``largest`` rows: pairs of begin and end."""
    for start in range(0, rows, largest):
        yield start, min(start + largest, rows)


def random_batch(file: Artifact, rows: int) -> dict[str, np.ndarray]:
    """Inputs that any file takes, by name: ids are 0, the first row of a table, where nothing is known of them."""
    drawn = random_file_inputs(file_examples(file.inputs, rows), mapping=file.mapping, largest=0)
    return {name: tensor.numpy() for name, tensor in drawn.items()}


def _bucket_sizes(files: Sequence[Artifact], buckets: Sequence[int] | None) -> tuple[int, ...]:
    fixed = tuple(file.batch_size for file in files if file.batch_size is not None)
    if buckets is None:
        return fixed
    sizes = tuple(sorted(check_batch_sizes(buckets)))
    if fixed and sizes != fixed:
        raise UserError(
            f"'{files[0].path}' takes batches of {', '.join(map(str, fixed))} rows and no others; buckets are for "
            "files whose batch size is free"
        )
    if not any(value.batched for value in files[0].inputs):
        raise UserError(f"'{files[0].path}' has no input with a batch axis, so there is nothing to pad to buckets")
    return sizes


def _check_graphs(provider: Provider, sizes: Sequence[int], *, cuda_graph: bool) -> None:
    if not cuda_graph:
        return
    if provider not in {Provider.CUDA, Provider.TENSORRT}:
        raise ProviderError(f"CUDA graphs need the provider 'cuda' or 'tensorrt', this session runs on '{provider}'")
    if not sizes:
        raise UserError("a CUDA graph has one batch size: give buckets=(1, 16, 64), or bucket files")
