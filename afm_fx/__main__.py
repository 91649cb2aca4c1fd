"""``python -m afm_fx`` is ``afm-fx``."""

from afm_fx.commands import main

if __name__ == "__main__":
    main()
