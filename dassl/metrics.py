"""Where Dassl has its top-k accuracy."""

from dassl.evaluation import compute_accuracy as compute_accuracy
