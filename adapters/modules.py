"""The modules of a model that an adapter may change: the linear ones of a Llama layer, for which engines are started.

Pure names: what their tensors look like, `tensors` knows.
"""

ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
MLP = frozenset({"gate_proj", "up_proj", "down_proj"})

TARGET_MODULES = tuple(sorted(ATTENTION | MLP))
