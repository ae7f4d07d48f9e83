"""``python -m lens_linear`` is the command ``lens-linear``."""

from lens_linear.cli import main

raise SystemExit(main())
