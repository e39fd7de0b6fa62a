"""The side of transformers and PyTorch in benchmarks/accelerator.py, in a process of its own.

The same sizes, in eager mode with `sdpa`: a forward pass without gradients; hooks on every
down_proj and fc2 that reduce on the spot; gates in the same places, of each example for the
attribution and of all examples where they are learned; `generate`. As in manu_jax, only the forward
pass has the logits of all tokens.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import accelerator_cases as cases
import planned
import torch
from accelerator_cases import Result, Side
from transformers import LlavaConfig, LlavaForConditionalGeneration

THRESHOLD = 0.1
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MARGINS = (2.0, 3.0)  # of what is to be forgotten, and of what is kept


def main() -> None:
    options, start = cases.child_options(), time.monotonic()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    side = Side(cases.TORCH, f"{device}, torch {torch.__version__}", [])
    side.results += [Result(case) for case in cases.torch_cases(options)]

    def told(what: str) -> None:
        side.write(options.output)
        print(f"transformers: {what} after {time.monotonic() - start:.0f} s", flush=True)

    values, lengths = planned.sizes(is_small=options.small)
    model = random_model(values)
    told("weights made")
    calls = []
    for result in side.results:
        inputs = inputs_of(values, lengths, result.case.batch)
        call = functools.partial(run, result.case.part, model, inputs, lengths)
        cases.attempted(result, functools.partial(_first_call, result, call))
        calls.append((result, call))
    told("steps run once")
    cases.take_turns(side, calls, options=options)
    told("steps timed")


def random_model(values: dict[str, Any]) -> Any:
    """Return the model of a `config.json` with random weights, in bfloat16, made on the device."""
    with torch.device(DEVICE):
        model = LlavaForConditionalGeneration._from_config(
            LlavaConfig.from_dict(values), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    model.generation_config.eos_token_id = None  # every answer has its full length
    return model.eval().requires_grad_(False)


def inputs_of(values: dict[str, Any], lengths: Any, size: int) -> dict[str, dict[str, Any]]:
    """Return a batch of samples with an image, and one of text alone."""
    vision, token = values["vision_config"], values["image_token_index"]
    side = vision["image_size"]
    num_patches = (side // vision["patch_size"]) ** 2
    generator = torch.Generator(DEVICE).manual_seed(0)

    def text(length: int) -> dict[str, Any]:
        ids = torch.randint(3, token, (size, length), generator=generator, device=DEVICE)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    image = text(lengths.sample)
    image["input_ids"][:, planned.FIRST : planned.FIRST + num_patches] = token
    pixels = torch.randn((size, 3, side, side), generator=generator, device=DEVICE)
    image["pixel_values"] = pixels.to(torch.bfloat16)
    return {"image": image, "text": text(lengths.text)}


def run(part: str, model: Any, inputs: dict[str, dict[str, Any]], lengths: Any) -> None:
    """Do one step, and wait for it."""
    STEPS[part](model, inputs, lengths)
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def forward(model: Any, inputs: dict[str, dict[str, Any]], lengths: Any) -> Any:
    with torch.inference_mode():
        return model(**inputs["image"], use_cache=False).logits


def statistics(model: Any, inputs: dict[str, dict[str, Any]], lengths: Any) -> Any:
    sums: dict[str, torch.Tensor] = {}

    def reduce(name: str, hidden: torch.Tensor) -> None:
        z_BF = hidden.mean(1, dtype=torch.float32)
        sums[name] = torch.stack(moments(z_BF))

    with torch.inference_mode(), hooked(model, reduce):
        model(**inputs["image"], use_cache=False, logits_to_keep=1)
    return sums


def attribution(model: Any, inputs: dict[str, dict[str, Any]], lengths: Any) -> Any:
    gates: dict[str, torch.Tensor] = {}

    def gate(name: str, hidden: torch.Tensor) -> torch.Tensor:
        shape = (len(hidden), 1, hidden.shape[-1])
        gates[name] = torch.ones(shape, dtype=hidden.dtype, device=DEVICE, requires_grad=True)
        return hidden * gates[name]

    with hooked(model, gate):
        total = log_odds(model, inputs["image"], lengths).sum()
    # Nothing uses what the last layer of the vision tower gives.
    found = torch.autograd.grad(total, list(gates.values()), allow_unused=True)
    return {
        name: torch.stack(moments(gradient[:, 0].float()))
        for name, gradient in zip(gates, found, strict=True)
        if gradient is not None
    }


def learned_gates(model: Any, inputs: dict[str, dict[str, Any]], lengths: Any) -> Any:
    scores: dict[str, torch.Tensor] = {}

    def gate(name: str, hidden: torch.Tensor) -> torch.Tensor:
        if name not in scores:
            ones = torch.ones(hidden.shape[-1], device=DEVICE)
            scores[name] = ones.requires_grad_()
        return hidden * scores[name].to(hidden.dtype)

    total = torch.zeros((), device=DEVICE)
    with hooked(model, gate):
        for batch in inputs.values():
            odds_B = log_odds(model, batch, lengths)
            num_forget = max(len(odds_B) // 4, 1)
            total = total + torch.relu(odds_B[:num_forget] + MARGINS[0]).mean()
            total = total + torch.relu(MARGINS[1] - odds_B[num_forget:]).mean()
    total.backward()
    torch.optim.Adam(list(scores.values()), lr=0.05).step()
    return scores


def answers(model: Any, inputs: dict[str, dict[str, Any]], lengths: Any) -> Any:
    with torch.inference_mode():
        return model.generate(
            **inputs["image"],
            do_sample=False,
            max_new_tokens=lengths.new,
            min_new_tokens=lengths.new,
            pad_token_id=0,
        )


STEPS: dict[str, Callable[[Any, dict[str, dict[str, Any]], Any], Any]] = {
    "forward": forward,
    "statistics": statistics,
    "attribution": attribution,
    "learned gates": learned_gates,
    "answers": answers,
}


def moments(z_BF: torch.Tensor) -> list[torch.Tensor]:
    """Return what statistics are made of, [F] each: Σ|z|, Σz, Σz² and how many are above τ."""
    size_BF = z_BF.abs()
    above_F = (size_BF > THRESHOLD).sum(0).to(z_BF.dtype)
    return [size_BF.sum(0), z_BF.sum(0), (z_BF * z_BF).sum(0), above_F]


def log_odds(model: Any, batch: dict[str, Any], lengths: Any) -> torch.Tensor:
    """Return the mean log-odds of each example's last tokens, which are its answer. [B]."""
    count = lengths.answer
    logits_BAV = model(**batch, use_cache=False, logits_to_keep=count + 1).logits[:, :-1].float()
    answer_BA1 = batch["input_ids"][:, -count:, None]
    chosen_BA = logits_BAV.gather(-1, answer_BA1)[..., 0]
    others_BA = logits_BAV.scatter(-1, answer_BA1, -torch.inf).logsumexp(-1)
    return (chosen_BA - others_BA).mean(-1)


@contextlib.contextmanager
def hooked(model: Any, action: Callable[[str, torch.Tensor], Any]) -> Iterator[None]:
    """Call action(name, neurons) before every down projection, which takes what it returns."""
    handles = []
    for name, module in model.named_modules():
        if name.endswith(("mlp.down_proj", "mlp.fc2")):

            def hook(_: Any, given: tuple[torch.Tensor], name: str = name) -> Any:
                return action(name, given[0])

            handles.append(module.register_forward_pre_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_call(result: Result, call: Callable[[], None]) -> None:
    """Run a case once, and note its peak memory."""
    if DEVICE != "cuda":
        call()
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        call()
    finally:
        result.peak = torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
