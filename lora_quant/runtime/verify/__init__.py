"""Holding what was built for each target against what adapters are."""
