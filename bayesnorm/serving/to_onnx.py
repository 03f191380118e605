"""A TensorFlow graph as an ONNX model.

Imported only to export, with the TensorFlow backend.
"""

import contextlib
import logging

import numpy as np
import onnx
import tf2onnx

OPSET = 18


def convert(graph):
    """Returns the bytes of the ONNX model of a `OneGraph`.

    Raises:
        ValueError: If ONNX has no operation for something in it.
    """
    function = graph.traced()
    handlers = {"Expm1": (_expm1, []), "Log1p": (_log1p, [])}
    with _quiet():
        model, _ = tf2onnx.convert.from_function(
            function, graph.specs, opset=OPSET, custom_op_handlers=handlers
        )
    graph.check(function, set(_unknown(model.graph)), "ONNX")
    for value in (*model.graph.input, *model.graph.output):
        first = "networks" if value.name == "noise" else "batch"
        value.type.tensor_type.shape.dim[0].dim_param = first
    return model.SerializeToString()


@contextlib.contextmanager
def _quiet():
    # It logs what it does not know, and goes on: the error that follows says so.
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _unknown(graph):
    """Yields the types of nodes that are none of ONNX, in subgraphs as well."""
    for node in graph.node:
        if not onnx.defs.has(node.op_type, node.domain):
            yield node.op_type
        for attribute in node.attribute:
            for nested in (attribute.g, *attribute.graphs):
                yield from _unknown(nested)


def _expm1(context, node, name, args):
    """`tanh(x / 2) (exp(x) + 1)`, which does not cancel at 0."""
    del name, args

    def build(make, number, x):
        half = make("Mul", x, number(0.5))
        sum_ = make("Add", make("Exp", x), number(1.0))
        return make("Mul", make("Tanh", half), sum_)

    _rewrite(context, node, build)


def _log1p(context, node, name, args):
    """`log(u) - ((u - 1) - x) / u`, u = 1 + x: the last term mends u's rounding."""
    del name, args

    def build(make, number, x):
        u = make("Add", x, number(1.0))
        rounding = make("Sub", make("Sub", u, number(1.0)), x)
        # At x = -1 the logarithm alone is to be infinite.
        safe = make("Max", u, number(1e-30))
        return make("Sub", make("Log", u), make("Div", rounding, safe))

    _rewrite(context, node, build)


def _rewrite(context, node, build):
    """Puts `build(make, number, x)` in the place of a node of one input."""
    output, x = node.output[0], node.input[0]
    dtype, shape = context.get_dtype(output), context.get_shape(output)
    context.remove_node(node.name)

    def make(kind, *inputs, **options):
        options = options or {"name": f"{node.name}/{kind}{next(numbers)}"}
        made = context.make_node(
            kind, inputs, dtypes=[dtype], shapes=[shape], **options
        )
        return made.output[0]

    def number(value):
        array = np.array(value, onnx.helper.tensor_dtype_to_np_dtype(dtype))
        return context.make_const(f"{node.name}/{next(numbers)}", array).output[0]

    numbers = iter(range(100))
    last = build(make, number, x)
    make("Identity", last, name=node.name, outputs=[output])
