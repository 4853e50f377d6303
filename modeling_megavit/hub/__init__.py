# Copyright 2026 The MegaVit team. Licensed under the Apache License, Version 2.0.
"""What a model gets on the Hub: its card, its weights, a widget and a Space."""
