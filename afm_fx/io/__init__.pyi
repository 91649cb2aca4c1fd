from .checkpoints import (
    INDEX_SUFFIX as INDEX_SUFFIX,
    UNFINISHED as UNFINISHED,
    checkpoint_files as checkpoint_files,
    open_checkpoint as open_checkpoint,
    open_safetensors as open_safetensors,
)
from .documents import builtins_of as builtins_of, from_json as from_json, to_json as to_json
from .external_file import external_file as external_file
from .machine import Machine as Machine, available_cores as available_cores, this_machine as this_machine
from .onnx_file import (
    all_nodes as all_nodes,
    all_tensors as all_tensors,
    external_piece as external_piece,
    operator_counts as operator_counts,
    read_onnx as read_onnx,
    read_safe_onnx as read_safe_onnx,
    storage_problems as storage_problems,
)
from .output_directory import (
    move_into_place as move_into_place,
    refuse_existing as refuse_existing,
    refuse_existing_file as refuse_existing_file,
    staged_file as staged_file,
    staged_outputs as staged_outputs,
    write_text as write_text,
)
from .prefetch import prefetched as prefetched
from .process_groups import (
    Group as Group,
    add_up as add_up,
    agreed as agreed,
    attempt as attempt,
    check_alike as check_alike,
    check_group as check_group,
    died as died,
    joined_group as joined_group,
    own_device as own_device,
    rank_and_size as rank_and_size,
)
from .progress import progress_bar as progress_bar, track as track
from .quiet import quiet as quiet
from .stored_tensor import Snapshot as Snapshot, StoredTensor as StoredTensor, bytes_of as bytes_of
from .tables import render_sections as render_sections, render_table as render_table
from .tensor_files import (
    complete as complete,
    load_tensors as load_tensors,
    save_tensors as save_tensors,
    serialized as serialized,
    write_table as write_table,
)
