"""How llama.cpp cuts a list of texts: writes llamacpp_tokens.json, the independent truth for `paradec.io.tokenizer`.

    python -m venv /tmp/llamacpp && /tmp/llamacpp/bin/python -m pip install xllamacpp
    /tmp/llamacpp/bin/python tests/golden/make_llamacpp_tokens.py smollm2-135m=FILE.gguf gemma3-270m=FILE.gguf

xllamacpp is llama.cpp built for Python. Its server runs inside the process and is asked over the loopback address.
"""

import json
import random
import sys
import urllib.request
from pathlib import Path

# fmt: off
TEXTS = [
    "", " ", "  ", "Hello, world!", " leading", "trailing ", "two  spaces   three    four     five", "\n", "\n\n",
    "a\n\n\nb", "\t\ttabs\t and\n\ttabs", "1234567890", "3.14159 and 2,718 and 10x", "x  9  10", "1e-5 × 10²³ = ½ Ⅷ ٣٤",
    "don't I'll you've WE'RE HE'S it's 'tis", "camelCase snake_case SCREAMING_CASE XMLHttpRequest",
    "def f(x):\n    return {k: v**2 for k, v in x.items() if v != 0}\n\n\nclass A:\n\tpass\n",
    "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 42); return 0; }", "https://example.org/a?b=c&d=%20#frag",
    "Größe, façade, naïve, Ångström, œuvre", "Привет, мир!",
    "你好，世界！今天天气怎么样？", "こんにちは世界。", "안녕하세요 세계",
    "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "e\u0301 vs é, n\u0303", "😀 👨‍👩‍👧‍👦 🇩🇪 👍🏽", "𝔘𝔫𝔦 𐍈 𠜎",
    "zero\u200bwidth\u00a0nbsp\u3000wide\u2028line", "null\u0000bell\u0007esc\u001b[0m", "\r\nwindows\r\n\r\nlines",
    "a" * 50, "!!!???...---===", "   \n   \n  x", "x \n y", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "text<|endoftext|>more", "a <|im_end|> b", "<repo_name>foo<file_sep>", "<|not_special|>", "<bos>hi<eos>",
    "<start_of_turn>user\nHi<end_of_turn>\n", "<table><tr><td>x</td></tr></table>", "<0x0A> literal", "[multimodal]",
    "<unused5>", "</s> <s> <unk> <pad>", "lower▁block▁",
]
# fmt: on


def random_texts(count: int = 40) -> list[str]:
    draw = random.Random(0)
    pools = [
        "abc XYZ 019.,!?\n\t'\"",
        "äöüßéñ",
        "日本語中文한국",
        "😀👍🏽\u200d",
        "{}[]()<>=+-*/_#@%&|\\~`",
        "  \n\n\t  ",
        "अआि",
    ]
    return ["".join(draw.choice(draw.choice(pools)) for _ in range(draw.randint(5, 40))) for _ in range(count)]


def tokens(path: str, texts: list[str]) -> list[list[int]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup, params.n_parallel, params.fit_params = path, 256, False, 1, False
    server = xllamacpp.Server(params)

    def ask(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(server.listening_address + "/tokenize", body)
        return json.load(urllib.request.urlopen(request))["tokens"]

    return [ask(text) for text in texts]


if __name__ == "__main__":
    every = TEXTS + random_texts()
    found = {name: tokens(path, every) for name, path in (argument.split("=", 1) for argument in sys.argv[1:])}
    out = Path(__file__).with_name("llamacpp_tokens.json")
    out.write_text(json.dumps({"texts": every, **found}, ensure_ascii=True) + "\n")
