"""What ``afm_fx`` is measured against."""
