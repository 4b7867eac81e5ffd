"""Faults of `diffusion/models/`."""

from tests.mutants.fault import Fault

ACTIVATIONS = 'diffusion/models/activations.py'
CONVOLUTION = 'diffusion/models/convolution.py'
DIT = 'diffusion/models/dit.py'
DROPOUT = 'diffusion/models/dropout.py'
EMBEDDINGS = 'diffusion/models/embeddings.py'
FUNCTIONAL = 'diffusion/models/functional.py'
INITIALIZERS = 'diffusion/models/initializers.py'
MAGNITUDE = 'diffusion/models/magnitude.py'
MLP = 'diffusion/models/mlp.py'
NORMALIZATION = 'diffusion/models/normalization.py'
PRECISION = 'diffusion/models/precision.py'
SUMMARY = 'diffusion/models/summary.py'
UNET = 'diffusion/models/unet.py'

OF_ACTIVATIONS = ('tests/models/test_activations.py',)
OF_ATTENTION = ('tests/models/test_precision.py',)
OF_CONVOLUTION = ('tests/models/test_convolution.py',)
OF_DIT = ('tests/models/test_dit.py',)
OF_DROPOUT = ('tests/models/test_dropout.py',)
OF_EMBEDDINGS = ('tests/models/test_embeddings.py',)
OF_FUNCTIONAL = ('tests/models/test_functional.py',)
OF_INITIALIZERS = ('tests/models/test_initializers.py',)
OF_MAGNITUDE = ('tests/models/test_magnitude.py',)
OF_MLP = ('tests/models/test_mlp.py',)
OF_NORMALIZATION = ('tests/models/test_normalization.py',)
OF_PLACES = ('tests/models/test_places.py',)
OF_PRECISION = ('tests/models/test_precision.py',)
OF_REMATERIALIZATION = ('tests/models/test_rematerialization.py',)
OF_STATISTICS = ('tests/models/test_normalization.py', 'tests/training/test_batch_statistics.py')
OF_SUMMARY = ('tests/models/test_summary.py',)
OF_UNET = ('tests/models/test_unet.py',)

