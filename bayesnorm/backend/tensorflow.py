"""TensorFlow's part of the backend."""

import contextlib
import contextvars
import functools

import numpy as np
import tensorflow as tf

from bayesnorm.backend import rules
from bayesnorm.backend.tensorflow_replicas import replicas, spread

__all__ = [
    "MEMORY_OVERHEAD",
    "add_bias",
    "apply_gradients",
    "compiled",
    "compiled_loop",
    "compiled_loops",
    "compiled_step",
    "current_graph",
    "devices",
    "distributions",
    "erf",
    "erfc",
    "fold_in",
    "fused",
    "input_gradient",
    "operations",
    "read",
    "scalar_writer",
    "scan",
    "seed_from_int",
    "stateless_normal",
    "total",
    "value_and_gradients",
]

# Memory held for a byte of tensors in use: freed blocks, workspaces of convolutions.
# Measured 1.4 for convolutions of 3x3.
MEMORY_OVERHEAD = 2.0

# The default algorithm gives other numbers under XLA than without it.
_ALGORITHM = "philox"


def distributions():
    """Returns the module of TensorFlow Probability's distributions."""
    # A second that who never asks for a KL need not wait for.
    import tensorflow_probability as tfp

    return tfp.distributions


def seed_from_int(seed):
    """Returns the seed tensor `[2]` of a Python integer."""
    return tf.constant([seed & 0x7FFFFFFFFFFFFFFF, 0], "int64")


def fold_in(seed, data):
    """Returns a new seed `[2]`, a function of `seed` and the integer `data`."""
    return tf.random.experimental.stateless_fold_in(
        seed, tf.cast(data, seed.dtype), alg=_ALGORITHM
    )


def stateless_normal(shape, seed):
    """Returns float32 standard normals, a function of `seed` alone."""
    return tf.random.stateless_normal(shape, seed, alg=_ALGORITHM)


_NODES = 8  # Nodes of a rule that a portable graph takes at a time.
_portable = contextvars.ContextVar("bayesnorm_portable", default=False)
# Chebyshev's fit of log(erfc(z) exp(z^2) / t) in t = 1 / (1 + z / 2).
_ERFC = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)


@contextlib.contextmanager
def portable():
    """Has functions traced inside it consist of what other runtimes know, too.

    LiteRT has no error function, ONNX no complementary one, and neither what XLA is to
    compile.
    """
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def erf(x):
    """Returns the error function."""
    return 1.0 - _erfc(x) if _portable.get() else tf.math.erf(x)


def erfc(x):
    """Returns `1 - erf(x)`, exact in the tail too; Keras has it from 3.15 on."""
    return _erfc(x) if _portable.get() else tf.math.erfc(x)


def _erfc(x):
    """To 1.2e-7 of its value (Press et al., Numerical Recipes, section 6.2)."""
    z = tf.abs(x)
    t = 1.0 / (1.0 + 0.5 * z)
    series = functools.reduce(lambda sum_, c: sum_ * t + c, reversed(_ERFC))
    tail = t * tf.exp(series - tf.square(z))
    return tf.where(x < 0, 2.0 - tail, tail)


def add_bias(x, bias):
    """Returns `x + bias`, `bias` a vector along the last axis.

    Its gradient is a kernel of its own, five times faster than that of a broadcast
    addition on maps (CPU).
    """
    return tf.nn.bias_add(x, bias)


def compiled(function, variables):
    """Compiles `function`, which reads (and does not write) `variables`.

    Args:
        function: A function of tensors, in nests, to tensors, in nests.
        variables: The Keras variables that it reads.

    Returns:
        A function of the same signature that sees later assignments.
    """
    del variables  # A graph refers to its variables, whatever their values.
    return _graph(function)


def _graph(function, **options):
    """Returns `tf.function(function)`, of which TensorFlow counts the tracings alone.

    It counts them by the code of the function, and so warns of too many once several
    models have been given a function that is written here once.
    """
    return tf.function(functools.partial(function), autograph=False, **options)


def compiled_step(function, variables):
    """Compiles `function`, which reads and writes `variables`, as `compiled`."""
    return compiled(function, variables)


def current_graph():
    """Returns what operations go into now: another one in the body of a loop."""
    return tf.compat.v1.get_default_graph()


def read(variable):
    """Returns the value of a Keras variable, which later assignments leave alone."""
    # Keras takes its variables for tensors, and hands them on as they are.
    return tf.convert_to_tensor(variable.value)


