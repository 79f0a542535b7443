"""`python -m training`."""

import sys
from importlib.util import find_spec

if not find_spec("torch"):
    sys.exit("error: training needs torch, which serving does without: make setup")

from training.cli import main

sys.exit(main())
