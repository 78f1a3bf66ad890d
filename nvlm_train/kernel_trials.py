"""What only trying tells: whether torch's compiler works on a machine, and whether its torch adds a product up in fp32."""

from nvlm_train.optional import load, reason


def compiler_problem(device: str) -> str | None:
    """Why torch's compiler cannot be used for `device` (cpu | cuda): no C++ compiler, no Triton, ... None if it can. Takes seconds."""
    torch = load("torch")
    try:
        torch.compile(_doubled)(torch.ones(8, device=device))
    except Exception as error:      # noqa: BLE001 - the compiler raises whatever its tools raise
        return reason(error)
    return None


def _doubled(x):
    return x.sin() * 2


def product_problem(device: str) -> str | None:
    """Why a bf16 product cannot be added to an fp32 matrix in one call, None if it can. torch 2.8 has the call, and takes an fp32
    matrix to add to only in later versions."""
    torch, ours = load("torch"), load("nvlm_train.model.weight_gradient")
    if isinstance(ours, Exception):
        return reason(ours)
    try:
        left, right = (torch.ones(64, width, dtype=torch.bfloat16, device=device) for width in (16, 32))
        total = torch.ones(16, 32, device=device)
        ours.add_product(total, left, right)
        wrong = bool((total != 65).any())
    except (RuntimeError, TypeError) as error:
        return reason(error)
    return "it gives another sum" if wrong else None
