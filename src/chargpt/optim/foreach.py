"""torch's operators on lists of tensors: one call, and on a GPU a few kernels, for all parameters.

torch.optim uses them, but they are undocumented and have no documented equivalent: a loop over the tensors gives the
same result but costs one call per tensor. Their private names are used only in this file.
"""

# pyright: reportPrivateImportUsage=false

import torch

add_ = torch._foreach_add_
copy_ = torch._foreach_copy_
lerp = torch._foreach_lerp
lerp_ = torch._foreach_lerp_
mul_ = torch._foreach_mul_
