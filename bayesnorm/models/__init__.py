"""Networks of the papers; each returns a Functional model that gives logits."""

from bayesnorm.models.all_cnn import all_cnn
from bayesnorm.models.cell_fcn import cell_fcn
from bayesnorm.models.lenet5 import lenet5
from bayesnorm.models.resnet18 import resnet18
from bayesnorm.models.vgg11 import vgg11

__all__ = ["all_cnn", "cell_fcn", "lenet5", "resnet18", "vgg11"]
