"""vLLM for real: skipped without MOT_VLLM_PYTHON."""
