import sys

from tests.benchmarks.growth import main

sys.exit(main())
