"""The training engine: Dassl's public API under Dassl's import names, written for today's PyTorch.

A trainer or data set file written for Dassl (https://github.com/KaiyangZhou/Dassl.pytorch, version 0.6.3) runs on this
package unchanged. New inside: safe and atomic checkpoints, exact resume, local random generators, errors that say what
to do.
"""

__version__ = "0.6.3"
