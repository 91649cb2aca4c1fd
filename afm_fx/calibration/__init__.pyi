from .all_reduce import all_reduced as all_reduced
from .calibration import calibrate as calibrate
from .moments import Moments as Moments, table_moments as table_moments
from .sensitivity import Sensitivity as Sensitivity
from .statistics import Statistics as Statistics, missing_shares as missing_shares
from .taps import Tap as Tap, joined as joined, joint_taps as joint_taps, plain_taps as plain_taps
from .traffic import Coverage as Coverage
