"""Networks of the papers; each returns a Functional model that gives logits."""

from bayesnorm.models.all_cnn import all_cnn
from bayesnorm.models.cell_fcn import cell_fcn
from bayesnorm.models.lenet5 import lenet5
from bayesnorm.models.mlp import mlp
from bayesnorm.models.resnet import resnet
from bayesnorm.models.resnet18 import resnet18
from bayesnorm.models.resnet_plus_plus import resnet_plus_plus
from bayesnorm.models.vgg11 import vgg11
from bayesnorm.models.vgg_like import vgg_like

__all__ = [
    "all_cnn",
    "cell_fcn",
    "lenet5",
    "mlp",
    "resnet",
    "resnet18",
    "resnet_plus_plus",
    "vgg11",
    "vgg_like",
]
