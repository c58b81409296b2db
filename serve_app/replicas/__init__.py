"""The language models: what may be asked for, how it is deployed, how it is asked. Only here is vLLM spoken."""
