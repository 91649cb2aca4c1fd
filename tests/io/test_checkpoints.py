"""Checkpoints of every form give the same rows, in pieces, and what was made to mislead is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

from afm_fx.errors import FileFormatError, ModelError, UnsafeFileError
from afm_fx.io import distributed_checkpoint
from afm_fx.io.checkpoints import open_checkpoint
from afm_fx.io.stored_tensor import StoredTensor
from afm_fx.program.user_model import build_model
from tests.streamed_models import every_table, save_sharded

STATE: dict[str, Tensor] = {
    "table": torch.arange(33.0).reshape(11, 3),
    "half": torch.arange(12).reshape(4, 3).to(torch.bfloat16),
    "number": torch.tensor(7),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False, True]),
}


def single(folder: Path) -> Path:
    save_file(STATE, folder / "model.safetensors")
    return folder / "model.safetensors"


def sharded(folder: Path) -> Path:
    return save_sharded(STATE, folder / "sharded").parent


def distributed(folder: Path) -> Path:
    return save_distributed({"model": STATE, "optimizer": {"lr": 0.1, "step": torch.tensor(4.0)}}, folder / "dcp")


def save_distributed(state: dict[str, object], folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        dcp.save(state, checkpoint_id=folder)
    return folder


@pytest.mark.parametrize("write", [single, sharded, distributed])
def test_every_form_gives_whole_tensors_rows_and_mapped_tensors(write: Callable[[Path], Path], tmp_path: Path) -> None:
    checkpoint = {name.removeprefix("model."): stored for name, stored in open_checkpoint(write(tmp_path)).items()}
    assert checkpoint.keys() - {"optimizer.step"} == STATE.keys()
    for name, expected in STATE.items():
        stored = checkpoint[name]
        assert torch.equal(stored.tensor(), expected), name
        assert torch.equal(stored.mapped(), expected), name
        assert stored.dtype == expected.dtype
    assert torch.equal(checkpoint["table"].rows(4, 9), STATE["table"][4:9])


def in_pieces(folder: Path) -> dict[str, StoredTensor]:
    """What two times two processes would have written of the table, a quarter each."""
    quarters = {
        f"{rows}.{columns}": STATE["table"][rows : rows + 6, columns : columns + 2].clone()
        for rows in (0, 6)
        for columns in (0, 2)
    }
    save_distributed({**quarters, "table": STATE["table"]}, folder)
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())  # noqa: S301 - our own
    whole = metadata.state_dict_metadata["table"]
    whole.chunks = []
    for name, quarter in quarters.items():
        start = torch.Size(map(int, name.split(".")))
        whole.chunks.append(ChunkStorageMetadata(start, quarter.shape))
        (index,) = [each for each in metadata.storage_data if each.fqn == name]
        metadata.storage_data[type(index)("table", start)] = metadata.storage_data[index]
    path.write_bytes(pickle.dumps(metadata))
    return open_checkpoint(folder)


def test_a_tensor_in_pieces_of_rows_and_columns_is_put_together(tmp_path: Path) -> None:
    table = in_pieces(tmp_path / "dcp")["table"]
    assert len(table.chunks) == 4
    assert torch.equal(table.rows(3, 8), STATE["table"][3:8])
    assert torch.equal(table.mapped(), STATE["table"])


def test_a_model_is_loaded_from_a_sharded_and_from_a_distributed_checkpoint(tmp_path: Path) -> None:
    model, _ = every_table()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    paths = [
        save_sharded(dict(model.state_dict()), tmp_path / "sharded"),
        save_distributed({"model": model.state_dict()}, tmp_path / "dcp"),
    ]
    for path in paths:
        built, _ = build_model("tests.streamed_models:every_table", path)
        for name, tensor in model.state_dict().items():
            assert torch.equal(built.state_dict()[name], tensor)
    with pytest.raises(ModelError, match="of another model"):
        build_model("tests.streamed_models:wide_and_deep_model", paths[0])


class Runs:
    """A pickle that runs something when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("echo read > was_run",)


def test_the_metadata_of_a_distributed_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = distributed(tmp_path)
    (folder / ".metadata").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(UnsafeFileError, match=r"names '\w+\.system', which no checkpoint needs"):
        open_checkpoint(folder)
    assert not (tmp_path / "was_run").exists()


NAMED = [(module, name) for module, names in distributed_checkpoint._KNOWN.items() for name in names]
MARK = "marked_by_a_file"


