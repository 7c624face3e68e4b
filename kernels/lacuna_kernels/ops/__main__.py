"""Prints the JSON Schema of the graph format: `python -m lacuna_kernels.ops`."""

import json
import sys

from lacuna_kernels.ops import json_schema

sys.stdout.write(json.dumps(json_schema(), indent=1) + "\n")
