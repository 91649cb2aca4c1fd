"""Files that were made to mislead are refused with the reason, before anything of them is opened or executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import save_file

import afm_fx
from afm_fx.errors import BenchmarkError, FileFormatError, UnsafeFileError, UserError
from afm_fx.io.checkpoints import open_checkpoint
from afm_fx.io.documents import from_json
from afm_fx.io.onnx_file import read_safe_onnx
from afm_fx.measure.contenders import make_contender
from afm_fx.program.user_model import read_checkpoint
from tests.graphs import Tower, tower_batch

onnxruntime = pytest.importorskip("onnxruntime")

OPENERS: dict[str, Callable[[Path], Any]] = {
    "Session": afm_fx.Session,
    "bench": lambda path: make_contender("it", path, 1),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose weights lie beside it."""
    program = afm_fx.capture(Tower(64).eval(), tower_batch(3))
    folder = tmp_path_factory.mktemp("exported")
    return afm_fx.export_onnx(program, folder / "model.onnx", check=False, external_data_bytes=0).path


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of both files in a folder, beside a file that no model may read."""
    copy = tmp_path / "served"
    shutil.copytree(exported.parent, copy)
    shutil.copy(copy / "model.onnx.data", tmp_path / "secret")
    return copy


@pytest.fixture
def nothing_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime may not be reached."""

    def opened(*_: Any, **__: Any) -> Any:
        raise AssertionError("ONNX Runtime was given the file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", opened)


def change_external(path: Path, key: str, value: str | None, tensor: int = 0) -> None:
    """Sets an entry of the first external tensor, or takes it away."""
    model = onnx.load(path, load_external_data=False)
    proto = [each for each in model.graph.initializer if each.data_location == TensorProto.EXTERNAL][tensor]
    entries = {entry.key: entry.value for entry in proto.external_data}
    entries.pop(key, None)
    if value is not None:
        entries[key] = value
    del proto.external_data[:]
    for name, content in entries.items():
        proto.external_data.add(key=name, value=content)
    path.write_bytes(model.SerializeToString())


