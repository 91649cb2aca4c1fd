"""How good a compressed model is: on public data, after recovery, and with ids that calibration never saw."""
