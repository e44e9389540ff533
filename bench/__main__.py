"""The benchmark's command, `make bench`."""

import os
import sys

os.environ["TQDM_DISABLE"] = "1"  # the benchmark prints its own progress; tqdm reads this when it is imported

from bench import runner

sys.exit(runner.main_on_cuda() if sys.argv[1:] == ["cuda"] else runner.main())
