"""``python -m mmfusion`` is the console script ``mmfusion``."""

from mmfusion.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
