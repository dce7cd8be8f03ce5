"""A service with traffic, its page, a live table and Prometheus: what `otel-mlops demo` runs.

DEMO_SECONDS=20 ends it after that time; `--help` tells the rest. Needs `pip install 'otel-mlops[demo]'`.
"""

import sys

from otel_mlops.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
