from .recovery import recover as recover
from .recovery_report import RecoveryReport as RecoveryReport
