"""Turn a GGUF file into a folder that vLLM and transformers load: `python -m serve_app.local.convert FILE FOLDER`."""

import sys
from pathlib import Path


def convert(gguf: Path, target: Path) -> None:
    """Write weights (float32), configuration and tokenizer of `gguf` into `target`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, quantization_config=GgufConfig(dequantize=True))
    model.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
