"""JAX's part of the backend."""

import functools

import jax
import jax.numpy as jnp
import keras

from bayesnorm.backend.rules import total

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


# Memory held for a byte of the tensors in use: copies that XLA makes in a loop.
# Measured 3.0 for convolutions of 3x3 on a CPU.
MEMORY_OVERHEAD = 4.0

_UNROLLED = 16


def distributions():
    """Returns the module of TensorFlow Probability's distributions."""
    # A second that who never asks for a KL need not wait for.
    from tensorflow_probability.substrates import jax as tfp

    return tfp.distributions


def seed_from_int(seed):
    """Returns the seed tensor `[2]` of a Python integer."""
    return jnp.array([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], "uint32")


def _key(seed):
    return jax.random.wrap_key_data(seed.astype("uint32"), impl="threefry2x32")


def fold_in(seed, data):
    """Returns a new seed `[2]`, a function of `seed` and the integer `data`."""
    return jax.random.key_data(jax.random.fold_in(_key(seed), data))


def stateless_normal(shape, seed):
    """Returns float32 standard normals, a function of `seed` alone."""
    return jax.random.normal(_key(seed), shape, "float32")


def erf(x):
    """Returns the error function."""
    return jax.scipy.special.erf(x)


def erfc(x):
    """Returns `1 - erf(x)`, exact in the tail too; Keras has it from 3.15 on."""
    return jax.scipy.special.erfc(x)


def add_bias(x, bias):
    """Returns `x + bias`, `bias` a vector along the last axis."""
    return x + bias


def compiled(function, variables):
    """Compiles `function`, which reads (and does not write) `variables`.

    Args:
        function: A function of tensors, in nests, to tensors, in nests.
        variables: The Keras variables that it reads.

    Returns:
        A function of the same signature that sees later assignments.
    """
    variables = list(variables)

    @jax.jit
    def run(values, args, kwargs):
        # A jitted closure would hold the variables' values as constants.
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*args, **kwargs)

    def call(*args, **kwargs):
        return run([v.value for v in variables], args, kwargs)

    return call


def compiled_step(function, variables):
    """Compiles `function`, which reads and writes `variables`, as `compiled`."""
    variables = list(variables)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(values, args, kwargs):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            outputs = function(*args, **kwargs)
        return [scope.get_current_value(v) for v in variables], outputs

    def run(*args, **kwargs):
        values = _distinct([v.value for v in variables])
        values, outputs = step(values, args, kwargs)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return outputs

    return run


def current_graph():
    """Returns None: with Keras on JAX variables are not written in loops' bodies."""