def operations(function, variables, *arguments):
    """Returns what a function computes, operation by operation.

    Args:
        function: A function of tensors, in nests, to tensors, in nests.
        variables: The Keras variables that it reads.
        *arguments: Arrays, of which shape and dtype count.

    Returns:
        `(inputs, operations)`: the bytes of each argument's tensor, a dict by a key of
        its own, and in the order in which they may run `(reads, writes)`: the keys of
        the tensors that an operation reads (at last the function's outputs, by one that
        writes none), and the bytes of those that it writes, a dict by key. A size that
        depends on the values is left out.
    """
    del variables
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), arguments)
    traced = _graph(function).get_concrete_function(*specs)

    def bytes_of(tensors):
        return {x.name: (x.shape.num_elements() or 0) * x.dtype.size for x in tensors}

    inputs = traced.inputs[: len(traced.inputs) - len(traced.captured_inputs)]
    found = [
        ([x.name for x in operation.inputs], bytes_of(operation.outputs))
        for operation in traced.graph.get_operations()
    ]
    return bytes_of(inputs), [*found, ([x.name for x in traced.outputs], {})]


def fused(function):
    """Makes one pass over memory of a function of many element-wise operations.

    Args:
        function: A function of tensors (or None) to tensors, in nests.

    Returns:
        A function of the same signature. On a CPU TensorFlow runs each operation
        as a pass of its own, which costs more than the arithmetic.
    """
    compiled = _graph(function, jit_compile=True)

    @functools.wraps(function)
    def call(*args):
        return function(*args) if _portable.get() else compiled(*args)

    return call


def total(terms, like, *values):
    """Sums weighted terms over the nodes of a rule, as `rules.total`."""
    if _portable.get():
        return _total_of_parts(terms, like, values)
    sums = None
    for numbers in zip(*values, strict=True):
        # One node after the other. Free to choose, TensorFlow makes all terms, which
        # takes the memory of all, and rewrites the chain of additions as one operation,
        # whose order, and the last digit with it, depends on the threads.
        with tf.control_dependencies(sums or []):
            sums = rules.added(sums, *terms(*numbers))
    return tuple(sums)


def _total_of_parts(terms, like, values):
    """`total` in few operations: converters take minutes for thousands."""
    shape, sums = [-1] + [1] * len(like.shape), None
    for i in range(0, len(values[0]), _NODES):
        parts = (np.reshape(value[i : i + _NODES], shape) for value in values)
        weight, found = terms(*(tf.constant(part, like.dtype) for part in parts))
        found = [tf.reduce_sum(weight * x, 0) for x in found]
        sums = rules.added(sums, 1.0, found)
    return tuple(sums)


def scan(produce, merge, carry, steps, collect=None):
    """Merges what steps produce, one step after the other.

    Args:
        produce: Function of the step's number to a nest of tensors (or None). It is
            traced once, however large.
        merge: Function `(carry, produced) -> carry`, small.
        carry: Tuple of numbers, where it starts. `merge` takes them as well as what it
            returns: float32 tensors, whose start has every number repeated.
        steps: An integer; with TensorFlow also a scalar tensor.
        collect: Function of what a step produces to the list of float32 tensors of it
            to keep, or None for nothing.

    Returns:
        `(carry, kept)`, a list of tensors `[steps, ...]`, or None.
    """
    # Of a loop OpenVINO and LiteRT take less than of its steps.
    if isinstance(steps, int) and (steps == 1 or _portable.get()):
        kept = []
        for i in range(steps):
            produced = produce(i)
            carry = merge(carry, produced)
            kept.append(collect(produced) if collect else None)
        stacks = [tf.stack(x) for x in zip(*kept, strict=True)] if collect else None
        return carry, stacks
    produce = _graph(produce).get_concrete_function(tf.TensorSpec([], "int32"))
    like = tf.nest.map_structure(
        lambda x: None if x is None else tf.TensorSpec(x.shape, x.dtype),
        produce.structured_outputs,
    )
    merged = _graph(lambda x: merge(carry, x)).get_concrete_function(like)
    shapes = tuple(x.shape for x in merged.structured_outputs)
    # An axis of unknown length starts as one of 1, which broadcasts.
    carry = tuple(
        tf.fill([1 if size is None else size for size in shape], tf.constant(number))
        for number, shape in zip(carry, shapes, strict=True)
    )
    stacks = [
        tf.TensorArray("float32", steps, element_shape=x.shape)
        for x in (collect(like) if collect else ())
    ]

    def step(i, carry, stacks):
        produced = produce(i)
        kept = collect(produced) if collect else ()
        stacks = [stack.write(i, x) for stack, x in zip(stacks, kept, strict=True)]
        return i + 1, merge(carry, produced), stacks

    anything = [tf.TensorShape(None)] * len(stacks)
    _, carry, stacks = tf.while_loop(
        lambda i, carry, stacks: i < steps,
        step,
        (0, carry, stacks),
        shape_invariants=(tf.TensorShape([]), shapes, anything),
        # Steps in parallel would hold the memory of that many at once.
        parallel_iterations=1,
    )
    return carry, [stack.stack() for stack in stacks] if collect else None


