"""A Hugging Face folder here and in transformers: the same next tokens, the same perplexity, the same conversations.

    python benchmarks/parity.py smollm2/

Unusual: nothing is timed. What is exported from the folder is read back by transformers and by us, and goes on with the
same loss; an adapter of noise is opened by peft upon the folder.
"""

# T tokens, V vocabulary

import argparse
import math
import random
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORDS = ["the", "river", "bends", "where", "old", "stones", "lie", "and", "children", "count", "boats", "until", "home"]
TEXT = (
    "The city had grown around its harbour, and the harbour around a single pier. Every morning the boats came in with "
    "herring, with salt, with letters, and every evening they left with cloth. In the winter of that year the water "
    "froze for the first time in a century. People walked out upon it, carefully at first, then with carts. 他们在冰上"
    "点起了火。 def area(r): return 3.14159 * r ** 2  # a circle\n\n1. Bread 2. Milk 3. A new lamp\n"
)


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Talks of several turns, with and without words of the system, with code, Chinese and empty lines."""
    draw = random.Random(0)
    spices = [
        "",
        "\n\n",
        "<b>bold</b>",
        "你好，世界。",
        "`x = {1: 'a'}`",
        "  spaces  ",
        "\ttab",
        "é ü ß",
        "🙂",
        "%s {0}",
    ]
    talks = []
    for number in range(count):
        talk = [{"role": "system", "content": f"Be brief, {number}."}] if number % 2 else []
        for turn in range(1 + number % 4):
            roles = ("user", "assistant")[: 1 if turn == number % 4 and number % 3 == 0 else 2]
            talk += [{"role": role, "content": " ".join(draw.sample(WORDS, 6)) + spices[number]} for role in roles]
        talks.append(talk)
    return talks


def distributions(ours: Any, theirs: Any, tokenizer: Any) -> dict[str, float]:
    """The largest difference of any next-token probability, and both perplexities."""
    ids = torch.tensor([tokenizer(TEXT, add_special_tokens=False).input_ids])
    logits = ours.gpt.unembed(ours.gpt(ids))[0], theirs(ids).logits[0]  # (T, V) each

    def perplexity(of: Tensor) -> float:
        return math.exp(float(torch.nn.functional.cross_entropy(of[:-1], ids[0, 1:])))

    return {
        "ids that differ": float(ours.tokenizer.encode(TEXT) != ids[0].tolist()),
        "largest difference of a probability": float((logits[0].softmax(-1) - logits[1].softmax(-1)).abs().max()),
        "perplexity here": perplexity(logits[0]),
        "perplexity in transformers": perplexity(logits[1]),
    }


def rendered_alike(ours: Any, tokenizer: Any) -> str:
    """How many of ten conversations become the same ids, closed and with a reply to come."""
    from alignlab.text.chat import JinjaChat

    chat, alike = JinjaChat(ours.tokenizer), [0, 0]
    talks = conversations(10)
    for talk in talks:
        for opens in (False, True):
            expected = tokenizer.apply_chat_template(talk, add_generation_prompt=opens, return_dict=False)
            alike[opens] += chat.conversation(talk, opens=opens).ids.tolist() == list(expected)
    return f"{alike[0]} of {len(talks)}, opened {alike[1]} of {len(talks)}"


def interchange(folder: str, place: Path, ours: Any) -> dict[str, float]:
    """By how much logits differ of what is exported, in transformers and back here; and of an adapter in peft."""
    import peft
    from transformers import AutoModelForCausalLM

    import alignlab
    from alignlab.export import export
    from alignlab.tuning.lora import insert
    from alignlab.tuning.peft_folder import write_folder

    ids = torch.tensor([ours.tokenizer.encode(TEXT)[:64]])
    plain = ours.gpt.unembed(ours.gpt(ids))
    export(folder, place / "out")
    theirs = AutoModelForCausalLM.from_pretrained(place / "out", dtype=torch.float32).eval()
    back = alignlab.load(place / "out").gpt
    found = {
        "exported, in transformers": theirs(ids).logits - plain,
        "exported, back here": back.unembed(back(ids)) - plain,
    }
    insert(back, ["query", "value"], rank=8, scale=2.0, dropout=0.0, is_dora=False)
    torch.manual_seed(0)
    for name, parameter in back.named_parameters():
        if name.endswith("lora_b"):
            parameter.normal_(std=0.02)
    write_folder(back.eval(), place / "adapter", scale=2.0, base=str(place / "out"))
    with_peft = peft.PeftModel.from_pretrained(theirs, place / "adapter").eval()
    found["adapter, in peft"] = with_peft(ids).logits - back.unembed(back(ids))
    sizes = {"adapter file, MB": (place / "adapter" / "adapter_model.safetensors").stat().st_size / 1e6}
    return {name: float(difference.abs().max()) for name, difference in found.items()} | sizes


@torch.no_grad()
def main() -> None:
    """Prints each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    folder = parser.parse_args().folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import alignlab

    ours, tokenizer = alignlab.load(folder), AutoTokenizer.from_pretrained(folder)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, value in distributions(ours, theirs, tokenizer).items():
        print(f"{name:36} {value:.7g}")
    print(f"{'conversations with equal ids':36} {rendered_alike(ours, tokenizer)}")
    del theirs
    with tempfile.TemporaryDirectory() as place:
        for name, value in interchange(folder, Path(place), ours).items():
            print(f"{name:36} {value:.3g}")


if __name__ == "__main__":
    main()
