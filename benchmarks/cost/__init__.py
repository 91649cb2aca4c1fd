"""What making a compressed model takes: time and memory of calibration, analysis, packing, export and large tables."""
