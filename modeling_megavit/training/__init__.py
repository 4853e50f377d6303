# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""What `megavit train` adds to transformers' Trainer: recipes, image data, augmentation, parameter groups, the report."""
