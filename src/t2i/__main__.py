"""`python -m t2i`: the console command (`t2i.cli.console`)."""

import sys

from t2i.cli.console import main

sys.exit(main())