@pytest.mark.parametrize("state", [{MARK: 1}, (None, {MARK: 1}), ({MARK: 1}, {MARK: 1})], ids=str)
def test_the_metadata_of_a_distributed_checkpoint_changes_no_class(tmp_path: Path, state: object) -> None:
    folder = distributed(tmp_path)
    known = distributed_checkpoint._KNOWN
    for module, name in NAMED:
        build = pickle.dumps(state, 2)[2:-1] + b"b"
        hostile = b"\x80\x02" + f"c{module}\n{name}\n".encode() + build + b"."
        (folder / ".metadata").write_bytes(hostile)
        with pytest.raises(FileFormatError):
            open_checkpoint(folder)
        assert not hasattr(known[module][name], MARK)
        if (real := getattr(sys.modules.get(module), name, None)) is not None:
            assert not hasattr(real, MARK), (module, name)
    assert not hasattr(Path, MARK)


def test_what_a_pickle_does_to_a_class_would_be_noticed() -> None:
    class Target:
        pass

    class Reader(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> object:
            return Target

    states: list[object] = [(None, {MARK: 1}), ({}, {MARK: 1})]
    for state in states:
        build = pickle.dumps(state, 2)[2:-1] + b"b"
        Reader(io.BytesIO(b"\x80\x02cpathlib\nPath\n" + build + b".")).load()
        assert vars(Target)[MARK] == 1
        delattr(Target, MARK)


def test_the_metadata_of_a_distributed_checkpoint_calls_nothing_of_torch_or_python() -> None:
    real = {getattr(sys.modules.get(module), name, None) for module, name in NAMED if module != "torch"}
    given = [each for names in distributed_checkpoint._KNOWN.values() for each in names.values()]
    assert not any(each in real for each in given)
    assert torch.Size not in given


def metadata_with(change: Callable[[object], None]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = distributed(folder) / ".metadata"
        metadata = pickle.loads(path.read_bytes())  # noqa: S301 - our own
        for index, info in metadata.storage_data.items():
            if index.fqn == "model.table":
                change(info)
        path.write_bytes(pickle.dumps(metadata))
        return path.parent

    return write


def index_with(**weight_map: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = save_sharded(STATE, folder / "sharded")
        (folder / "secret.safetensors").write_bytes((folder / "sharded/model-00001-of-00003.safetensors").read_bytes())
        document = json.loads(path.read_text())
        document["weight_map"] |= weight_map
        path.write_text(json.dumps(document))
        return path

    return write


def header_with(change: Callable[[dict[str, dict[str, object]]], None]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = single(folder)
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
        return path

    return write


def cut(folder: Path) -> Path:
    path = single(folder)
    path.write_bytes(path.read_bytes()[:-40])
    return path


HOSTILE = [
    pytest.param(index_with(table="../secret.safetensors"), UnsafeFileError, "outside the folder", id="climbs out"),
    pytest.param(index_with(table="/etc/passwd"), UnsafeFileError, "outside the folder", id="absolute"),
    pytest.param(index_with(table="a\\..\\..\\secret"), UnsafeFileError, "outside the folder", id="Windows"),
    pytest.param(index_with(table="none.safetensors"), FileFormatError, "not beside the file", id="missing"),
    pytest.param(index_with(other="model-00001-of-00003.safetensors"), FileFormatError, "it is not", id="not there"),
    pytest.param(
        metadata_with(lambda info: setattr(info, "relative_path", "../../etc/passwd")),
        UnsafeFileError, "outside the folder", id="distributed climbs out",
    ),
    pytest.param(
        metadata_with(lambda info: setattr(info, "offset", 3)), FileFormatError, "damaged", id="distributed elsewhere"
    ),
    pytest.param(
        metadata_with(lambda info: setattr(info, "transform_descriptors", ["zstd"])),
        FileFormatError, "cannot be read in rows", id="distributed and compressed",
    ),
    pytest.param(cut, FileFormatError, "not fully covered", id="truncated"),
    pytest.param(
        header_with(lambda header: header["table"].update(shape=[-11, -3])), FileFormatError, "invalid", id="negative"
    ),
    pytest.param(
        header_with(lambda header: header["table"].update(shape=[2**60, 3])), FileFormatError, "overflow", id="huge"
    ),
    pytest.param(
        header_with(lambda header: header["empty"].update(dtype="F8_E4M3")), FileFormatError, "not read", id="format"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("write", "error", "message"), HOSTILE)
def test_what_was_made_to_mislead_is_refused(
    write: Callable[[Path], Path], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        open_checkpoint(write(tmp_path))


def test_a_folder_that_holds_no_checkpoint_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no checkpoint: it holds 0 safetensors files"):
        open_checkpoint(tmp_path)
    with pytest.raises(FileFormatError, match="there is no checkpoint"):
        open_checkpoint(tmp_path / "none.safetensors")
    torch.save(STATE, tmp_path / "state.pt")
    with pytest.raises(FileFormatError, match="cannot be read in pieces: save it with safetensors"):
        open_checkpoint(tmp_path / "state.pt")
