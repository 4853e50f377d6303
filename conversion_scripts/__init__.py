# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""Converters of other libraries' checkpoints to MegaVit, one module per source format."""
