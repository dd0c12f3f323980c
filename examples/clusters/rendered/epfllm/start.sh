#!/usr/bin/env bash
# Start this node's share of the run: bash start.sh, on each node
set -euo pipefail
cd /path/to
mkdir -p /path/to/trained/weights/debug/weights
exec bash /path/to/trained/weights/launch/node.sh node0:8000 weights /path/to/trained/weights/debug/weights
