"""``python -m kit`` is the ``kit`` command, where scripts are not on the PATH."""

from kit.cli import main

raise SystemExit(main())
