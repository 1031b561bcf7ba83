"""torch's operators on lists of tensors: one call, and on a GPU a few kernels, for all parameters.

torch.optim is built on them, but torch documents none, and nothing documented takes their place: a loop over the
tensors rounds alike and costs a call for each. So their private names stand here alone.
"""

import torch

add_ = torch._foreach_add_
copy_ = torch._foreach_copy_
lerp = torch._foreach_lerp
lerp_ = torch._foreach_lerp_
mul_ = torch._foreach_mul_
