"""How a row becomes a prompt and a response.

    alpaca   the Stanford Alpaca prompts, with and without input, as Alpaca-LoRA spells them: the
             response begins on the line after `### Response:`
    chat     the tokenizer's own chat template: one user message (instruction, empty line, input)
             and the assistant's answer
    plain    instruction, then input, each on a line of its own, and nothing else
    text     as plain, but there is no prompt: the whole row is the response, so all of it is learnt
             (further pretraining on notes); held-out rows are scored as plain

A response ends with the tokenizer's end token, so the model learns to stop.
"""

from typing import Any, Final, Literal

from protocol.states import Reason

from .data import Row
from .errors import Refusal

Template = Literal["alpaca", "chat", "plain", "text"]

_ALPACA: Final = (
    "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT: Final = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def alpaca_prompt(instruction: str, context: str) -> str:
    """The Alpaca prompt; `context` is empty for a row without input."""
    if context:
        # Two steps, because a row's text may hold braces.
        head, tail = _ALPACA_INPUT.split("{instruction}")
        middle, end = tail.split("{input}")
        return head + instruction + middle + context + end
    head, end = _ALPACA.split("{instruction}")
    return head + instruction + end


def plain_prompt(instruction: str, context: str) -> str:
    """Instruction and input, each ended by a line break."""
    return f"{instruction}\n{context}\n" if context else f"{instruction}\n"


def check_template(tokenizer: Any, template: Template) -> None:
    """Check that `tokenizer` can do what the template needs.

    Raises:
        Refusal: it has no end token, or no chat template where one is asked for.
    """
    if tokenizer.eos_token_id is None:
        raise Refusal(
            Reason.MODEL_UNREADABLE,
            "the tokenizer has no end token, so no response could be learnt to end; set eos_token "
            "in its tokenizer_config.json",
        )
    if template == "chat" and not tokenizer.chat_template:
        raise Refusal(
            Reason.MODEL_UNREADABLE,
            'the tokenizer has no chat template; use prompt.template = "alpaca" or "plain", or an '
            "instruction-tuned model",
        )


def texts(tokenizer: Any, template: Template, row: Row, response: str) -> tuple[str, str]:
    """The prompt's text and the response's, before the end token."""
    if template == "alpaca":
        return alpaca_prompt(row.instruction, row.input), response
    if template == "plain":
        return plain_prompt(row.instruction, row.input), response
    if template == "text":
        return "", plain_prompt(row.instruction, row.input) + response
    content = f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
    messages = [{"role": "user", "content": content}]
    prompt = str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    )
    messages.append({"role": "assistant", "content": response})
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
    # Some templates rewrite earlier turns; then the answer stands by itself.
    return prompt, whole[len(prompt) :] if whole.startswith(prompt) else response