FAULTS = [
  # Activations.
  Fault(
    "SiLU has GELU's factor in its sigmoid", 'formula', ACTIVATIONS, 'silu',
    'jax.nn.silu(x)', 'x * jax.nn.sigmoid(1.702 * x)', OF_ACTIVATIONS, techniques=('SiLU',),
  ),
  Fault(
    'ReLU is cut off at six', 'formula', ACTIVATIONS, 'relu',
    'jax.nn.relu(x)', 'jax.nn.relu6(x)', OF_ACTIVATIONS, techniques=('ReLU',),
  ),
  Fault(
    'leaky ReLU leaks upward', 'formula', ACTIVATIONS, 'leaky_relu',
    'slope * x', '-slope * x', OF_ACTIVATIONS, techniques=('leaky ReLU',),
  ),
  Fault(
    'the scale of ELU reaches nothing', 'experiments', ACTIVATIONS, 'elu',
    'jax.nn.elu(x, scale)', 'jax.nn.elu(x)', OF_ACTIVATIONS, techniques=('ELU',),
  ),
  Fault(
    'GELU is the approximation by tanh', 'formula', ACTIVATIONS, 'gelu',
    'approximate=False', 'approximate=True', OF_ACTIVATIONS, techniques=('GELU',),
  ),
  Fault(
    'Mish takes the sigmoid of the softplus instead of its tanh', 'formula', ACTIVATIONS, 'mish',
    'jax.nn.mish(x)', 'x * jax.nn.sigmoid(jax.nn.softplus(x))', OF_ACTIVATIONS, techniques=('Mish',),
  ),
  # Attention.
  Fault(
    "attention's logits are not divided by the root of the width", 'factors', 'diffusion/models/attention.py', 'attend',
    'jax.nn.dot_product_attention(query, key, value)', 'jax.nn.dot_product_attention(query, key, value, scale=1.0)',
    OF_ATTENTION,
  ),
  # The convolution.
  Fault(
    "the kernel of an image's gradient is turned in its rows alone", 'formula', CONVOLUTION, '_gradients',
    'jnp.flip(kernel, (0, 1))', 'jnp.flip(kernel, 0)', OF_CONVOLUTION,
  ),
  Fault(
    "rows and columns of a kernel's gradient are exchanged", 'formula', CONVOLUTION, '_gradients',
    'dw.transpose(1, 2, 0, 3)', 'dw.transpose(2, 1, 0, 3)', OF_CONVOLUTION,
  ),
  Fault(
    'a stride-two layer pads before the image instead of after it', 'formula', CONVOLUTION, 'conv',
    '((0, 1), (0, 1))', '((1, 0), (1, 0))', OF_CONVOLUTION,
  ),
  # The transformer.
  Fault(
    'adaLN scales by s instead of 1 + s', 'factors', DIT, '_modulated',
    '1 + scale[:, None]', 'scale[:, None]', OF_DIT + OF_PLACES,
  ),
  Fault(
    "the transformer's gates are not zero at the start", 'factors', DIT, 'TransformerBlock.__call__',
    'kernel_init=nn.initializers.zeros', 'kernel_init=nn.initializers.lecun_normal()', OF_DIT + OF_PLACES,
  ),
  Fault(
    "the transformer's last layer is not zero at the start", 'factors', DIT, 'DiT.__call__',
    'kernel_init=nn.initializers.zeros', 'kernel_init=nn.initializers.lecun_normal()', OF_DIT, at=1,
  ),
  Fault(
    "stochastic depth leaves a transformer block's MLP alone", 'dropout', DIT, 'TransformerBlock.__call__',
    'branch[1](gate_mlp[:, None] * h, mode.keys)', 'gate_mlp[:, None] * h', OF_DIT + OF_PLACES,
    techniques=('stochastic depth',),
  ),
  Fault(
    'both branches of a transformer block are skipped by one draw', 'keys', DIT, 'TransformerBlock.__call__',
    'branch[1]', 'branch[0]', OF_DIT + OF_PLACES, techniques=('stochastic depth',),
  ),
  Fault(
    "dropout is missing in the transformer's last block", 'dropout', DIT, 'DiT.__call__',
    "TransformerBlock(self.heads, self.drops, depth, self.activation, name=f'Block_{i}')",
    "TransformerBlock(self.heads, self.drops if i + 1 < self.depth else (), depth, self.activation, name=f'Block_{i}')",
    OF_DIT + OF_PLACES, techniques=('dropout', 'stochastic depth'),
  ),
  Fault(
    'depth counts from zero in the transformer, so that its last block is skipped too seldom', 'dropout', DIT,
    'DiT.__call__', '(i + 1) / self.depth', 'i / self.depth', OF_DIT + OF_PLACES, techniques=('stochastic depth',),
  ),
  Fault(
    'the other drops reach nothing in the transformer', 'experiments', DIT, 'dit',
    '(dropouts.elements(dropout), *drops)', '(dropouts.elements(dropout),)', OF_DIT + OF_PLACES,
    techniques=('stochastic depth', 'spatial dropout', 'dropout at the input'),
  ),
  # The dropout family.
  Fault(
    'what dropout keeps is not scaled up', 'dropout', DROPOUT, '_thin',
    'x / scale', 'x', OF_DROPOUT, techniques=('dropout', 'dropout at the input', 'spatial dropout', 'DropConnect'),
  ),
  Fault(
    'the scale of what dropout keeps is rounded to bfloat16', 'factors', DROPOUT, '_thin',
    'jnp.promote_types(x.dtype, jnp.float32)', 'x.dtype', OF_DROPOUT, techniques=('dropout',),
  ),
  Fault(
    'dropout at the input acts inside the blocks', 'dropout', DROPOUT, 'at_input',
    "'input'", "'units'", OF_DROPOUT + OF_PLACES, techniques=('dropout at the input',),
  ),
  Fault(
    'spatial dropout drops pixels with all their channels', 'dropout', DROPOUT, 'spatial',
    'x.shape[-1:]', '(*x.shape[:-1], 1)', OF_DROPOUT, techniques=('spatial dropout',),
  ),
  Fault(
    "a square of DropBlock counts by its side where its area should", 'factors', DROPOUT, 'drop_block.make.act',
    'side**2 * starts[0] * starts[1]', 'side * starts[0] * starts[1]', OF_DROPOUT, techniques=('DropBlock',),
  ),
  Fault(
    'DropBlock drops the same squares in every channel', 'keys', DROPOUT, 'drop_block.make.act',
    '(*starts, channels)', '(*starts, 1)', OF_DROPOUT, techniques=('DropBlock',),
  ),
  Fault(
    "every residual block is skipped at the last one's rate", 'dropout', DROPOUT, 'stochastic_depth.make.act',
    '_thin(jax.random.bernoulli(key, 1 - rate * depth), rate * depth, x)',
    '_thin(jax.random.bernoulli(key, 1 - rate), rate, x)', OF_DROPOUT, techniques=('stochastic depth',),
  ),
  Fault(
    'kernels of one shape lose the same weights', 'keys', DROPOUT, 'drop_kernels.thin',
    "rng.tag(f'{jax.tree_util.keystr(path)} {i}')", "rng.tag(f'{i}')", OF_DROPOUT, techniques=('DropConnect',),
  ),
  Fault(
    'all layers of one shape draw one dropout mask', 'keys', DROPOUT, 'Dropout.__call__',
    "rng.tag('/'.join(self.path) + f' {i}' * bool(i))", "rng.tag(f'{self.place} {i}')", OF_DROPOUT,
    techniques=('dropout', 'stochastic depth'),
  ),
  Fault(
    'two drops of one place draw from one key', 'keys', DROPOUT, 'Dropout.__call__',
    "'/'.join(self.path) + f' {i}' * bool(i)", "'/'.join(self.path)", OF_DROPOUT,
    techniques=('dropout', 'spatial dropout'),
  ),
  Fault(
    'a layer of dropout has one mask for all steps and rows', 'dropout', DROPOUT, 'Dropout.__call__.thin',
    'jax.random.fold_in(key, layer)', 'jax.random.key(layer)', OF_DROPOUT, techniques=('dropout',),
  ),
  # What the network is told.
  Fault(
    'the null label is the last class to the network', 'weights', EMBEDDINGS, 'ConditioningEmbedding.__call__',
    'label % (self.num_classes + 1)', 'label % self.num_classes', OF_EMBEDDINGS,
    techniques=('classifier-free guidance', 'label dropout for classifier-free guidance'),
  ),
  Fault(
    "the class vectors start as quiet as Flax's default", 'factors', EMBEDDINGS, 'ConditioningEmbedding.__call__',
    'embedding_init=nn.initializers.normal(1.0)', 'embedding_init=nn.linear.default_embed_init', OF_EMBEDDINGS,
  ),
  Fault(
    'the augmentation label has a bias, which samples lack', 'factors', EMBEDDINGS, 'ConditioningEmbedding.__call__',
    'use_bias=False', 'use_bias=True', OF_EMBEDDINGS, techniques=('non-leaky conditioned augmentation',),
  ),
  # A module as a model.
  Fault(
    'weights are dropped in evaluation and sampling too', 'dropout', FUNCTIONAL, 'from_linen.apply',
    'keys is not None', 'batch_key is not None', OF_FUNCTIONAL + OF_DROPOUT + OF_PLACES, techniques=('DropConnect',),
  ),
  Fault(
    "the decay of recomputed batch statistics does not reach the layers", 'weights', FUNCTIONAL, 'from_linen.apply',
    'statistics_decay=statistics_decay', 'statistics_decay=None', OF_FUNCTIONAL + OF_STATISTICS[1:],
    techniques=('batch normalization',),
  ),
  Fault(
    'batch statistics move only where dropout is on', 'weights', FUNCTIONAL, 'from_linen.apply',
    'update_statistics=update_statistics', 'update_statistics=update_statistics and keys is not None',
    OF_FUNCTIONAL + OF_STATISTICS[1:], techniques=('batch normalization',),
  ),
  Fault(
    "batch statistics are those of each device's rows", 'devices', FUNCTIONAL, 'from_linen.apply',
    'cross_mean=cross_mean', 'cross_mean=identity', OF_FUNCTIONAL + OF_STATISTICS[1:],
    techniques=('batch normalization',),
  ),
  Fault(
    'a network of classes has no null condition, so that both branches of guidance get the label', 'weights',
    FUNCTIONAL, 'from_linen', 'null_label if num_classes else None', 'None', OF_FUNCTIONAL,
    techniques=('classifier-free guidance',),
  ),
  # Initialization.
  Fault(
    "LeCun's variance is by outputs instead of inputs", 'formula', INITIALIZERS, 'lecun',
    'nn.initializers.lecun_normal()', "nn.initializers.variance_scaling(1.0, 'fan_out', 'truncated_normal')",
    OF_INITIALIZERS, techniques=('LeCun initialization',),
  ),
  Fault(
    "He's factor two is missing", 'factors', INITIALIZERS, 'he',
    'nn.initializers.he_normal()', 'nn.initializers.lecun_normal()', OF_INITIALIZERS, techniques=('He initialization',),
  ),
  Fault(
    "Xavier's variance is by inputs alone", 'formula', INITIALIZERS, 'xavier',
    'nn.initializers.xavier_uniform()', 'nn.initializers.lecun_uniform()', OF_INITIALIZERS,
    techniques=('Xavier initialization',),
  ),
  Fault(
    'the gain of orthogonal kernels reaches nothing', 'experiments', INITIALIZERS, 'orthogonal',
    'nn.initializers.orthogonal(gain)', 'nn.initializers.orthogonal()', OF_INITIALIZERS,
    techniques=('orthogonal initialization',),
  ),
  # The magnitude-preserving U-Net.
  Fault(
    'kernels are scaled by the norm of the whole instead of that of each output', 'factors', MAGNITUDE,
    'Kernel.__call__', 'range(len(shape) - 1)', 'range(len(shape))', OF_MAGNITUDE,
    techniques=('magnitude-preserving layers',),
  ),
  Fault(
    'the gains of magnitude-preserving blocks are not zero at the start', 'factors', MAGNITUDE, 'Block.__call__',
    'gain=0.0', 'gain=1.0', OF_MAGNITUDE, techniques=('magnitude-preserving layers',),
  ),
  Fault(
    'the null label is the last class to the magnitude-preserving network', 'weights', MAGNITUDE,
    'MagnitudePreservingUNet._embedding', 'conditioning.condition % (self.num_classes + 1)',
    'conditioning.condition % self.num_classes', OF_MAGNITUDE, techniques=('classifier-free guidance',),
  ),
  Fault(
    'the dropout rate reaches nothing in the magnitude-preserving network', 'experiments', MAGNITUDE, 'unet',
    '(dropouts.elements(dropout), *drops)', 'tuple(drops)', OF_MAGNITUDE,
    techniques=('magnitude-preserving layers', 'dropout'),
  ),
  # The MLP.
  Fault(
    "dropout is missing in the MLP's last block", 'dropout', MLP, 'ResidualMLP.__call__',
    'r = Dropout(self.drops)(self.activation(r), mode.keys)',
    'r = Dropout(self.drops if i + 1 < self.depth else ())(self.activation(r), mode.keys)', OF_MLP + OF_PLACES,
    techniques=('dropout',),
  ),
  Fault(
    "the last layers of the MLP's blocks do not start at zero", 'factors', MLP, 'ResidualMLP.__call__',
    'nn.Dense(self.width, kernel_init=self.output_init)', 'nn.Dense(self.width, kernel_init=self.kernel_init)',
    OF_MLP + OF_PLACES,
    techniques=('zero-initialized outputs',),
  ),
  Fault(
    "the MLP's first block is not told the noise level", 'experiments', MLP, 'ResidualMLP.__call__',
    'dense()(embedding)', 'bool(i) * dense()(embedding)', OF_MLP + OF_PLACES,
  ),
  # Normalization.
  Fault(
    'groups may have one channel', 'factors', NORMALIZATION, 'groups',
    'min(most, channels // 4)', 'min(most, channels)', OF_UNET + OF_NORMALIZATION, techniques=('group normalization',),
  ),
  Fault(
    'layer normalization is over the pixels as well', 'formula', NORMALIZATION, 'layer',
    'nn.LayerNorm()', 'nn.LayerNorm(reduction_axes=tuple(range(1, x.ndim)))', OF_NORMALIZATION,
    techniques=('layer normalization',),
  ),
  Fault(
    'RMS normalization subtracts the mean', 'formula', NORMALIZATION, 'rms',
    'nn.RMSNorm()', 'nn.LayerNorm(use_bias=False)', OF_NORMALIZATION, techniques=('RMS normalization',),
  ),
  Fault(
    'the variance of a batch is not averaged over devices', 'devices', NORMALIZATION, 'BatchNorm.__call__',
    'mode.cross_mean(((x - m) ** 2).mean(axes))', '((x - m) ** 2).mean(axes)', OF_STATISTICS,
    techniques=('batch normalization',),
  ),
  Fault(
    'the running mean is almost that of the last batch alone', 'weights', NORMALIZATION, 'BatchNorm.__call__',
    'd * mean.value + (1 - d) * m', '(1 - d) * mean.value + d * m', OF_STATISTICS, techniques=('batch normalization',),
  ),
  Fault(
    "the recomputed variance keeps the layer's own decay", 'weights', NORMALIZATION, 'BatchNorm.__call__',
    'd * variance.value + (1 - d) * v', 'self.decay * variance.value + (1 - self.decay) * v', OF_STATISTICS,
    techniques=('batch normalization',),
  ),
  # Arithmetic, memory, records.
  Fault(
    'the noise level is rounded to bfloat16', 'factors', PRECISION, 'bfloat16.apply',
    'model.apply(variables, narrow(z), noise, narrow(conditioning), **options)',
    'model.apply(variables, narrow(z), narrow(noise), narrow(conditioning), **options)', OF_PRECISION,
    techniques=('bfloat16 arithmetic',),
  ),
  Fault(
    'batch statistics are rounded to bfloat16', 'weights', PRECISION, 'bfloat16.apply',
    "variables = {**variables, 'params': narrow(variables['params'])}", 'variables = narrow(variables)', OF_PRECISION,
    techniques=('bfloat16 arithmetic', 'batch normalization'),
  ),
  Fault(
    'a rematerialized network keeps nothing of what its blocks hand on', 'experiments', FUNCTIONAL, 'block_output',
    'checkpoint_name(x, BLOCK)', 'x', OF_REMATERIALIZATION, techniques=('rematerialization',),
  ),
  Fault(
    "a module's root mean square is that of its last array", 'record', SUMMARY, 'parameter_rows',
    'total[1] += float(np.square(np.asarray(leaf, np.float64)).sum())',
    'total[1] = float(np.square(np.asarray(leaf, np.float64)).sum())', OF_SUMMARY,
  ),
  Fault(
    'the operations of a scan are counted once', 'record', SUMMARY, '_count',
    "equation.params['length'] if equation.primitive.name == 'scan' else 1", '1', OF_SUMMARY,
  ),
  # The U-Net.
  Fault(
    'scaled residual sums reach the residual blocks but not the attention', 'experiments', UNET, 'Attention.__call__',
    "self.style.add(x, nn.Dense(c, kernel_init=self.style.output_init, name='out')(h))",
    "x + nn.Dense(c, kernel_init=self.style.output_init, name='out')(h)", OF_UNET, techniques=('scaled residual sums',),
  ),
  Fault(
    'long skips bring zeros', 'experiments', UNET, 'concatenated',
    '[h, skip]', '[h, jnp.zeros_like(skip)]', OF_UNET, techniques=('long skips',),
  ),
  Fault(
    "the last convolution of the U-Net's blocks does not start at zero", 'factors', UNET, 'ResidualBlock.__call__',
    'kernel_init=style.output_init', 'kernel_init=init', OF_UNET, techniques=('zero-initialized outputs',),
  ),
  Fault(
    "level 0's dropout rate is that of every level", 'dropout', UNET, 'UNet.__call__.block',
    'self.dropout[level]', 'self.dropout[0]', OF_UNET + OF_PLACES, techniques=('dropout',),
  ),
  Fault(
    'a U-Net asked for no long skips has them', 'experiments', UNET, 'unet',
    'concatenated if skips else alone', 'concatenated', OF_UNET, techniques=('long skips',),
  ),
  Fault(
    'DropConnect does not reach the U-Net', 'experiments', UNET, 'unet',
    'from_linen(module, num_classes, drops)', 'from_linen(module, num_classes)', OF_UNET + OF_PLACES,
    techniques=('DropConnect',),
  ),
]  # fmt: skip