def read(variable):
    """Returns the value of a Keras variable, which later assignments leave alone."""
    return variable.value


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
        writes none), and the bytes of those that it writes, a dict by key.
    """
    variables = list(variables)

    def run(values, arguments):
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return function(*arguments)

    values, arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        ([v.value for v in variables], jax.tree.map(jnp.asarray, arguments)),
    )
    traced = jax.make_jaxpr(run)(values, arguments).jaxpr

    def bytes_of(tensors):
        return {id(x): x.aval.size * x.aval.dtype.itemsize for x in tensors}

    inputs = bytes_of(traced.invars[len(values) :])
    found = [
        ([id(x) for x in equation.invars], bytes_of(equation.outvars))
        for equation in traced.eqns
    ]
    # The keys are of `traced`, which stays alive until here.
    return inputs, [*found, ([id(x) for x in traced.outvars], {})]


def fused(function):
    """Makes one pass over memory of a function of many element-wise operations.

    Args:
        function: A function of tensors (or None) to tensors, in nests.

    Returns:
        A function of the same signature. JAX fuses what it compiles by itself.
    """
    return function


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
    if steps == 1:
        produced = produce(0)
        kept = [x[None] for x in collect(produced)] if collect else None
        return merge(carry, produced), kept
    produce = jax.jit(produce)

    def body(carry, i):
        produced = produce(i)
        return merge(carry, produced), collect(produced) if collect else None

    numbers = jnp.arange(steps)
    shapes, _ = jax.eval_shape(lambda: body(carry, numbers[0]))
    carry = tuple(
        jnp.full(like.shape, number, like.dtype)
        for number, like in zip(carry, shapes, strict=True)
    )
    # On a CPU XLA runs what is inside a loop on one thread; written out it takes
    # longer to compile.
    unroll = _UNROLLED if jax.default_backend() == "cpu" else 1
    return jax.lax.scan(body, carry, numbers, unroll=min(unroll, steps))


def _distinct(values):
    """Copies arrays that stand there twice: a buffer can be donated only once.

    Assigning one variable's value to another leaves both with one array.
    """
    seen = set()
    return [jnp.copy(v) if id(v) in seen else seen.add(id(v)) or v for v in values]


def compiled_loop(body, variables, xla=True):
    """Compiles a loop of `body`, which reads and writes `variables`.

    Args:
        body: A function `(i, carry, *tensors) -> carry` of the step's number, of a
            nest of tensors, and of tensors that are the same for all steps.
        variables: The Keras variables that it reads or writes.
        xla: Anything: XLA compiles all of JAX's programs.

    Returns:
        `run(start, stop, carry, *tensors) -> carry`, the steps `start..stop-1` in
        one call. It compiles once for each set of shapes, whatever the steps.
    """
    del xla
    variables = list(variables)

    def step(i, state, tensors):
        values, carry = state
        mapping = list(zip(variables, values, strict=True))
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            carry = body(i, carry, *tensors)
        return [scope.get_current_value(v) for v in variables], carry

    @functools.partial(jax.jit, donate_argnums=0)
    def one_step(values, i, carry, tensors):
        return step(i, (values, carry), tensors)

    @functools.partial(jax.jit, donate_argnums=0)
    def all_steps(values, start, stop, carry, tensors):
        return jax.lax.fori_loop(
            start, stop, lambda i, state: step(i, state, tensors), (values, carry)
        )

    def run(start, stop, carry, *tensors):
        values = _distinct([v.value for v in variables])
        if jax.default_backend() == "cpu":
            # There XLA runs what is inside a loop on one thread, and convolutions
            # ten times slower.
            for i in range(start, stop):
                values, carry = one_step(values, i, carry, tensors)
        else:
            values, carry = all_steps(values, start, stop, carry, tensors)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return carry

    return run


def compiled_loops(bodies, variables):
    """Compiles the loops of several networks of one architecture as one program.

    Args:
        bodies: A function as of `compiled_loop` for each network, which differ in the
            variables that they read and write, and in nothing else.
        variables: For each network the list of these, in the same order.

    Returns:
        `run(start, stop, carry, shared, own) -> carry`. Tensors of `carry` and of the
        list `own` have a first axis over the networks, those of the list `shared` are
        the same for all; a body is given `(i, carry, *shared, *own)` of its network.
        It compiles once for each set of shapes and number of steps.
    """
    # Any body will do: what it computes follows from the values of the variables.
    body, template = bodies[0], list(variables[0])

    def step(i, state, shared, own):
        values, carry = state
        mapping = list(zip(template, values, strict=True))
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            carry = body(i, carry, *shared, *own)
        return [scope.get_current_value(v) for v in template], carry

    over_networks = jax.vmap(step, in_axes=(None, 0, None, 0))

    def steps(i, state, shared, own):
        if len(bodies) > 1:
            return over_networks(i, state, shared, own)
        # The batched forms of operations are slower, also for a batch of one.
        state, own = jax.tree.map(lambda x: x[0], (state, own))
        return jax.tree.map(lambda x: x[None], step(i, state, shared, own))

    @jax.jit
    def stacked(networks):
        return jax.tree.map(lambda *values: jnp.stack(values), *networks)

    @jax.jit
    def apart(values):
        return [[value[k] for value in values] for k in range(len(bodies))]

    @functools.partial(jax.jit, donate_argnums=0)
    def one_step(values, i, carry, shared, own):
        return steps(i, (values, carry), shared, own)

    # The number of steps is part of the program: a loop of unknown length would ask
    # the host before each step.
    @functools.partial(jax.jit, donate_argnums=0, static_argnames="count")
    def all_steps(values, start, carry, shared, own, count):
        return jax.lax.fori_loop(
            0,
            count,
            lambda i, state: steps(start + i, state, shared, own),
            (values, carry),
        )

    def run(start, stop, carry, shared, own):
        values = stacked([[v.value for v in network] for network in variables])
        if jax.default_backend() == "cpu":
            # As in `compiled_loop`.
            for i in range(start, stop):
                values, carry = one_step(values, i, carry, shared, own)
        else:
            values, carry = all_steps(
                values, start, carry, shared, own, count=stop - start
            )
        for network, new in zip(variables, apart(values), strict=True):
            for variable, value in zip(network, new, strict=True):
                variable.assign(value)
        return carry

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
    trainable, others = list(trainable), list(others)

    def pure(values):
        mapping = list(zip(trainable, values, strict=True))
        mapping += [(v, v.value) for v in others]
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            loss, aux = function()
        return loss, (aux, [scope.get_current_value(v) for v in others])

    gradient = jax.value_and_grad(pure, has_aux=True)
    (loss, (aux, values)), gradients = gradient([v.value for v in trainable])
    for variable, value in zip(others, values, strict=True):
        variable.assign(value)
    return loss, aux, gradients


def apply_gradients(optimizer, gradients, trainable):
    """Takes the step of a Keras optimizer, inside of what is compiled."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.apply(gradients, trainable)
        return
    # It writes its variables in the branches of a condition, which JAX forgets.
    variables = [*trainable, *optimizer.variables]
    count = len(trainable)
    values = [v.value for v in variables]
    new, others = optimizer.stateless_apply(values[count:], gradients, values[:count])
    for variable, value in zip(variables, [*new, *others], strict=True):
        variable.assign(value)


def input_gradient(function, x):
    """Returns the gradient of the scalar `function(x)` with respect to the tensor x."""
    return jax.grad(function)(x)


def scalar_writer(directory):
    """Returns None: TensorBoard's files are written with TensorFlow.

    Args:
        directory: Where the event files would go.
    """


def devices():
    """Returns the names of the devices that computations run on."""
    return [device.device_kind for device in jax.devices()]
