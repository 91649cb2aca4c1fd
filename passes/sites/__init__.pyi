from .drop_units import DropUnits as DropUnits, Units as Units, hidden_layers as hidden_layers
from .id_bounds import IdBound as IdBound, OutOfRange as OutOfRange, guarded as guarded, input_bounds as input_bounds
from .id_precision import coarse_ids as coarse_ids
from .join_tables import (
    JoinTables as JoinTables,
    JointTable as JointTable,
    join_tables as join_tables,
    joinable_tables as joinable_tables,
)
from .lookups import (
    BAGS as BAGS,
    Lookup as Lookup,
    Pooling as Pooling,
    bag_arguments as bag_arguments,
    bag_length as bag_length,
    bag_padding as bag_padding,
    ids_of as ids_of,
    lookup_of as lookup_of,
    pooling_of as pooling_of,
)
from .sites import (
    ONE_WIDE as ONE_WIDE,
    Site as Site,
    SiteKind as SiteKind,
    find_sites as find_sites,
    site_name as site_name,
)
