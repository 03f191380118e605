"""Networks of the papers; each returns a Functional model that gives logits."""

from bayesnorm.models.all_cnn import all_cnn

__all__ = ["all_cnn"]
