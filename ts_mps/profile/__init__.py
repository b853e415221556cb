"""``ts-mps profile``: measure one model in real workers, each of them driven as TorchServe's frontend would drive it.

Modules import downwards: ``measure`` decides what is measured and in which order; ``single`` and ``scaling`` measure
one worker and several at once; ``team`` starts workers in a ``stage`` (runtime folder, unpacked archive, MPS daemon);
``frontend``, ``messages`` and ``payload`` speak TorchServe's protocol; ``memory`` asks NVML; ``arithmetic`` is pure.
``worker`` and ``feeder`` are the programs of the processes that are started.
"""
