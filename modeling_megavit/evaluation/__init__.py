# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""What `megavit evaluate` and `megavit probe` are made of: data sets, metrics, probes, corruptions and the report."""