def compiled_loop(body, variables, xla=False):
    """Compiles a loop of `body`, which reads and writes `variables`.

    Args:
        body: A function `(i, carry, *tensors) -> carry` of the step's number, of a
            nest of tensors, and of tensors that are the same for all steps. Under a
            strategy every replica runs it; the tensors are then `replicated`, and the
            carry is the same in all.
        variables: The Keras variables that it reads or writes.
        xla: Whether XLA compiles the loop, which replicas of a strategy cannot.

    Returns:
        `run(start, stop, carry, *tensors) -> carry`, the steps `start..stop-1` in
        one call. It compiles once for each set of shapes, whatever the steps.

    Raises:
        ValueError: If XLA is to compile a loop over replicas.
    """
    del variables
    if xla and replicas() > 1:
        raise ValueError(
            "XLA does not compile the steps of replicas (tf.distribute): leave out "
            "either."
        )
    step = spread(body)

    def steps(start, stop, carry, *tensors):
        _, carry = tf.while_loop(
            lambda i, carry: i < stop,
            lambda i, carry: (i + 1, step(i, carry, *tensors)),
            (start, carry),
            # Steps depend on each other through variables, which TF does not see.
            parallel_iterations=1,
        )
        return carry

    loop = _graph(steps, jit_compile=xla)

    def run(start, stop, carry, *tensors):
        return loop(tf.constant(start, "int32"), tf.constant(stop), carry, *tensors)

    return run


def compiled_loops(bodies, variables):
    """Compiles the loops of several networks, which run one after the other.

    Args:
        bodies: A function as of `compiled_loop` for each network.
        variables: For each network the list of those that it reads or writes.

    Returns:
        `run(start, stop, carry, shared, own) -> carry`. Tensors of `carry` and of the
        list `own` have a first axis over the networks, those of the list `shared` are
        the same for all; a body is given `(i, carry, *shared, *own)` of its network.
    """
    loops = [compiled_loop(*both) for both in zip(bodies, variables, strict=True)]

    def run(start, stop, carry, shared, own):
        ended = []
        for k, loop in enumerate(loops):
            carry_k, own_k = tf.nest.map_structure(lambda x, k=k: x[k], (carry, own))
            ended.append(loop(start, stop, carry_k, *shared, *own_k))
        return tf.nest.map_structure(lambda *x: tf.stack(x), *ended)

    return run


def value_and_gradients(function, trainable, others):
    """Computes a loss and its gradients.

    Args:
        function: A function `() -> (loss, aux)` that reads the variables.
        trainable: The Keras variables to differentiate for.
        others: The other Keras variables that it reads or writes.

    Returns:
        `(loss, aux, gradients)`, the gradients in the order of `trainable`.
    """
    del others
    with tf.GradientTape() as tape:
        loss, aux = function()
    return loss, aux, tape.gradient(loss, list(trainable))


def apply_gradients(optimizer, gradients, trainable):
    """Takes the step of a Keras optimizer, inside of what is compiled."""
    optimizer.apply(gradients, trainable)


def input_gradient(function, x):
    """Returns the gradient of the scalar `function(x)` with respect to the tensor x."""
    x = tf.convert_to_tensor(x)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x)


def scalar_writer(directory):
    """Returns `write(step, scalars)`, which logs for TensorBoard, or None.

    Args:
        directory: Where the event files go.
    """
    writer = tf.summary.create_file_writer(str(directory))
    # `tf.summary.scalar` needs TensorBoard installed; its format does not.
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = "scalars"

    def write(step, scalars):
        with writer.as_default():
            for name, value in scalars.items():
                tf.summary.write(name, tf.constant(value, "float32"), step, metadata)
        writer.flush()

    return write


def devices():
    """Returns the names of the devices that computations run on."""
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return [d.get("device_name", "GPU") for d in details] or ["CPU"]
