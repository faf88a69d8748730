"""What the server imports from which workers are forked, and nobody else: everything that runs need.

When the command ends, the server ends at once. Taking down an interpreter with torch takes seconds, and it would keep
the command's standard output open.
"""

import atexit
import os

import torch.utils.tensorboard  # noqa: F401

import clsim.engines.local  # noqa: F401

atexit.register(os._exit, 0)
