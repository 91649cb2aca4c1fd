from .batches import checked_batches as checked_batches, peek as peek
from .data_files import open_data as open_data
from .file_batches import FileBatches as FileBatches, match_columns as match_columns, read_tensors as read_tensors
from .held_out import HoldOut as HoldOut
from .labels import checked_labels as checked_labels, split_pair as split_pair
