"""Other people's servers under the very load that Timepoint is measured with: `python -m bench.peers`."""