def link(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()
    (folder / "model.onnx.data").symlink_to(folder.parent / "secret")


def named_pipe(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()
    os.mkfifo(folder / "model.onnx.data")


def location(name: str) -> Callable[[Path], None]:
    return lambda folder: change_external(folder / "model.onnx", "location", name)


def entry(key: str, value: str | None) -> Callable[[Path], None]:
    return lambda folder: change_external(folder / "model.onnx", key, value)


def truncate(name: str, share: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return change


def huge_shape(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.initializer[0].dims[0] = 2**50
    (folder / "model.onnx").write_bytes(model.SerializeToString())


ATTACKS = [
    pytest.param(location("../secret"), UnsafeFileError, "'../secret', outside the folder", id="climbs out"),
    pytest.param(location("a/../../secret"), UnsafeFileError, "outside the folder", id="climbs out by a way round"),
    pytest.param(location("/etc/passwd"), UnsafeFileError, "'/etc/passwd', outside", id="absolute"),
    pytest.param(location("C:\\secret"), UnsafeFileError, "outside the folder", id="a drive"),
    pytest.param(location("..\\secret"), UnsafeFileError, "outside the folder", id="climbs out on Windows"),
    pytest.param(location("a\0b"), UnsafeFileError, "outside the folder", id="a zero in the name"),
    pytest.param(location("x" * 5000), UnsafeFileError, "outside the folder", id="a name without end"),
    pytest.param(link, UnsafeFileError, "a symbolic link that leads out", id="linked out"),
    pytest.param(named_pipe, UnsafeFileError, "no regular file", id="a pipe that never ends"),
    pytest.param(location("."), UnsafeFileError, "no regular file", id="the folder itself"),
    pytest.param(location("none.data"), FileFormatError, "not beside the file that names it: copy both", id="missing"),
    pytest.param(entry("location", None), FileFormatError, "the name of that is missing", id="no name"),
    pytest.param(entry("offset", "999999999999"), FileFormatError, "the file ends at", id="offset beyond the end"),
    pytest.param(entry("offset", "-8"), FileFormatError, "offset '-8', which is no number", id="negative offset"),
    pytest.param(entry("length", "4"), FileFormatError, "takes 4 bytes .* ask for", id="too short"),
    pytest.param(entry("length", "1e9"), FileFormatError, "length '1e9', which is no number", id="no number"),
    pytest.param(entry("length", "9" * 30), FileFormatError, "which is no number", id="a length without end"),
    pytest.param(truncate("model.onnx.data", 0.5), FileFormatError, "the file ends at", id="weights truncated"),
    pytest.param(truncate("model.onnx", 0.5), FileFormatError, "truncated, damaged or not an ONNX", id="truncated"),
    pytest.param(truncate("model.onnx", 0.0), FileFormatError, "holds no operators", id="empty"),
    pytest.param(huge_shape, FileFormatError, "shape and type ask for", id="a shape beyond all memory"),
]


@pytest.mark.parametrize(("attack", "error", "says"), ATTACKS)
@pytest.mark.usefixtures("nothing_opened")
def test_a_hostile_file_is_refused_before_onnx_runtime_sees_it(folder, attack, error, says):
    attack(folder)
    path = folder / "model.onnx"
    before = sorted(each.name for each in folder.iterdir())
    with pytest.raises(error, match=says):
        OPENERS["Session"](path)
    with pytest.raises(BenchmarkError, match=rf"contender 'it': .*{says}"):
        OPENERS["bench"](path)
    assert sorted(each.name for each in folder.iterdir()) == before


@pytest.mark.parametrize(("attack", "error", "says"), ATTACKS)
def test_the_check_names_what_is_wrong_with_a_hostile_file(folder, attack, error, says):
    attack(folder)
    path = folder / "model.onnx"
    if says in {"truncated, damaged or not an ONNX", "holds no operators"}:
        with pytest.raises(FileFormatError, match=says):
            afm_fx.check_onnx(path)
        return
    report = afm_fx.check_onnx(path)
    (finding, *_) = [each for each in report.findings if each.rule == "storage"]
    assert not report.passed
    assert ("do not open" in finding.remedy.lower()) == (error is UnsafeFileError)


def test_the_file_as_it_was_exported_is_opened_by_all(folder):
    for name, opener in OPENERS.items():
        opener(folder / "model.onnx")
        assert name
    assert afm_fx.check_onnx(folder / "model.onnx").passed


def test_a_tensor_hidden_in_a_subgraph_is_looked_at_as_well(folder):
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    hidden = onnx.TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="../secret")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["y"], value=hidden)], "inner", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], [], then_branch=inner, else_branch=inner))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UnsafeFileError, match=r"'hidden' lies in '\.\./secret'"):
        read_safe_onnx(path)


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.safetensors", "model.npz", "model.npy", "model.onnx"])
def test_nothing_of_a_pickle_is_executed_whatever_it_is_called(tmp_path, name):
    target = tmp_path / "touched"
    for save in (pickle.dump, torch.save):
        path = tmp_path / name
        with path.open("wb") as file:
            save({"weight": Touches(target)}, file)
        readers = [
            read_checkpoint, afm_fx.Plan.load, afm_fx.Statistics.load, afm_fx.Session, afm_fx.check_onnx,
            OPENERS["bench"],
        ]  # fmt: skip
        if path.suffix in {".npz", ".npy"}:
            from afm_fx.data.data_files import open_data

            readers.append(lambda path: list(open_data(path).chunks(open_data(path).names, 10)))
        for reader in readers:
            with pytest.raises(UserError):
                reader(path)
        assert not target.exists()
    pickle.loads(pickle.dumps(Touches(target)))  # noqa: S301 - the proof that it would have been noticed
    assert target.exists()


def one_tensor(end: int) -> bytes:
    """A safetensors file of 8 bytes of data, whose header tells of a tensor of 4 TB that ends at byte ``end``."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.parametrize("load", [afm_fx.Plan.load, afm_fx.Statistics.load, read_checkpoint])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(struct.pack("<Q", 2**62) + b"{}", id="a header longer than all memory"),
        pytest.param(struct.pack("<Q", 40) + b"{" * 40, id="a header that is no JSON"),
        pytest.param(one_tensor(2**42), id="a tensor longer than the file"),
        pytest.param(one_tensor(8), id="a shape beyond its bytes"),
    ],
)
def test_headers_that_promise_more_than_the_file_holds_are_refused(tmp_path, load, content):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"hostile\.safetensors"):
        load(path)


DEEP = "[" * 200_000 + "]" * 200_000


def test_json_of_any_depth_is_a_damaged_file_and_no_crash(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(DEEP)
    with pytest.raises(FileFormatError, match="damaged"):
        open_checkpoint(index)
    save_file({"x": torch.zeros(1)}, tmp_path / "deep.safetensors", metadata={"afm_fx": DEEP})
    for read in (afm_fx.Plan.load, afm_fx.Statistics.load):
        with pytest.raises(FileFormatError, match="damaged"):
            read(tmp_path / "deep.safetensors")
    with pytest.raises(FileFormatError, match="damaged"):
        from_json(DEEP, afm_fx.planning.SitePlan, 1, "a note")
