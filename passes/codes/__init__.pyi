from .activate_codes import ActivateCodes as ActivateCodes
from .code_builder import CodeBuilder as CodeBuilder, NewParameter as NewParameter, width_of as width_of
from .decoder import NO_FEATURES as NO_FEATURES, Decoder as Decoder, Part as Part
from .factor import Factor as Factor, blank_factor as blank_factor, factor_of as factor_of
from .low_rank_value import (
    Block as Block,
    LowRankValue as LowRankValue,
    align as align,
    move_blocks as move_blocks,
    plain_block as plain_block,
    split_rows as split_rows,
)
from .products import (
    Product as Product,
    ProductTerm as ProductTerm,
    inner_products as inner_products,
    sums_of_codes as sums_of_codes,
    sums_of_features as sums_of_features,
)
from .restore import restore as restore
from .table_codes import (
    ROWS_PER_BLOCK as ROWS_PER_BLOCK,
    encode_table as encode_table,
    is_sharded as is_sharded,
    replicated as replicated,
)
