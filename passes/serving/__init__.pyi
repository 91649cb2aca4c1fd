from .assert_ids import assert_ids as assert_ids
from .pack_tables import PackedTable as PackedTable
from .packing import pack_graph as pack_graph
from .reduce_tables import SMALLEST_BYTES as SMALLEST_BYTES, ReduceTables as ReduceTables
from .table_format import TableFormat as TableFormat
from .typed_inputs import SplitInput as SplitInput, SplitInputs as SplitInputs
from .unpool_bags import UnpoolBags as UnpoolBags
